"""An evaluation's database as columns: what `report`, `calibrate` and `cost` compute with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..scoring.detector import Detector, DetectorSettings
from . import statistics
from .store import Store, StoreError

Cell = dict[str, float]
DATABASE = "runs.sqlite"  # in the folder that `run --out` names


@dataclass(frozen=True)
class Outcomes:
    """What a detector said of each run: [R] arrays. step is 1-based; predicted is NaN where nothing was inspected."""

    accepted: np.ndarray
    predicted: np.ndarray
    step: np.ndarray

    @property
    def rejected(self) -> np.ndarray:
        return ~self.accepted

    @property
    def mean_stop(self) -> float:
        return float(self.step.mean())


@dataclass(frozen=True)
class Base:
    """The plain runs, inspected at every step and never stopped. All arrays have one entry a run.

    traces: [R, N], NaN where a step was not inspected. failed: by the judge where there is one, else a finished clip
    that scores below tau (the paper's definition). score (of the finished clip) may be NaN.
    """

    prompt: np.ndarray
    captions: list[str]
    difficulty: np.ndarray
    traces: np.ndarray
    score: np.ndarray
    failed: np.ndarray
    judged: bool

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def steps(self) -> int:
        return self.traces.shape[1]

    @cached_property
    def text_only(self) -> np.ndarray:
        """What a predictor that reads only the caption would say of success."""
        return statistics.text_only_scores(self.captions, ~self.failed, self.prompt)

    def replay(self, settings: DetectorSettings) -> Outcomes:
        """What a detector of these settings would have said, from the logged scores."""
        decisions = []
        for trace in self.traces:
            detector = Detector(settings, self.steps)
            decisions.append(next(d for k, s in enumerate(trace.tolist(), 1) if (d := detector.observe(k, s))))
        return Outcomes(
            np.asarray([d.accepted for d in decisions], bool), np.asarray([d.predicted_score for d in decisions]),
            np.asarray([d.step for d in decisions]),
        )

    def fixed(self, step: int, tau: float) -> Outcomes:
        """A detector that looks once, at `step` (the paper's Table S2)."""
        predicted = self.traces[:, step - 1]
        accepted = ~(predicted < tau)  # a step without a score rejects nothing
        return Outcomes(accepted, predicted, np.full(len(self), step))

    def share(self, of: np.ndarray, among: np.ndarray | None = None) -> Cell:
        return statistics.share(of, np.ones(len(self), bool) if among is None else among, self.prompt)

    def over_all(self, values: np.ndarray) -> Cell:
        return statistics.bootstrap_auc(values, ~self.failed, self.prompt)

    def within(self, values: np.ndarray) -> Cell:
        return statistics.bootstrap_within(values, ~self.failed, self.prompt)

    def over_text_only(self, values: np.ndarray) -> Cell:
        """AUC over all runs, minus that of the predictor that reads only the caption."""
        return statistics.bootstrap_auc(values, ~self.failed, self.prompt, rival=self.text_only)

    def error(self, predicted: np.ndarray) -> Cell:
        """Mean absolute difference of a predicted and the final score, over the final scores' range (Table S2)."""
        return self.mean(np.abs(predicted - self.score) / self.range)

    @property
    def range(self) -> float:
        """The paper divides errors by the dynamic range (largest minus smallest) of the metric."""
        return float(np.nanmax(self.score) - np.nanmin(self.score)) or math.nan

    def mean(self, values: np.ndarray) -> Cell:
        return statistics.mean(values, self.prompt)


@dataclass(frozen=True)
class Evidence:
    """All runs of one set of settings. settings: the run command's own (suite, steps, tau, delta, scale, scorer, ...).
    rows: method -> (prompt_index, seed) -> row of `store.Store.rows`."""

    path: Path
    settings: dict[str, Any]
    meta: dict[str, Any]
    fingerprint: str
    rows: dict[str, dict[tuple[int, int], dict[str, Any]]]
    other_fingerprints: int = 0

    @property
    def methods(self) -> list[str]:
        return list(self.rows)

    @property
    def steps(self) -> int:
        """Of the schedule."""
        return self.base.steps

    @property
    def tau(self) -> float:
        return float(self.settings["tau"])

    @cached_property
    def detector(self) -> DetectorSettings:
        """The default rules with this scorer's tau and scale."""
        return DetectorSettings.video(tau=self.tau, scale=float(self.settings.get("scale") or 1.0))

    @cached_property
    def base(self) -> Base:
        """StoreError when there are no base runs, or none with a trace."""
        rows = [row for row in self.rows.get("base", {}).values() if row["trace"]]
        if not rows:
            raise StoreError(
                f"{self.path} holds no finished run of the method base with a trace, which every table is measured "
                "against: run `python -m foresight.evaluation run` with --method base."
            )
        steps = max(int(point[0]) for row in rows for point in row["trace"])  # base runs are scored to the last step
        traces = np.full((len(rows), steps), np.nan)
        for row, trace in zip(rows, traces, strict=True):
            for step, score, *_ in row["trace"]:
                trace[int(step) - 1] = np.nan if score is None else score
        score = column(rows, "final_score")
        judged = all(row["right"] is not None for row in rows)
        right = np.asarray([bool(row["right"]) for row in rows]) if judged else ~(score < self.tau)
        return Base(
            column(rows, "prompt_index", int), [row["prompt"] for row in rows],
            np.asarray([row["difficulty"] or "" for row in rows]), traces, score, ~right, judged,
        )

    def pairs(self, method: str, rival: str = "base") -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(row of the rival, row of the method) for every prompt and seed that both have."""
        base = self.rows.get(rival, {})
        return [(base[key], row) for key, row in self.rows.get(method, {}).items() if key in base]

    def good(self, row: dict[str, Any]) -> float:
        """1 for a good clip, 0 for a failed one, by the judge or, without one, by tau; NaN where neither is known."""
        if row["right"] is not None:
            return float(row["right"])
        return math.nan if row["final_score"] is None else float(row["final_score"] >= self.tau)


def column(rows: Iterable[dict[str, Any]], name: str, kind: Callable = float) -> np.ndarray:
    return np.asarray([math.nan if row[name] is None else row[name] for row in rows]).astype(kind)


def metric_of(rows: Iterable[dict[str, Any]], metric: str) -> np.ndarray:
    """The final score, motion, or a measure of the judge or a plug-in; NaN where a row lacks it."""
    if metric in ("final_score", "motion"):
        return column(rows, metric)
    return np.asarray([(row["measures"] or {}).get(metric, math.nan) for row in rows], float)


def load(path: Path, fingerprint: str | None = None) -> Evidence:
    """The database's newest settings, or those of `fingerprint`. StoreError: no such file, empty, another version."""
    path = Path(path)
    if path.is_dir():
        path = path / DATABASE
    with Store(path) as store:
        there = store.fingerprints()
        if not there:
            raise StoreError(f"{path} holds no finished run yet: `python -m foresight.evaluation run` fills it.")
        if fingerprint is not None and fingerprint not in there:
            raise StoreError(f"{path} holds no runs of settings {fingerprint}; there are {', '.join(there)}.")
        chosen = fingerprint or there[-1]
        every = store.rows(chosen)
        metas = {meta["id"]: meta for meta in store.metas()}
    meta = metas[max(row["meta"] for row in every)]
    rows: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for row in every:
        rows.setdefault(row["method"], {})[row["prompt_index"], row["seed"]] = row
    if meta["settings"].get("tau") is None:
        raise StoreError(f"{path} does not say with which tau its runs were made: run the command again.")
    return Evidence(path, meta["settings"], meta, chosen, rows, len(there) - 1)
