"""What the demo family's scorer is trained on: scenes with near misses, and what a scene states or shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...demo.captions import split_of
from ...demo.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    OPPOSITE,
    SHAPES,
    SIZES,
    Layout,
    Placed,
    Scene,
    _place,
    arrange,
    choose,
)
from ...evaluation.comfyui import comfyui_path
from ...scoring.preprocess import MEAN, STD, middle_frames
from ...scoring.tokens import clean_text, clip_tokenizer, context_ids

# Every statement a caption of this world can make, one output of the auxiliary loss each. Objects go by their colour,
# because two objects of one clip differ in it (or are equal in everything).
STATEMENTS = (
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"{name} {motion}" for name in (*COLOURS, *SHAPES) for motion in MOTIONS),
    *(f"{size} {colour}" for size in SIZES for colour in COLOURS),
    *(f"{first} {relation} {second}" for first in COLOURS for second in COLOURS for relation in ("left of", "above")),
    *(f"background {name}" for name in BACKGROUNDS),
    "two", "twice",
)
_INDEX = {name: index for index, name in enumerate(STATEMENTS)}


def statements(scene: Scene) -> Tensor:
    """[len(STATEMENTS)] of 0 and 1: what the scene states."""
    first = scene.objects[0]
    names = ["two"] * (len(scene.objects) > 1)
    twice = len(scene.objects) > 1 and (first.shape, first.colour) == (scene.objects[1].shape, scene.objects[1].colour)
    names += ["twice"] * twice
    for thing in scene.objects:
        names += [f"{thing.colour} {thing.shape}"] * bool(thing.colour)
        names += [f"{name} {thing.motion}" for name in (thing.colour, thing.shape) if name and thing.motion]
        names += [f"{thing.size} {thing.colour}"] * bool(thing.size and thing.colour)
    if scene.relation and len(scene.objects) > 1:
        pair, relation = [thing.colour for thing in scene.objects], scene.relation
        if relation in ("right of", "below"):
            pair, relation = pair[::-1], OPPOSITE[relation]
        names += [f"{pair[0]} {relation} {pair[1]}"] * bool(all(pair))
    names += [f"background {scene.background}"] * bool(scene.background)
    target = torch.zeros(len(STATEMENTS))
    target[[_INDEX[name] for name in names]] = 1
    return target


def near_miss(scene: Scene, generator: torch.Generator, still: bool = False) -> Scene:
    """The scene with one statement made false: a colour, shape, motion, size, background, relation, swapped objects,
    one object missing or one too many. still: nothing that needs time to see. Of the training split or the scene's own,
    so that training meets no prompt of another split."""
    while True:
        missed = _any_near_miss(scene, generator, still)
        if split_of(missed) in ("train", split_of(scene)):
            return missed


def _any_near_miss(scene: Scene, generator: torch.Generator, still: bool) -> Scene:
    def other(options, value):
        return choose([option for option in options if option != value], generator)

    things, equal = scene.objects, len(scene.objects) > 1 and scene.objects[0] == scene.objects[1]
    k = int(torch.randint(len(things), (), generator=generator))
    kinds = ["colour", "shape", "shape", "count", *["motion"] * 2 * bool(things[k].motion and not still)]
    kinds += ["size"] * bool(things[k].size) + ["background"] * bool(scene.background)
    kinds += ["relation", "swap"] * bool(len(things) > 1 and scene.relation)
    kind = choose(kinds, generator)
    if kind == "count":
        return replace(scene, objects=(things[k],) * (3 - len(things)), relation=None)
    if kind == "relation":
        return replace(scene, relation=OPPOSITE[scene.relation])
    if kind == "background":
        return replace(scene, background=other(BACKGROUNDS, scene.background))
    if kind == "swap":
        field = choose(["colour", "shape"] if things[0].shape != things[1].shape else ["colour"], generator)
        swapped = [replace(a, **{field: getattr(b, field)}) for a, b in (things, things[::-1])]
        return replace(scene, objects=tuple(swapped))
    options = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "motion": MOTIONS}[kind]
    taken = {thing.colour for thing in things} if kind == "colour" else {getattr(things[k], kind)}
    value = choose([option for option in options if option not in taken], generator)
    together = equal or (kind == "motion" and len({thing.motion for thing in things}) == 1)
    return replace(scene, objects=tuple(
        replace(thing, **{kind: value}) if together or i == k else thing for i, thing in enumerate(things)
    ))


@dataclass
class Captions:
    """Token ids by caption. tokenize: as ViCLIPScorer takes it."""

    tokenize: Callable[[str], Sequence[int]]
    context: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([context_ids(self.tokenize(clean_text(text)), self.context) for text in texts])


def clip_captions(context: int) -> Captions:
    """By the tokenizer that comes with ComfyUI."""
    return Captions(clip_tokenizer(comfyui_path() / "comfy" / "sd1_tokenizer"), context)


def network_frames(clips: Tensor, count: int) -> Tensor:
    """Clips [B, F, 64, 64, 3], uint8 or 0..1, to [B, count, 3, 64, 64]: what vbench_frames does to each of them."""
    x = clips[:, middle_frames(clips.shape[1], count)].movedim(-1, 2)
    x = x.float() if x.dtype == torch.uint8 else x.float().mul(255).round().clamp(0, 255)
    return (x / 255 - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


def scene_pairs(
    scenes: Sequence[Scene], generator: torch.Generator, split: str = "train"
) -> tuple[list[Scene], list[Layout]]:
    """Each scene followed by a near miss of it, both of `split`, and their layouts. Leaves out scenes without one."""
    both, layouts = [], []
    for scene in scenes:
        for missed in (near_miss(scene, generator) for _ in range(30)):
            # Some have no room, e.g. two big objects that part.
            if split_of(missed) == split and (layout := _place(missed, generator)):
                both += [scene, missed]
                layouts += [arrange(scene, generator), layout]
                break
    return both, layouts


def spoil(layout: Layout, generator: torch.Generator) -> tuple[Layout, Layout]:
    """The layout before and after some moment of the clip, with a fault that no caption of this world states: one
    object too many, or one that vanishes, appears late, or turns into another."""
    kind = choose(("extra", "extra", "vanish", "late", "shape", "colour"), generator)
    things = layout.objects
    k = int(torch.randint(len(things), (), generator=generator))
    thing = things[k]
    if kind == "extra":
        crowded = replace(layout, objects=(*things, _surplus(layout, thing, generator)))
        return crowded, crowded
    if kind in ("vanish", "late"):
        less = replace(layout, objects=things[:k] + things[k + 1 :])
        return (layout, less) if kind == "vanish" else (less, layout)
    options = [option for option in {"shape": SHAPES, "colour": COLOURS}[kind] if option != getattr(thing, kind)]
    turned = replace(thing, **{kind: choose(options, generator)})
    return layout, replace(layout, objects=(*things[:k], turned, *things[k + 1 :]))


def _surplus(layout: Layout, like: Placed, generator: torch.Generator) -> Placed:
    """Mostly a copy of `like`, as the transformer's own are, away from the other objects if there is room."""
    for _ in range(20):
        x, y = (8.0 * int(torch.randint(2, 7, (), generator=generator)) + 4 for _ in range(2))
        copy = replace(like, x=x, y=y)
        if all(max(abs(x - other.x), abs(y - other.y)) > (like.size + other.size) / 2 for other in layout.objects):
            break
    if torch.rand((), generator=generator) < 0.3:
        copy = replace(copy, shape=choose(SHAPES, generator))
    return copy


def mirrored(scene: Scene) -> Scene:
    """The scene as a mirror shows it: left and right change places."""
    swap = {name: OPPOSITE[name] for name in ("left of", "right of")} | {"left": "right", "right": "left"}
    things = tuple(replace(thing, motion=swap.get(thing.motion, thing.motion)) for thing in scene.objects)
    return replace(scene, objects=things, relation=swap.get(scene.relation, scene.relation))


def soften(clips: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 clips [B, F, H, W, 3] blurred by a random share, as predictions at high noise are. Gives 0..1."""
    x = clips.float().div(255).movedim(-1, 2)
    size = 2 ** int(torch.randint(1, 4, (), generator=generator))
    blurred = F.avg_pool2d(x.flatten(0, 1), size)
    blurred = F.interpolate(blurred, x.shape[-2:], mode="bilinear", align_corners=False).view(x.shape)
    share = torch.rand(len(x), 1, 1, 1, 1, generator=generator).square()
    return x.lerp(blurred, share).movedim(2, -1)
