"""The order of the trials (paper, section 3.2 and Figure 4) as a state machine without side effects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What to do next; the values are the kinds of trials.verdict.TrialRecord."""

    SAMPLE = "sample"  # a monitored run
    PROBE = "probe"  # a single-frame run of the same prompt
    INJECT = "inject"  # a run that starts from the probe's anchor, not inspected again
    REWORD = "refine"  # ask for a better prompt
    PLAIN = "plain"  # the original run to its end, without inspection: nothing is left that could help
    FINISH = "finish"


@dataclass(frozen=True)
class Step:
    action: Action
    trial: str


class TrialPlan:
    """Trial 0, then 1 or 2, then 2->1; bounded: at most two monitored runs, two probes and one full run.

    >>> plan = TrialPlan()
    >>> plan.next(False)   # the base run was rejected
    Step(action=<Action.PROBE: 'probe'>, trial='1')

    `current` is the step to execute; `next(succeeded)` takes its outcome (accepted by the detector, better than the
    rejected run by delta, reworded) and returns the following step. The second probe succeeds by giving any anchor at
    all: the paper makes no margin test there, it ends the hierarchy (section 3.2, Trial 2).
    """

    def __init__(self, *, injection: bool = True, rewording: bool = True):
        self.injection = injection
        self.rewording = rewording
        self.current = Step(Action.SAMPLE, "0")

    def next(self, succeeded: bool) -> Step:
        self.current = self._after(self.current, succeeded)
        return self.current

    def _after(self, step: Step, succeeded: bool) -> Step:
        finish = Step(Action.FINISH, step.trial)
        plain = Step(Action.PLAIN, "0")
        reword = Step(Action.REWORD, "2") if self.rewording else plain
        match step.action, step.trial:
            case Action.SAMPLE, "0":
                return finish if succeeded else Step(Action.PROBE, "1") if self.injection else reword
            case Action.PROBE, "1":
                return Step(Action.INJECT, "1") if succeeded else reword
            case Action.REWORD, _:
                return Step(Action.SAMPLE, "2") if succeeded else plain
            case Action.SAMPLE, _:
                if succeeded:
                    return finish
                # Without Trial 1 the reworded prompt is the best that is left, so it is sampled to its end.
                return Step(Action.PROBE, "2->1") if self.injection else Step(Action.PLAIN, "2")
            case Action.PROBE, _:
                return Step(Action.INJECT, "2->1") if succeeded else Step(Action.PLAIN, "2")
        return finish
