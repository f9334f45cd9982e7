"""Predict and Perturb against the authors' loop, written out."""

from __future__ import annotations

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import numpy as np
import pytest
import torch
from gaussians import SHAPE, Mixture, draw, sample

from foresight.sampling.self_refine import PRESETS, parse_plan, self_refining

EULER = comfy.samplers.ksampler("euler")
SHORT = parse_plan("1-3:2", 10)


def refining(settings, inner=EULER):
    sampler = self_refining(inner, settings)
    return sampler, sampler.sampler_function


def authors_loop(guider, settings, steps, noise, seed, sigmas_of):
    """Their loop for one item (reference/self_refine.md, 3a), Euler in flow space, with this pack's draws of noise."""
    x, sigmas = noise, sigmas_of(steps)
    for i in range(steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        buffer, passes = None, settings.passes(i, steps)
        for ii in range(passes + 1):
            if ii > 0:
                mixed = np.random.SeedSequence((seed, i, ii)).generate_state(1, np.uint64)
                fresh = torch.randn(SHAPE, generator=torch.Generator().manual_seed(int(mixed[0])))[None]
                x = (1 - sigma) * buffer[1] + sigma * fresh
            x0 = guider(x, sigma[None])
            velocity = (x - x0) / sigma
            xn = x + (following - sigma) * velocity
            stop = False
            if buffer is not None:
                change = torch.linalg.vector_norm(x0 - buffer[1], 1, dim=1) / x0.shape[1]
                certain = (change < settings.tau) | buffer[0]
                stop = certain.float().mean() > 0.999
                keep = certain.unsqueeze(1)
                xn, x0 = torch.where(keep, buffer[2], xn), torch.where(keep, buffer[1], x0)
            else:
                certain = torch.zeros_like(x0[:, 0], dtype=torch.bool)
            buffer = certain, x0, xn
            if stop:
                break
        x = buffer[2]
    return x


def shifted(steps):
    t = torch.linspace(1, 0, steps + 1)
    return 5 * t / (1 + 4 * t)


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.6])
def test_it_is_the_authors_loop(tau):
    settings = PRESETS["T2V"].settings(tau=tau)
    one, other = Mixture(), Mixture()
    ours = sample(refining(settings)[0], one, 40, seed=7, noise=draw(7))
    theirs = authors_loop(other, settings, 40, draw(7), 7, shifted)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(one.calls) == len(other.calls)
