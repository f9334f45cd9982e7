"""A preview's frames as pictures for a vision-language model: few, evenly chosen, bounded in size."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

from .base import RewordingError

_QUALITIES = (90, 75, 60, 45)  # of JPEG; below this blocks hide what a preview shows
_SMALLEST = 64  # pixels of a frame's long side


def choose_frames(preview: Tensor, count: int) -> Tensor:
    """At most `count` frames of [F, H, W, 3], evenly chosen, the first and the last among them; of one, the middle."""
    count = max(1, min(count, len(preview)))
    if count == 1:
        return preview[len(preview) // 2 :][:1]
    return preview[torch.linspace(0, len(preview) - 1, count).round().long().to(preview.device)]


def contact_sheet(frames: Tensor, gap: int = 4) -> Tensor:
    """Frames [F, H, W, 3] as one picture [h, w, 3], row by row in a grid that is as square as can be."""
    count, height, width, _ = frames.shape
    columns = min(count, max(1, round(math.sqrt(count * height / width))))
    rows = math.ceil(count / columns)
    sheet = frames.new_ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for i, frame in enumerate(frames):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def encode_pictures(pictures: list[Tensor], side: int, most_bytes: int) -> list[bytes]:
    """JPEG files of pictures [H, W, 3] in 0..1: at most `side` pixels long, together at most `most_bytes`.

    Quality is lowered first, then size. RewordingError where that is not enough.
    """
    images = [_image(picture) for picture in pictures]
    while True:
        for quality in _QUALITIES:
            files = [_jpeg(image, side, quality) for image in images]
            if sum(map(len, files)) <= most_bytes:
                return files
        side //= 2
        if side < _SMALLEST:
            raise RewordingError(f"{len(files)} preview frame(s) do not fit into {most_bytes} bytes")


def _image(picture: Tensor) -> Image.Image:
    pixels = picture.detach().float().cpu().nan_to_num(0, 1, 0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    image = image.copy()
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
