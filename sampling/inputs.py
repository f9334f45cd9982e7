"""What every sampling node takes: noise, guider, sampler, schedule and latent, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.nested_tensor
import comfy.samplers
import torch

Latent = dict[str, Any]


def parts_of(samples: Any) -> list[torch.Tensor]:
    """Of the samples of a LATENT: of audio-video models video and sound, else themselves alone."""
    return samples.unbind() if getattr(samples, "is_nested", False) else [samples]


def of_parts(parts: Sequence[torch.Tensor]) -> Any:
    """The opposite of `parts_of`."""
    return comfy.nested_tensor.NestedTensor(parts) if len(parts) > 1 else parts[0]


def joined(clips: Sequence[Latent]) -> Latent:
    """One batch of clips that were made of the same LATENT. `batch_index` numbers the noises of one batch: for several
    it would give each clip the same ones again, and lead past the end where one of them is picked."""
    parts = zip(*(parts_of(clip["samples"]) for clip in clips), strict=True)
    latent = {**clips[0], "samples": of_parts(list(map(torch.cat, parts)))}
    if len(clips) > 1:
        latent.pop("batch_index", None)
    return latent


@dataclass(frozen=True)
class Inputs:
    """What every sampling node takes. noise: a NOISE object; latent: a LATENT dict; sigmas: [N + 1], decreasing.

    schedule_steps: the steps of the whole schedule where sigmas is only its first part; 0 where it is all of it.
    """

    noise: Any
    guider: Any
    sampler: comfy.samplers.Sampler
    sigmas: torch.Tensor
    latent: Latent
    schedule_steps: int = 0

    def __post_init__(self):
        sigmas = self.sigmas
        if sigmas.ndim != 1 or len(sigmas) < 2:
            raise ValueError(
                f"sigmas has {len(sigmas)} value(s): a run needs at least 2 (one step). Raise steps or denoise."
            )
        if not torch.isfinite(sigmas).all() or not (sigmas[1:] < sigmas[:-1]).all():
            raise ValueError(
                "sigmas do not decrease from step to step: connect them as a scheduler gives them, not flipped or "
                f"joined in the wrong order. Got {[round(float(sigma), 4) for sigma in sigmas[:6]]}..."
            )
        if not all(torch.isfinite(part).all() for part in parts_of(self.latent["samples"])):
            raise ValueError("latent holds NaN or infinite values: something before this node has failed.")
        if 0 < self.schedule_steps < self.steps:
            raise ValueError(
                f"schedule_steps is {self.schedule_steps}, but the sigmas alone have {self.steps} steps: enter "
                "the steps of the whole schedule, or 0 where the sigmas are all of it."
            )

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def whole(self) -> int:
        """Steps of the whole schedule, of which the detector's windows are shares."""
        return self.schedule_steps or self.steps
