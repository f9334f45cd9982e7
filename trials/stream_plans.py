"""Plans of a stream's gate: what is looked at, drawn again and taken back, within a budget.

`gate` is this project's; best of N, search over path and reseeding are the rivals that papers compare with.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from .stream_work import Back, Keep, Plan, Seen, Step, Work

GATE, BEST, PATH, RESEED = PLANS = ("gate", "best of N", "search over path", "reseed")


@dataclass(frozen=True)
class GateSettings:
    """plan: GATE draws a chunk again that scores below `floor` at a look; BEST draws each chunk `tries` times and keeps
    the best; PATH does so at each step; RESEED looks at the first 1 + `depth` chunks, and begins the clip again with
    other noise where one of them fails. looks: steps (1-based, or "last") at which GATE and RESEED score, in commas.
    tries: draws of a chunk (RESEED: of the clip) at most. depth: chunks before a failing one that GATE takes back at
    most, when all its draws have failed. budget: forwards beyond an ungated run that a plan may spend, as a share of
    it. drift: by which factor a chunk's colours may leave those of the first two without a warning; stop: whether the
    stream then ends."""

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
        self.clip = 0  # RESEED: the draw of all chunks
        self.fell: dict[int, tuple[int, float]] = {}  # by draw of the clip, the chunk that failed and what it scored
        self.judged = [  # the first chunks, which decide of the clip
            at for at in range(min(settings.depth + 1, len(work.chunks))) if self._can_go_back(0, at)
        ]

    def run(self) -> Plan:
        at = 0
        while at < len(self.work.chunks):
            if self.settings.plan == GATE:
                picks, scores = yield from self._gated(at)
                picks, scores = yield from self._backtracked(at, picks, scores)
            else:
                search = {BEST: self._best_of, PATH: self._path, RESEED: self._of_the_clip}[self.settings.plan]
                picks = yield from search(at)
            if not picks:
                at = 0
                continue
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

    def _failing(self, scores: tuple[float, ...]) -> bool:
        """Whether every item has been seen to fail."""
        return bool(scores) and all(score < self.settings.floor for score in scores)

    def _can_go_back(self, start: int, at: int) -> bool:
        chunks = self.work.chunks
        return not any(chunks[start].index < barrier <= chunks[at].index for barrier in self.work.barriers)

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
            if again and self._failing(seen.scores):
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
            if not self._failing(scores) or start < 0 or not self._can_go_back(start, at):
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

    def _of_the_clip(self, at: int) -> Generator[Step | Back, Seen, tuple[int, ...]]:
        """The next chunk of the clip's draw; () where the clip begins again, because this one has failed. When all that
        is paid have failed, the one goes on that came furthest."""
        if at not in self.judged:
            return (yield from self._remade(at, self._all(self.clip)))
        first = sum(self.work.forwards(i) + self.work.passes[i] for i in self.judged)
        once = self.work.forwards(at) + first + self.work.ungated  # this one, one more, and the way back to the best
        again = self.clip + 1 < self.settings.tries and self.spent + once <= self.most
        self.next_draw[at] = self.clip
        draw = yield from self._drawn(at, again)
        if not self._failing(draw.scores):
            return self._all(draw.candidate)
        self.fell[self.clip] = at, sum(draw.scores)
        best = max(self.fell, key=self.fell.__getitem__)
        if not again:
            self.judged = []
        if not again and best == self.clip:
            return self._all(draw.candidate)
        self.clip = self.clip + 1 if again else best
        if at:
            restored = {} if again else {"restored": True}
            self.told.append({"chunk": self.work.chunks[at].index, "taken_back": at} | restored)
            yield Back(at)
        return ()

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
