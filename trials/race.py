"""The race: seeds in turn, each looked at early, until one passes; where none does, the best of them is finished.

Knowing a little, early and often, pays more than knowing more, late and once (docs/evidence.md). With floors it is a
search for the first candidate that is good enough (a stopping rule for drawing, Weitzman 1979); without one it is the
best of a fixed number at the look (speculative rejection, Sun et al. 2024), which needs no calibration.

Live the plan is driven by sampling/race.py, over logged candidates by evaluation/raced.py: the same code decides.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

from .foreign import check_choice

# Where nothing is fitted: step 6 of 50, as later looks cost more and know little more (docs/evidence.md); and, because
# shares are rounded up, the first of up to 8 steps, whose prediction a distilled model makes a picture already.
LOOK = 0.12
MANY = 64  # more candidates than any budget pays, so that the budget alone bounds a race
RANKS = 2.0  # a floor that no cosine reaches: every candidate is put aside, and ranks alone decide
# Between the seeds of two candidates: people queue seeds one after another, and those runs must not share candidates,
# or they would deliver one clip twice.
SEED_STEP = 1_000_000
SELF_REFINE = ("off", "later", "all")  # which candidates are self-refined; "later": all but the user's own seed
REJECTED = -math.inf  # the lead of what a person has put aside: it is finished only where there is nothing else


@dataclass(frozen=True)
class Candidate:
    """One way to make the clip: plainly or lightly self-refined, from noise of a seed of its own."""

    number: int
    self_refined: bool = False

    def seed(self, first: int) -> int:
        """first: of the user's run, which is number 0."""
        return (first + self.number * SEED_STEP) % 2**64


@dataclass(frozen=True)
class Try:
    """Sample the candidate and score it at each look; at the first whose floor it is below it is put aside, and where
    there is none it is finished."""

    candidate: Candidate


@dataclass(frozen=True)
class Finish:
    """Go on with a candidate that was put aside, to its end."""

    candidate: Candidate


@dataclass(frozen=True)
class Outcome:
    """lead: the score at the latest look less its floor, NaN where it could not be scored, REJECTED where a person has
    put the candidate aside. final: the finished clip's score, NaN where it could not be scored, None where the
    candidate was put aside. passed: looks it had passed until then. chosen: a person has accepted the candidate."""

    lead: float
    final: float | None = None
    passed: int = 0
    chosen: bool = False


Plan = Generator[Try | Finish, Outcome | None, Candidate]


@dataclass(frozen=True)
class RaceSettings:
    """candidates: the most that are tried. self_refine: one of SELF_REFINE. last_look: the least score of a finished
    clip; below it the best candidate put aside is finished as well, and the better of the two delivered (None: never).
    """

    candidates: int = 3
    self_refine: str = "later"
    last_look: float | None = None

    def __post_init__(self):
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}: a race needs at least 1.")
        check_choice("self_refine", self.self_refine, SELF_REFINE)

    def candidate(self, number: int) -> Candidate:
        return Candidate(number, self.self_refine == "all" or (self.self_refine == "later" and number > 0))


@dataclass(frozen=True)
class Look:
    """share: of the schedule that is done then. floor, floor_self_refined: the least score that passes there, of a
    plain and of a self-refined candidate."""

    share: float
    floor: float = RANKS
    floor_self_refined: float = RANKS

    def least(self, candidate: Candidate) -> float:
        return self.floor_self_refined if candidate.self_refined else self.floor


@dataclass(frozen=True)
class Rules:
    """What a race goes by. looks: at which candidates are scored, the earliest first; one that is below the floor of
    any is put aside. budget: the most that may be spent beyond a plain clip, as a share; None: what the settings can
    take at most. preset: the file that the rules come from, for the report."""

    settings: RaceSettings
    looks: tuple[Look, ...] = (Look(LOOK),)
    budget: float | None = None
    preset: str | None = None

    @classmethod
    def ranks(cls, budget: float, self_refine: str) -> Rules:
        """For what nobody has calibrated: as many candidates as the budget pays for, and the best goes on."""
        return cls(RaceSettings(MANY, self_refine), budget=budget)


def race(settings: RaceSettings) -> Plan:
    """The driver answers None where the budget does not allow an action; the first candidate is always allowed."""
    aside: dict[Candidate, tuple[int, float]] = {}  # the looks that each has passed come before its lead
    finished: dict[Candidate, float] = {}
    for candidate in map(settings.candidate, range(settings.candidates)):
        outcome = yield Try(candidate)
        if outcome is None:
            break
        if outcome.final is not None:
            if outcome.chosen:
                return candidate
            finished[candidate] = outcome.final
            break
        aside[candidate] = outcome.passed, outcome.lead
    if not finished:
        yield from _finish_best(aside, finished)
    aside = {candidate: rank for candidate, rank in aside.items() if rank[1] != REJECTED}
    if settings.last_look is not None and aside and max(finished.values()) < settings.last_look:
        yield from _finish_best(aside, finished)
    return max(finished, key=lambda candidate: -math.inf if math.isnan(finished[candidate]) else finished[candidate])


def _finish_best(aside: dict[Candidate, tuple[int, float]], finished: dict[Candidate, float]) -> Plan:
    best = max(aside, key=aside.__getitem__)
    outcome = yield Finish(best)
    if outcome is not None:
        del aside[best]
        finished[best] = outcome.final
    return best


@dataclass(frozen=True)
class Costs:
    """Model evaluations of one candidate: to its last look (one that is put aside at an earlier look has taken less by
    as much as its rest takes more), and of the whole clip. resumes: whether it can be gone on with; else it is begun
    anew to be finished."""

    look: int
    whole: int
    resumes: bool = True

    @property
    def rest(self) -> int:
        return self.whole - self.look if self.resumes else self.whole


@dataclass
class Purse:
    """What a race may spend, in model evaluations, and has spent. A candidate is begun only where the dearest of those
    put aside could still be finished afterwards, so the bound holds whatever the looks say."""

    most: float  # a whole number, or infinite
    spent: int = 0
    dearest: int = 0  # evaluations that finishing the dearest candidate put aside still takes

    def affords(self, action: Try | Finish, costs: Costs) -> bool:
        if isinstance(action, Finish):
            return self.spent + costs.rest <= self.most
        return self.spent + costs.look + max(costs.rest, self.dearest) <= self.most

    def pay(self, evaluations: int) -> None:
        self.spent += evaluations

    def put_aside(self, costs: Costs) -> None:
        self.dearest = max(self.dearest, costs.rest)


def most_evaluations(settings: RaceSettings, plain: Costs, self_refined: Costs) -> int:
    """The bound of a race: every candidate is looked at, the dearest finished, and with a last look another one too."""
    costs = [self_refined if settings.candidate(n).self_refined else plain for n in range(settings.candidates)]
    rests = sorted((each.rest for each in costs), reverse=True)
    return sum(each.look for each in costs) + sum(rests[: 1 if settings.last_look is None else 2])
