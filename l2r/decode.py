"""Previews in chunks of frames, so that a converter's memory is bounded whatever the clip's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PIXELS = 4_000_000  # of a chunk; in the paper's layout (16 channels, fp32) about 0.8 GB at its peak


@torch.no_grad()
def decode(converter: nn.Module, latent: Tensor, frames: Sequence[int] | None = None) -> Tensor:
    """What `converter(latent, frames)` gives, [B, F, sH, sW, 3] in 0..1, item by item and a few frames at a time.

    frames: which latent frames to decode, default all. When memory runs out, chunks are halved; torch.OutOfMemoryError
    where not even one frame fits.
    """
    frames = range(latent.shape[2]) if frames is None else frames
    chunk = max(1, PIXELS // max(1, latent.shape[-2] * latent.shape[-1] * converter.scale**2))
    return torch.stack([_one(converter, item, list(frames), chunk) for item in latent.split(1)])


def _one(converter: nn.Module, latent: Tensor, frames: list[int], chunk: int) -> Tensor:
    parts = []
    while frames:
        try:
            parts.append(converter(latent, frames[:chunk])[0])
            frames = frames[chunk:]
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk //= 2
    return torch.cat(parts)
