"""The registry's icon and banner: ``python -m foresight.lab.release.brand`` writes docs/icon.png and docs/banner.png.

Both show a race: tries that are put aside early, and the one that goes on to its end.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ...demo.captions import prompt
from ...demo.world import SIZE, render

ROOT = Path(__file__).resolve().parents[2]
ICON, BANNER = (400, 400), (1260, 540)  # pixels: the registry's largest icon, and 21:9
DARK, FAINT, LIGHT, GO = "#14181f", "#5d6775", "#f2f4f7", "#38d39f"
# Of each try: the share of its steps that it is given.
SHARES = (0.3, 0.3, 1.0)


def icon() -> Image.Image:
    """Drawn at four times its size, for smooth edges."""
    big = Image.new("RGBA", (4 * ICON[0], 4 * ICON[1]), "#00000000")
    draw = ImageDraw.Draw(big)
    draw.rounded_rectangle((0, 0, big.width - 1, big.height - 1), 320, DARK)
    for row, share in enumerate(SHARES):
        y, colour = 430 + 370 * row, GO if share == 1 else FAINT
        end = 260 + round(860 * share)
        draw.rounded_rectangle((260, y - 65, end, y + 65), 65, colour)
        if share == 1:
            draw.polygon([(end - 40, y - 210), (end - 40, y + 210), (end + 280, y)], colour)
        else:
            draw.ellipse((end - 90, y - 90, end + 90, y + 90), colour)
    return big.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """Strips of frames that become clear from step to step; the last is let finish."""
    picture = Image.new("RGB", BANNER, DARK)
    draw = ImageDraw.Draw(picture)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    draw.text((60, 38), project["tool"]["comfy"]["DisplayName"], LIGHT, ImageFont.load_default(56))
    draw.text((330, 62), "Look early, finish the best.", FAINT, ImageFont.load_default(28))
    noise = torch.Generator().manual_seed(0)
    tile, columns = 116, 9
    for row, share in enumerate(SHARES):
        clip, y = render(prompt("test", "medium", row)[1]), 132 + row * (tile + 14)
        for column in range(round(columns * share)):
            done = (column + 1) / columns
            frame = clip[round(done * (len(clip) - 1))]
            seen = done * frame + (1 - done) * 255 * torch.rand(SIZE, SIZE, 3, generator=noise)
            small = Image.fromarray(seen.clamp(0, 255).byte().numpy())
            picture.paste(small.resize((tile, tile), Image.Resampling.NEAREST), (60 + column * (tile + 10), y))
        right = 60 + round(columns * share) * (tile + 10)
        draw.rectangle((54, y - 6, right - 5, y + tile + 5), outline=GO if share == 1 else FAINT, width=3)
    return picture


if __name__ == "__main__":
    icon().save(ROOT / "docs" / "icon.png", optimize=True)
    banner().quantize(128).save(ROOT / "docs" / "banner.png", optimize=True)
