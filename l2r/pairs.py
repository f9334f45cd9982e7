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


def spatial(vae: Any) -> int:
    """Pixels a latent, each way. ValueError for VAEs of anything but pictures and videos."""
    if vae.output_channels != 3 or vae.latent_dim == 1:
        raise ValueError("this VAE is of no pictures in three colours: connect the one that belongs to the model.")
    return vae.spacial_compression_decode()


def channels(latent_format: Any) -> int:
    """Of the video. A format of video and sound may state the larger of the two (MiniMax H3); core's map to colours has
    a row for each of the video's, unless the model folds its latents (Flux 2)."""
    if latent_format.latent_rgb_factors is None or latent_format.latent_rgb_factors_reshape is not None:
        return latent_format.latent_channels
    return len(latent_format.latent_rgb_factors)


def whole_latents(vae: Any, frames: Tensor) -> Tensor:
    """Frames [T, H, W, 3] cut to what makes whole latents. ValueError for less than one."""
    step, side = temporal(vae), spatial(vae)
    count = (len(frames) - 1) // step * step + 1
    height, width = (size // side * side for size in frames.shape[1:3])
    if not (height and width):
        raise ValueError(
            f"images are {frames.shape[2]}x{frames.shape[1]} pixels, less than one latent: give larger ones."
        )
    return frames[:count, :height, :width]


@torch.no_grad()
def encoded(vae: Any, latent_format: Any, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Model-space latents [1, C, F, h, w] of a clip [T, H, W, 3] in 0..1, and the frames [1, F, H, W, 3] that belong to
    them, float32 on the CPU. ValueError for a VAE without an encoder, or of another model."""
    try:
        latent = vae.encode(clip).cpu()
    except NotImplementedError as error:
        raise ValueError(
            f"this VAE cannot encode ({error}): connect one that can, or a latent and the images it was decoded to."
        ) from error
    if latent.ndim == 4:  # image VAEs make one latent of each frame
        latent = latent.movedim(0, 1).unsqueeze(0)
    if latent.shape[1] != (own := channels(latent_format)):
        raise ValueError(
            f"this VAE's latents have {latent.shape[1]} channels, the model's {own}: connect the VAE that belongs to "
            "the model."
        )
    return latent_format.process_in(latent).float(), key_frames(clip[None].float().cpu(), latent.shape[2])


def fingerprint(vae: Any) -> str:
    """Tells one VAE's weights from another's, whatever precision ComfyUI has loaded them in: signs survive rounding.
    ValueError where there are none."""
    if vae.first_stage_model is None:
        raise ValueError("the VAE's file has no weights of a VAE that ComfyUI knows: choose another file.")
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.first_stage_model.state_dict().items()):
        digest.update(name.encode())
        digest.update((tensor.flatten()[:64] > 0).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
