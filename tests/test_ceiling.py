"""Re-branching against ComfyUI's own sampling, its figures on clips whose fate is known, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from foresight.evaluation.bench import Bench
from foresight.evaluation.ceiling import main, rebranch, rebranching, steps_at
from foresight.evaluation.report_ceiling import markdown, picture, summary
from foresight.evaluation.suites import load_suite

STEPS = 4


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("comfy", reason="needs ComfyUI")
    from foresight.evaluation.backend import InProcess
    from foresight.evaluation.demo_family import DemoFamily

    return InProcess(DemoFamily(steps=STEPS, sampler="euler"))


def test_a_branch_is_what_comfyui_makes_of_the_x0_prediction(backend):
    from foresight.sampling.run import monitored_sample

    inputs = backend.family.inputs("a red circle", 5)
    with torch.inference_mode():
        plain = monitored_sample(inputs, keep_steps=True)
        other = monitored_sample(backend.family.inputs("a red circle", 77)).latent["samples"]
    x0 = plain.steps_x0["samples"]
    # At the first step nothing is left of it but noise: the branch is the plain run of the other seed.
    assert torch.allclose(rebranch(inputs, x0[:1], 1, 77)["samples"], other, atol=1e-3)
    # The later it branches, the closer it stays to the clip.
    away = [
        (rebranch(inputs, x0[step - 1 : step], step, 77)["samples"] - plain.latent["samples"]).abs().mean().item()
        for step in (1, 2, STEPS)
    ]
    assert away == sorted(away, reverse=True) and away[-1] < 0.3 * away[0]


def test_a_clip_with_its_branches(backend):
    from foresight.evaluation.backend import demo_judge

    (item,) = load_suite("demo", 1).items
    row = rebranching("rebranch@2+4x1", STEPS, (2, 4), 1).run(Bench(backend, item, demo_judge, {}), 1)
    branches = json.loads(json.dumps(row["report"]))["branches"]
    assert [step for step, _ in row["trace"]] == list(range(1, STEPS + 1)) and isinstance(row["right"], bool)
    assert list(branches) == ["2", "4"]
    assert all(len(outcomes) == 1 and all(isinstance(good, bool) for good, _ in outcomes)
               for outcomes in branches.values())  # fmt: skip


def test_the_command_goes_on_where_it_stopped_and_writes_page_and_picture(comfyui, tmp_path, capsys):
    arguments = ["--seeds", "1", "--steps", str(STEPS), "--at", "2", "--branches", "1", "--workers", "1"]
    for prompts in ("1", "2"):
        main([*arguments, "--prompts", prompts, "--out", str(tmp_path)])
    document = json.loads((tmp_path / "ceiling.json").read_text())
    assert document["summary"]["clips"] == 2 and list(document["summary"]["steps"]) == ["2"]
    assert "2 clips of 2 prompts" in (tmp_path / "ceiling.md").read_text() and (tmp_path / "ceiling.png").exists()
    assert "1/1" in (shown := capsys.readouterr().err) and "2/2" not in shown


def records(known: float, prompts: int = 30, seeds: int = 6) -> list[dict]:
    """At step 5 nothing is decided; at step 10 a branch comes out like its clip with chance `known`."""
    generator, made = np.random.default_rng(0), []
    for prompt in range(prompts):
        ease = generator.random()
        for seed in range(seeds):
            good = bool(generator.random() < ease)
            late = [[good if generator.random() < known else not good, 0.2] for _ in range(4)]
            early = [[bool(generator.random() < ease), 0.2] for _ in range(4)]
            trace = [[5, ease], [10, good + generator.normal(0, 0.5)]]
            made.append({"prompt_index": prompt, "prompt": "x", "seed": seed, "right": good, "final_score": 0.2,
                         "trace": trace, "report": {"branches": {"5": early, "10": late}}})  # fmt: skip
    return made


def test_the_ceiling_is_a_coin_before_and_certain_after_the_outcome_is_decided():
    found = summary(records(1.0), 0.22)["steps"]
    assert found["10"]["ceiling"]["value"] == 1.0
    assert found["5"]["ceiling"]["low"] < 0.5 < found["5"]["ceiling"]["high"], "hard prompts alone are no foresight"
    assert found["5"]["score"]["value"] == 0.5 and 0.7 < found["10"]["score"]["value"] < 1
    assert found["10"]["share_of_ceiling"] == pytest.approx(2 * found["10"]["score"]["value"] - 1)
    half = summary(records(0.8), 0.22)["steps"]["10"]["ceiling"]["value"]
    assert 0.8 < half < 1.0


def test_without_a_judge_the_final_score_decides():
    judged = records(1.0)
    scored = [row | {"right": None, "final_score": 0.3 if row["right"] else 0.1, "report": {"branches":
              {k: [[None, 0.3 if good else 0.1] for good, _ in v] for k, v in row["report"]["branches"].items()}}}
              for row in judged]  # fmt: skip
    assert summary(scored, 0.22) == summary(judged, 0.22)


def test_page_and_steps():
    page = markdown({
        "environment": {"command": "c", "date": "d", "machine": "m"}, "settings": {"branches": 4, "schedule": 50},
        "summary": summary(records(1.0), 0.22),
    })  # fmt: skip
    assert "| 10 | 1.000 (1.000 to 1.000) |" in page and "nan" not in page
    assert steps_at(None, 50) == (3, 5, 8, 10, 14, 20) and steps_at(None, 4) == (1, 2)
    assert steps_at([7], 8) == (7,)


def test_prompts_that_always_fail_tell_nothing(tmp_path):
    alike = [row | {"right": False} for row in records(1.0, prompts=3)]
    found = summary(alike, 0.22)
    assert found["prompts_with_both_outcomes"] == 0 and found["steps"]["10"]["ceiling"] is None
    document = {"environment": {"command": "c", "date": "d", "machine": "m"},
                "settings": {"branches": 4, "schedule": 50}, "summary": found}  # fmt: skip
    json.dumps(document, allow_nan=False)
    assert "| 10 | - | - | - |" in markdown(document)
    picture(document, tmp_path / "ceiling.png")


@pytest.mark.parametrize(
    "arguments, message",
    [(["--at", "60"], "step 60"), (["--seeds", "0"], "--seeds is 0"), (["--suite", "none.txt"], "none.txt")],
)
def test_the_command_names_what_is_wrong(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--out", str(tmp_path)])
