"""The demo family's world: flat coloured shapes that move over a plain background, 17 frames of 64x64 pixels.

A `Scene` says only what a caption says; what it leaves open (None) is drawn when the scene is arranged for rendering.
Shapes are large (18 or 26 pixels), because the VAE sees the world through an 8x8 grid of latents, and start at the
centres of that grid's cells, two of which a moving one crosses: a small model then has few pictures of each shape to
learn, and what is left to go wrong is composition, not outlines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FRAMES = 17
SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring")
# At least 110 apart in RGB from each other and from every background, so that a blurred colour keeps its name.
COLOURS = {
    "red": (225, 35, 35),
    "green": (30, 170, 60),
    "blue": (35, 75, 235),
    "yellow": (250, 215, 30),
    "purple": (170, 50, 205),
    "cyan": (40, 205, 225),
}
BACKGROUNDS = {"white": (240, 240, 240), "gray": (140, 140, 140), "black": (20, 20, 20), "brown": (115, 75, 40)}
SIZES = {"small": 18.0, "big": 26.0}
# Image directions (x to the right, y down).
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
# Where the second object lies, seen from the first.
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
DIFFICULTIES = ("easy", "medium", "hard")

_CELL = 8  # pixels, one latent
TRAVEL = 16.0  # pixels a moving object covers over a clip, one a frame
_GAP = 5.0  # pixels between two objects
_MARGIN = 1.5  # pixels between an object and the border
# Largest offset across the relation's axis, as a share of the offset along it, in every frame.
_SLANT = 0.8
# How far a shape of size 1 reaches from its centroid: to either side, up, down.
_REACH = {
    "circle": (0.5, 0.5, 0.5),
    "square": (0.45, 0.45, 0.45),
    "triangle": (0.572, 0.66, 0.33),
    "cross": (0.52, 0.52, 0.52),
    "ring": (0.54, 0.54, 0.54),
}


@dataclass(frozen=True)
class Thing:
    """One object as a caption states it; None is left open. Values are keys of this module's tables."""

    shape: str
    colour: str | None = None
    size: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a caption states. `relation` is that of the first object to the second, e.g. "left of"."""

    objects: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Placed:
    """One object ready to be drawn: centroid at frame 0, travel over the clip and size in pixels."""

    shape: str
    colour: str
    size: float
    x: float
    y: float
    travel_x: float
    travel_y: float


@dataclass(frozen=True)
class Layout:
    objects: tuple[Placed, ...]
    background: str


def choose(options: Sequence, generator: torch.Generator):
    """One of `options`, uniformly."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def sample_scene(generator: torch.Generator, difficulty: str) -> Scene:
    """Draws a scene that can be rendered.

    easy: one object and its motion. medium: two objects of different colours, their relation, one motion for both.
    hard: two objects with different motions, or with sizes, or two equal objects ("two red circles").
    One caption in ten leaves the background open.
    """
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty {difficulty!r} is unknown; choose one of {', '.join(DIFFICULTIES)}")
    while True:
        scene = _draw_scene(generator, difficulty)
        # Two placements in a row: leaves out scenes without room, e.g. two big shapes that part along their relation.
        if _place(scene, generator) and _place(scene, generator):
            return scene


def _draw_scene(generator: torch.Generator, difficulty: str) -> Scene:
    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    def thing(colours: Sequence[str], sized: bool, motion: str) -> Thing:
        size = choose(tuple(SIZES), generator) if sized else None
        return Thing(choose(SHAPES, generator), choose(colours, generator), size, motion)

    background = None if chance(0.1) else choose(tuple(BACKGROUNDS), generator)
    motion, colours = choose(tuple(MOTIONS), generator), tuple(COLOURS)
    if difficulty == "easy":
        return Scene((thing(colours, chance(0.2), motion),), None, background)
    kind = "plain" if difficulty == "medium" else choose(("motions", "motions", "sizes", "count"), generator)
    sized = kind == "sizes" or (kind != "plain" and chance(0.25))
    first = thing(colours, sized, motion)
    if kind == "count":
        return Scene((first, first), None, background)
    if kind == "motions":
        motion = choose([other for other in MOTIONS if other != motion], generator)
    second = thing([colour for colour in colours if colour != first.colour], sized, motion)
    return Scene((first, second), choose(tuple(RELATIONS), generator), background)


def arrange(scene: Scene, generator: torch.Generator, travel: float = TRAVEL) -> Layout:
    """Draws whatever the scene leaves open, and places: objects stay inside the frame, keep a gap, and hold their
    relation in every frame, over `travel` pixels of motion. ValueError for more than two objects or when there is no
    room."""
    if len(scene.objects) not in (1, 2):
        raise ValueError(f"a scene with {len(scene.objects)} objects cannot be drawn; this world holds one or two")
    for _ in range(1000):
        if layout := _place(scene, generator, travel):
            return layout
    raise ValueError(f"no room for {scene}; state smaller sizes or other motions")


def _place(scene: Scene, generator: torch.Generator, travel: float = TRAVEL) -> Layout | None:
    draws = iter(torch.rand(16, generator=generator).tolist())

    def cell(low: float, high: float) -> float | None:
        """The centre of a cell between two pixels, None where none lies there."""
        first, last = math.ceil(low / _CELL - 0.5), math.floor(high / _CELL - 0.5)
        return (first + int((last - first + 1) * next(draws)) + 0.5) * _CELL if first <= last else None

    background = scene.background or choose(tuple(BACKGROUNDS), generator)
    sizes, moves, spans = [], [], []
    for thing in scene.objects:
        size = SIZES[thing.size or choose(tuple(SIZES), generator)]
        move = [travel * step for step in MOTIONS[thing.motion or choose(tuple(MOTIONS), generator)]]
        side, up, down = (size * reach for reach in _REACH[thing.shape])
        borders = ((side, side), (up, down))
        spans.append([
            (_MARGIN + low + max(0.0, -step), SIZE - _MARGIN - high - max(0.0, step))
            for step, (low, high) in zip(move, borders, strict=True)
        ])
        sizes.append((size, borders))
        moves.append(move)

    if len(scene.objects) == 1:
        starts = [[cell(*span) for span in spans[0]]]
    else:
        toward = RELATIONS[scene.relation or choose(("left of", "above"), generator)]
        axis = 0 if toward[0] else 1
        across = 1 - axis
        near, far = (0, 1) if toward[axis] > 0 else (1, 0)
        drift = [moves[far][a] - moves[near][a] for a in (0, 1)]
        need = sizes[near][1][axis][1] + sizes[far][1][axis][0] + _GAP + max(0.0, -drift[axis])
        low, start = cell(spans[near][axis][0], spans[far][axis][1] - need), cell(*spans[near][across])
        if low is None or start is None:
            return None
        high = cell(max(spans[far][axis][0], low + need), spans[far][axis][1])
        if high is None:
            return None
        apart = high - low
        bottom = max(-_SLANT * apart, -_SLANT * (apart + drift[axis]) - drift[across]) + start
        top = min(_SLANT * apart, _SLANT * (apart + drift[axis]) - drift[across]) + start
        starts = [[0.0, 0.0], [0.0, 0.0]]
        starts[near][axis], starts[near][across] = low, start
        starts[far][axis] = high
        starts[far][across] = cell(max(bottom, spans[far][across][0]), min(top, spans[far][across][1]))
    if any(value is None for start in starts for value in start):
        return None

    placed = tuple(
        Placed(thing.shape, thing.colour or choose(tuple(COLOURS), generator), size, *start, *move)
        for thing, (size, _), start, move in zip(scene.objects, sizes, starts, moves, strict=True)
    )
    return Layout(placed, background)


def signed_distance(shape: str, x: Tensor, y: Tensor, size: Tensor | float) -> Tensor:
    """Pixels to the outline of a shape centred (by area) at the origin, positive inside; the arguments broadcast."""
    if shape == "circle":
        return 0.5 * size - torch.hypot(x, y)
    if shape == "square":
        return 0.45 * size - torch.maximum(x.abs(), y.abs())
    if shape == "triangle":
        return 0.33 * size - torch.maximum(y, x.abs() * math.cos(math.pi / 6) - 0.5 * y)
    if shape == "cross":
        x, y = x.abs(), y.abs()
        return torch.minimum(0.52 * size - torch.maximum(x, y), 0.2 * size - torch.minimum(x, y))
    if shape == "ring":
        return 0.135 * size - (torch.hypot(x, y) - 0.405 * size).abs()
    raise ValueError(f"shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")


def described(placed: Placed) -> Thing:
    """Everything that a caption could say of an object as it is drawn."""
    travel = placed.travel_x, placed.travel_y
    motion = next(name for name, step in MOTIONS.items()
                  if all((a > 0) - (a < 0) == b for a, b in zip(travel, step, strict=True)))
    return Thing(placed.shape, placed.colour, "small" if placed.size < sum(SIZES.values()) / 2 else "big", motion)


def seen(scene: Scene, layout: Layout) -> Scene:
    """The scene with everything filled in that its rendering shows."""
    return replace(scene, background=layout.background, objects=tuple(described(placed) for placed in layout.objects))


def cover(thing: Placed, time: Tensor) -> Tensor:
    """Share of each pixel that an object covers at times [F] of its travel (0 to 1), [F, 64, 64]."""
    grid = torch.arange(SIZE) + 0.5
    x = grid - (thing.x + thing.travel_x * time)[:, None]
    y = grid - (thing.y + thing.travel_y * time)[:, None]
    # A distance of half a pixel either side of the outline is the pixel's coverage.
    return (signed_distance(thing.shape, x[:, None, :], y[:, :, None], thing.size) + 0.5).clamp_(0, 1)


def draw(layouts: Sequence[Layout], frames: int = FRAMES, times: Tensor | None = None) -> Tensor:
    """Renders layouts to uint8 [B, frames, 64, 64, 3]; frame f is at time f/16 of the travel, or at `times` [B, frames]
    (0 to 1)."""
    if times is None:
        times = (torch.arange(frames) / (FRAMES - 1)).expand(len(layouts), -1)
    palette = torch.tensor([BACKGROUNDS[layout.background] for layout in layouts], dtype=torch.float32)
    # Channels first while drawing: long contiguous rows are several times faster than triples.
    clips = palette[:, None, :, None, None].expand(-1, frames, -1, SIZE, SIZE).clone()
    for row, layout in enumerate(layouts):
        for thing in layout.objects:
            colour = torch.tensor(COLOURS[thing.colour], dtype=torch.float32)
            clips[row].add_((colour - palette[row])[:, None, None] * cover(thing, times[row])[:, None])
    return clips.add_(0.5).to(torch.uint8).permute(0, 1, 3, 4, 2)


def render(scene: Scene, frames: int = FRAMES, generator: torch.Generator | None = None) -> Tensor:
    """One clip of a scene, uint8 [frames, 64, 64, 3]. Positions, travel and open attributes come from `generator`
    (by default one with a fixed seed: the same scene is always the same clip)."""
    generator = generator or torch.Generator().manual_seed(0)
    return draw([arrange(scene, generator)], frames)[0]


def render_batch(scenes: Sequence[Scene], generator: torch.Generator, frames: int = FRAMES) -> Tensor:
    """One clip of each scene, uint8 [B, frames, 64, 64, 3]."""
    return draw([arrange(scene, generator) for scene in scenes], frames)
