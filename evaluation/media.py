"""Writes clips and contact sheets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FPS = 8
ENLARGE = 4  # a 64-pixel clip is a stamp on today's screens
EXIF = {"prompt": 0x0110, "workflow": 0x010F}  # the tags of core's SaveAnimatedWEBP
_MARGIN, _LABEL, _LINE = 8, 96, 16


def write_clip(frames: np.ndarray, path: Path, graphs: Mapping[str, Any]) -> None:
    """Writes frames ([F,H,W,3] uint8), enlarged, as `path` with the suffixes .mp4 (H.264) and .webp (animated).

    graphs: what ComfyUI opens when a file is dropped into it: a "workflow", or a "prompt" as the API takes it.
    """
    frames = frames.repeat(ENLARGE, 1).repeat(ENLARGE, 2)
    texts = {kind: json.dumps(graph) for kind, graph in graphs.items()}
    with av.open(str(path.with_suffix(".mp4")), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(texts)
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    first, *others = map(Image.fromarray, frames)
    exif = first.getexif()
    exif.update({EXIF[kind]: f"{kind}:{text}" for kind, text in texts.items()})
    first.save(path.with_suffix(".webp"), save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=90,
               exif=exif)  # fmt: skip


def contact_sheet(
    rows: list[tuple[str, np.ndarray]], text: list[str], path: Path, columns: int = 9, below: np.ndarray | None = None
) -> None:
    """A PNG with lines of text, one row of frames for each (label, [F,H,W,3] uint8), and a picture ([H,W,3] uint8)
    below. Rows with more frames than columns show evenly spaced ones."""
    tile = rows[0][1].shape[1] * 2
    width = 2 * _MARGIN + _LABEL + columns * (tile + 2)
    top = _MARGIN + _LINE * len(text) + _MARGIN
    bottom = top + len(rows) * (tile + _MARGIN)
    sheet = Image.new("RGB", (width, bottom + (0 if below is None else len(below))), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, line in enumerate(text):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, "black", font)
    for number, (label, frames) in enumerate(rows):
        y = top + number * (tile + _MARGIN)
        draw.multiline_text((_MARGIN, y), label, "black", font)
        shown = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        for column, frame in enumerate(frames[shown]):
            picture = Image.fromarray(frame).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (_MARGIN + _LABEL + column * (tile + 2), y))
    if below is not None:
        sheet.paste(Image.fromarray(below), ((width - below.shape[1]) // 2, bottom))
    sheet.save(path)
