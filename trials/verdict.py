"""What a monitored run concludes, and the record each trial leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class ItemVerdict:
    """The detector's conclusion on one item of the batch.

    predicted_score is on the scorer's scale, stop_step is 1-based, trace holds (step, score) of every inspection.
    rule is one of the detector's rules, or "not_inspected" (then accepted is True: docs/architecture.md, promise 2).
    """

    accepted: bool
    predicted_score: float | None
    stop_step: int | None
    rule: str
    trace: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TrialRecord:
    """One executed part of the hierarchy, as it appears in the run report.

    kind: sample, probe, refine, inject or plain. steps: executed steps of the schedule. Evaluations are counted apart
    for video and for single frames, because a single-frame step costs a fraction of a video step (paper, Table S3).
    preview: the last one of the best item, [F, 8H, 8W, 3] float in 0..1, or None; it is not part of the report, nor are
    clips: of a finished clip its preview, item by item. finals: their scores, NaN where one could not be scored; empty
    for what was not finished.
    """

    trial: str
    kind: str
    items: tuple[ItemVerdict, ...] = ()
    accepted: bool = True
    nfe_video: int = 0
    nfe_single_frame: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    message: str | None = None
    prompt: str | None = None
    negative: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    preview: Any = None
    finals: tuple[float, ...] = ()
    clips: tuple[Any, ...] = ()

    @property
    def best(self) -> ItemVerdict | None:
        """The item with the highest predicted score; None when nothing was judged."""
        return max(self.items, key=_order, default=None)

    @property
    def final(self) -> float:
        """The best item's final score; NaN where there is none."""
        return max(filter(math.isfinite, self.finals), default=math.nan)


def _order(item: ItemVerdict) -> float:
    return -math.inf if item.predicted_score is None else item.predicted_score


@dataclass(frozen=True)
class Verdict:
    """A run's verdict: its record, last in the history of everything that went before. settings go into the report.
    run: the live panel's name for the run, so that what follows is shown there as its next trial.

    A batch is accepted as long as one of its items is: the run is stopped only when every item is rejected.
    """

    history: tuple[TrialRecord, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    run: str | None = None

    def followed_by(self, record: TrialRecord) -> Verdict:
        """The verdict after one more part of the same run."""
        return replace(self, history=(*self.history, record))

    def noting(self, message: str) -> Verdict:
        """The verdict, its last record with this message before its own."""
        record = replace(self.record, message="; ".join(filter(None, (message, self.record.message))))
        return replace(self, history=(*self.history[:-1], record))

    @property
    def record(self) -> TrialRecord:
        return self.history[-1]

    @property
    def accepted(self) -> bool:
        return self.record.accepted

    @property
    def predicted_score(self) -> float | None:
        best = self.record.best
        return None if best is None else best.predicted_score

    @property
    def preview(self) -> Any:
        return self.record.preview

    @property
    def reworded(self) -> bool:
        """True once the prompt was reworded on the way here, so that what follows belongs to Trial 2."""
        return any(record.kind == "refine" and record.accepted for record in self.history)

    @property
    def rewording_failed(self) -> bool:
        return self.record.kind == "refine" and not self.record.accepted
