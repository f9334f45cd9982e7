"""The dynamic failure detector: a pure function of the trace and its settings (paper, section 3.1 and A.3).

The paper names the rules (early reject, give up, early accept, stable stop, budget), the window (steps 8 to 14 of 50)
and tau; it gives no thresholds. Those are settings here, with the reason beside each default. Margins and epsilons are
in units of ViCLIP-L's cosine, where finished clips score 0.18 (failures) to 0.26 (good); `scale` carries them to
scorers whose scores spread more or less.
"""

import math
import statistics
from dataclasses import dataclass

RULES = ("early_reject", "give_up", "early_accept", "stable_stop", "budget", "below_floor", "not_inspected")


def reached(share: float, steps: int) -> int:
    """The step (1-based) by which `share` of the schedule is done, rounded up.

    Up, because step k is evaluated where (k - 1) / steps of the schedule is done: with few steps, rounding down would
    look at noisier predictions than the paper's at 50 (0.28 of 4 steps is step 2, whose noise level is step 14's).
    """
    return min(max(1, math.ceil(share * steps - 1e-9)), steps)  # 0.28 * 50 is a little above 14


@dataclass(frozen=True)
class DetectorSettings:
    """When the detector may decide and what it calls low, flat, falling, high and stable.

    Fractions are of the step count, so that 20-step and distilled 8-step runs have a window too.
    """

    tau: float = 0.22  # section 3.2; only meaningful for ViCLIP-L with VBench's preprocessing
    start: float = 0.16  # A.3: decisions begin at step 8 of 50
    end: float = 0.28  # A.3: the inspection budget ends at step 14 of 50
    patience: int = 3  # changes a trend needs; from step 8 this stops near the paper's mean of 11 (Table S2)
    accept_patience: int = 2  # changes a high level needs; a pass costs nothing, so it may be called one step sooner
    reject_margin: float = 0.04  # below tau this far is the 0.18 that people call a failure
    reject_epsilon: float = 0.004  # largest change that still counts as "remains nearly unchanged"
    give_up_margin: float = 0.02  # a falling score need not be as low as a flat one
    give_up_drop: float = 0.006  # the whole fall over `patience` changes; less is noise
    accept_margin: float = 0.04  # above tau this far is the 0.26 that people call good
    accept_epsilon: float = 0.010  # a high score may wobble more than a low one before it changes sides
    stable_range: float = 0.006  # highest minus lowest of the last patience + 1 scores
    best_from: float = 0.06  # "best so far" counts from step 3 of 50: the first predictions are blurs of the mean
    history: bool = False  # may trends reach back before the window? The paper's mean stops (11; exactly 24) say no
    scale: float = 1.0  # all margins and epsilons times this; 1 is ViCLIP-L
    # Not the paper's: one score for each step of the window (evaluation.conformal fits them). Where there are any, they
    # alone decide: a run is rejected at the first step whose score lies below the step's floor, else it passes.
    floors: tuple[float, ...] = ()

    @classmethod
    def video(cls, **changes) -> "DetectorSettings":
        """The paper's settings for a video trajectory."""
        return cls(**changes)

    @classmethod
    def single_frame(cls, **changes) -> "DetectorSettings":
        """The paper's settings for the single-frame probe: steps 20 to 30 of 50, mean stop 24 (Table S4)."""
        return cls(**{"start": 0.40, "end": 0.60, "patience": 4, **changes})

    def __post_init__(self):
        if not -1 <= self.tau <= 1:
            raise ValueError(f"tau is {self.tau}, but scores are cosines: set it between -1 and 1 (ViCLIP-L: 0.22).")
        for name in ("start", "end", "best_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but it is a fraction of the step count: set it between 0 and 1."
                )
        if self.end < self.start:
            raise ValueError(
                f"The inspection window ends (end = {self.end}) before it begins (start = {self.start}): "
                "raise end or lower start."
            )
        if not all(map(math.isfinite, self.floors)):
            raise ValueError(f"floors are {list(self.floors)}: give a finite score for each step of the window.")
        for name in ("patience", "accept_patience"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name} is {value}, but a trend needs at least 1 change of score, and whole ones.")
        for name in ("reject_margin", "reject_epsilon", "give_up_margin", "give_up_drop", "accept_margin",
                     "accept_epsilon", "stable_range", "scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}: set it above 0.")
        if self.accept_margin <= self.accept_patience * self.accept_epsilon:
            raise ValueError(
                f"accept_margin ({self.accept_margin}) is no more than accept_patience x accept_epsilon "
                f"({self.accept_patience} x {self.accept_epsilon}), so an early accept could return a score below tau: "
                "raise accept_margin or lower the others."
            )

    def window(self, steps: int) -> tuple[int, int]:
        """First and last deciding step (1-based, within 1..steps) of a run of `steps` steps."""
        if steps < 1:
            raise ValueError(f"steps is {steps}: a run needs at least 1 step to be inspected.")
        first = reached(self.start, steps)
        return first, max(first, reached(self.end, steps))

    def floor(self, step: int, steps: int) -> float:
        """The floor at a step; a window of another length than the floors were fitted on takes the nearest."""
        first, last = self.window(steps)
        share = (step - first) / (last - first) if last > first else 1.0
        return self.floors[round(share * (len(self.floors) - 1))]


@dataclass(frozen=True)
class Decision:
    """What the detector says of a run. accepted is predicted_score >= tau, or, with floors, that none was undercut; it
    is True when nothing could be inspected."""

    accepted: bool
    predicted_score: float  # the predicted score of the finished clip; nan for "not_inspected"
    step: int  # 1-based
    rule: str  # one of RULES


class Detector:
    """Reads one run's scores as they come. available: the steps that are executed, where those are only the first of
    the schedule's `steps`; the window ends with them.

    When only every n-th step is inspected, rules look at the inspected scores and the budget ends at the first
    inspected step that reaches the window's end; whoever inspects should therefore also inspect step `last`. A score
    that is not finite is no observation: no rule looks at it. If the budget ends with none seen, the run is accepted
    as "not_inspected", because inspection must never kill a run.

    For one and the same trace, raising tau never turns a rejection into an acceptance: the two rejecting rules look
    only for s <= tau - margin, the accepting one for s >= tau + margin, and the others do not look at tau.
    """

    def __init__(self, settings: DetectorSettings, steps: int, available: int | None = None):
        self.settings = settings
        self.steps = steps
        self.first, self.last = (min(step, available or steps) for step in settings.window(steps))
        self.trace: list[tuple[int, float]] = []  # finite observations
        self.decision: Decision | None = None
        self._step = 0

    def observe(self, step: int, score: float) -> Decision | None:
        """Takes the score of a step (1-based, increasing). None: go on. A decision once made is given again."""
        if not self._step < step <= self.steps:
            raise ValueError(f"step {step} observed after step {self._step} of {self.steps}: steps count up from 1.")
        self._step = step
        if self.decision is None:
            if math.isfinite(score):
                self.trace.append((step, float(score)))
            self.decision = self._decide(step, math.isfinite(score))
        return self.decision

    def _decide(self, step: int, is_score: bool) -> Decision | None:
        if step < self.first:
            return None
        verdict = None
        if is_score:
            verdict = self._undercut(step) if self.settings.floors else self._trend()
        if verdict is None and step >= self.last:
            verdict = self._budget()
        if verdict is None:
            return None
        rule, score = verdict
        passes = rule != "below_floor" if self.settings.floors else score >= self.settings.tau
        return Decision(rule == "not_inspected" or passes, score, step, rule)

    def _undercut(self, step: int) -> tuple[str, float] | None:
        now = self.trace[-1][1]
        return ("below_floor", now) if now < self.settings.floor(step, self.steps) else None

    def _trend(self) -> tuple[str, float] | None:
        """The first rule that fires, in the paper's order, and the score it returns."""
        s, scale = self.settings, self.settings.scale
        scores = [score for step, score in self.trace if s.history or step >= self.first]
        now = scores[-1]
        changes = [b - a for a, b in zip(scores, scores[1:], strict=False)]
        recent, short = changes[-s.patience:], changes[-s.accept_patience:]
        if len(recent) == s.patience:
            if now <= s.tau - s.reject_margin * scale and max(map(abs, recent)) <= s.reject_epsilon * scale:
                return "early_reject", now
            falls = max(recent) < 0 and sum(recent) <= -s.give_up_drop * scale
            if now <= s.tau - s.give_up_margin * scale and falls:
                return "give_up", now
        if len(short) == s.accept_patience:
            if now >= s.tau + s.accept_margin * scale and max(map(abs, short)) <= s.accept_epsilon * scale:
                return "early_accept", statistics.fmean(scores[-s.accept_patience - 1:])
        if len(recent) == s.patience:
            last = scores[-s.patience - 1:]
            if max(last) - min(last) <= s.stable_range * scale:
                return "stable_stop", statistics.fmean(last[-3:])
        return None

    def _budget(self) -> tuple[str, float]:
        if not self.trace:
            return "not_inspected", math.nan
        if self.settings.floors:
            return "budget", self.trace[-1][1]
        late = [score for step, score in self.trace if step >= reached(self.settings.best_from, self.steps)]
        return "budget", max(late or [score for _, score in self.trace])
