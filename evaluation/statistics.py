"""The few statistics that the evaluation needs, all with intervals from a bootstrap over prompts.

Runs of one prompt are not independent, so prompts are what is resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np


def auc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The chance that a right clip scores higher than a wrong one (ties count half); NaN without both kinds."""
    scores, right = np.asarray(scores, float), np.asarray(right, bool)
    return _concordance([(scores, right)])


def auc_within(scores: Sequence[float], right: Sequence[bool], groups: Sequence[int]) -> float:
    """The same over pairs of one group (prompt) only, pooled over all such pairs."""
    scores, right, groups = np.asarray(scores, float), np.asarray(right, bool), np.asarray(groups)
    return _concordance([(scores[groups == group], right[groups == group]) for group in np.unique(groups)])


def _concordance(parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    won = pairs = 0.0
    for scores, right in parts:
        good, bad = scores[right][:, None], scores[~right][None, :]
        won += (good > bad).sum() + 0.5 * (good == bad).sum()
        pairs += good.size * bad.size
    return won / pairs if pairs else float("nan")


def bootstrap(
    statistic: Callable[[np.ndarray], float], groups: Sequence[int], seed: int = 0, draws: int = 2000
) -> dict[str, float]:
    """value, low and high (95 %) of statistic(rows) under resampling of whole groups.

    statistic takes row indices (a resampled group's rows appear as often as it was drawn); draws that give NaN are left
    out. A statistic that compares within groups must be told the drawn groups apart: see `bootstrap_within`.
    """
    groups = np.asarray(groups)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = generator.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[index] for index in drawn])))
    return _interval(statistic(np.arange(len(groups))), values)


def of_means(
    statistic: Callable[[np.ndarray], np.ndarray], columns: Sequence[Sequence[float]], groups: Sequence[int],
    seed: int = 0, draws: int = 2000,
) -> dict[str, float]:
    """`bootstrap` of a statistic that needs the columns' means only, much quicker: statistic takes means [draws,
    columns] and gives [draws]; NaN and infinities are left out."""
    names, place = np.unique(groups, return_inverse=True)
    totals = np.stack([np.bincount(place, np.asarray(column, float), len(names)) for column in columns], 1)
    counts, times = np.bincount(place, minlength=len(names)), _times_drawn(len(names), seed, draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole, drawn = totals.sum(0) / counts.sum(), (times @ totals) / (times @ counts)[:, None]
        return _interval(statistic(whole[None])[0], statistic(drawn))


def ratio(above: Sequence[float], below: Sequence[float], groups: Sequence[int], seed: int = 0, draws: int = 2000):
    """sum(above) / sum(below) with its interval: rates, means and overheads."""
    return of_means(lambda means: means[:, 0] / means[:, 1], (above, below), groups, seed, draws)


def mean(values: Sequence[float], groups: Sequence[int], among: Sequence[bool] | None = None) -> dict[str, float]:
    """Mean of the finite values, or of those in the rows `among`, with its interval; of paired differences this is the
    difference's interval."""
    values, groups = np.asarray(values, float), np.asarray(groups)
    known = np.isfinite(values)
    counted = np.ones(known.sum()) if among is None else np.asarray(among, float)[known]
    if not counted.any():
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    return ratio(values[known] * counted, counted, groups[known])


@lru_cache(maxsize=8)
def _times_drawn(groups: int, seed: int, draws: int) -> np.ndarray:
    """[draws, groups]: how often each group is in each draw, the same draws as `bootstrap` makes."""
    generator = np.random.default_rng(seed)
    return np.stack([
        np.bincount(generator.integers(groups, size=groups), minlength=groups) for _ in range(draws)
    ]).astype(float)


def share(of: Sequence[bool], among: Sequence[bool], groups: Sequence[int]) -> dict[str, float]:
    """The share of `of` among the rows `among`, with its interval, count and number of rows."""
    of, among = np.asarray(of, bool), np.asarray(among, bool)
    return {**ratio(of & among, among, groups), "count": int((of & among).sum()), "of": int(among.sum())}


def bootstrap_auc(
    scores: Sequence[float], right: Sequence[bool], groups: Sequence[int], rival: Sequence[float] | None = None,
    seed: int = 0, draws: int = 2000,
) -> dict[str, float]:
    """`auc` with its interval over all rows whose score is finite, or with a `rival` score the difference of the two
    (paired)."""
    known = np.isfinite(np.asarray(scores, float))
    right = np.asarray(right, bool)[known]
    names, place = np.unique(np.asarray(groups)[known], return_inverse=True)
    member = np.eye(len(names))[place]  # [rows, groups]
    good, bad = member[right], member[~right]

    def won(values: Sequence[float]) -> np.ndarray:
        """[groups, groups]: how often a right row of one beats a wrong row of the other."""
        values = np.asarray(values, float)[known]
        above, below = values[right][:, None], values[~right][None, :]
        return good.T @ ((above > below) + 0.5 * (above == below)) @ bad

    wins = won(scores) - (0 if rival is None else won(rival))
    pairs = np.outer(good.sum(0), bad.sum(0))
    times = _times_drawn(len(names), seed, draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = ((times @ wins) * times).sum(1) / ((times @ pairs) * times).sum(1)
        return _interval(wins.sum() / pairs.sum(), values)


def bootstrap_within(
    scores: Sequence[float], right: Sequence[bool], groups: Sequence[int], rival: Sequence[float] | None = None,
    seed: int = 0, draws: int = 2000,
) -> dict[str, float]:
    """`auc_within` with its interval, of the rows whose score is finite, or with a `rival` score the difference of the
    two (paired)."""
    known = np.isfinite(np.asarray(scores, float))
    right, groups = np.asarray(right, bool)[known], np.asarray(groups)[known]
    names = np.unique(groups)
    pairs = np.asarray([right[groups == name].sum() * (~right[groups == name]).sum() for name in names], float)

    def won(values: Sequence[float]) -> np.ndarray:
        values = np.asarray(values, float)[known]
        parts = [(values[groups == name], right[groups == name]) for name in names]
        shares = [_concordance([part]) if some else 0.0 for part, some in zip(parts, pairs, strict=True)]
        return np.asarray(shares) * pairs

    wins = won(scores) - (0 if rival is None else won(rival))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = wins.sum() / pairs.sum()
    return ratio(wins, pairs, np.arange(len(names)), seed, draws) | {"value": float(value)}


def _interval(value: float, draws: Sequence[float]) -> dict[str, float]:
    finite = np.asarray([draw for draw in draws if np.isfinite(draw)])
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (float("nan"), float("nan"))
    return {"value": float(value), "low": float(low), "high": float(high)}


def text_only_scores(
    captions: Sequence[str], right: Sequence[bool], groups: Sequence[int], folds: int = 10, ridge: float = 3.0
) -> np.ndarray:
    """What a predictor that reads only the caption would say: ridge regression of the outcome on the caption's words
    and word pairs, each prompt predicted from the other prompts' runs."""
    words = [set(_terms(caption)) for caption in captions]
    vocabulary = {term: column for column, term in enumerate(sorted(set().union(*words)))}
    features = np.zeros((len(captions), len(vocabulary) + 1))
    features[:, -1] = 1.0
    for row, terms in enumerate(words):
        features[row, [vocabulary[term] for term in terms]] = 1.0
    outcome, groups = np.asarray(right, float), np.asarray(groups)
    order = {group: index for index, group in enumerate(np.unique(groups))}
    fold = np.asarray([order[group] % folds for group in groups])
    penalty = ridge * np.eye(features.shape[1])
    penalty[-1, -1] = 1e-6
    predicted = np.zeros(len(captions))
    for held_out in range(folds):
        rest, here = features[fold != held_out], fold == held_out
        weights = np.linalg.solve(rest.T @ rest + penalty, rest.T @ outcome[fold != held_out])
        predicted[here] = features[here] @ weights
    return predicted.round(6)  # captions that differ by the solver's rounding only are ties


def _terms(caption: str) -> list[str]:
    words = caption.lower().replace(",", " ").split()
    return words + [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
