"""The evaluations' machinery and figures, on results that are known beforehand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from foresight.demo.flow import sample, schedule, start_noise
from foresight.demo.wan_dit import WanTransformer
from foresight.evaluation.results import run_jobs
from foresight.lab.experiments import family_figures
from foresight.lab.experiments import trial_1 as injection_sweep
from foresight.sampling.injection import InjectionSettings
from foresight.scoring.viclip import ViCLIPConfig


def test_jobs_that_are_done_are_not_run_again_and_keep_their_order(tmp_path):
    work = tmp_path / "work.jsonl"
    work.write_text('["kept", 7]\n')
    jobs = {"b": (-2,), "kept": (-1,), "a": (-3,)}
    assert run_jobs(work, jobs, abs, workers=1, start=int) == [2, 7, 3]
    assert dict(map(json.loads, work.read_text().splitlines())) == {"kept": 7, "b": 2, "a": 3}
    assert run_jobs(work, jobs, None, workers=1, start=int) == [2, 7, 3]


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


def test_parts_of_a_sweep_are_joined_only_if_they_saw_the_same_clips():
    parts = [{"prompt_index": 0, "base": [False], "probe_right": [True], "after": {name: [True]}} for name in "ab"]
    assert list(injection_sweep.merged(parts)["after"]) == ["a", "b"]
    with pytest.raises(RuntimeError, match="other clips"):
        injection_sweep.merged([parts[0], parts[1] | {"base": [True]}])


def made_up(prompts: int = 6, seeds: int = 8) -> list[dict]:
    """Half of each prompt's clips are right; their scores rise, the others' fall, and the judge sees it from step 8."""
    records = []
    for index in range(prompts):
        for seed in range(seeds):
            right = seed % 2 == 0
            trace = np.linspace(0.2, 0.3 if right else 0.1, 50) + 0.001 * index
            records.append({
                "prompt_index": index, "difficulty": ("easy", "medium", "hard")[index % 3],
                "prompt": f"a {'red' if index else 'blue'} circle", "seed": seed, "right": right, "attributes": {},
                "score": float(trace[-1]), "trace": trace.tolist(), "frame_right": True,
                "preview": {str(s): (1 if right else -1) * (s >= 8) for s in family_figures.JUDGED},
                "branches": [right, True],
            })  # fmt: skip
    return records


def test_family_figures_of_a_perfect_scorer():
    table = family_figures.Table(made_up())
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
    records = [record | {"right": record["prompt_index"] < 3} for record in made_up()]
    assert family_figures.variance(family_figures.Table(records)) == {"by_prompt": 1, "by_noise": 0}
    same = family_figures.variance(family_figures.Table([record | {"right": False} for record in records]))
    assert math.isnan(same["by_noise"])


def test_convergence_is_the_step_after_the_last_excursion():
    traces = np.array([[0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.05]])
    assert family_figures.convergence(traces, 0.1).tolist() == [3, 1, 3]


def test_family_page_and_pictures_are_written(tmp_path):
    pytest.importorskip("comfyui_version")
    table, config = family_figures.Table(made_up()), ViCLIPConfig(tau=0.2)
    found = family_figures.figures(table, config)
    base = {"vae_psnr_db": 30.9, "judge_on_renders": 1.0, "judge_on_reconstructions": 0.99, "family_megabytes": 15.0}
    made = {"environment": family_figures.environment("the command"),
            "settings": {"seeds": 8, "steps": 50, "cfg": 4.0, "shift": 0.4}}  # fmt: skip
    page = family_figures.markdown(made | base | found)
    assert "| right clips | 50.0 %" in page
    family_figures.pictures(table, found, config, tmp_path)
    named = {line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![]")}
    assert named == {file.name for file in tmp_path.iterdir()}
