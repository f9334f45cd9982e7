"""What a plan of a stream does and is told: steps of chunks, what is kept and taken back, and what all of it costs.

A plan is a generator without torch, as in plan.py: it yields a Step, a Keep or a Back, and is sent what came of it. All
of them are carried out by one engine (sampling/stream_engine.py).
"""

from __future__ import annotations

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


SEEN = 21  # latents of the clip so far that are scored, which is what the published models make in one clip
MEMORY = 8  # latents before those, which a causal converter is shown so that it does not start from nothing


def seen_at(chunk: Chunk, begin: int, size: int) -> int:
    """How many of the clip's last latents a look at a chunk sees, at most; under a later prompt only what was made for
    it. begin: the chunk at which the prompt begins; size: latents of a chunk."""
    return SEEN if begin == 0 else min(SEEN, (chunk.index - begin) * size + chunk.frames)


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
