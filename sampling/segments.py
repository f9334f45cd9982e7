"""Running an inner sampler over a part of the schedule, inside one guider call."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch

# Core's samplers that draw noise at their steps, by what their names have in them.
_NOISY = re.compile("ancestral|sde|lcm|ddpm|seeds|sa_solver|ar_video")


def require_ksampler(sampler: comfy.samplers.Sampler, purpose: str) -> comfy.samplers.KSAMPLER:
    """The sampler, if it can be entered in mid-run; ValueError otherwise."""
    if isinstance(sampler, comfy.samplers.KSAMPLER):
        return sampler
    raise ValueError(
        f"{purpose} has to enter the sampler in mid-run, which {type(sampler).__name__} does not allow. "
        "Connect a sampler from KSamplerSelect (or any other that is a KSAMPLER)."
    )


def own_steps(sampler: comfy.samplers.Sampler) -> bool:
    """Whether it is one of core's two samplers that choose their own steps, so that none of the schedule's is met; also
    within another (Self-Refine, Latent Search, an injection)."""
    return adaptive(sampler) or _innermost(sampler) == "dpm_fast_function"


def adaptive(sampler: comfy.samplers.Sampler) -> bool:
    """Whether it is core's sampler that chooses even their number, by what the model answers."""
    return _innermost(sampler) == "dpm_adaptive_function"


def adds_noise(sampler: comfy.samplers.Sampler) -> bool:
    """Whether it is one of core's samplers that add noise at each step; also within another."""
    return bool(_NOISY.search(_innermost(sampler)))


def _innermost(sampler: comfy.samplers.Sampler) -> str:
    function = getattr(sampler, "sampler_function", None)
    inner = getattr(function, "inner", None) or getattr(sampler, "inner", None)
    return getattr(function, "__name__", "") if inner is None else _innermost(inner)


@dataclass(frozen=True)
class Segments:
    """Advances a latent along `sigmas` with a KSAMPLER's own function, from any step to any later one.

    Works on x as the sampler function sees it: noise scaling belongs to the ends of the whole run and stays with
    ComfyUI's KSAMPLER. Multistep samplers lose their history where a run is cut, so cut only where a method must.
    """

    inner: comfy.samplers.KSAMPLER
    model: comfy.samplers.KSamplerX0Inpaint
    sigmas: torch.Tensor
    extra_args: dict[str, Any]
    callback: Callable[[dict], None] | None
    disable: bool | None

    def advance(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """x at sigmas[start] -> x at sigmas[stop]; the callback keeps counting in steps of the whole schedule."""
        if start == stop:
            return x
        # Samplers that add noise draw it from the seed: each segment needs draws of its own. Core adds 1 on the CPU.
        extra_args = {**self.extra_args, "seed": ((self.extra_args.get("seed") or 0) + start) % (2**64 - 1)}
        callback = self.callback and (lambda info: self.callback({**info, "i": info["i"] + start}))
        return self.inner.sampler_function(
            self.model, x, self.sigmas[start : stop + 1], extra_args=extra_args, callback=callback,
            disable=self.disable, **self.inner.extra_options,
        )
