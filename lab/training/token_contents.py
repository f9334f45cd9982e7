"""What each token of a rendered clip holds: targets that teach the demo transformer to listen to its caption.

Which shape an object has hardly moves the velocity loss while its place is unknown, and once the place is known the
noisy latent shows the shape by itself. So the captions' shapes, counts and directions are learned last and slowly. A
linear layer that reads them off the tokens half-way through the network makes them count at every noise level (cf. Yu
et al. 2024, "Representation Alignment for Generation", which aligns such tokens with a pretrained encoder's).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...demo.judge import Found
from ...demo.world import COLOURS, FRAMES, MOTIONS, SHAPES, SIZE, SIZES, Layout, Placed, cover, described

TOKEN = 16  # pixels a side of a token of the transformer: 2x2 latents
FULL = 0.3  # share of a token's pixels from which it counts as full
CONTENTS = (
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"{colour} {motion}" for colour in COLOURS for motion in MOTIONS),
    *SIZES,
)
_INDEX = {name: index for index, name in enumerate(CONTENTS)}


def contents(layouts: Sequence[Layout], frames: Sequence[int], token: int) -> Tensor:
    """[B, frames, 64 / token, 64 / token, len(CONTENTS)]: the share of each token, `token` pixels a side, that an
    object of that kind covers in these frames of the rendered clip."""
    out = torch.zeros(len(layouts), len(frames), SIZE // token, SIZE // token, len(CONTENTS))
    time = torch.tensor(frames) / (FRAMES - 1)
    for row, layout in zip(out, layouts, strict=True):
        for placed in layout.objects:
            thing = described(placed)
            covered = F.avg_pool2d(cover(placed, time)[:, None], token)[:, 0]
            for name in (f"{thing.colour} {thing.shape}", f"{thing.colour} {thing.motion}", thing.size):
                kind = row[..., _INDEX[name]]
                kind.copy_(torch.maximum(kind, covered))
    return out


def found_contents(found: Sequence[Found], frames: Sequence[int], token: int) -> Tensor:
    """[frames, 64 / token, 64 / token, len(CONTENTS)] as `contents`, of what was found in a clip. How it moves is
    unknown (nan); where a shape is not clear there is none."""
    out = torch.zeros(len(frames), SIZE // token, SIZE // token, len(CONTENTS))
    out[..., [_INDEX[f"{colour} {motion}"] for colour in COLOURS for motion in MOTIONS]] = torch.nan
    for thing in found:
        if thing.frame not in frames:
            continue
        placed = Placed(thing.shape or "circle", thing.colour, thing.size, thing.x, thing.y, 0.0, 0.0)
        covered = F.avg_pool2d(cover(placed, torch.zeros(1)), token)[0]
        for name in (described(placed).size, *([f"{thing.colour} {thing.shape}"] if thing.shape else [])):
            kind = out[frames.index(thing.frame), ..., _INDEX[name]]
            kind.copy_(torch.maximum(kind, covered))
    return out


def full(share: Tensor) -> Tensor:
    """0 to 1: a token counts as full from the share FULL on."""
    return share.div(FULL).clamp(max=1)


def token_contents(layouts: Sequence[Layout], frames: int) -> Tensor:
    """[B, latent frames * 16, len(CONTENTS)], 0 to 1: how much of a token of the transformer an object of that kind
    covers. A latent frame is the first frame, then four each."""
    share = contents(layouts, range(frames), TOKEN)
    if frames > 1:
        share = torch.cat([share[:, :1], share[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)
    return full(share).flatten(1, 3)
