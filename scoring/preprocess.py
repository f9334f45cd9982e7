"""Clip preprocessing of VBench's "overall consistency", on whatever device the frames are on.

Source: VBench `overall_consistency.py` and `utils.py` (frame choice "middle", `clip_transform`). What must be kept for
equal scores: pixels are uint8 before and after the resize, bicubic without antialiasing, the short side is fitted and
the middle is cut out, and the mean and deviation are CLIP's.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def middle_frames(count: int, number: int) -> list[int]:
    """Middles of `number` equal intervals of a clip of `count` frames; a shorter clip repeats its last frame."""
    parts = min(count, number)
    edges = [int(part * (count / parts)) for part in range(parts)] + [count]  # as numpy.linspace(0, count) floors it
    middles = [(left + right - 1) // 2 for left, right in zip(edges, edges[1:], strict=False)]
    return middles + middles[-1:] * (number - parts)


def vbench_frames(frames: Tensor, size: int = 224, count: int = 8) -> Tensor:
    """Frames [F, H, W, 3] in 0..1 (or uint8) to the scorer's input [count, 3, size, size], float32, same device.

    Floats are rounded to the nearest of 256 levels: VBench scores encoded files, and rounding is the unbiased choice.
    Raises ValueError for tensors of another shape.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"A scorer takes frames [F, H, W, 3], not {list(frames.shape)}.")
    chosen = middle_frames(len(frames), count)
    # Picked one by one: a list of places would be copied to the device, which stalls it. So would MEAN and STD.
    x = (frames if chosen == list(range(len(frames))) else torch.stack([frames[at] for at in chosen])).movedim(-1, 1)
    x = x.float() if x.dtype == torch.uint8 else x.float().mul(255).round().clamp(0, 255)
    height, width = x.shape[-2:]
    short, long = sorted((height, width))
    length = int(size * long / short)
    target = (size, length) if height <= width else (length, size)
    if target != (height, width):
        x = F.interpolate(x, target, mode="bicubic", align_corners=False, antialias=False).clamp(0, 255).round()
    top, left = (int(round((side - size) / 2)) for side in target)
    x = x[..., top : top + size, left : left + size] / 255
    channels = zip(x.unbind(1), MEAN, STD, strict=True)
    return torch.stack([(values - mean) / deviation for values, mean, deviation in channels], 1)
