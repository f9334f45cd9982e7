"""Decides by program, without learned weights, whether a clip of the demo world shows what its scene states.

Per frame: every pixel is explained as a blend of the measured background and one palette colour; connected pixels of
one colour are objects; an object's blend weights are compared with rendered shapes of the same area at the same place.
Over frames: objects are followed, and an attribute holds when it holds in more than four of five frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .world import BACKGROUNDS, COLOURS, FRAMES, MOTIONS, RELATIONS, SHAPES, SIZE, SIZES, Scene, signed_distance

# Tolerances. Objects of this world cover at least 170 pixels, travel 16 and differ by 110 in colour.
_FAINT = 30.0  # RGB distance to the background below which a pixel is background
_LEAST_AREA = 24  # pixels; anything larger counts as an object
_COLOUR_LIMIT = 70.0  # RGB distance at which a colour loses its name
_LEAST_OVERLAP = 0.72  # soft IoU with the stated shape
_CLEAR_OVERLAP = 0.12  # lead in soft IoU over every other shape that counts as fully sure
_LEAST_TRAVEL = 6.0  # pixels over a clip that separate moving from still
_MISSES = 0.2  # share of frames in which an attribute may fail
_WINDOW = 36  # pixels around a centroid; the largest shape reaches 18
_BLUR_WIDTH = 2.5  # pixels, that of a decoder which is not yet sharp

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_GROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)
_NAMES = tuple(COLOURS)
_HALFWAY = math.sqrt(SIZES["small"] * SIZES["big"])


@dataclass(frozen=True)
class Judgement:
    """`attributes` and `margins` share their keys: "count", "background", "relation", and "object N colour / shape /
    size / direction" with N from 1, each only where the scene states it. A margin is in -1..1, positive where the
    attribute holds; `confidence` (0..1) is the size of the smallest margin, the one that decides `right`. travel: of
    each object that is to move, the pixels that it goes that way over the clip; 0 where it is not seen."""

    right: bool
    confidence: float
    attributes: dict[str, bool]
    margins: dict[str, float]
    travel: tuple[float, ...] = ()


def judge(clip: Tensor, scene: Scene) -> Judgement:
    """Compares a clip [F, 64, 64, 3], float in 0..1 or uint8, with what the scene states.

    F is 17 for clips and 5 for previews (one frame per latent frame); the frames are taken to span the whole clip. With
    one frame, motion is not judged. Pixels that are not finite count as black. ValueError for another shape or type.
    """
    pixels = _pixels(clip)
    grounds = _border_colours(pixels)
    blobs = _find_blobs(pixels, grounds)
    tracks = _assign(blobs, scene, len(pixels))

    margins, travel = {"count": _count_margin(blobs, len(scene.objects), len(pixels))}, []
    if scene.background is not None:
        margins["background"] = _over_frames(_lead(grounds, _GROUNDS, list(BACKGROUNDS).index(scene.background)))
    for number, (thing, track) in enumerate(zip(scene.objects, tracks, strict=True), 1):
        name, shape = f"object {number}", SHAPES.index(thing.shape)
        if thing.colour is not None:
            margins[f"{name} colour"] = _over_frames(track.of(blobs.colour_lead[:, _NAMES.index(thing.colour)]))
        margins[f"{name} shape"] = _over_frames(track.of(blobs.shape_lead[:, shape]))
        if thing.size is not None:
            margins[f"{name} size"] = _size_margin(track.of(blobs.size[:, shape], np.nan), thing.size)
        if thing.motion is not None and len(pixels) > 1:
            places = track.places(blobs)
            margins[f"{name} direction"] = _direction_margin(places, thing.motion)
            if thing.motion != "still":
                travel.append(float(np.nan_to_num(_travel(places)) @ np.array(MOTIONS[thing.motion])))
    if scene.relation is not None:
        first, second = (track.places(blobs) for track in tracks[:2])
        margins["relation"] = _relation_margin(second - first, RELATIONS[scene.relation])

    smallest = min(margins.values())
    return Judgement(smallest > 0, abs(smallest), {name: m > 0 for name, m in margins.items()}, margins, tuple(travel))


@dataclass(frozen=True)
class Found:
    """One object in one frame of a clip, whatever a caption says of it. shape is None where no shape is clear; size (as
    world.SIZES counts it), x and y (of the centroid) are in pixels. clear: -1..1, how surely it is of one colour and
    one shape, whichever (the smaller of the two margins)."""

    frame: int
    colour: str
    shape: str | None
    size: float
    x: float
    y: float
    clear: float = 1.0


def find_objects(clip: Tensor) -> list[Found]:
    """The objects in a clip as `judge` takes it, frame by frame."""
    pixels = _pixels(clip)
    blobs = _find_blobs(pixels, _border_colours(pixels))
    found = []
    for frame, place, colours, shapes, sizes in zip(
        blobs.frame, blobs.place, blobs.colour_lead, blobs.shape_lead, blobs.size, strict=True
    ):
        k = int(shapes.argmax())
        shape = SHAPES[k] if shapes[k] > 0 else None
        clear = float(min(shapes[k], colours.max()))
        name = _NAMES[int(colours.argmax())]
        found.append(Found(int(frame), name, shape, float(sizes[k]), *map(float, place), clear))
    return found


def _pixels(clip: Tensor) -> np.ndarray:
    """[F, 64, 64, 3] float32, 0..255."""
    if clip.ndim != 4 or clip.shape[0] == 0 or tuple(clip.shape[1:]) != (SIZE, SIZE, 3):
        raise ValueError(f"a clip to judge has shape [frames, {SIZE}, {SIZE}, 3], not {list(clip.shape)}")
    if clip.dtype == torch.uint8:
        return clip.cpu().float().numpy()
    if clip.is_floating_point():
        return clip.detach().cpu().float().nan_to_num(0, 0, 0).clamp(0, 1).mul(255).numpy()
    raise ValueError(f"a clip to judge is float in 0..1 or uint8, not {clip.dtype}")


@dataclass(frozen=True)
class _Blobs:
    """All objects found in a clip, one row each."""

    frame: np.ndarray  # [N]
    place: np.ndarray  # [N, 2], centroid x, y in pixels
    colour_lead: np.ndarray  # [N, colours], margin of each colour
    shape_lead: np.ndarray  # [N, shapes], margin of each shape
    size: np.ndarray  # [N, shapes], nominal size in pixels if it were that shape


@dataclass(frozen=True)
class _Track:
    """Which blob is a scene's object in each frame, -1 for none."""

    rows: np.ndarray

    def of(self, values: np.ndarray, missing: float = -1.0) -> np.ndarray:
        """One value a frame, `missing` where the object is not seen."""
        picked = np.full((len(self.rows), *values.shape[1:]), missing, np.float32)
        seen = self.rows >= 0
        picked[seen] = values[self.rows[seen]]
        return picked

    def places(self, blobs: _Blobs) -> np.ndarray:
        return self.of(blobs.place, np.nan)


def _border_colours(pixels: np.ndarray) -> np.ndarray:
    """[F, 3] median colour of each frame's outermost two pixels."""
    rims = (pixels[:, :2], pixels[:, -2:], pixels[:, 2:-2, :2], pixels[:, 2:-2, -2:])
    return np.median(np.concatenate([rim.reshape(len(pixels), -1, 3) for rim in rims], 1), 1)


def _find_blobs(pixels: np.ndarray, grounds: np.ndarray) -> _Blobs:
    offset = pixels - grounds[:, None, None]
    at = np.nonzero((offset**2).sum(-1) > _FAINT**2)
    offset = offset[at]
    # Blends of the background and colour c lie on a segment; a pixel belongs to the nearest of the six segments.
    axes = _PALETTE - grounds[:, None]
    lengths = (axes**2).sum(-1)[at[0]]
    axes = axes[at[0]]
    weights = np.clip(np.einsum("nc,nkc->nk", offset, axes) / lengths, 0, 1)
    best = ((offset[:, None] - weights[..., None] * axes) ** 2).sum(-1).argmin(1)
    weight = np.zeros(pixels.shape[:3], np.float32)
    weight[at] = np.take_along_axis(weights, best[:, None], 1)[:, 0]
    label = np.zeros(pixels.shape[:3], np.int16)
    label[at] = best + 1
    label[weight < 0.5] = 0

    # Thin seams between colours are lost by opening; what is left is labelled colour by colour, frame by frame.
    core = np.where(_neighbours(label, np.minimum) == _neighbours(label, np.maximum), label, 0)
    plane = np.zeros((3, 3, 3), bool)
    plane[1] = True
    owner = np.zeros(label.shape, np.int16)
    count = 0
    for colour in np.unique(core[core > 0]):
        islands, found = ndimage.label(_neighbours((core == colour).astype(np.int16), np.maximum), plane)
        keep = np.bincount(islands.ravel(), minlength=found + 1) >= _LEAST_AREA
        keep[0] = False
        names = np.where(keep, np.cumsum(keep) + count, 0)[islands]
        owner = np.where(names > 0, names, owner).astype(np.int16)
        count += int(keep.sum())
    if count == 0:
        empty = np.zeros((0, len(SHAPES)), np.float32)
        return _Blobs(np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, len(_NAMES))), empty, empty)
    return _measure(pixels, weight, owner, count)


def _measure(pixels: np.ndarray, weight: np.ndarray, owner: np.ndarray, count: int) -> _Blobs:
    def mean(values: np.ndarray, where: tuple[np.ndarray, ...], weights: np.ndarray | None = None) -> np.ndarray:
        """Over each blob's pixels `where`, values [n] -> [count]."""
        ids = owner[where] - 1
        weights = np.ones(len(ids), np.float32) if weights is None else weights
        return np.bincount(ids, values * weights, count) / np.bincount(ids, weights, count)

    inner = np.nonzero((owner > 0) & (_neighbours(owner, np.minimum) == owner))
    frame = mean(inner[0], inner).round().astype(int)
    colour = np.stack([mean(pixels[..., c][inner], inner) for c in range(3)], 1)
    plateau = mean(weight[inner], inner)
    for _ in range(3):  # three pixels beyond the opened mask hold a blurred outline
        owner = np.where(owner > 0, owner, _neighbours(owner, np.maximum))
    scale = np.concatenate([[0], 1 / np.clip(plateau, 0.5, 1)]).astype(np.float32)
    weight = np.minimum(weight * scale[owner], 1)
    grown = np.nonzero(owner)
    place = np.stack([mean(grown[axis] + 0.5, grown, weight[grown]) for axis in (2, 1)], 1)
    area = np.bincount(owner[grown] - 1, weight[grown], count)

    half = _WINDOW // 2
    corners = np.round(place).astype(int) - half
    pad = ((0, 0), (_WINDOW, _WINDOW), (_WINDOW, _WINDOW))
    weight, owner = np.pad(weight, pad), np.pad(owner, pad)
    rows = (corners[:, 1] + _WINDOW)[:, None, None] + np.arange(_WINDOW)[:, None]
    columns = (corners[:, 0] + _WINDOW)[:, None, None] + np.arange(_WINDOW)
    index = frame[:, None, None], rows, columns
    crops = torch.from_numpy(np.where(owner[index] == np.arange(1, count + 1)[:, None, None], weight[index], 0))
    grid = torch.arange(_WINDOW) + 0.5
    shift = torch.from_numpy((corners - place).astype(np.float32))
    x, y = (grid + shift[:, :1])[:, None, :], (grid + shift[:, 1:])[:, :, None]
    sizes = torch.from_numpy(np.sqrt(area[:, None] / _UNIT_AREAS).astype(np.float32))
    distances = [signed_distance(shape, x, y, sizes[:, k, None, None]) for k, shape in enumerate(SHAPES)]
    sharp = (torch.stack(distances, 1) + 0.5).clamp_(0, 1)
    soft = _BLUR @ sharp @ _BLUR.T
    # A decoder may blur a shape, or keep its edges but lose its corners; neither makes it another shape.
    looks = torch.stack([sharp, soft, (4 * soft - 1.5).clamp(0, 1)])
    crops = crops[:, None]
    overlap = (torch.minimum(crops, looks).sum((-2, -1)) / torch.maximum(crops, looks).sum((-2, -1))).amax(0).numpy()
    rivals = np.stack([np.delete(overlap, k, 1).max(1) for k in range(len(SHAPES))], 1)
    shape_lead = np.minimum((overlap - rivals) / _CLEAR_OVERLAP, (overlap - _LEAST_OVERLAP) / (0.9 - _LEAST_OVERLAP))
    colour_lead = np.stack([_lead(colour, _PALETTE, k) for k in range(len(_NAMES))], 1)
    return _Blobs(frame, place, colour_lead, np.clip(shape_lead, -1, 1), sizes.numpy())


def _unit_area(shape: str) -> float:
    grid = (torch.arange(-80, 80) + 0.5) / 100
    return float((signed_distance(shape, grid[None, :], grid[:, None], 1.0) > 0).sum()) / 1e4


_UNIT_AREAS = np.array([_unit_area(shape) for shape in SHAPES])


def _blur() -> Tensor:
    """[window, window] Gaussian over rows or columns."""
    steps = torch.arange(_WINDOW, dtype=torch.float32)
    rows = torch.exp(-((steps[:, None] - steps) ** 2) / (2 * _BLUR_WIDTH**2))
    return rows / rows[_WINDOW // 2].sum()


_BLUR = _blur()


def _neighbours(maps: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """The extreme over each pixel's 3x3 neighbourhood, [F, H, W]; beyond the border counts as the border."""
    maps = np.pad(maps, ((0, 0), (1, 1), (1, 1)), "edge")
    maps = extreme(extreme(maps[:, :-2], maps[:, 1:-1]), maps[:, 2:])
    return extreme(extreme(maps[:, :, :-2], maps[:, :, 1:-1]), maps[:, :, 2:])


def _assign(blobs: _Blobs, scene: Scene, frames: int) -> list[_Track]:
    """Follows the scene's objects: colour weighs most, then shape, then nearness to the frame before."""
    rows = np.full((len(scene.objects), frames), -1)
    wanted = np.zeros((len(scene.objects), len(blobs.frame)))
    for i, thing in enumerate(scene.objects):
        wanted[i] = blobs.shape_lead[:, SHAPES.index(thing.shape)]
        if thing.colour is not None:
            wanted[i] += 2 * blobs.colour_lead[:, _NAMES.index(thing.colour)]
    if scene.relation is not None:  # settles which is which of two objects that look the same
        along = blobs.place @ np.array(RELATIONS[scene.relation]) / SIZE
        wanted[0] -= 0.01 * along
        wanted[1] += 0.01 * along
    last: dict[int, np.ndarray] = {}
    for frame in range(frames):
        here = np.nonzero(blobs.frame == frame)[0]
        value = wanted[:, here]
        for i, place in last.items():
            value[i] -= np.hypot(*(blobs.place[here] - place).T) / SIZE
        for i, k in zip(*linear_sum_assignment(-value), strict=True):
            rows[i, frame] = here[k]
            last[i] = blobs.place[here[k]]
    return [_Track(row) for row in rows]


def _lead(colours: np.ndarray, table: np.ndarray, k: int) -> np.ndarray:
    """[N] margin of table entry k for colours [N, 3]: how much nearer it is than the next, and near enough at all."""
    distance = np.sqrt(((colours[:, None] - table) ** 2).sum(-1))
    own, other = distance[:, k], np.delete(distance, k, 1).min(1)
    return np.minimum((other - own) / (other + own + 1e-6), 1 - own / _COLOUR_LIMIT).clip(-1, 1)


def _over_frames(margins: np.ndarray) -> float:
    """The margin that all but `_MISSES` of the frames reach."""
    return float(np.sort(margins)[int(_MISSES * len(margins))])


def _count_margin(blobs: _Blobs, expected: int, frames: int) -> float:
    share = float((np.bincount(blobs.frame, minlength=frames) == expected).mean())
    short = share - (1 - _MISSES)
    # A hair below zero at the limit itself: one wrong frame of a five-frame preview is too many.
    return short / _MISSES if short > 1e-6 else min(short / (1 - _MISSES), -0.01)


def _size_margin(sizes: np.ndarray, stated: str) -> float:
    if np.isnan(sizes).mean() > _MISSES:
        return -1.0
    lead = math.log(float(np.nanmedian(sizes)) / _HALFWAY) / math.log(SIZES["big"] / _HALFWAY)
    return float(np.clip(lead if stated == "big" else -lead, -1, 1))


def _travel(places: np.ndarray) -> np.ndarray:
    """[2] from the mean place [F, 2] in the first third of the frames to that in the last, scaled to a whole clip;
    NaN where the object is not seen in both."""
    frames = len(places)
    third = max(1, frames // 3)
    times, seen = np.linspace(0, FRAMES - 1, frames), ~np.isnan(places[:, 0])
    first, last = np.flatnonzero(seen[:third]), frames - third + np.flatnonzero(seen[frames - third :])
    if not (len(first) and len(last)):
        return np.full(2, np.nan)
    moved = places[last].mean(0) - places[first].mean(0)
    return moved * (FRAMES - 1) / (times[last].mean() - times[first].mean())


def _direction_margin(places: np.ndarray, stated: str) -> float:
    travel = _travel(places)
    if np.isnan(travel).any():
        return -1.0
    step = np.array(MOTIONS[stated], np.float32)
    if stated == "still":
        # Also against an object that wanders off and comes back.
        strayed = np.nanmax(np.hypot(*(places - np.nanmean(places, 0)).T))
        margin = 1 - max(np.hypot(*travel), strayed) / _LEAST_TRAVEL
    else:
        along, across = travel @ step, abs(travel[0] * step[1] - travel[1] * step[0])
        margin = min(along / _LEAST_TRAVEL - 1, (0.7 * along - across) / _LEAST_TRAVEL)
    return float(np.clip(margin, -1, 1))


def _relation_margin(offsets: np.ndarray, toward: tuple[int, int]) -> float:
    """Offsets [F, 2] from the first object to the second, NaN where one is missing."""
    along = offsets @ np.array(toward, np.float32)
    across = np.abs(offsets[:, 0] * toward[1] - offsets[:, 1] * toward[0])
    return _over_frames(np.nan_to_num((along - across) / 8, nan=-1).clip(-1, 1))
