"""Pictures for the template browser: ``python -m foresight.lab.graphs.cards [NAME ...]`` writes workflows/NAME.jpg.

Each shows what its graph makes. The demo's graphs are run, and their own clips shown. Graphs of models whose weights
are not here show the demo's clips of the same form, and say so. From the ComfyUI in COMFYUI_PATH (or dev.py's).
"""

from __future__ import annotations

import io
import math
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from ...evaluation.comfyui import comfyui_path
from ...evaluation.graph_settings import EXAMPLES
from ...evaluation.server import ComfyServer
from .forms import GRAPHS, api_graph, calibrate, graph

ROOT = Path(__file__).resolve().parents[2]
DARK, FAINT, LIGHT, GO = "#14181f", "#7d8795", "#f2f4f7", "#38d39f"
SIDE, EDGE, GAP, LINE = 512, 20, 5, 19  # pixels
FRAMES, ASIDE = 6, 3  # of a clip; clips that were not delivered, at most
# What is saved or shown beside the reports -> what is said of it.
PICTURES = {
    "plain": "KSampler, the same seed", "foresight_seeds": "Every seed after a fifth of its steps",
    "ForesightL2RCalibrate": "A frame, ComfyUI's preview of it, and the preview from here on",
}  # fmt: skip
REPORTS = ("ForesightEnhancerReport", "ForesightRunReport")
ON_THE_SPOT = "A clip that it makes on the spot."
OTHERS = "Drawn with the demo's clips: this model's weights were not at hand."


class Row(NamedTuple):
    label: str
    frames: list[Image.Image]
    delivered: bool = False


def rows(server: ComfyServer, name: str) -> Iterator[Row]:
    """What a graph makes when it is run: what was put aside or compared first, and last what is delivered."""
    prompt = api_graph(name, server.object_info())
    outputs = [(prompt[id], made) for id, made in server.queue(prompt)["outputs"].items() if id in prompt]
    saved = {node["inputs"].get("filename_prefix", node["class_type"]): made for node, made in outputs}
    for key, label in PICTURES.items():
        if key in saved:
            yield Row(label, frames(server, *saved[key]["images"]))
    told = {node["class_type"]: made.get("foresight_clips", []) for node, made in outputs}
    clips = next(filter(None, map(told.get, REPORTS)), [])
    for clip in [clip for clip in clips if not clip["finished"]][:ASIDE]:
        yield Row(f"{clip['name']}: {clip['about']}", frames(server, clip))
    if "foresight" in saved:
        about = next((clip["about"] for clip in told.get(REPORTS[1], []) if clip["finished"]), "")
        label = ": ".join(filter(None, ("the finished clip", about)))
        yield Row(label, frames(server, saved["foresight"]["images"][0]), True)


def frames(server: ComfyServer, *files: dict[str, Any]) -> list[Image.Image]:
    """FRAMES frames of a saved clip, spread over its length; pictures as they are."""
    every = []
    for file in files:
        with Image.open(io.BytesIO(server.view(file))) as clip:
            every += [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    count = len(every) if len(files) > 1 else min(FRAMES, len(every))
    return [every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)]


def card(model: str, title: str, shown: list[Row], foot: str) -> Image.Image:
    """[512, 512]: the title, each row under a line that says what it is, and a line at the foot."""
    picture = Image.new("RGB", (SIDE, SIDE), DARK)
    draw, small = ImageDraw.Draw(picture), ImageFont.load_default(15)
    draw.text((EDGE, 14), model, FAINT, ImageFont.load_default(19))
    lines = textwrap.wrap(title, 34)
    for number, line in enumerate(lines):
        draw.text((EDGE, 38 + 31 * number), line, LIGHT, ImageFont.load_default(27))
    top, bottom = 48 + 31 * len(lines), SIDE - EDGE - LINE * (1 + foot.count("\n"))
    draw.text((EDGE, bottom + 4), foot, FAINT, small)
    room = (bottom - top) // len(shown)
    for number, row in enumerate(shown):
        y, label = top + number * room, row.label
        while draw.textlength(label, small) > SIDE - 2 * EDGE:
            label = label.removesuffix("...")[:-1] + "..."
        draw.text((EDGE, y), label, GO if row.delivered else LIGHT, small)
        tiles, columns = fitted(row.frames, SIDE - 2 * EDGE, room - LINE - 2 * GAP)
        for place, tile in enumerate(tiles):
            x = EDGE + place % columns * (tile.width + GAP)
            picture.paste(tile, (x, y + LINE + place // columns * (tile.height + GAP)))
    return picture


def fitted(tiles: list[Image.Image], width: int, height: int) -> tuple[list[Image.Image], int]:
    """Tiles of one size as large as a place holds them, and in how many columns they then stand."""
    def scale(columns: int) -> float:
        lines = math.ceil(len(tiles) / columns)
        across = (width - GAP * (columns - 1)) / columns / tiles[0].width
        return min(across, (height - GAP * (lines - 1)) / lines / tiles[0].height)

    columns = max(range(1, len(tiles) + 1), key=scale)
    size = tuple(int(scale(columns) * side) for side in tiles[0].size)
    return [tile.resize(size, Image.Resampling.BICUBIC) for tile in tiles], columns


def main(names: list[str]) -> None:
    made: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        options = ("--disable-api-nodes",)
        with ComfyServer(comfyui_path(), folder, ROOT, log=folder / "log", arguments=options) as server:
            for name in names or GRAPHS:
                form, family = GRAPHS[name]
                model, title = graph(name).note.splitlines()[0].removeprefix("## ").split(": ", 1)
                own = not EXAMPLES[family].text_encoder
                shown = name if own else {"extension": "demo_streaming"}.get(form.__name__, f"demo_{form.__name__}")
                if shown not in made:
                    made[shown] = list(rows(server, shown))
                said = f"\u201c{EXAMPLES[GRAPHS[shown][1]].prompt}\u201d" if form is not calibrate else ON_THE_SPOT
                foot = said if own else f"{said}\n{OTHERS}"
                picture = card(model, title[0].upper() + title[1:], made[shown], foot)
                picture.save(ROOT / "workflows" / f"{name}.jpg", quality=88)
                print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
