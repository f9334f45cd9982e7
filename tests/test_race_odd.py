"""Races with samplers that call back in their own way, and with models and seeds that fail a candidate."""

from __future__ import annotations

from dataclasses import replace

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from tiny_wan import gate, inputs, model

from foresight.sampling import race as live
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.self_refine import self_refining
from foresight.sampling.watch import Watch
from foresight.trials.race import Candidate, Look, RaceSettings, Rules
from foresight.trials.report import run_report
from foresight.trials.summary import report_text


@pytest.fixture(scope="module")
def patcher():
    return model()


def start(patcher, sampler="euler", steps=10, seed=7):
    made = sampler if isinstance(sampler, comfy.samplers.KSAMPLER) else None
    own = replace(inputs(patcher, "euler" if made else sampler, steps=steps), noise=SeededNoise(seed))
    return replace(own, sampler=made) if made else own


def raced(own, *scores, self_refine="off", candidates=3):
    """(report, latent): the look is at step 3 of 10, its floor 0.2."""
    result = run_race(own, gate(*scores), Rules(RaceSettings(candidates, self_refine), (Look(0.3, 0.2, 0.2),)))
    report = run_report(result.verdict)
    assert report_text(report)
    return report, result.latent["samples"]


def calling_back(indices, evaluations=1, gives_up=False):
    """Euler, which calls back at a step with what indices(step, steps) gives. gives_up: takes what its callback raises
    for the end of the run, and returns what it has."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        steps = len(sigmas) - 1
        for step in range(steps):
            for _ in range(evaluations):
                denoised = model(x, sigmas[step] * x.new_ones(len(x)), **extra_args)
            for index in indices(step, steps):
                try:
                    callback({"x": x, "i": index, "denoised": denoised})
                except Exception:
                    if not gives_up:
                        raise
                    return x
            x = x + (x - denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
        return x

    return comfy.samplers.KSAMPLER(sample)


COUNTS = {
    "from -1": lambda step, steps: [step - 1], "backwards": lambda step, steps: [steps - 1 - step],
    "twice": lambda step, steps: [step, step], "beyond the schedule": lambda step, steps: [2 * step],
    "never": lambda step, steps: [],
}  # fmt: skip


@pytest.mark.parametrize("evaluations", [1, 2])
@pytest.mark.parametrize("count", COUNTS)
def test_however_a_sampler_counts_the_clip_is_finished_within_the_bound(patcher, count, evaluations):
    own = start(patcher, calling_back(COUNTS[count], evaluations))
    report, latent = raced(own, 0.1, 0.15, 0.05)
    alone = monitored_sample(replace(own, noise=SeededNoise(report["final_seed"])))
    assert torch.equal(latent, alone.latent["samples"])
    assert report["nfe"] <= report["nfe_worst_case"]
    if count in ("never", "backwards", "twice"):
        assert report["nfe_plain"] == 10 * evaluations


def test_what_a_sampler_leaves_unfinished_is_put_aside_and_gone_on_with(patcher):
    own = start(patcher, calling_back(lambda step, _: [step], gives_up=True))
    report, latent = raced(own, 0.1, 0.15, 0.05, 0.0)
    assert [row["state"] for row in report["candidates"]] == ["put aside", "delivered", "put aside"]
    alone = monitored_sample(replace(own, noise=SeededNoise(Candidate(1).seed(7))))
    assert torch.equal(latent, alone.latent["samples"])


def test_dpm_adaptive_takes_more_steps_than_the_schedule_has(patcher):
    own = start(patcher, "dpm_adaptive", steps=3)
    report, latent = raced(own, 0.1)
    assert torch.equal(latent, monitored_sample(own).latent["samples"])
    assert report["nfe"] > 3 and report["nfe"] <= report["nfe_plain"] < report["nfe"] + 3
    watched = replace(own, guider=inputs(Watch(gate(0.1)).patch(patcher)).guider)
    assert torch.equal(latent, monitored_sample(watched).latent["samples"])


def test_dpm_fast_costs_what_its_plain_run_costs(patcher):
    report, _ = raced(start(patcher, "dpm_fast"), 0.1)
    assert report["nfe"] == report["nfe_plain"] == 10


@pytest.mark.parametrize("sampler", ["sa_solver_pece", "heun"])
def test_what_goes_on_does_not_change_the_price_of_a_step(patcher, sampler):
    report, _ = raced(start(patcher, sampler), 0.1, 0.15, 0.05)
    assert report["nfe_plain"] == 20 and report["nfe"] <= report["nfe_worst_case"] == 2 * (3 * 3 + 7)


def failing(patcher, at):
    """The model, out of memory at its n-th evaluation."""
    patcher, calls = patcher.clone(), []

    def evaluate(executor, *args, **kwargs):
        calls.append(at)
        if len(calls) == at:
            raise torch.OutOfMemoryError("full")
        return executor(*args, **kwargs)

    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, evaluate)
    return patcher


def test_a_candidate_that_fails_leaves_the_best_of_those_before_it(patcher):
    report, latent = raced(start(failing(patcher, 5)), 0.1, 0.15, 0.05)
    assert torch.equal(latent, monitored_sample(start(patcher)).latent["samples"])
    assert report["final_seed"] == 7 and report["nfe"] == 3 + 2 + 7  # what has failed is counted
    assert report["notes"] == ["Candidate 2: it could not be sampled: OutOfMemoryError: full"]
    with pytest.raises(torch.OutOfMemoryError):  # the user's own run, as without this pack
        raced(start(failing(patcher, 2)), 0.1)


def test_a_finished_clip_that_cannot_be_scored_is_told(patcher):
    report, _ = raced(start(patcher), 0.3, torch.OutOfMemoryError("full"))
    assert report["final_score"] is None
    assert report["notes"] == ["Candidate 1: the finished clip was not scored: OutOfMemoryError: full"]


@pytest.mark.parametrize("self_refine", ["later", "all"])
def test_the_last_seeds_there_are_can_be_self_refined(patcher, self_refine):
    own = start(patcher, "euler_ancestral", steps=25, seed=2**64 - 1_000_001)
    report, latent = raced(own, 0.1, 0.15, 0.05, self_refine=self_refine)
    assert [row["seed"] for row in report["candidates"]] == [2**64 - 1_000_001, 2**64 - 1, 999_999]
    assert not report["notes"]
    refined = self_refining(own.sampler, replace(live.LIGHT, schedule_steps=25))
    alone = monitored_sample(replace(own, noise=SeededNoise(2**64 - 1), sampler=refined))
    assert torch.equal(latent, alone.latent["samples"])


def test_previews_are_kept_of_the_best_candidates_only(patcher):
    result = run_race(
        start(patcher), gate(*[0.1 + n / 1000 for n in range(10)]),
        Rules(RaceSettings(10, "off"), (Look(0.3, 0.2, 0.2),)),
    )  # fmt: skip
    kept = [record.trial for record in result.verdict.history if record.preview is not None]
    assert kept == [f"candidate {n}" for n in range(5, 11)] and result.preview is not None
