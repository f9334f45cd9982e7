"""A candidate live: begun under the gate, put aside where it is rejected there, and gone on with exactly."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ..scoring.inspector import Gate, Inspector
from ..trials.observer import SILENT, Observer
from ..trials.verdict import TrialRecord
from .candidates import Call
from .guided import attached, guided_sample
from .inputs import Inputs, Latent
from .monitor import MonitorSampler
from .records import trial_record, with_finals


@dataclass(eq=False)
class Contender:
    """One clip of a race or an audition. trial: its name in report and panel. gate: its look, and its floor there.

    calls: its evaluations while it is put aside, on the CPU: one latent each (Wan at 720p, 81 frames: 19 MB), freed as
    soon as it has passed or gone on; without them it begins anew, for the same clip at full price. resumes: off
    for models whose caches remember the steps before. details: for panel and report. latent, x0, final: of the finished
    clip; final is its score.
    """

    trial: str
    inputs: Inputs
    gate: Gate
    observer: Observer = SILENT
    resumes: bool = True
    details: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    latent: Latent | None = None
    x0: Latent | None = None
    final: float = math.nan
    evaluations: int = 0  # of the latest part, also of one that failed

    def begin(self, kind: str, settings: dict[str, Any], stop: str = "rejected") -> TrialRecord:
        """Samples up to the gate's decision, and to the end where that is no rejection. stop: as MonitorSampler's."""
        inputs, gate = self.inputs, self.gate
        inspector = gate.inspector(inputs.whole, inputs.steps)
        shown = {"window": gate.video.window(inputs.whole), "decidable": stop == "rejected"}
        return self._sample(kind, inspector, stop, settings, shown)

    def finish(self, settings: dict[str, Any]) -> TrialRecord:
        """Goes on to the end."""
        return self._sample("finish", None, "never", settings, {})

    def _sample(
        self, kind: str, inspector: Inspector | None, stop: str, settings: dict[str, Any], shown: dict[str, Any]
    ) -> TrialRecord:
        gate, inputs, observer = self.gate, self.inputs, self.observer
        monitor = MonitorSampler(
            inputs.sampler, inspector, stop=stop, observer=observer, look=gate.look,
            calls=self.calls if self.resumes else None,
        )  # fmt: skip
        observer.begin(self.trial, kind, steps=inputs.steps, settings=settings, details=self.details, **shown)
        begin = time.perf_counter()
        try:
            latent, x0 = guided_sample(inputs, monitor, attached(inputs.guider, gate), gate)
        finally:
            self.evaluations = monitor.evaluations
        seconds = time.perf_counter() - begin
        if monitor.beside:  # what was asked past the guider's call cannot be replayed
            self.resumes = False
            self.calls.clear()
        if not monitor.stopped:
            self.calls.clear()
            self.latent, self.x0 = latent, x0
        record = trial_record(
            self.trial, kind, inspector, monitor.evaluations, monitor.steps, seconds, notes=monitor.notes
        )
        if not monitor.stopped:
            record = with_finals(record, gate, monitor.x0, inputs.steps, observer)
            self.final = record.final
        record = replace(record, details=self.details)
        observer.conclude(record)
        return record
