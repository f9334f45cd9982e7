"""The panel's pictures: previews made small, and filmstrips as JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIDE = 320  # pixels of a picture's longer side: what a panel can show, and half a megabyte for 8 frames
QUALITY = 85


@torch.no_grad()
def thumbnail(frames: Tensor) -> np.ndarray:
    """Frames [F, H, W, 3 or more] in 0..1, on any device -> uint8 [F, h, w, 3], at most SIDE pixels a side."""
    small = frames[..., :3].movedim(-1, 1).float()
    if (largest := max(small.shape[-2:])) > SIDE:
        size = [max(1, round(side * SIDE / largest)) for side in small.shape[-2:]]
        small = F.interpolate(small, size, mode="area")
    return small.mul(255).round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()


def encode(frames: np.ndarray) -> bytes:
    """JPEG of frames [F, h, w, 3] side by side."""
    out = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
