"""The hierarchy on a real (tiny) Wan in ComfyUI: which trials run, what they cost, and that it is bounded."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from tiny_wan import CancellingScorer, Conditioned, gate, guided, inputs, model

from foresight.refiner.base import Rewording, RewordingError
from foresight.refiner.restart import SEED_STEP, RestartReworder
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.run import monitored_sample
from foresight.trials.report import run_report, to_json
from foresight.trials.summary import report_text

STEPS = 50
FAIL, GOOD = 0.10, 0.30
REJECTED = [FAIL] * 11  # early reject at step 11: eleven inspections
PROBE_DONE = 24  # a flat single frame is decided at step 24 (paper, Table S3)


class Rewriter:
    name = "rewriter"

    def __init__(self, error=None):
        self.requests, self.error = [], error

    def reword(self, request):
        self.requests.append(request)
        if self.error:
            raise self.error
        return Rewording(prompt="a clearly red circle", negative=request.negative, reasoning="colour", evidence=())


@pytest.fixture(scope="module")
def patcher():
    return model()


def run(patcher, *scores, reworder=None, injection=InjectionSettings(), steps=STEPS, clip=None, **changes):  # noqa: B008
    clip = clip or Conditioned(patcher)
    watched = gate(*scores, **changes)
    result = run_hierarchy(
        inputs(patcher, steps=steps), watched, clip, negative="blur", reworder=reworder, injection=injection
    )
    return result, run_report(result.verdict), watched


def kinds(report):
    return [(trial["trial"], trial["kind"]) for trial in report["trials"]]


def test_trial_0_is_the_plain_run(patcher):
    plain = monitored_sample(inputs(patcher, steps=STEPS)).latent["samples"]
    result, report, _ = run(patcher, GOOD, reworder=Rewriter())
    assert torch.equal(result.latent["samples"], plain)
    assert kinds(report) == [("0", "sample")]
    assert report["accepted"] and report["nfe"] == report["nfe_plain"] == STEPS


def test_trial_1_injects_a_frame_that_is_better_by_delta(patcher):
    result, report, _ = run(patcher, *REJECTED, FAIL + 0.05, reworder=Rewriter())
    assert kinds(report) == [("0", "sample"), ("1", "probe"), ("1", "inject")]
    assert report["trial"] == "1" and not report["accepted"]
    assert (report["nfe_video"], report["nfe_single_frame"]) == (11 + STEPS - 1, PROBE_DONE)
    assert torch.isfinite(result.latent["samples"]).all()


def test_trial_2_refines_when_the_frame_is_not_better_by_delta(patcher):
    reworder = Rewriter()
    result, report, watched = run(patcher, *REJECTED, *[FAIL + 0.049] * PROBE_DONE, GOOD, reworder=reworder)
    assert kinds(report) == [("0", "sample"), ("1", "probe"), ("2", "refine"), ("2", "sample")]
    assert report["trial"] == "2" and report["accepted"]
    assert report["refined_prompt"] == "a clearly red circle" and report["prompt"] == "a red circle"
    assert report["nfe_video"] == 11 + STEPS
    request = reworder.requests[0]
    assert request.predicted_score == pytest.approx(FAIL) and request.preview.shape == (3, 4, 4, 3)
    assert request.negative == "blur"
    assert set(watched.scorer.prompts) == {"a red circle"}, "the user's own words are what is scored"


def test_what_is_scored_reworded_and_reported_is_the_gates_prompt(patcher):
    reworder = Rewriter()
    _, report, watched = run(patcher, FAIL, reworder=reworder, injection=None, prompt="two dogs")
    assert report["prompt"] == reworder.requests[0].prompt == "two dogs" and set(watched.scorer.prompts) == {"two dogs"}
    with pytest.raises(TypeError, match="prompt"):  # there is no second place to say it
        run_hierarchy(
            inputs(patcher), watched, Conditioned(patcher), prompt="a cat", negative="", reworder=None, injection=None
        )


def test_trial_2_to_1_injects_without_a_margin_test_and_ends(patcher):
    result, report, _ = run(patcher, FAIL, reworder=Rewriter())
    assert kinds(report)[-2:] == [("2->1", "probe"), ("2->1", "inject")]
    assert (report["nfe_video"], report["nfe_single_frame"]) == (2 * 11 + STEPS - 1, 2 * PROBE_DONE)
    assert report["nfe"] <= report["nfe_worst_case"]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_no_sequence_of_scores_costs_more_than_the_stated_worst_case(patcher, sampler):
    generator = torch.Generator().manual_seed(5)
    for wobble in (0.0, 0.02, 0.1):
        scores = (0.12 + wobble * torch.rand(200, generator=generator)).tolist()
        result = run_hierarchy(
            inputs(patcher, sampler, steps=20), gate(*scores), Conditioned(patcher),
            negative="", reworder=Rewriter(), injection=InjectionSettings(),
        )  # fmt: skip
        report = run_report(result.verdict)
        assert report["nfe_plain"] < report["nfe"] <= report["nfe_worst_case"]


@pytest.mark.parametrize("error", [RewordingError("the server is down"), OSError("the server is down")])
def test_a_refiner_that_fails_leaves_the_plain_run_and_says_why(patcher, error):
    plain = monitored_sample(inputs(patcher, steps=STEPS)).latent["samples"]
    result, report, _ = run(patcher, FAIL, reworder=Rewriter(error))
    assert torch.equal(result.latent["samples"], plain)
    assert kinds(report)[-2:] == [("2", "refine"), ("0", "plain")]
    assert any("the server is down" in note for note in report["notes"])


def test_a_restart_draws_the_noise_of_another_seed(patcher):
    other = monitored_sample(inputs(patcher, steps=STEPS, seed=3 + SEED_STEP)).latent["samples"]
    scores = [*REJECTED, *[FAIL] * PROBE_DONE, GOOD]
    result, report, _ = run(patcher, *scores, reworder=RestartReworder(), clip=lambda *_: guided(patcher))
    assert torch.equal(result.latent["samples"], other)
    assert kinds(report)[-2:] == [("2", "refine"), ("2", "sample")]
    assert (report["seed"], report["final_seed"]) == (3, 3 + SEED_STEP)
    assert report["refined_prompt"] == report["prompt"]
    assert report_text(report).startswith("Rejected, then redone by Trial 2 with other noise\n")
    _, report, _ = run(patcher, *REJECTED, FAIL + 0.05, reworder=RestartReworder())
    assert report["final_seed"] == report["seed"] == 3, "an injected run keeps the noise"


def test_a_probe_that_cannot_be_judged_is_not_injected(patcher):
    result, report, _ = run(patcher, *REJECTED, float("nan"), reworder=Rewriter())
    assert ("1", "inject") not in kinds(report)


def test_without_refiner_and_injection_runs_are_only_watched(patcher):
    plain = monitored_sample(inputs(patcher, steps=STEPS)).latent["samples"]
    result, report, _ = run(patcher, FAIL, injection=None)
    assert torch.equal(result.latent["samples"], plain)
    assert kinds(report) == [("0", "sample")] and not report["accepted"] and report["nfe"] == STEPS


@pytest.mark.parametrize("at", [5, 11 + 5, 11 + 24 + 5, 61], ids=["base", "probe", "second run", "second probe"])
def test_cancel_works_in_every_phase(patcher, at):
    scorer = CancellingScorer(at, FAIL)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(patcher, FAIL, reworder=Rewriter(), scorer=scorer)
    assert scorer.calls == at
    assert not comfy.model_management.processing_interrupted()


def test_cancel_while_injecting(patcher):
    seen = []
    model_options = patcher.clone()

    def count(args):
        seen.append(1)
        if len(seen) == 11 + PROBE_DONE + 5:
            comfy.model_management.interrupt_current_processing()
        return args["denoised"]

    model_options.set_model_sampler_post_cfg_function(count)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model_options, *REJECTED, GOOD, reworder=Rewriter())
    assert len(seen) == 11 + PROBE_DONE + 5


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_short_schedules_run_through_all_trials(patcher, steps):
    settings = InjectionSettings(start=1) if steps == 1 else InjectionSettings()
    result, report, _ = run(patcher, FAIL, reworder=Rewriter(), steps=steps, injection=settings)
    assert torch.isfinite(result.latent["samples"]).all()
    assert report["nfe"] <= report["nfe_worst_case"]


def test_the_report_is_strict_json_with_a_schema(patcher):
    _, report, _ = run(patcher, float("nan"))
    assert '"schema": "foresight.run_report"' in to_json(report) and report["version"] == 1
    assert report["predicted_score"] is None
    assert report["seconds"] > 0 and report["seconds_plain_estimate"] > 0
