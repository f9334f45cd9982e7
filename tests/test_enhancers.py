"""The comparison of self-refinement and latent search with as many evaluations spent plainly."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from foresight.demo.captions import prompts
from foresight.evaluation.backend import InProcess, demo_judge
from foresight.evaluation.bench import Bench, MethodError
from foresight.evaluation.comfyui import load_comfyui
from foresight.evaluation.demo_family import DemoFamily
from foresight.evaluation.methods import load_method
from foresight.evaluation.suites import Item
from foresight.lab.experiments import enhancers
from foresight.lab.experiments.enhancers import (
    ARMS,
    BASE,
    REFINE,
    RESEED_STEP,
    SEARCH,
    Arm,
    diversity,
    markdown,
    measures,
    outcomes,
    rivals,
    spent_at_stop,
    summarize,
)

load_comfyui()
PROMPT, SCENE = prompts("test", "easy", 1)[0]
STEPS = 6
SHORT = (
    Arm("base", STEPS, "base"),
    Arm("self-refine", REFINE, "self_refine"),
    Arm("search, alignment", 20, "search@candidates=4,beta=0.1,budget=20"),
    Arm("beam, alignment", 20, "search@method=beam,candidates=4,beta=1,budget=20"),
    Arm("best of 3, alignment", 18, "search@method=best of N,candidates=3,beta=1,budget=18"),
)


@pytest.fixture(scope="module")
def backend():
    return InProcess(DemoFamily(steps=STEPS))


def bench_of(backend, measure=None) -> Bench:
    return Bench(backend, Item(0, PROMPT, "easy", SCENE), demo_judge, {}, keep_clips=False, measure=measure)


def test_rivals_cost_as_much():
    known = {arm.name: arm for arm in ARMS}
    assert len(known) == len(ARMS)
    for arm in ARMS:
        assert [known[name].budget for name in rivals(arm)] == [BASE, *[max(arm.budget, SEARCH) if arm.budget != REFINE
                                                                       else REFINE] * 2]
        assert load_method(arm.method, BASE).name == arm.method


def test_self_refine_takes_the_evaluations_it_is_compared_with():
    from foresight.evaluation.enhanced import PLANS
    from foresight.sampling.self_refine import PRESETS

    assert tuple(PRESETS) == PLANS
    assert PRESETS["T2V"].settings().evaluations(BASE) == REFINE


@pytest.mark.parametrize("arm", SHORT[1:], ids=lambda arm: arm.name)
@torch.inference_mode()
def test_what_a_stop_costs_is_what_a_stopped_run_costs(backend, arm, monkeypatch):
    from foresight.evaluation.enhanced import _inputs, _settings
    from foresight.sampling.run import monitored_sample

    gate = backend.family.gate(PROMPT, tau=1.0)  # nothing passes
    monkeypatch.setattr(DemoFamily, "gate", lambda *_, **__: gate)
    whole = load_method(arm.method, STEPS).run(bench_of(backend), 7)
    kind, _, options = arm.method.partition("@")
    inputs = _inputs(backend.family, PROMPT, 7, kind, _settings(arm.method, kind, options))
    stopped = monitored_sample(inputs, gate, stop="rejected").verdict.record
    assert not whole["accepted"] and not stopped.accepted and whole["nfe_plain"] == STEPS
    assert spent_at_stop(whole) == stopped.nfe_video <= whole["nfe"] <= max(arm.budget, STEPS)


@pytest.mark.parametrize("name, message", [
    ("steps@no", "number of steps"), ("self_refine@T2I", "plans are T2V"), ("search@colour=red", "options are method"),
    ("search@reward=none", "options are"), ("search@candidates=x", "no option=value"),
])  # fmt: skip
def test_an_enhanced_method_that_is_none_is_named(name, message):
    with pytest.raises(MethodError, match=message):
        load_method(name, STEPS)


@torch.inference_mode()
def test_clips_are_measured_and_what_is_rejected_is_followed_by_another_seed(backend):
    bench = bench_of(backend, partial(measures, ["alignment"]))
    rows = {arm.method: {(0, 5007): load_method(arm.method, STEPS).run(bench, 5007)} for arm in SHORT[:3]}
    json.dumps([row for each in rows.values() for row in each.values()])
    base = rows["base"][0, 5007]
    assert base["nfe"] == STEPS and 0 <= base["measures"]["coherent_motion"] <= 1
    assert np.isfinite(base["measures"]["feature"]).all()
    assert all("alignment reward" in row[0, 5007]["measures"] for row in rows.values())
    for row in rows.values():
        row[0, 5007].update(accepted=True)
    passed = outcomes(rows, SHORT[:3])[0]["arms"]
    assert passed["base"]["nfe_detected"] == STEPS and passed["base"]["right_detected"] == passed["base"]["right"]
    base.update(accepted=False, stop_step=3)
    rows["base"][0, 5007 + RESEED_STEP] = base | {"right": not base["right"]}
    (rejected,) = outcomes(rows, SHORT[:3])
    assert rejected["arms"]["base"]["nfe_detected"] == 3 + STEPS
    assert rejected["arms"]["base"]["right_detected"] != rejected["arms"]["base"]["right"]


def test_an_arm_samples_its_own_number_of_steps(backend):
    with torch.inference_mode():
        row = load_method("steps@9", STEPS).run(bench_of(backend), 7)
    assert (row["nfe"], row["nfe_plain"], row["report"]["settings"]["steps"]) == (9, STEPS, 9)


def run(prompt, seed, results, arms=ARMS):
    """results: arm name -> (right, alignment reward); others are wrong with reward 0."""
    arms_of = {}
    for arm in arms:
        right, reward = results.get(arm.name, (False, 0.0))
        arms_of[arm.name] = {
            "right": right, "right_detected": right, "nfe": arm.budget, "nfe_detected": arm.budget, "accepted": True,
            "motion": 0.5, "looks": 0.5, "rewards": {"alignment": reward, "latent": -reward},
            "feature": [1.0, 0.0] if seed % 2 or arm.name != "base" else [0.0, 1.0],
        }
    return {"prompt_index": prompt, "seed": seed, "arms": arms_of}


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
    (first, *_), jobs = FEW, []

    class Scripted:
        def __call__(self, job):
            jobs.append(job)
            rows = [row(job.item, method, seed) for method, seed in job.cells]
            return {"rows": rows, "machine": "m", "versions": {}}

    def row(item, method, seed):
        figures = {"coherent_motion": 0.5, "looks": 0.5, "feature": [1.0, float(seed % 3)],
                   "alignment reward": 0.1, "latent reward": 0.2}  # fmt: skip
        accepted = method != first.method
        return {"prompt_index": item.index, "prompt": item.prompt, "seed": seed, "method": method, "right": accepted,
                "nfe": 50, "accepted": accepted, "stop_step": 10, "measures": figures,
                "report": {"trials": [{"details": {}}], "settings": {"tau": 0.2}}}  # fmt: skip

    def complete(store, items, cells_of, make, settings, command, workers):
        from foresight.evaluation import fill

        worker = Scripted()
        jobs_of = fill.missing(items, cells_of, store.rows(settings["fingerprint"]))
        fill.keep(store, jobs_of, [(job, worker(job)) for job in jobs_of], command, settings)
        return store.rows(settings["fingerprint"])

    monkeypatch.setattr("foresight.lab.experiments.common.complete", complete)
    monkeypatch.setattr(enhancers, "ARMS", tuple(FEW))
    monkeypatch.setattr(enhancers.unusable, "__defaults__", (tmp_path / "none",))
    arguments = ["enhancers", "--quick", "--out", str(tmp_path), "--work", str(tmp_path / "work.sqlite")]
    monkeypatch.setattr("sys.argv", arguments)
    enhancers.main()
    again = [cell for job in jobs for cell in job.cells if cell[1] >= RESEED_STEP]
    assert len(jobs) == 6 and {method for method, _ in again} == {"base"} and len(again) == 6
    document = json.loads((tmp_path / "enhancers.json").read_text())
    assert document["summary"]["runs"] == 6 and document["settings"]["seeds"] == 2 and "runs" not in document
    assert document["summary"]["arms"]["base"]["nfe_detected"]["value"] == 60
    page = (tmp_path / "enhancers.md").read_text()
    assert "best of 3, alignment" in page and "latent reward was not tried" in page


def test_a_refused_or_missing_reward_is_no_error(tmp_path):
    (tmp_path / "no reward").write_text("this is no file of weights")
    assert "none is not there" in enhancers.unusable(tmp_path / "none").lower()
    assert "safetensors" in enhancers.unusable(tmp_path / "no reward")
    assert enhancers.unusable() is None
