"""Promises 2 and 4: inspection never kills a run, cancel stops within a step. (Promise 1: test_compatibility.)"""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.samplers
import comfy.utils
import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from tiny_wan import CancellingScorer, MeanL2R, Noise, ScriptedScorer, gate, inputs, model

from foresight.sampling.probe import no_probe
from foresight.sampling.run import monitored_sample
from foresight.scoring.detector import DetectorSettings

PASS, FAIL = (0.3,), (0.1,)


@pytest.fixture(scope="module")
def patcher():
    return model()


def core(setup):
    """What ComfyUI's own sampler node gives for the same inputs."""
    result = SamplerCustomAdvanced.execute(setup.noise, setup.guider, setup.sampler, setup.sigmas, setup.latent)
    return result.result[0]["samples"], result.result[1]["samples"]


def test_without_a_gate_it_is_the_core_sampler(patcher):
    latent, x0 = core(inputs(patcher, "dpmpp_2m"))
    for checked in (gate(*PASS), None):
        result = monitored_sample(inputs(patcher, "dpmpp_2m"), checked)
        assert torch.equal(result.latent["samples"], latent)
        assert torch.equal(result.x0["samples"], x0)


def test_a_mistyped_stop_is_refused_before_anything_is_sampled(patcher):
    for stop in ("reject", "Rejected", "", None):
        with pytest.raises(ValueError, match=f"stop is {stop!r}: choose one of rejected, decided, never"):
            monitored_sample(inputs(patcher), gate(*FAIL), stop=stop)


def test_a_guider_without_cfg_is_watched_like_any_other(patcher):
    class Own(comfy.samplers.CFGGuider):
        def __init__(self, patcher):
            super().__init__(patcher)
            del self.cfg

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 as core writes it
            negative, positive = self.conds["negative"], self.conds["positive"]
            sample = comfy.samplers.sampling_function
            return sample(self.inner_model, x, timestep, negative, positive, 4.0, model_options, seed=seed)

    setup = inputs(patcher)
    guider = Own(patcher)
    guider.original_conds = setup.guider.original_conds
    result = monitored_sample(replace(setup, guider=guider), gate(*PASS))
    assert torch.equal(result.latent["samples"], core(setup)[0])


def test_image_latents_are_inspected_and_not_probed(patcher):
    inspector = gate(*FAIL).inspector(10)
    assert inspector.observe(1, 1.0, torch.zeros(2, 16, 4, 4)).scores == (*FAIL, *FAIL)
    assert inspector.preview(1).shape == (1, 4, 4, 3)
    assert "needs a video latent" in no_probe(inputs(patcher), torch.zeros(1, 16, 4, 4))


def test_a_rejected_run_stops_at_the_decision_and_gives_the_x0_prediction(patcher):
    setup = inputs(patcher, steps=50)
    result = monitored_sample(setup, gate(*FAIL))
    record = result.verdict.record
    assert not result.verdict.accepted
    assert record.best.rule == "early_reject" and record.best.stop_step == 11
    assert record.nfe_video == record.steps == 11
    assert torch.equal(result.latent["samples"], result.x0["samples"])
    assert result.verdict.preview.shape == (3, 4, 4, 3)


def test_the_inspector_sees_the_x0_predictions_of_each_step(patcher):
    setup = inputs(patcher, steps=10)
    full = monitored_sample(setup, gate(*PASS), keep_steps=True)
    assert full.steps_x0["samples"].shape[0] == 10
    assert torch.equal(full.steps_x0["samples"][-1:], full.x0["samples"])
    stopped = monitored_sample(inputs(patcher, steps=10), gate(*FAIL), keep_steps=True)
    done = stopped.verdict.record.steps
    assert torch.equal(stopped.steps_x0["samples"], full.steps_x0["samples"][:done])


@pytest.mark.parametrize(
    "error", [RuntimeError("no such kernel"), torch.OutOfMemoryError("CUDA out of memory"), KeyError("weight")]
)
def test_a_failing_scorer_leaves_a_plain_run_and_a_reason(patcher, error):
    latent, _ = core(inputs(patcher))
    result = monitored_sample(inputs(patcher), gate(error))
    assert torch.equal(result.latent["samples"], latent)
    assert result.verdict.accepted and result.verdict.record.best.rule == "not_inspected"
    assert str(error.args[0]) in result.verdict.record.message


def test_a_scorer_that_fails_once_costs_one_observation_only(patcher):
    result = monitored_sample(inputs(patcher, steps=50), gate(RuntimeError("busy"), *FAIL))
    assert not result.verdict.accepted
    assert "busy" in result.verdict.record.message


def test_only_the_frames_that_the_scorer_looks_at_are_decoded(patcher):
    class Sparse(ScriptedScorer):
        def looks_at(self, count):
            return [0, count - 1]

    class Recording(MeanL2R):
        asked = []

        def forward(self, latent, frames=None):
            self.asked.append(list(frames))
            return super().forward(latent, frames)

    result = monitored_sample(inputs(patcher, steps=50), gate(scorer=Sparse(*FAIL), l2r=Recording()))
    assert Recording.asked[:-1] == [[0, 2]] * 11
    assert Recording.asked[-1] == [0, 1, 2] and len(result.verdict.preview) == 3  # the report's preview is whole


def test_no_memory_for_a_preview_skips_the_inspection_and_says_so(patcher):
    class Hungry(MeanL2R):
        def forward(self, latent, frames=None):
            raise torch.OutOfMemoryError("not one frame fits")

    latent, _ = core(inputs(patcher))
    result = monitored_sample(inputs(patcher), gate(*FAIL, l2r=Hungry()))
    assert torch.equal(result.latent["samples"], latent)
    assert result.verdict.record.best.rule == "not_inspected"
    assert "OutOfMemoryError: not one frame fits" in result.verdict.record.message


def test_no_memory_for_the_reports_preview_costs_that_preview_only(patcher):
    class Hungry(MeanL2R):
        def forward(self, latent, frames=None):
            if len(frames) > 2 or 1 in frames:
                raise torch.OutOfMemoryError("no room")
            return super().forward(latent, frames)

    class Sparse(ScriptedScorer):
        def looks_at(self, count):
            return [0, count - 1]

    result = monitored_sample(inputs(patcher, steps=50), gate(scorer=Sparse(*FAIL), l2r=Hungry()))
    assert not result.verdict.accepted and result.verdict.preview is None
    assert "no preview could be made: OutOfMemoryError: no room" in result.verdict.record.message


class Bar:
    """Core's progress bar, as far as a sampler uses it."""

    shown = []

    def __init__(self, total):
        self.shown.clear()

    def update_absolute(self, value, total=None, preview=None):
        self.shown.append(preview)


@pytest.mark.parametrize("method, by_l2r", [("auto", True), ("latent2rgb", True), ("none", False)])
def test_cores_own_preview_is_made_by_l2r_where_it_is_on(patcher, monkeypatch, method, by_l2r):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod(method))
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    latent, _ = core(inputs(patcher))
    result = monitored_sample(inputs(patcher), gate(*PASS))
    assert torch.equal(result.latent["samples"], latent)
    assert len(Bar.shown) == 10
    if not by_l2r:
        assert Bar.shown == [None] * 10
        return
    kind, image, _ = Bar.shown[-1]
    expected = MeanL2R()(monitored_x0(patcher))[0, 1]  # the middle of three frames
    assert (kind, image.size) == ("JPEG", (4, 4))
    assert (torch.from_numpy(np.array(image)).float() / 255 - expected).abs().max() < 0.01


def monitored_x0(patcher):
    return patcher.model.process_latent_in(monitored_sample(inputs(patcher), None).x0["samples"])


def test_a_core_preview_that_fails_ends_nothing(patcher, monkeypatch):
    class Broken(MeanL2R):
        def forward(self, latent, frames=None):
            raise RuntimeError("no picture")

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    latent, _ = core(inputs(patcher))
    assert torch.equal(monitored_sample(inputs(patcher), gate(*PASS, l2r=Broken())).latent["samples"], latent)
    assert Bar.shown == [None] * 10


def test_nan_previews_never_reject(patcher):
    latent, _ = core(inputs(patcher))
    result = monitored_sample(inputs(patcher), gate(float("nan")))
    assert torch.equal(result.latent["samples"], latent)
    assert result.verdict.accepted and result.verdict.record.best.rule == "not_inspected"


def test_nan_latents_from_the_model_are_reported_and_do_not_stop_the_run(patcher):
    broken = patcher.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    result = monitored_sample(inputs(broken), gate(*FAIL))
    assert result.verdict.accepted
    assert "not finite" in result.verdict.record.message


@pytest.mark.parametrize("at", [1, 4, 8])
def test_cancel_stops_within_one_step_and_leaves_the_guider_as_it_was(patcher, at):
    setup = inputs(patcher)
    # Scores that never settle, in a window at the end: each step up to the last is scored.
    scorer = CancellingScorer(at, *[0.3, 0.35] * 10)
    watched = gate(*PASS, scorer=scorer, video=DetectorSettings.video(start=0.8, end=1.0))
    seen = []
    watched_model = patcher.clone()
    watched_model.set_model_sampler_post_cfg_function(lambda args: seen.append(1) or args["denoised"])
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        monitored_sample(inputs(watched_model), watched)
    assert len(seen) <= at + 1
    assert not comfy.model_management.processing_interrupted()
    latent, _ = core(setup)
    assert torch.equal(monitored_sample(setup, gate(*PASS)).latent["samples"], latent)


def test_a_batch_runs_on_while_one_item_is_still_good(patcher):
    class ByItem(ScriptedScorer):
        def score(self, frames, text):
            self.calls += 1
            return 0.1 if self.calls % 2 else 0.3

    mixed = monitored_sample(inputs(patcher, batch=2, steps=50), gate(scorer=ByItem()))
    assert mixed.verdict.accepted and mixed.verdict.record.steps == 50
    assert [item.accepted for item in mixed.verdict.record.items] in ([False, True], [True, False])
    both = monitored_sample(inputs(patcher, batch=2, steps=50), gate(*FAIL))
    assert not both.verdict.accepted and len(both.verdict.record.items) == 2


def test_same_seed_same_decisions_and_no_global_random_state(patcher):
    state = torch.random.get_rng_state()
    first = monitored_sample(inputs(patcher, "dpmpp_2m_sde"), gate(0.2, 0.21, 0.24, 0.2))
    second = monitored_sample(inputs(patcher, "dpmpp_2m_sde"), gate(0.2, 0.21, 0.24, 0.2))
    assert torch.equal(first.latent["samples"], second.latent["samples"])
    assert first.verdict.record.items == second.verdict.record.items
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inspecting_every_third_step_still_decides_within_the_window(patcher):
    result = monitored_sample(inputs(patcher, steps=50), gate(*FAIL, every=3))
    best = result.verdict.record.best
    assert [step for step, _ in best.trace] == [3, 6, 9, 12, 14]
    assert best.stop_step == 14


def test_report_only_never_stops(patcher):
    result = monitored_sample(inputs(patcher, steps=10), gate(*FAIL), stop="never")
    assert result.verdict.record.steps == 10 and not result.verdict.accepted


def test_one_step_schedule(patcher):
    result = monitored_sample(inputs(patcher, steps=1), gate(*PASS))
    assert result.verdict.accepted and result.verdict.record.best.stop_step == 1


@pytest.mark.parametrize(
    "sigmas, said",
    [([1.0], "at least 2"), ([], "at least 2"), ([0.5, 0.7, 0.0], "do not decrease"),
     ([1.0, 1.0, 0.0], "do not decrease"), ([float("nan"), 0.5, 0.0], "do not decrease")],
)  # fmt: skip
def test_bad_schedules_are_named(patcher, sigmas, said):
    setup = inputs(patcher)
    with pytest.raises(ValueError, match=said):
        type(setup)(Noise(0), setup.guider, setup.sampler, torch.tensor(sigmas), setup.latent)


def test_nan_input_latents_are_named(patcher):
    setup = inputs(patcher)
    broken = {"samples": torch.full((1, 16, 3, 4, 4), float("nan"))}
    with pytest.raises(ValueError, match="NaN"):
        type(setup)(setup.noise, setup.guider, setup.sampler, setup.sigmas, broken)
