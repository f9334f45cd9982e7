"""NOISE objects: of a seed, of a tensor that is already drawn, of one candidate of a search."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import torch

from .inputs import of_parts, parts_of


@dataclass
class SeededNoise:
    """What the RandomNoise node gives, without touching the global generator."""

    seed: int

    def generate_noise(self, latent):
        return self._draw(latent)[0]

    def _draw(self, latent: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise, and the generator's state after it."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        parts, chosen = parts_of(latent["samples"]), latent.get("batch_index")
        noise = of_parts([comfy.sample.prepare_noise_inner(part, generator, chosen) for part in parts])
        return noise, generator.get_state()

    @contextmanager
    def sampling(self, latent: dict[str, Any]) -> Iterator[torch.Tensor]:
        """Gives the noise. The global generators are as RandomNoise leaves them, by which samplers of other packs seed
        their own noise; afterwards they are what they were."""
        noise, state = self._draw(latent)
        device = comfy.model_management.get_torch_device()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if device.type == "cuda":
                torch.cuda.manual_seed(self.seed)
            torch.set_rng_state(state)
            yield noise


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
        self.seed = following(noise.seed, candidate)

    def generate_noise(self, latent):
        noise = self.noise.generate_noise(latent)
        if not getattr(noise, "is_nested", False):
            return mixed_noise(noise, self.seed, self.beta)
        packed, shapes = comfy.utils.pack_latents(parts_of(noise))
        return of_parts(comfy.utils.unpack_latents(mixed_noise(packed, self.seed, self.beta, shapes), shapes))


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


def following(seed: int, n: int) -> int:
    """The n-th seed after `seed`; seeds have 64 bits, in ComfyUI's widgets and torch's generators alike."""
    return (seed + n) % 2**64


def reseeded(noise: Any, seed: int | None, latent: dict[str, Any] | None = None) -> Any:
    """A NOISE object with another seed, of the same kind where that does as it is told, else RandomNoise's; None keeps
    the noise. latent: for which it is drawn. ValueError where there is no noise to draw (DisableNoise)."""
    if seed is None:
        return noise
    latent = latent or {"samples": torch.zeros(1, 16, 5, 8, 8)}
    drawn = _values(noise.generate_noise(dict(latent)))
    if not drawn.any():
        raise ValueError(
            f"{type(noise).__name__} adds no noise, so there is none to draw anew: connect RandomNoise, or choose "
            "another back end than restart."
        )
    other = copy.copy(noise)
    try:
        other.seed = seed
    except AttributeError:  # read-only; a frozen dataclass too
        return SeededNoise(seed)
    return SeededNoise(seed) if torch.equal(_values(other.generate_noise(dict(latent))), drawn) else other


def _values(noise: Any) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts_of(noise)])
