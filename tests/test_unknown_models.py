"""Models that nobody has tried: latents of no pictures, and noise of another kind. They are sampled plainly, and the
report says why nothing was seen."""

from __future__ import annotations

from dataclasses import replace

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import pytest
import tiny_wan
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from searches import searching
from tiny_wan import Rewriter, gate

from foresight.l2r.linear import LinearL2R
from foresight.sampling.audition import hold_audition
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.inputs import Inputs
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch
from foresight.scoring.reward import AlignmentReward
from foresight.trials.race import Rules
from foresight.trials.report import run_report

STEPS, SEED = 12, 7
KINDS = comfy.model_base.ModelType
MODELS = {
    "sound": ((1, 64, 24), KINDS.FLOW), "a spectrum": ((1, 8, 16, 6), KINDS.EPS),
    "other channels": ((1, 7, 3, 4, 4), KINDS.FLOW), "six dimensions": ((1, 16, 2, 3, 4, 4), KINDS.FLOW),
    "another noise": ((1, 16, 3, 4, 4), KINDS.IMG_TO_IMG),
}  # fmt: skip


class Fading(torch.nn.Module):
    """A network that takes latents of any shape."""

    dtype = torch.float32

    def forward(self, x, timesteps, context=None, **_):
        return 0.1 * x + context.mean()


def unknown(kind) -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.WAN21_T2V({"image_model": "unknown", "disable_unet_model_creation": True})
    config.latent_format = comfy.latent_formats.LatentFormat()
    model = comfy.model_base.BaseModel(config, kind)
    model.diffusion_model = Fading()
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(params=MODELS)
def given(request) -> Inputs:
    shape, kind = MODELS[request.param]
    patcher = unknown(kind)
    sigmas = torch.linspace(1, 0, STEPS + 1)
    latent = {"samples": torch.zeros(shape)}
    return Inputs(SeededNoise(SEED), tiny_wan.guided(patcher), comfy.samplers.sampler_object("euler"), sigmas, latent)


@pytest.fixture
def plain(given) -> torch.Tensor:
    return SamplerCustomAdvanced.execute(
        given.noise, given.guider, given.sampler, given.sigmas, given.latent
    ).args[0]["samples"]


def looking(*scores):
    """By a converter of Wan's shape."""
    return gate(*scores, l2r=LinearL2R([[0.1, 0.2, 0.3]] * 16))


def seen(given) -> bool:
    """Whether its latents are a clip that the converter can show."""
    return given.latent["samples"].shape[1:-2] == (16, 3)


def test_a_monitored_run_is_the_plain_one(given, plain):
    result = monitored_sample(given, looking(0.3))
    assert torch.equal(result.latent["samples"], plain) and result.verdict.accepted
    assert seen(given) or "was not inspected: ValueError" in result.verdict.record.message


def test_a_race_ends_with_a_clip(given, plain):
    result = run_race(given, looking(0.3, 0.1), Rules.ranks(0.25, "later"))
    report = run_report(result.verdict)
    assert torch.equal(result.latent["samples"], plain)
    assert report["nfe"] <= 1.25 * STEPS and (seen(given) or report["notes"])


def test_a_watched_run_is_the_plain_one(given, plain):
    watch = Watch(looking(0.3))
    guider = tiny_wan.guided(watch.patch(given.guider.model_patcher))
    watched = SamplerCustomAdvanced.execute(given.noise, guider, given.sampler, given.sigmas, given.latent).args[0]
    assert torch.equal(watched["samples"], plain) and (seen(given) or watch.verdict.record.message)


def test_an_audition_takes_the_first_where_none_can_be_scored(given, plain):
    def make(seed):
        return replace(given, noise=SeededNoise(seed))

    found = hold_audition(make, looking(0.3), (SEED, 8), keep=1, fraction=0.2)
    assert torch.equal(found.latent["samples"], plain)
    assert seen(given) or (found.sheet is None and found.report["scores"] == [None, None] and found.report["notes"])


def test_a_search_takes_the_plain_clip_where_none_can_be_scored(given, plain):
    search = searching(AlignmentReward(looking(0.3)), given.sampler, candidates=2, method="beam")
    result = monitored_sample(replace(given, sampler=search))
    assert torch.equal(result.latent["samples"], plain) and (seen(given) or search.result["notes"])


def test_the_trials_end_with_a_clip(given, plain):
    result = run_hierarchy(
        given, looking(0.1), lambda *_: tiny_wan.guided(given.guider.model_patcher), negative="", reworder=Rewriter(),
        injection=InjectionSettings(),
    )  # fmt: skip
    assert result.latent["samples"].shape == plain.shape and torch.isfinite(result.latent["samples"]).all()
    assert seen(given) or torch.equal(result.latent["samples"], plain)
