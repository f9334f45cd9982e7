"""Pairs of latents and the frames that belong to them, made with any VAE that ComfyUI loads."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from .fit import key_frames


def temporal(vae: Any) -> int:
    """Frames a latent frame, 1 for image VAEs."""
    return vae.temporal_compression_decode() or 1


def whole_latents(vae: Any, frames: Tensor) -> Tensor:
    """Frames [T, H, W, 3] cut to what makes whole latents. ValueError for less than one."""
    step, space = temporal(vae), vae.spacial_compression_decode()
    count = (len(frames) - 1) // step * step + 1
    height, width = (side // space * space for side in frames.shape[1:3])
    if not (height and width):
        raise ValueError(
            f"images are {frames.shape[2]}x{frames.shape[1]} pixels, less than one latent: give larger ones."
        )
    return frames[:count, :height, :width]


@torch.no_grad()
def encoded(vae: Any, latent_format: Any, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Model-space latents [1, C, F, h, w] of a clip [T, H, W, 3] in 0..1, and the frames [1, F, H, W, 3] that belong to
    them, float32 on the CPU."""
    latent = vae.encode(clip).cpu()
    if latent.ndim == 4:  # image VAEs make one latent of each frame
        latent = latent.movedim(0, 1).unsqueeze(0)
    return latent_format.process_in(latent).float(), key_frames(clip[None].float().cpu(), latent.shape[2])


def fingerprint(vae: Any) -> str:
    """Tells one VAE's weights from another's, whatever precision ComfyUI has loaded them in: signs survive rounding."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.first_stage_model.state_dict().items()):
        digest.update(name.encode())
        digest.update((tensor.flatten()[:64] > 0).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
