"""The evaluations' machinery and figures, on results that are known beforehand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import made_evidence
import numpy as np
import pytest
import torch

from foresight.demo.flow import sample, schedule, start_noise
from foresight.demo.wan_dit import WanTransformer
from foresight.evaluation.backend import InProcess, demo_judge
from foresight.evaluation.bench import Bench
from foresight.evaluation.demo_family import DemoFamily
from foresight.evaluation.results import environment
from foresight.evaluation.suites import Item, load_suite
from foresight.lab.experiments import family_figures
from foresight.lab.experiments import trial_1 as injection_sweep
from foresight.lab.experiments.common import experiment
from foresight.sampling.injection import InjectionSettings
from foresight.scoring.viclip import ViCLIPConfig


def test_results_that_are_there_are_not_made_again(tmp_path):
    items = (Item(0, "a"), Item(1, "b"))

    def filled(*wanted):
        make, work = made_evidence.Counting, tmp_path / "work.sqlite"
        with experiment(work, items, make, {"weights": "w"}, "command", 1) as fill:
            return {method: {key: row["nfe"] for key, row in rows.items()}
                    for method, rows in fill(lambda _: wanted).items()}  # fmt: skip

    assert filled(("x", 1)) == {"x": {(0, 1): 1, (1, 1): 2}}
    assert filled(("x", 1), ("y", 5)) == {"x": {(0, 1): 1, (1, 1): 2}, "y": {(0, 5): 1, (1, 5): 2}}
    assert filled(("y", 5)) == {"y": {(0, 5): 1, (1, 5): 2}}


def test_a_run_cut_in_two_is_the_whole_run():
    torch.manual_seed(0)
    model, context = WanTransformer(128, 1, 128, text_dim=32), torch.randn(1, 4, 32)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    noise, sigmas = start_noise(3, [5], 1), schedule(6, 0.4)
    halfway = sample(model, context, noise, sigmas=sigmas[:3], eta=0)
    whole = sample(model, context, noise, sigmas=sigmas, eta=0)
    assert torch.equal(whole, sample(model, context, halfway, sigmas=sigmas[2:], eta=0))


def test_start_noise_belongs_to_prompt_and_seed():
    assert torch.equal(start_noise(1, [4, 5], 5)[1], start_noise(1, [5], 5)[0])
    assert not torch.equal(start_noise(1, [5], 5), start_noise(2, [5], 5))


def test_injection_sweep_counts_by_probe_and_verdict():
    paper, reseed = json.dumps(asdict(InjectionSettings())), "reseed 1"
    found = [
        {"prompt_index": 0, "base": [False, False, True], "probe_right": [True, False, True],
         "after": {paper: [True, False, True], reseed: [False, True, False]}},
        {"prompt_index": 1, "base": [], "probe_right": [], "after": {}},
    ]  # fmt: skip
    summary = injection_sweep.summarize(found)
    assert (summary["prompts"], summary["failed_clips"], summary["failed_clips_with_right_probe"]) == (2, 2, 1)
    by_setting = summary["settings"]
    assert by_setting[paper]["repaired_where_probe_right"]["value"] == 1
    assert by_setting[paper]["repaired_where_probe_wrong"]["value"] == 0
    assert by_setting[reseed]["repaired"]["value"] == 0.5
    assert by_setting[paper]["above_reseeding_where_probe_right"]["value"] == 1
    assert by_setting[reseed]["above_reseeding_where_probe_right"]["value"] == 0
    assert (by_setting[paper]["spoiled"]["value"], by_setting[reseed]["spoiled"]["value"]) == (0, 1)
    with pytest.raises(SystemExit, match="no clip failed"):
        injection_sweep.summarize(found[1:])


def test_injection_sweep_tries_as_many_good_clips_as_failed_ones():
    right = {(0, 1): True, (0, 2): False, (0, 3): True, (1, 1): True}
    plain = {key: {"right": value} for key, value in right.items()}
    items = (Item(0, "a"), Item(1, "b"))
    seeds = {item.index: injection_sweep.chosen(plain, item) for item in items}
    assert seeds == {0: [2, 1], 1: []}
    cells = injection_sweep.trials(seeds[0])
    assert ("plain", 100_002) in cells and ("plain", 200_001) in cells and len(cells) == 2 * (12 + 2)
    rows: dict = {}
    for method, seed in [("plain", 1), ("plain", 2), *cells]:
        rows.setdefault(method, {})[0, seed] = {"right": seed == 1}
    (first, second) = injection_sweep.outcomes(rows, items, seeds)
    assert first["base"] == first["probe_right"] == [False, True] and second["after"] == {}
    assert list(first["after"])[-2:] == ["reseed 1", "reseed 2"] and first["after"]["reseed 1"] == [False, False]
    assert set(map(tuple, list(first["after"].values())[:-2])) == {(False, True)}


def test_an_injection_is_of_the_frame_that_the_probe_saw(comfyui):
    (item,) = load_suite("demo", 1).items
    backend = InProcess(DemoFamily(steps=26))
    bench = Bench(backend, item, demo_judge, {}, keep_clips=False)
    names = ("plain", "probe", "injection@2,2,initial,linear,1.0", "injection@2,2,fresh,linear,0.5")
    with torch.inference_mode():
        rows = {name: injection_sweep.load(name, 26).run(bench, 3) for name in names}
    assert len({row["final_score"] for row in rows.values()}) == 4 and not bench.known
    assert [row["nfe"] for row in rows.values()] == [26, 24, 25, 26]  # a weaker one begins with a plain step


def rows_of(prompts: int = 6, seeds: int = 8) -> dict[tuple[int, int], dict]:
    """Half of each prompt's clips are right; their scores rise, the others' fall, and the judge sees it from step 8."""
    rows = {}
    for index in range(prompts):
        for seed in range(seeds):
            right = seed % 2 == 0
            trace = np.linspace(0.2, 0.3 if right else 0.1, 50) + 0.001 * index
            measures = {"frame_right": True, "preview": {
                str(s): (1 if right else -1) * (s >= 8) for s in family_figures.JUDGED}}  # fmt: skip
            rows[index, seed] = {
                "prompt_index": index, "difficulty": ("easy", "medium", "hard")[index % 3],
                "prompt": f"a {'red' if index else 'blue'} circle", "seed": seed, "right": right,
                "final_score": float(trace[-1]), "measures": measures, "motion": 0.1,
                "report": {"branches": {"10": [[right, 0.2], [True, 0.2]]}},
                "trace": [[step, score, None] for step, score in enumerate(trace.tolist(), 1)],
            }  # fmt: skip
    return rows


def test_family_figures_of_a_perfect_scorer():
    table = family_figures.Clips(rows_of(), 0.2)
    found = family_figures.figures(table, ViCLIPConfig(tau=0.2))
    assert found["right_clips"]["value"] == 0.5
    assert found["right_single_frames"]["value"] == 1
    assert (found["hard_fail_rate"]["value"], found["mixed_hard_prompts"]) == (0.5, 1)
    assert found["auc_step10_within_prompt"]["value"] == found["auc_final_within_prompt"]["value"] == 1
    assert found["auc_text_only"]["value"] == pytest.approx(0.5)  # every prompt fails alike
    assert found["judge_on_previews_within_prompt"][5]["value"] == 0.5
    assert found["ceiling_step10_within_prompt"]["value"] == 1
    assert found["variance_of_verdicts"] == {"by_prompt": 0, "by_noise": 1}


def test_variance_lies_between_prompts_when_each_has_one_outcome():
    def divided(right) -> dict[str, float]:
        rows = {key: row | {"right": right(key[0])} for key, row in rows_of().items()}
        return family_figures.variance(family_figures.Clips(rows, 0.2))

    assert divided(lambda prompt: prompt < 3) == {"by_prompt": 1, "by_noise": 0}
    assert math.isnan(divided(lambda prompt: False)["by_noise"])


def test_convergence_is_the_step_after_the_last_excursion():
    traces = np.array([[0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.05]])
    assert family_figures.convergence(traces, 0.1).tolist() == [3, 1, 3]


def test_a_clip_is_looked_at_from_all_sides(comfyui):
    (item,) = load_suite("demo", 1).items
    bench = Bench(InProcess(DemoFamily(steps=12)), item, demo_judge, {}, keep_clips=False)
    with torch.inference_mode():
        row = family_figures.looking("looks@1", 12, 1).run(bench, 3)
    assert list(row["measures"]["preview"]) == ["2", "3", "5", "8", "10", "12"] and len(row["trace"]) == 12
    assert isinstance(row["measures"]["frame_right"], bool) and len(row["report"]["branches"]["10"]) == 1


def test_family_page_and_pictures_are_written(tmp_path):
    pytest.importorskip("comfyui_version")
    table, config = family_figures.Clips(rows_of(), 0.2), ViCLIPConfig(tau=0.2)
    found = family_figures.figures(table, config)
    base = {"vae_psnr_db": 30.9, "judge_on_renders": 1.0, "judge_on_reconstructions": 0.99, "family_megabytes": 15.0}
    made = {"environment": environment("the command"),
            "settings": {"seeds": 8, "steps": 50, "cfg": 4.0, "shift": 0.4}}  # fmt: skip
    page = family_figures.markdown(made | base | found)
    assert "| right clips | 50.0 %" in page
    family_figures.pictures(table, found, config, tmp_path)
    named = {line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![]")}
    assert named == {file.name for file in tmp_path.iterdir()}
