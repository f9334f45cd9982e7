"""Plans: what is done next, and with what outcome. A plan is a generator without torch or side effects.

It yields what is to be done, is sent what came of it, and returns what is delivered. So the same plan runs live, over
logged candidates, and over made-up outcomes in tests. The paper's is here; the race is trials/race.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any


def drive(plan: Generator[Any, Any, Any], do: Callable[[Any], Any]) -> Any:
    """Runs a plan to its end and gives what it returns; `do` carries out each action and tells what came of it."""
    try:
        action = next(plan)
        while True:
            action = plan.send(do(action))
    except StopIteration as end:
        return end.value


class Action(Enum):
    """What the paper's plan asks for; the values are the kinds of trials.verdict.TrialRecord."""

    SAMPLE = "sample"  # a monitored run; succeeds when the detector accepts it
    PROBE = "probe"  # a single-frame run of the same prompt; succeeds when it beats the rejected run by delta
    INJECT = "inject"  # a run that starts from the probe's anchor, not inspected again
    REWORD = "refine"  # ask for a better prompt
    PLAIN = "plain"  # the original run to its end, without inspection: nothing is left that could help


@dataclass(frozen=True)
class Step:
    action: Action
    trial: str


def ladder(*, injection: bool = True, rewording: bool = True) -> Generator[Step, bool, None]:
    """The paper's trials (section 3.2, Figure 4): 0, then 1 or 2, then 2->1. Each step is answered by whether it
    succeeded. At most two monitored runs, two probes and one full run.

    The second probe succeeds by giving any anchor at all: the paper makes no margin test there, it ends the hierarchy.
    """
    if (yield Step(Action.SAMPLE, "0")):
        return
    if injection and (yield Step(Action.PROBE, "1")):
        yield Step(Action.INJECT, "1")
    elif not (rewording and (yield Step(Action.REWORD, "2"))):
        yield Step(Action.PLAIN, "0")
    elif not (yield Step(Action.SAMPLE, "2")):
        # Without Trial 1 the reworded prompt is the best that is left, so it is sampled to its end.
        anchor = injection and (yield Step(Action.PROBE, "2->1"))
        yield Step(Action.INJECT, "2->1") if anchor else Step(Action.PLAIN, "2")
