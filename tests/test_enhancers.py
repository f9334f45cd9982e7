"""The comparison of self-refinement and latent search with as many evaluations spent plainly."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from foresight.demo.captions import prompts
from foresight.evaluation import statistics
from foresight.evaluation.comfyui import load_comfyui
from foresight.evaluation.demo_family import DemoFamily
from foresight.lab.experiments import enhancers
from foresight.lab.experiments.enhancers import (
    ARMS,
    BASE,
    REFINE,
    SEARCH,
    Arm,
    diversity,
    given,
    markdown,
    rivals,
    sampled,
    summarize,
)
from foresight.lab.experiments.enhancers import rewards as rewards_of

load_comfyui()
PROMPT, SCENE = prompts("test", "easy", 1)[0]
STEPS = 6
SHORT = (
    Arm("base", STEPS, steps=STEPS),
    Arm("self-refine", REFINE, steps=STEPS, refine=True),
    Arm("search, alignment", 20, steps=STEPS, method="resampling", candidates=4, beta=0.1),
    Arm("beam, alignment", 20, steps=STEPS, method="beam", candidates=4),
    Arm("best of 3, alignment", 18, steps=STEPS, method="best of N", candidates=3),
)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Intervals from fewer draws are as good here, and ten times as fast."""
    monkeypatch.setattr(enhancers, "bootstrap", partial(statistics.bootstrap, draws=200))


@pytest.fixture(scope="module")
def family():
    return DemoFamily()


def test_rivals_cost_as_much():
    known = {arm.name: arm for arm in ARMS}
    assert len(known) == len(ARMS)
    for arm in ARMS:
        assert [known[name].budget for name in rivals(arm)] == [BASE, *[max(arm.budget, SEARCH) if arm.budget != REFINE
                                                                       else REFINE] * 2]


def test_self_refine_takes_the_evaluations_it_is_compared_with():
    from foresight.sampling.self_refine import PRESETS

    assert PRESETS["T2V"].settings().evaluations(BASE) == REFINE


def watched(family, arm, gate, stop):
    inputs = given(family, arm, PROMPT, 7, rewards_of(family, PROMPT, {"alignment"}))
    result, report = sampled(*inputs, gate, stop)
    return result.verdict.record, report


@pytest.mark.parametrize("arm", SHORT, ids=lambda arm: arm.name)
def test_what_a_stop_costs_is_what_a_stopped_run_costs(family, arm):
    gate = family.gate(PROMPT, tau=1.0)  # nothing passes
    whole, report = watched(family, arm, gate, "never")
    stopped, _ = watched(family, arm, gate, "rejected")
    assert not whole.accepted and not stopped.accepted
    found = enhancers.spent_at_stop(arm, whole.best.stop_step, whole.nfe_video, report)
    assert found == stopped.nfe_video <= whole.nfe_video <= max(arm.budget, STEPS)


def test_a_job_runs_all_arms_and_reseeds_what_is_rejected(family, monkeypatch):
    monkeypatch.setattr(enhancers, "ARMS", SHORT[:3])
    monkeypatch.setattr(enhancers, "family", lambda: family)
    names = tuple(arm.name for arm in SHORT[:3])
    passed = enhancers.run_job(0, "easy", PROMPT, SCENE, 7, names)
    json.dumps(passed)
    assert list(passed["arms"]) == list(names)
    base = passed["arms"]["base"]
    assert base["nfe"] == STEPS and set(base["rewards"]) == {"alignment"} and 0 <= base["motion"] <= 1
    if base["accepted"]:
        assert base["nfe_detected"] == STEPS and base["right_detected"] == base["right"]
    gate = family.gate(PROMPT, tau=1.0)
    monkeypatch.setattr(DemoFamily, "gate", lambda *_: gate)
    rejected = enhancers.run_job(0, "easy", PROMPT, SCENE, 7, names[:1])["arms"]["base"]
    assert rejected["right"] == base["right"] and rejected["feature"] == base["feature"]
    assert STEPS < rejected["nfe_detected"] < 2 * STEPS


def run(prompt, seed, outcomes, arms=ARMS):
    """outcomes: arm name -> (right, alignment reward); others are wrong with reward 0."""
    made = {}
    for arm in arms:
        right, reward = outcomes.get(arm.name, (False, 0.0))
        made[arm.name] = {
            "right": right, "right_detected": right, "nfe": arm.budget, "nfe_detected": arm.budget, "accepted": True,
            "motion": 0.5, "looks": 0.5, "rewards": {"alignment": reward, "latent": -reward},
            "feature": [1.0, 0.0] if seed % 2 or arm.name != "base" else [0.0, 1.0],
        }
    return {"prompt_index": prompt, "seed": seed, "arms": made}


FEW = [arm for arm in ARMS if arm.name in ("base", "self-refine", "75 steps", "150 steps", "search, alignment",
                                            "best of 3, alignment", "best of 3, latent")]


def fixed(count=8):
    search = "search, alignment"
    return [
        run(prompt, seed, {"base": (prompt % 2 == 0, float(seed)), search: (True, seed + 1.0)})
        for prompt in range(count) for seed in (0, 1)
    ]


def test_figures_are_paired_and_against_equal_evaluations():
    summary = summarize(fixed(), FEW)
    assert summary["arms"]["search, alignment"]["right"]["value"] == 1
    against = summary["against"]["search, alignment"]
    assert list(against) == ["base", "150 steps", "best of 3, alignment"]
    assert against["base"]["right"]["value"] == 0.5 and against["150 steps"]["right"]["value"] == 1
    assert 0 < against["base"]["right"]["low"] < 0.5 < against["base"]["right"]["high"] < 1
    assert against["150 steps"]["nfe"]["value"] == 0
    assert "best of 3, alignment" not in summary["against"]["best of 3, alignment"]
    hacking = summary["reward_hacking"]["search, alignment"]
    assert hacking["own_reward"]["value"] == pytest.approx(2) and hacking["reward_latent"]["value"] == pytest.approx(-2)
    assert hacking["repaired_where_rose"]["value"] == 1 and hacking["spoiled_where_rose"]["count"] == 0
    assert "self-refine" not in summary["reward_hacking"]


def test_diversity_is_between_the_seeds_of_a_prompt():
    assert set(diversity(fixed(2), "base").values()) == {1.0}
    assert set(diversity(fixed(2), "self-refine").values()) == {0.0}
    assert diversity([run(0, 0, {})], "base") == {}  # one seed has none


def test_without_a_latent_reward_its_arms_are_left_out():
    arms = [arm for arm in FEW if arm.reward != "latent"]
    runs = [run(prompt, seed, {}, arms) for prompt in range(3) for seed in (0, 1)]
    for each in runs:
        for arm in each["arms"].values():
            del arm["rewards"]["latent"]
    document = {
        "summary": summarize(runs, arms), "settings": {"seeds": 2, "no_latent_reward": "too poor"},
        "environment": {"command": "c", "date": "d", "machine": "m", "comfyui": "v", "torch": "t"},
    }  # fmt: skip
    page = markdown(document)
    assert "not tried: too poor" in page and ", latent |" not in page
    for line in page.splitlines():
        if line.startswith("| self-refine |"):
            assert line.count("|") == 9
    assert not np.isnan(document["summary"]["arms"]["base"]["motion"]["value"])


def test_the_command_writes_what_it_found(tmp_path, monkeypatch):
    given: dict = {}

    def run_jobs(work, jobs, run, **_):
        given.update(jobs)
        return [made(index, seed) for index, _, _, _, seed, _ in jobs.values()]

    def made(prompt, seed):
        return run(prompt, seed // enhancers.SEED_STEP, {}, FEW)

    monkeypatch.setattr(enhancers, "run_jobs", run_jobs)
    monkeypatch.setattr(enhancers, "ARMS", tuple(FEW))
    monkeypatch.setattr(enhancers.usable, "__defaults__", (lambda: None,))
    monkeypatch.setattr("sys.argv", ["enhancers", "--quick", "--out", str(tmp_path), "--work", str(tmp_path / "work")])
    enhancers.main()
    assert len(given) == 6 and len({key for key in given}) == 6
    document = json.loads((tmp_path / "enhancers.json").read_text())
    assert document["summary"]["runs"] == 6 and document["settings"]["seeds"] == 2
    assert "feature" not in document["runs"][0]["arms"]["base"]
    assert "best of 3, latent" in (tmp_path / "enhancers.md").read_text()


def test_a_refused_or_missing_reward_is_no_error():
    def refused():
        raise ValueError("not good enough")

    def absent():
        raise FileNotFoundError("no such file")

    assert enhancers.usable(refused) == "not good enough" and "no such file" in enhancers.usable(absent)
    assert enhancers.usable(lambda: None) is None


def test_an_arm_samples_its_own_number_of_steps(family):
    inputs, report = given(family, replace(SHORT[0], steps=9), PROMPT, 7, {})
    assert inputs.steps == 9 and report == {}
