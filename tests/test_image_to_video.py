"""Clips that start from an image: inspected as any other; Trial 1 is left out, Trial 2 comes next."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanImageToVideo
from tiny_wan import conditioning, gate, inputs, model

from foresight.refiner.base import Refinement
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.run import monitored_sample, single_frame_probe

IMAGE = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))


class Vae:
    """The shapes that a Wan VAE gives."""

    def __init__(self, channels=16, scale=8):
        self.channels, self.scale = channels, scale

    def encode(self, images):
        frames, height, width, _ = images.shape
        shape = (1, self.channels, (frames - 1) // 4 + 1, height // self.scale, width // self.scale)
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(images.sum())))


def guided(patcher, positive, negative):
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, negative)
    guider.set_cfg(4.0)
    return guider


def given(kind, image=IMAGE):
    """A run of 50 steps with core's own conditioning nodes, and how to guide it with another prompt."""
    patcher = model(kind)
    if kind == "2.2 5B":
        latent = Wan22ImageToVideoLatent.execute(Vae(48, 16), 64, 64, 9, 1, image).args[0]

        def reguide(prompt, negative):
            return guided(patcher, conditioning(len(prompt)), conditioning(2))
    else:
        def both(positive):
            return WanImageToVideo.execute(positive, conditioning(2), Vae(), 32, 32, 9, 1, image).args

        latent = both(conditioning(1))[2]

        def reguide(prompt, negative):
            return guided(patcher, *both(conditioning(len(prompt)))[:2])
    return replace(inputs(patcher, "euler", 50), guider=reguide("x", ""), latent=latent), reguide


class Refiner:
    name = "refiner"

    def refine(self, request):
        return Refinement("a clearly red circle", request.negative, "", ())


KINDS = ["2.1 I2V", "2.2 14B I2V", "2.2 5B"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_passing_clip_is_untouched(kind):
    run, _ = given(kind)
    core = SamplerCustomAdvanced.execute(run.noise, run.guider, run.sampler, run.sigmas, run.latent).result[0]
    watched = gate(0.3, l2r=AnyL2R())
    assert torch.equal(monitored_sample(run, watched).latent["samples"], core["samples"])
    assert watched.scorer.calls > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_rejected_clip_goes_to_trial_2_without_a_probe(kind):
    run, reguide = given(kind)
    result = run_hierarchy(
        run, gate(0.1, l2r=AnyL2R()), reguide, prompt="a red circle", negative="", refiner=Refiner(),
        injection=InjectionSettings(),
    )
    history = result.verdict.history
    assert [(record.trial, record.kind) for record in history] == [
        ("0", "sample"), ("1", "probe"), ("2", "refine"), ("2", "sample"), ("2->1", "probe"), ("2", "plain")
    ]  # fmt: skip
    assert history[1].nfe_single_frame == 0 and "Trial 1 is left out" in history[1].message
    assert torch.isfinite(result.latent["samples"]).all()


def test_without_an_image_the_probe_runs():
    run, _ = given("2.2 5B", image=None)
    rejected = monitored_sample(run, gate(0.1, l2r=AnyL2R())).verdict
    anchor, probed = single_frame_probe(run, gate(0.3, l2r=AnyL2R()), rejected)
    assert anchor.latent.shape == (1, 48, 1, 4, 4) and probed.accepted


def test_a_probe_that_the_model_refuses_costs_the_trial_and_not_the_run():
    run, reguide = given("2.2 5B", image=None)
    broken = run.guider.model_patcher

    def refuse(executor, noise, *rest, **kwargs):
        if noise.shape[2] == 1:
            raise RuntimeError("the control video has 3 frames")
        return executor(noise, *rest, **kwargs)

    broken.add_wrapper_with_key("outer_sample", "test", refuse)
    result = run_hierarchy(
        run, gate(0.1, l2r=AnyL2R()), reguide, prompt="a red circle", negative="", refiner=None,
        injection=InjectionSettings(),
    )
    assert [record.kind for record in result.verdict.history] == ["sample", "probe", "plain"]
    assert "the control video has 3 frames" in result.verdict.history[1].message


class AnyL2R(torch.nn.Module):
    name = "any"

    def forward(self, latent):
        return latent[:, :3].permute(0, 2, 3, 4, 1).sigmoid()
