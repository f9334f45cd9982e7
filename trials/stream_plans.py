"""Plans of a stream: which step of which chunk is next, what is looked at, what is kept, what is taken back.

Generators without torch, as in plan.py: they yield a Step, a Keep or a Back, and are sent what came of it. All of them
are plans of one engine (sampling/stream_engine.py).
"""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .stream import Chunk


@dataclass(frozen=True)
class Step:
    """A step (0-based) of a chunk, from these candidates, one for each batch item; () at the first step. draw: the
    number of its noise, 0 the run's own. look: whether what comes of it is scored. Answered by a Seen."""

    chunk: Chunk
    step: int
    base: tuple[int, ...] = ()
    draw: int = 0
    look: bool = False


@dataclass(frozen=True)
class Seen:
    """What a step gave: the number of the candidate, and each item's score where it was looked at (NaN: it failed)."""

    candidate: int
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Keep:
    """The chunk is these finished candidates, one for each batch item. Answered by whether to go on."""

    chunk: Chunk
    picks: tuple[int, ...]


@dataclass(frozen=True)
class Back:
    """Takes the last committed chunks back, so that the first of them is made again."""

    chunks: int


Plan = Generator[Step | Keep | Back, Any, None]


@dataclass(frozen=True)
class Work:
    """What there is to do. passes: forwards that follow each chunk; barriers: chunks before which none can be taken
    back, because the cache was made anew there; items: of the batch. replays: 1 where keeping a candidate that was not
    the last takes a forward more, because its keys and values are those that stay. refined: the steps (0-based, the
    first is never one) before which a refiner of noise takes a forward."""

    chunks: Sequence[Chunk]
    passes: Sequence[int]
    items: int = 1
    barriers: frozenset[int] = field(default_factory=frozenset)
    replays: int = 0
    refined: Container[int] = ()

    def forwards(self, at: int, first: int = 0) -> int:
        """Forwards of the steps of chunk `at` from the step `first` on."""
        return sum(1 + (step in self.refined) for step in range(first, self.chunks[at].steps))

    @property
    def plain(self) -> int:
        """Forwards of a plain run, without a refiner and without those that fill the cache with what was given."""
        return sum(chunk.steps for chunk in self.chunks) + sum(self.passes)

    @property
    def ungated(self) -> int:
        """The same with the refiner's."""
        return sum(map(self.forwards, range(len(self.chunks)))) + sum(self.passes)


def plain(work: Work) -> Plan:
    """Each chunk once, without a look."""
    for chunk in work.chunks:
        base: tuple[int, ...] = ()
        for step in range(chunk.steps):
            base = ((yield Step(chunk, step, base)).candidate,) * work.items
        if not (yield Keep(chunk, base)):
            return


GATE, BEST, PATH = PLANS = ("gate", "best of N", "search over path")


@dataclass(frozen=True)
class GateSettings:
    """plan: GATE draws a chunk again that scores below `floor` at a look; BEST draws each chunk `tries` times and keeps
    the best; PATH does so at each step. looks: steps (1-based, or "last") at which GATE scores, in commas. tries:
    draws of a chunk at most. depth: chunks before a failing one that are taken back at most, when all its draws have
    failed. budget: forwards beyond an ungated run that a plan may spend, as a share of it. drift: by which factor a
    chunk's colours may leave those of the first two without a warning; stop: whether the stream then ends."""

    floor: float
    plan: str = GATE
    looks: str = "2, last"
    tries: int = 3
    depth: int = 1
    budget: float = 0.5
    drift: float = 1.5
    stop: bool = False

    def __post_init__(self):
        if self.plan not in PLANS:
            raise ValueError(f"plan is {self.plan!r}: choose one of {', '.join(PLANS)}.")
        if self.tries < 1 or self.depth < 0:
            raise ValueError(f"tries is {self.tries}, depth {self.depth}: tries is 1 or more, depth 0 or more.")
        if not (math.isfinite(self.budget) and self.budget >= 0 and self.drift > 1):
            raise ValueError(f"budget is {self.budget}, drift {self.drift}: budget is 0 or more, drift above 1.")
        self.steps(9)

    def steps(self, count: int) -> frozenset[int]:
        """The steps (0-based) of a chunk of `count` at which it is looked at."""
        places = [part.strip() for part in self.looks.split(",") if part.strip()]
        if not places or not all(place == "last" or (place.isdecimal() and int(place)) for place in places):
            raise ValueError(
                f"looks is {self.looks!r}: write steps from 1 on, or last, apart by commas, for example 2, last."
            )
        return frozenset(count - 1 if place == "last" else min(int(place), count) - 1 for place in places)

    def make(self, work: Work, told: list[dict[str, Any]]) -> Plan:
        """told: takes a line for each draw of a chunk, for the report."""
        return _Spending(self, work, told).run()


@dataclass
class _Draw:
    """One draw of a chunk: its latest candidate, what that scored by item, and how many forwards are left of it."""

    draw: int
    candidate: int
    scores: tuple[float, ...]
    left: int


class _Spending:
    """The plans of a gate, and what they have spent. A score that is not a number passes: nobody has seen a fault."""

    def __init__(self, settings: GateSettings, work: Work, told: list[dict[str, Any]]):
        self.settings, self.work, self.told = settings, work, told
        self.most, self.spent = work.ungated + int(settings.budget * work.ungated), 0
        self.next_draw = [0] * len(work.chunks)
        self.recipes: list[tuple[int, ...]] = []  # by kept chunk, the draw of each item
        self.last = -1  # the candidate that was made last

    def run(self) -> Plan:
        at = 0
        while at < len(self.work.chunks):
            if self.settings.plan == GATE:
                picks, scores = yield from self._gated(at)
                picks, scores = yield from self._backtracked(at, picks, scores)
            else:
                search = {BEST: self._best_of, PATH: self._path}[self.settings.plan]
                picks = yield from search(at)
            if not (yield from self._keep(at, picks)):
                return
            at += 1

    def _affords(self, at: int, forwards: int) -> bool:
        """Whether so many can be spent on chunk `at` beside the rest of the stream."""
        rest = sum(map(self.work.forwards, range(at + 1, len(self.work.chunks)))) + sum(self.work.passes[at:])
        return self.spent + forwards + rest + self.work.replays <= self.most

    def _keep(self, at: int, picks: tuple[int, ...]) -> Generator[Keep, bool, bool]:
        self.spent += self.work.passes[at] + (self.work.replays and set(picks) != {self.last})
        return (yield Keep(self.work.chunks[at], picks))

    def _step(self, at: int, step: int, base: tuple[int, ...], draw: int, look: bool) -> Generator[Step, Seen, Seen]:
        self.spent += 1 + (step in self.work.refined)
        seen = yield Step(self.work.chunks[at], step, base, draw, look)
        self.last = seen.candidate
        return seen

    def _all(self, candidate: int) -> tuple[int, ...]:
        return (candidate,) * self.work.items

    def _drawn(self, at: int, again: bool) -> Generator[Step, Seen, _Draw]:
        """One draw of a chunk; where it can be drawn again, only until every item has failed."""
        chunk, draw = self.work.chunks[at], self.next_draw[at]
        self.next_draw[at] += 1
        looks, base, scores = self.settings.steps(chunk.steps), (), ()
        for step in range(chunk.steps):
            seen = yield from self._step(at, step, base, draw, step in looks)
            base, scores = self._all(seen.candidate), seen.scores or scores
            if seen.scores and all(score < self.settings.floor for score in seen.scores) and again:
                break
        self.told.append({"chunk": chunk.index, "draw": draw, "steps": step + 1, "scores": list(scores)})
        return _Draw(draw, base[0], scores, self.work.forwards(at, step + 1))

    def _gated(self, at: int) -> Generator[Step, Seen, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Draws a chunk until each item passes, or it cannot be drawn again; (picks, the score of each pick)."""
        forwards, draws = self.work.forwards(at), []
        passing: dict[int, _Draw] = {}
        for left in reversed(range(self.settings.tries)):
            # A draw that was left half way may still be the best of an item, and is finished then.
            unfinished = sorted((draw.left for draw in draws), reverse=True)[: self.work.items]
            again = left > 0 and self._affords(at, 2 * forwards + sum(unfinished))
            draws.append((yield from self._drawn(at, again)))
            scores = draws[-1].scores or (math.nan,) * self.work.items
            for item, score in enumerate(scores):
                if not draws[-1].left and not score < self.settings.floor:
                    passing.setdefault(item, draws[-1])
            if len(passing) == self.work.items or not again:
                break
        chosen = [passing.get(item) or _best(draws, item) for item in range(self.work.items)]
        for each in {id(each): each for each in chosen if each.left}.values():
            yield from self._finished(at, each)
        self.recipes[at:] = [tuple(each.draw for each in chosen)]
        scores = tuple((each.scores or (math.nan,) * self.work.items)[item] for item, each in enumerate(chosen))
        return tuple(each.candidate for each in chosen), scores

    def _finished(self, at: int, draw: _Draw) -> Generator[Step, Seen, None]:
        """The steps that are left of a draw which was stopped half way."""
        chunk = self.work.chunks[at]
        line = next(each for each in self.told if (each["chunk"], each.get("draw")) == (chunk.index, draw.draw))
        looks = self.settings.steps(chunk.steps)
        for step in range(line["steps"], chunk.steps):
            seen = yield from self._step(at, step, self._all(draw.candidate), draw.draw, step in looks)
            draw.candidate, draw.scores = seen.candidate, seen.scores or draw.scores
        draw.left = 0
        line |= {"steps": chunk.steps, "scores": list(draw.scores)}

    def _backtracked(
        self, at: int, picks: tuple[int, ...], scores: tuple[float, ...]
    ) -> Generator[Any, Any, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Where every item of a chunk has failed: the chunks before it are drawn again, one, then two, ... of them, for
        as long as the budget can also pay the way back to the best that was found."""
        for back in range(1, self.settings.depth + 1):
            start = at - back
            if not all(score < self.settings.floor for score in scores):
                break
            if start < 0 or any(start < barrier <= at for barrier in self.work.barriers):
                break
            again = range(start, at + 1)
            once = sum(self.work.forwards(i) + self.work.passes[i] + self.work.replays for i in again)
            if not self._affords(at, 2 * once):
                break
            before, recipes = sum(scores), self.recipes[start : at + 1]
            self.told.append({"chunk": self.work.chunks[at].index, "taken_back": back})
            yield Back(back)
            for i in again:
                draw = yield from self._drawn(i, False)
                self.recipes[i:] = [self._all(draw.draw)]
                if i < at:
                    yield from self._keep(i, self._all(draw.candidate))
            if not sum(draw.scores) <= before:
                picks, scores = self._all(draw.candidate), draw.scores
                continue
            self.told.append({"chunk": self.work.chunks[at].index, "taken_back": back, "restored": True})
            yield Back(back)
            for i in again:
                picks = yield from self._remade(i, recipes[i - start])
                if i < at:
                    yield from self._keep(i, picks)
            self.recipes[start:] = recipes
        return picks, scores

    def _remade(self, at: int, recipe: tuple[int, ...]) -> Generator[Step, Seen, tuple[int, ...]]:
        """A chunk of known draws once more, without a look."""
        made = {}
        for draw in dict.fromkeys(recipe):
            base: tuple[int, ...] = ()
            for step in range(self.work.chunks[at].steps):
                base = self._all((yield from self._step(at, step, base, draw, False)).candidate)
            made[draw] = base[0]
        return tuple(made[draw] for draw in recipe)

    def _count(self, at: int) -> int:
        """How many candidates of a chunk the budget pays, at most as many as are wanted."""
        forwards = self.work.forwards(at)
        return next((n for n in range(self.settings.tries, 1, -1) if self._affords(at, n * forwards)), 1)

    def _best_of(self, at: int) -> Generator[Step, Seen, tuple[int, ...]]:
        chunk, made = self.work.chunks[at], []
        for draw in range(self._count(at)):
            base: tuple[int, ...] = ()
            for step in range(chunk.steps):
                seen = yield from self._step(at, step, base, draw, step == chunk.steps - 1)
                base = self._all(seen.candidate)
            made.append(seen)
            self.told.append({"chunk": chunk.index, "draw": draw, "steps": chunk.steps, "scores": list(seen.scores)})
        return self._highest(made)

    def _path(self, at: int) -> Generator[Step, Seen, tuple[int, ...]]:
        chunk, picks, count = self.work.chunks[at], (), self._count(at)
        for step in range(chunk.steps):
            made = []
            for draw in range(count):
                made.append((yield from self._step(at, step, picks, draw, True)))
                line = {"chunk": chunk.index, "draw": draw, "step": step + 1, "scores": list(made[-1].scores)}
                self.told.append(line)
            picks = self._highest(made)
        return picks

    def _highest(self, made: list[Seen]) -> tuple[int, ...]:
        """By item the candidate of the highest score; the first where none has one."""

        def score(seen: Seen, item: int) -> float:
            return -math.inf if not seen.scores or math.isnan(seen.scores[item]) else seen.scores[item]

        return tuple(max(made, key=lambda seen: score(seen, item)).candidate for item in range(self.work.items))


def _best(draws: list[_Draw], item: int) -> _Draw:
    return max(draws, key=lambda each: each.scores[item])


class Drift:
    """Whether a stream's colours leave those that it began with; `limit`: by which factor they may."""

    def __init__(self, limit: float):
        self.limit, self.rows = limit, []

    def observe(self, chunk: int, **measures: float) -> str | None:
        """measures: saturation, contrast and motion of a finished chunk. A sentence where one has left its range."""
        self.rows.append({"chunk": chunk, **measures})
        if len(self.rows) < 3:
            return None
        for name, limit in (("saturation", self.limit), ("contrast", self.limit), ("motion", 4 * self.limit)):
            now, first = measures[name], sum(row[name] for row in self.rows[:2]) / 2
            if first > 0 and not first / limit <= now <= first * limit:
                return f"the stream drifts: chunk {chunk} has {name} {now:.3g}, and the first two had {first:.3g}"
        return None

    def take_back(self, chunks: int) -> None:
        del self.rows[-chunks:]
