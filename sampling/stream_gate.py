"""The Chunk Gate: scores a stream's chunks while they are made, with what came before in view, and measures drift."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch

from ..scoring.inspector import Gate
from ..scoring.scorer import numbers
from ..trials.observer import SILENT, Decision, Observer
from ..trials.stream import Chunk, parse_prompts
from ..trials.stream_drift import Drift
from ..trials.stream_plans import GateSettings
from ..trials.stream_work import MEMORY, Plan, Step, Work, seen_at
from ..trials.verdict import ItemVerdict, TrialRecord, Verdict
from .guard import harmless
from .stream_engine import StreamEngine


@dataclass(frozen=True)
class ChunkGate:
    """gate: converter, scorer and prompt, or prompts by chunk as parse_prompts reads them. settings: the plan. running:
    opens the observer of a run."""

    gate: Gate
    settings: GateSettings
    running: Callable[[], AbstractContextManager[Observer]] = lambda: nullcontext(SILENT)

    def __post_init__(self):
        parse_prompts(self.gate.prompt)

    @property
    def begins(self) -> list[int]:
        """The chunks at which its prompts begin."""
        return [begin for begin, _ in parse_prompts(self.gate.prompt)]

    @property
    def depth(self) -> int:
        """How many chunks the cache has to be able to take back."""
        return self.settings.depth

    @property
    def patchers(self) -> tuple:
        return self.gate.patchers

    def watcher(self, engine: StreamEngine) -> ChunkWatcher:
        return ChunkWatcher(self, engine)


@dataclass
class ChunkWatcher:
    """Watches one run of an engine. Nothing that is raised here leaves it: a score that failed is NaN, which passes."""

    gate: ChunkGate
    engine: StreamEngine
    draws: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    drift: Drift = field(init=False)
    records: list[TrialRecord] = field(default_factory=list)
    observer: Observer = SILENT
    _texts: dict[str, torch.Tensor] = field(default_factory=dict)
    _draw: list[Step] = field(default_factory=list)  # the steps of the draw that is shown
    _trace: list[tuple[int, float]] = field(default_factory=list)
    _accepted: tuple[Chunk, int] | None = None  # the draw that a person wants
    _scores: dict[tuple[int, int], float | None] = field(default_factory=dict)  # (chunk, draw) -> its last score
    _kept: dict[int, float] = field(default_factory=dict)  # chunk -> the last score of what is kept
    _began: float = 0.0

    def __post_init__(self):
        self.prompts = parse_prompts(self.gate.gate.prompt)
        self.drift = Drift(self.gate.settings.drift)
        self.engine.score, self.engine.on_keep = self.score, self.keep
        self.engine.on_back = self.take_back

    def plan(self, work: Work) -> Plan:
        return self.gate.settings.make(work, self.draws)

    @contextmanager
    def shown(self, work: Work, seed: int) -> Iterator[None]:
        """The run is shown to whoever watches: each draw of a chunk as a part of it."""
        settings = {
            "prompt": self.gate.gate.prompt, "tau": self.gate.settings.floor, "seed": seed, "nfe_plain": work.plain,
            "steps": sum(chunk.steps for chunk in work.chunks),
        }  # fmt: skip
        with self.gate.running() as self.observer:
            try:
                self.settings = settings
                yield
            finally:
                with harmless("the run could not be shown"):
                    self._conclude(accepted=False)
                    if self.records:
                        self.observer.finish(Verdict(tuple(self.records), settings, self.observer.id))

    def score(self, action: Step, x0: torch.Tensor) -> tuple[float, ...]:
        """By batch item, what a look says or a person has decided meanwhile (then endless); () where neither is."""
        scores, decision = self._scored(action.chunk, action.step, x0) if action.look else (), None
        with harmless(f"chunk {action.chunk.index} was not shown"):
            self._show(action, x0, scores)
            decision = self.observer.take()
        if decision is Decision.STOP:
            raise comfy.model_management.InterruptProcessingException()
        if decision is Decision.REJECT:
            return (-math.inf,) * len(x0)
        if decision is Decision.ACCEPT:
            self._accepted = action.chunk, action.draw
        accepted = self._accepted == (action.chunk, action.draw)
        return (math.inf,) * len(x0) if accepted and (scores or decision) else scores

    def _show(self, action: Step, x0: torch.Tensor, scores: tuple[float, ...]) -> None:
        chunk, before = action.chunk, self._draw[-1] if self._draw else None
        if before is None or (before.chunk, before.draw) != (chunk, action.draw) or action.step <= before.step:
            self._conclude(accepted=False)
            details = {"chunk": chunk.index, "draw": action.draw}
            self._began = time.perf_counter()
            self.observer.begin(
                _name(action), "chunk", steps=chunk.steps, decidable=True, settings=self.settings, details=details
            )
        self._draw.append(action)
        frames, best = None, max(scores, default=None)
        if best is not None:
            self._trace.append((action.step + 1, best))
        if self.observer is not SILENT and (scores or self.observer.wants_picture()):
            item = scores.index(best) if scores else 0
            frames = self._frames(self.engine.clip(chunk, x0[item : item + 1], item), chunk.frames + 1)
        self.observer.step(action.step + 1, best, frames)

    def _conclude(self, accepted: bool) -> None:
        """The draw that is shown was kept, or left."""
        if not self._draw:
            return
        last = self._draw[-1]
        place = last.chunk.index, last.draw
        # What is restored is made without a look, and scores what it has scored.
        score = self._scores[place] = self._trace[-1][1] if self._trace else self._scores.get(place)
        item = ItemVerdict(accepted, score, last.step + 1, "look", tuple(self._trace))
        details, steps = {"chunk": last.chunk.index, "draw": last.draw}, len(self._draw)
        seconds = {"sampling": time.perf_counter() - self._began}
        record = TrialRecord(
            _name(last), "chunk", (item,), accepted, nfe_video=steps, steps=steps, seconds=seconds, details=details
        )
        if accepted and score is not None:
            self._kept[last.chunk.index] = score
        self._draw, self._trace = [], []
        self.records.append(record)
        self.observer.conclude(record)

    def _scored(self, chunk: Chunk, step: int, x0: torch.Tensor) -> tuple[float, ...]:
        """How well the clip so far fits its prompt, by batch item."""
        with harmless(f"chunk {chunk.index} was not scored after step {step + 1}") as failure:
            begin, prompt = max(pair for pair in self.prompts if pair[0] <= chunk.index)
            if prompt not in self._texts:
                self._texts[prompt] = self.gate.gate.scorer.encode_text(prompt)
            seen = seen_at(chunk, begin, self.engine.settings.chunk)
            clip = self.engine.clip(chunk, x0)
            shown = [self._frames(item, seen, scored=True) for item in clip.split(1)]
            scores, finite = self.gate.gate.scores(shown, self._texts[prompt], x0)
            if not finite:
                raise ValueError("the x0 prediction is not finite")
            return scores
        self._note(failure.message)
        return (math.nan,) * len(x0)

    def keep(self, chunk: Chunk, x0: torch.Tensor) -> bool:
        """Measures a finished chunk; False where it has drifted and the stream is to end."""
        warning = None
        with harmless(f"chunk {chunk.index} was not shown"):
            self._conclude(accepted=True)
        with harmless(f"chunk {chunk.index} was not measured") as failure:
            clip = self.engine.clip(chunk, x0)
            items = [measures(self._frames(item, chunk.frames + 1)) for item in clip.split(1)]  # and the one before
            warning = self.drift.observe(
                chunk.index, **{name: sum(item[name] for item in items) / len(items) for name in items[0]}
            )
        self._note(failure.message or warning)
        return not (warning and self.gate.settings.stop)

    def take_back(self, chunks: list[Chunk]) -> None:
        self.drift.take_back(len(chunks))
        for chunk in chunks:
            self._kept.pop(chunk.index, None)

    def report(self) -> dict[str, Any]:
        settings = self.gate.settings
        return {
            "plan": settings.plan, "floor": settings.floor, "budget": settings.budget, "draws": self.draws,
            "redraws": sum(line.get("draw", 0) > 0 and "step" not in line for line in self.draws),
            "taken_back": sum(line.get("taken_back", 0) for line in self.draws),
            "below": sorted(chunk for chunk, score in self._kept.items() if score < settings.floor),
            "chunks": self.drift.rows, "notes": self.notes,
        }  # fmt: skip

    def _note(self, message: str | None) -> None:
        if message and message not in self.notes:
            self.notes.append(message)

    def _frames(self, clip: torch.Tensor, last: int, scored: bool = False) -> torch.Tensor:
        """The last latents of one item's clip as frames [F, H, W, 3]; scored: only those that the scorer looks at."""
        seen = min(last, clip.shape[2])
        before = min(MEMORY, clip.shape[2] - seen)
        chosen = self.gate.gate.scorer.looks_at(seen) if scored else range(seen)
        return self.gate.gate.decode(clip[:, :, clip.shape[2] - seen - before :], [before + at for at in chosen])


def _name(step: Step) -> str:
    return f"chunk {step.chunk.index}, draw {step.draw}"


def measures(frames: torch.Tensor) -> dict[str, float]:
    """saturation (mean of the largest less the smallest colour), contrast (deviation of the grey value) and motion
    (mean change from frame to frame) of frames [F, H, W, 3] in 0..1."""
    frames = frames.float()
    grey = frames.mean(-1)
    motion = (grey[1:] - grey[:-1]).abs().mean() if len(grey) > 1 else grey.new_zeros(())
    values = numbers([(frames.amax(-1) - frames.amin(-1)).mean(), grey.std(), motion])
    return dict(zip(("saturation", "contrast", "motion"), (round(value, 6) for value in values), strict=True))
