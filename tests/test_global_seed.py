"""Samplers of other packs that seed their own noise by torch's global generator (RES4LYF's), or draw from it."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import pytest
import tiny_wan
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from test_compatibility import core, same
from tiny_wan import gate

from foresight.sampling.audition import hold_audition
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report


def by_the_initial_seed(x):
    generator = torch.Generator().manual_seed(torch.initial_seed() + 1)
    return lambda: torch.randn(x.shape, generator=generator)


def from_the_global_generator(x):
    return lambda: torch.randn_like(x)


def ancestral(noises):
    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        draw = noises(x)
        for step in range(len(sigmas) - 1):
            denoised = model(x, sigmas[step] * x.new_ones(len(x)), **(extra_args or {}))
            if callback is not None:
                callback({"x": x, "i": step, "denoised": denoised})
            x = (1 - sigmas[step + 1]) * denoised + sigmas[step + 1] * draw()
        return x

    return comfy.samplers.KSAMPLER(sample)


@pytest.fixture(params=[by_the_initial_seed, from_the_global_generator])
def own(request):
    return replace(tiny_wan.inputs(tiny_wan.model(), steps=5), noise=SeededNoise(7), sampler=ancestral(request.param))


def plain(own, seed):
    return core(replace(own, noise=Noise_RandomNoise(seed)))


@pytest.mark.parametrize("way", ["passes", "monitored", "another seed", "gone on with", "audition"])
def test_a_clip_is_cores_of_its_seed(own, way):
    torch.manual_seed(99)  # what ran before
    before = torch.get_rng_state()
    rules, seed = Rules(RaceSettings(2, "off"), (Look(0.4, floor=0.2),), budget=1.0), 7
    if way == "monitored":
        clip = monitored_sample(own, gate(0.3)).latent
    elif way == "audition":
        def made(one):
            return replace(own, noise=SeededNoise(one))

        clip, seed = hold_audition(made, gate(0.1, 0.3), (7, 8), keep=1, fraction=0.4).latent, 8
    else:
        scores = {"passes": (0.3,), "another seed": (0.1, 0.3), "gone on with": (0.15, 0.15, 0.1, 0.1, 0.1)}[way]
        raced = run_race(own, gate(*scores), rules)
        clip, seed = raced.latent, run_report(raced.verdict)["final_seed"]
        assert (seed != 7) == (way == "another seed")
    assert torch.equal(torch.get_rng_state(), before), "the global generator is as it was"
    assert same(clip["samples"], plain(own, seed))
