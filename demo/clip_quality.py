"""How good a clip of the demo world is, whatever its caption says: by program, from the objects the judge finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .judge import Found

_LEAP = 8.0  # pixels between frames beyond which it is another object; objects of this world move 1.5 at most
_JERK = 1.5  # pixels by which a step may differ from the object's usual one; centroids waver by a few tenths


def visual_quality(found: Sequence[Found], frames: int) -> float:
    """0..1: how clearly the objects of each frame have one colour and one shape, on average; 0 for an empty frame."""
    clear = [[max(0.0, thing.clear) for thing in found if thing.frame == frame] for frame in range(frames)]
    return float(np.mean([np.mean(values) if values else 0.0 for values in clear]))


def motion_quality(found: Sequence[Found], frames: int) -> float:
    """0..1: the share of steps from frame to frame in which an object stays what it is and moves on as it does on the
    whole. An object that appears or vanishes is a step missed. 0 for a clip without objects."""
    kept: dict[int, list[tuple[np.ndarray, bool]]] = {}  # a track's steps, and whether the shape stayed
    broken = 0
    before = dict(enumerate(thing for thing in found if thing.frame == 0))
    tracks = len(before)
    for frame in range(1, frames):
        here = [thing for thing in found if thing.frame == frame]
        broken += max(0, len(here) - len(before))
        now: dict[int, Found] = {}
        for track, old in before.items():
            near = [thing for thing in here if thing.colour == old.colour]
            thing = min(near, key=lambda one, old=old: np.hypot(one.x - old.x, one.y - old.y), default=None)
            if thing is None or np.hypot(thing.x - old.x, thing.y - old.y) > _LEAP:
                broken += 1
                continue
            here.remove(thing)
            kept.setdefault(track, []).append((np.array([thing.x - old.x, thing.y - old.y]), thing.shape == old.shape))
            now[track] = thing
        for thing in here:
            now[tracks] = thing
            tracks += 1
        before = now
    smooth = steps = 0
    for track in kept.values():
        usual = np.median([step for step, _ in track], 0)
        smooth += sum(same and np.hypot(*(step - usual)) <= _JERK for step, same in track)
        steps += len(track)
    return float(smooth / (steps + broken)) if steps else 0.0
