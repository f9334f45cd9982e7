"""NOISE objects: of a seed, of a tensor that is already drawn, of one candidate of a search."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.utils
import torch


@dataclass
class SeededNoise:
    """What the RandomNoise node gives, without touching the global generator."""

    seed: int

    def generate_noise(self, latent):
        generator = torch.Generator("cpu").manual_seed(self.seed)
        return comfy.sample.prepare_noise_inner(latent["samples"], generator, latent.get("batch_index"))


@dataclass(frozen=True)
class FixedNoise:
    """A tensor that is already drawn."""

    noise: torch.Tensor
    seed: int

    def generate_noise(self, _):
        return self.noise


class MixedNoise:
    """The noise of a search's candidate by its number, around the NOISE that the search starts from."""

    def __init__(self, noise: Any, candidate: int, beta: float):
        self.noise, self.beta = noise, beta
        self.seed = (noise.seed + candidate) % 2**64

    def generate_noise(self, latent):
        noise = self.noise.generate_noise(latent)
        if not getattr(noise, "is_nested", False):
            return mixed_noise(noise, self.seed, self.beta)
        packed, shapes = comfy.utils.pack_latents(noise.unbind())
        mixture = mixed_noise(packed, self.seed, self.beta, shapes)
        return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(mixture, shapes))


def mixed_noise(noise: torch.Tensor, seed: int, beta: float, shapes: Sequence | None = None) -> torch.Tensor:
    """sqrt(1 - beta^2) noise + beta eps: the noise of a candidate. beta: 0 (noise itself) to 1 (all new).

    eps is what ComfyUI's RandomNoise draws from that seed, so that at beta 1 the candidate is the clip of its own seed.
    shapes: of the parts of a packed audio-video latent. Mixed on the CPU: the same to the last bit wherever it is made.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = [torch.randn(tuple(shape), generator=generator) for shape in (shapes or [noise.shape])]
    eps = comfy.utils.pack_latents(parts)[0] if len(parts) > 1 else parts[0]
    mixture = eps if beta == 1 else math.sqrt(1 - beta**2) * noise.cpu().float() + beta * eps
    return mixture.to(noise)


def reseeded(noise: Any, seed: int | None) -> Any:
    """A NOISE object of the same kind with another seed, as RandomNoise reads it; None keeps the noise."""
    if seed is None:
        return noise
    noise = copy.copy(noise)
    noise.seed = seed
    return noise
