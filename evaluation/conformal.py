"""Floors whose false rejections are bounded, from traces of good runs (split conformal prediction; not the paper's).

A good run of a new prompt is rejected with a chance of at most `rate`, whatever the scores look like, provided that it
and the calibration runs are exchangeable: same model, scorer, sampler and schedule, and prompts drawn alike. Runs of
one prompt are not independent, so each prompt gives one run (one good run of each prompt, drawn at random); the bound
is on average over prompts and calibration sets, not for each prompt. See Vovk et al., Algorithmic Learning in a Random
World (2005); Lei et al., arXiv:1604.04173; for groups, Dunn et al., arXiv:1809.07441 ("subsampling once").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Floors:
    """floors: one score for each step of the window. prompts: how many gave a run to the bound itself. bound: the
    share of good runs that are rejected at most (rate, rounded down to what that many prompts can show)."""

    floors: tuple[float, ...]
    prompts: int
    bound: float


def needed(rate: float) -> int:
    """The fewest calibration prompts that can bound false rejections by `rate` and reject anything at all."""
    return math.ceil(1 / rate - 1e-9) - 1


def conformal_floors(traces: np.ndarray, prompts: np.ndarray, rate: float, seed: int = 0) -> Floors:
    """Floors for the window that `traces` [R, W] shows, of good runs only; rate in 0..1, exclusive.

    The floors' shape over the window is the `rate` quantile of half the prompts' runs at each step; one offset, taken
    from the other half, then moves the whole curve so that the bound holds for the lowest point of a run against it,
    hence for all looks together. NaN (a step without a score) undercuts nothing. ValueError: too few prompts.
    """
    if not 0 < rate < 1:
        raise ValueError(f"the false-reject rate is {rate}: choose a share between 0 and 1, such as 0.1.")
    generator = np.random.default_rng(seed)
    scored = np.isfinite(traces).any(1)
    traces, prompts = traces[scored], prompts[scored]
    order = generator.permutation(np.unique(prompts))
    shape_prompts, held = np.array_split(order, 2)[::-1]  # the larger half, if any, holds the bound
    place = math.floor(rate * (len(held) + 1) + 1e-9)
    if place < 1 or not len(shape_prompts):
        raise ValueError(
            f"only {len(order)} prompts have a good run, and half of them must be {needed(rate)} or more to bound "
            f"false rejections by {rate:g}: log more prompts, or allow a higher rate."
        )
    shape = np.nanquantile(traces[np.isin(prompts, shape_prompts)], rate, axis=0)
    shape = np.where(np.isfinite(shape), shape, np.nanmin(shape))  # a step that nobody scored undercuts nothing anyway
    drawn = np.asarray([generator.choice(np.flatnonzero(prompts == prompt)) for prompt in held])
    lowest = np.sort(np.nanmin(traces[drawn] - shape, axis=1))
    offset = lowest[place - 1]
    return Floors(tuple((shape + offset).tolist()), len(held), place / (len(held) + 1))
