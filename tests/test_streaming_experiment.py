"""The evidence on streaming students: each as it was trained to be sampled, resumable, nothing told twice."""

import json

import pytest
import torch
from safetensors.torch import save_file

from foresight.demo import preset
from foresight.demo.script import LATENTS
from foresight.demo.wan_dit import WanTransformer
from foresight.evaluation.comfyui import ROOT
from foresight.evaluation.results import environment, filled
from foresight.evaluation.suites import load_suite
from foresight.lab.experiments import streaming
from foresight.lab.experiments.streaming_claims import CLAIMS, HOLDS, NOT, OPEN, comparisons, verdicts
from foresight.lab.experiments.streaming_page import summary
from foresight.lab.training.streams import How
from foresight.trials.stream_plans import GateSettings


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(streaming, "TIMED", 2)
    monkeypatch.setattr(streaming, "STEPS", 2)  # of the demo's transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal model, and a variant of two steps with a noisy history."""
    path = tmp_path_factory.mktemp("students")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {k: v.contiguous() for k, v in WanTransformer(layers=1, ffn_dim=128).state_dict().items()}
    save_file(weights, path / "causal.safetensors")
    told = {"digits": "21", "last": "100.0", "history": "noisy", "level": "0.1"}
    save_file(weights, path / "self_forcing.safetensors")
    save_file(weights, path / "variant.safetensors", told)
    return path


def tell(folder, *more, whole=False):
    streaming.main([str(folder), "--validation", "--prompts", "2", "--out", str(folder / "out"), *more])
    document = json.loads((folder / "out" / "streaming_students.json").read_text())
    return document if whole else document["tables"]


def test_students_are_told_by_their_own_schedule_and_kept_until_their_weights_change(folder, monkeypatch):
    tables = tell(folder, "--table", "students")
    forwards = {row["name"]: row["forwards"] for row in tables["students"]}
    # 2121212 steps and a pass for each of the first six; guidance counts once.
    assert forwards == {
        "causal, 8": 62, "causal, 4": 34, "self_forcing, 4": 34, "self_forcing, 4322222": 23, "variant, 21": 17,
        "whole clips, 2": 2,
    }  # fmt: skip
    assert [row["name"] for row in tables["students"] if "change" not in row] == ["self_forcing, 4"]
    assert all(0 <= row["right"]["value"] <= 1 for row in tables["students"])

    made = []

    def refuse(arm, *_):
        made.append(arm.student)
        raise InterruptedError

    monkeypatch.setattr(streaming, "run", refuse)
    assert tell(folder, "--table", "students") == tables and not made
    changed = folder / "causal.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InterruptedError):
        tell(folder, "--table", "students")
    assert made == ["causal"]


def test_no_two_arms_are_the_same_and_each_is_compared_with_one_that_is_there():
    arms = streaming.arms({"variant": How("21"), "ablation_full": How("4322222"), "ablation_clean": How("4322222")})
    keys = [arm.key for arm in arms]
    assert len(set(keys)) == len(keys)
    assert all(arm.against in keys for arm in arms if arm.against)
    assert [arm.how for arm in arms if arm.student == "variant"] == [How("21")]
    assert {arm.how.window for arm in arms if arm.table == "window"} == set(range(1, 8))
    assert [arm.student for arm in arms if arm.table == "ablation"] == ["ablation_full", "ablation_clean"]
    ablations = ("noisy", "clean", "no_flow", "matching", "four_steps", "latent", "difference")
    keys += [f"ablation: ablation_{name}, {'4444444' if name == 'four_steps' else '4322222'}" for name in ablations]
    assert {claim.arm for claim in CLAIMS} | {claim.rival for claim in CLAIMS} <= set(keys)


def test_ablations_may_lie_in_a_folder_of_their_own(folder, tmp_path):
    (tmp_path / "ablations").mkdir()
    for name in ("ablation_full", "other"):
        (tmp_path / "ablations" / f"{name}.safetensors").write_bytes((folder / "variant.safetensors").read_bytes())
    assert [*streaming.students_in(tmp_path)] == ["ablation_full"]
    table = tell(tmp_path, "--table", "ablation")["ablation"]
    assert [row["name"] for row in table] == ["ablation_full, 21"]


def test_students_of_other_steps_of_training_are_in_no_claim(tmp_path):
    weights = {k: v.contiguous() for k, v in WanTransformer(layers=1, ffn_dim=128).state_dict().items()}
    for name, steps in (("full", "100"), ("clean", "100"), ("no_flow", "200")):
        save_file(weights, tmp_path / f"ablation_{name}.safetensors", {"digits": "4322222", "steps": steps})
    document = tell(tmp_path, "--table", "ablation", whole=True)
    assert {*document["comparisons"]} == {"forcing"} and len(document["tables"]["ablation"]) == 3


def test_what_was_not_begun_is_open(folder):
    document = tell(folder, "--minutes", "0", whole=True)
    assert document["tables"] == {} and {claim["verdict"] for claim in document["claims"]} == {OPEN}
    assert "not run" in (folder / "out" / "streaming_students.md").read_text()


def test_prompts_that_change_are_told_part_by_part_and_still_ones_left_out(folder):
    arm = next(arm for arm in streaming.arms({}) if arm.key == "turns: self_forcing, 4322222")
    moving = sum(streaming.moves(item) for item in load_suite("demo_validation", 6).items)
    with torch.inference_mode():
        row = streaming.told(arm, {arm.key: streaming.run(arm, folder, "demo_validation", 6)})
    assert row["prompts"] == moving and 0 < moving < 6
    assert len(row["segments"]) == 2 and 0 <= row["later_right"]["value"] <= 1
    document = {"prompts": 6, "split": "test", "claims": [], "timings": [], "trained": {}, "tables": {"turns": [row]},
                "environment": environment("it")}  # fmt: skip
    assert "first part" in streaming.markdown(document)


def test_gates_on_long_clips_are_told_part_by_part(folder, monkeypatch):
    """As the demo's graph sets them; its script, of prompts that state a motion, and paired over all parts."""
    assert streaming.GATED == 3 * LATENTS
    monkeypatch.setattr(streaming, "GATED", 9)
    arms = {arm.name: arm for arm in streaming.arms({}) if arm.table == "long gate"}
    assert arms["the demo's gate"].spending.settings(0.0) == GateSettings(preset.STREAM_TAU, tries=preset.STREAM_TRIES)
    chosen, results = [arms["no gate"], arms["the demo's gate"]], {}
    assert all(arm.how.window == LATENTS and arm.latents == 9 and arm.moving for arm in chosen)
    with torch.inference_mode():
        for arm in chosen:
            results[arm.key] = streaming.run(arm, folder, "demo_validation", 1)
    plain, gated = (streaming.told(arm, results) for arm in chosen)
    assert plain["forwards"] == 44 < gated["forwards"] <= 66 and len(gated["segments"]) == 2
    assert "parts_change" not in plain and -1 <= gated["parts_change"]["value"] <= 1
    document = {"prompts": 1, "split": "test", "claims": [], "timings": [], "trained": {},
                "tables": {"long gate": [plain, gated]}, "environment": environment("it")}  # fmt: skip
    (line,) = [line for line in streaming.markdown(document).splitlines() if line.startswith("| the demo's gate")]
    assert line.count("|") == 9


def result(*rights, motion=1.0, saturation=((0.3, 0.3),)):
    """Of 40 prompts, whose segments are right as in `rights`, over and over."""
    rows = [rights[at % len(rights)] for at in range(40)]
    saturated = [list(saturation[at % len(saturation)]) for at in range(40)]
    moved = [[motion if at % 3 else None, motion] for at in range(40)]
    return {"right": rows, "motion": moved, "saturation": saturated}


def claims_of(results):
    document = {"comparisons": comparisons(results)}
    return {claim.name: row for claim, row in zip(CLAIMS, verdicts(document), strict=True)}


def test_verdicts_come_from_intervals():
    own, rival = "students: diagonal, 4322222", "students: self_forcing, 4"
    good, bad, mixed = result([True, True]), result([True, False]), result([True, True], [True, False])
    kept = {name: claims_of({own: mine, rival: good})["kept"] for name, mine in (("good", good), ("mixed", mixed))}
    assert kept["good"]["verdict"] == HOLDS and kept["good"]["here"]["value"] == 1
    assert kept["mixed"]["verdict"] == NOT and kept["mixed"]["here"]["value"] == 0.5
    nearly = result(*[[True, True]] * 9, [True, False])  # nine tenths, give or take
    assert claims_of({own: nearly, rival: good})["kept"]["verdict"] == OPEN
    assert claims_of({own: good})["kept"] == {**kept["good"], "here": None, "verdict": OPEN}

    few = {name: {key: rows[:9] for key, rows in good.items()} for name in (own, rival)}
    assert claims_of(few)["kept"]["verdict"] == OPEN  # equal outcomes of nine prompts have no interval

    four, window = "schedules: diagonal, 4444444", "window: diagonal, window 1, sink 0"
    assert claims_of({four: good, own: good})["four steps everywhere"]["verdict"] == HOLDS
    assert claims_of({four: good, own: bad})["four steps everywhere"]["verdict"] == NOT
    assert claims_of({four: nearly, own: good})["four steps everywhere"]["verdict"] == OPEN
    results = {window: bad, "window: diagonal, window 4, sink 0": good}
    assert claims_of(results)["window of one"]["verdict"] == HOLDS


def test_claims_on_motion_and_drift_read_theirs():
    full, without = "ablation: ablation_full, 4322222", "ablation: ablation_no_flow, 4322222"
    rows = claims_of({full: result([True, True]), without: result([True, True], motion=0.4)})
    assert rows["flow, motion"]["verdict"] == HOLDS and rows["flow, motion"]["here"]["value"] == pytest.approx(-0.6)
    assert rows["flow"]["verdict"] == OPEN  # no difference is no proof of one
    own, rival = "long: diagonal, 55 latents", "long: self_forcing, 55 latents"
    rows = claims_of({own: result([True, True]), rival: result([True, False], saturation=((0.3, 0.4), (0.3, 0.1)))})
    assert rows["drift"]["verdict"] == rows["long, right"]["verdict"] == HOLDS
    rows = claims_of({rival: result([True, True]), own: result([True, False], saturation=((0.3, 0.4), (0.3, 0.1)))})
    assert rows["drift"]["verdict"] == rows["long, right"]["verdict"] == NOT


def test_the_docs_take_their_figures_from_the_results():
    page = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
    row = {"name": "diagonal, 4322222", "forwards": 17.0, "right": {"value": 0.5, "low": 0.4, "high": 0.6}}
    claims = verdicts({"comparisons": {"kept": {"value": 0.95, "low": 0.91, "high": 0.99, "prompts": 204}}})
    text = summary({"prompts": 204, "split": "test", "tables": {"students": [row]}, "claims": claims})
    told = filled(page, "students", text)
    assert "diagonal, 4322222 steps 50.0 % (40.0 to 60.0) by 17 forwards" in told
    assert f"Of {len(CLAIMS)} claims 1 were run (holds: 1, does not hold: 0, open: 0)" in told
    assert filled(told, "students", "") == filled(page, "students", "")
