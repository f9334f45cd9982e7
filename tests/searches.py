"""Rewards and searches that several test files share."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch

from foresight.sampling.noise import FixedNoise, mixed_noise
from foresight.sampling.search import SearchSampler, SearchSettings

EULER = comfy.samplers.ksampler("euler")
EARLY = (0.2, 0.4)


class Told:
    """A reward that is told what to say: by step, a value for each candidate that is asked about."""

    name, patcher = "told", None

    def __init__(self, *values):
        self.values = list(values)
        self.seen = []

    def score(self, x0, sigma, step):
        self.seen.append((x0.clone(), sigma, step))
        value = self.values[min(len(self.seen), len(self.values)) - 1]
        if isinstance(value, BaseException):
            raise value
        return torch.tensor(value[: len(x0)], dtype=torch.float32)


class Mean:
    """Likes clips with high values."""

    name, patcher = "mean", None

    def score(self, x0, sigma, step):
        return x0.flatten(1).mean(1)


def searching(reward, inner=EULER, **settings):
    return SearchSampler(inner, reward, SearchSettings(**{"candidates": 4, "schedule": EARLY, "beta": 1.0, **settings}))


def candidate(setup, search, index):
    """The inputs of one candidate alone, without a search."""
    noise, seed = setup.noise.generate_noise(setup.latent), setup.noise.seed + index
    mixed = mixed_noise(noise, seed, search.settings.beta) if index else noise
    return replace(setup, sampler=search.inner, noise=FixedNoise(mixed, seed))
