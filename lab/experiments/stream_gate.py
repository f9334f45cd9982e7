"""The Chunk Gate and its rivals on students of the demo world, in plain torch, at equal mean forwards.

What is drawn again, taken back and kept is said by the pack's own plans (trials/stream_plans.py). The score is the
node's own: previews (L2R) of the clip so far, or of what was made for the present prompt, by the demo's ViCLIP. Plans
that draw again below a floor get the one at which they spend what is asked, found on validation prompts; best of N and
search over path spend it by their budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...demo.preset import STREAM_TAU, STREAM_TRIES
from ...demo.script import LATENTS
from ...demo.stream import SHIFT, Stream, renoised
from ...demo.wan_dit import WanTransformer
from ...evaluation.suites import Item
from ...sampling.stream_noise import drawn
from ...trials.plan import drive
from ...trials.stream import CLEAN, REUSE, StreamSettings
from ...trials.stream_plans import BEST, GATE, PATH, RESEED, GateSettings
from ...trials.stream_work import MEMORY, Back, Keep, Seen, Step, Work, seen_at
from ..training.reward import Scored
from ..training.streams import How, Streams

NONE, WHOLE = "none", "best of whole clips"
MOST = 2.0  # forwards beyond the plain stream that a plan with a floor may spend on one clip, as a share of it
VALIDATED = 16  # validation prompts on which floors are found
TAU = 0.1448  # the demo scorer's own, which was set on whole finished clips
SHARES = (0.05, 0.15, 0.35, 0.65)  # of a plain stream's scores below the floors that are tried
scored = cache(Scored)


@dataclass(frozen=True)
class Spending:
    """plan: of trials/stream_plans.py, NONE, or WHOLE (as many clips as `times` says, the one of the highest score is
    kept). times: mean forwards over those of the plain stream. tries, depth: see GateSettings."""

    plan: str = NONE
    times: float = 1.0
    tries: int = 1
    depth: int = 0

    @property
    def has_floor(self) -> bool:
        return self.plan in (GATE, RESEED)

    def settings(self, floor: float) -> GateSettings:
        if self.plan in (BEST, PATH):
            return GateSettings(floor, self.plan, tries=self.tries, budget=self.times - 1)
        if self.has_floor:
            looks = "last" if self.plan == RESEED else "2, last"
            return GateSettings(floor, self.plan, looks, self.tries, self.depth, MOST)
        return GateSettings(floor, looks="last", tries=1, depth=0)  # looks, and does nothing


SPENDINGS = {
    "no gate": Spending(),
    "one chunk drawn again, 2": Spending(GATE, 2.0, tries=5),
    "up to 3 chunks taken back, 1.5": Spending(GATE, 1.5, tries=2, depth=3),
    "up to 3 chunks taken back, 2": Spending(GATE, 2.0, tries=2, depth=3),
    "clip begun again by its first chunk, 2": Spending(RESEED, 2.0, tries=16),
    "clip begun again by any chunk, 2": Spending(RESEED, 2.0, tries=16, depth=LATENTS - 1),
    "best of 2 whole clips, 2": Spending(WHOLE, 2.0),
    "best of 2 by chunk, 1.5": Spending(BEST, 1.5, tries=2),
    "best of 3 by chunk, 2": Spending(BEST, 2.0, tries=3),
    "best of 5 by chunk, 2": Spending(BEST, 2.0, tries=5),
    "search over path of 3, 2": Spending(PATH, 2.0, tries=3),
}


@dataclass(frozen=True)
class Given(Spending):
    """A gate of these settings, whatever it spends."""

    gate: GateSettings = GateSettings(0.0)

    @property
    def has_floor(self) -> bool:
        return False

    def settings(self, floor: float) -> GateSettings:
        return self.gate


LONG_SPENDINGS = {
    "no gate": Spending(),
    "the demo's gate": Given(GATE, gate=GateSettings(STREAM_TAU, tries=STREAM_TRIES)),
    "the node's defaults": Given(GATE, gate=GateSettings(TAU)),
} | {name: SPENDINGS[name] for name in ("best of 2 by chunk, 1.5", "best of 2 whole clips, 2")}


class Engine:
    """Carries a plan out for one clip, as sampling/stream_engine.py does on ComfyUI's network. how: without guidance,
    with a clean history or the last step's. texts: features of the script's prompts [prompts, D]."""

    def __init__(self, model: WanTransformer, streams: Streams, at: int, how: How, texts: Tensor, seed: int):
        self.which, self.texts, self.seed = streams.which[at], texts, seed
        context, which = streams.context[at : at + 1], streams.which[at : at + 1]
        self.stream = Stream(model, context, which, window=how.window, sink=how.sink)
        kv = REUSE if how.context_noise is None else CLEAN
        preset = "Self-Forcing" if how.last is None else "Diagonal Distillation"
        settings = StreamSettings(preset, how.digits, chunk=1, kv=kv, window=how.window, sink=how.sink)
        chunks = settings.chunks(len(self.which), SHIFT)
        passes = [settings.passes(chunks, chunk) for chunk in chunks]
        self.work = Work(chunks, passes, replays=int(kv == REUSE))
        self.clip: list[Tensor] = []
        self.before: list[list[Any]] = []  # what the memory held before each chunk
        self.candidates: list[tuple[Tensor, Tensor, float]] = []  # prediction, input and level
        self.score = float("nan")  # of what was looked at last

    def do(self, action: Step | Keep | Back) -> Any:
        if isinstance(action, Step):
            return self._step(action)
        return self._keep(action) if isinstance(action, Keep) else self._back(action.chunks)

    def _step(self, action: Step) -> Seen:
        chunk, sigma = action.chunk, action.chunk.sigmas[action.step]
        noise = drawn(torch.empty(1, 16, 1, 8, 8), self.seed, chunk.start, action.step, action.draw)
        x = renoised(self.candidates[action.base[0]][0], sigma, noise) if action.step else noise
        x0 = self.stream.predict(x, sigma)
        self.candidates.append((x0, x, sigma))
        scores = ()
        if action.look:
            own = int(self.which[chunk.index])
            seen = min(seen_at(chunk, int((self.which == own).nonzero()[0]), 1), chunk.index + 1)
            clip = torch.cat([*self.clip, x0], 2)[:, None, :, -(seen + MEMORY) :]
            self.score = float(scored().look(clip, seen)[0, 0] @ self.texts[own])
            scores = (self.score,)
        return Seen(len(self.candidates) - 1, scores)

    def _keep(self, action: Keep) -> bool:
        x0, x, sigma = self.candidates[action.picks[0]]
        if action.chunk is not self.work.chunks[-1]:
            if not self.work.replays:
                self.stream.predict(x0, 0.0)
            elif action.picks[0] != len(self.candidates) - 1:  # another one's keys and values are there
                self.stream.predict(x, sigma)
            self.before.append([memory.past for memory in self.stream.memory])
            self.stream.keep()
        self.clip.append(x0)
        self.candidates = []
        return True

    def _back(self, chunks: int) -> None:
        held = self.before[-chunks]
        del self.before[-chunks:], self.clip[-chunks:]
        for memory, past in zip(self.stream.memory, held, strict=True):
            memory.past = past
        self.stream.at -= chunks
        self.candidates = []


def made(
    model: WanTransformer, streams: Streams, at: int, how: How, texts: Tensor, seed: int, spending: Spending,
    floor: float,
) -> tuple[Tensor, int, list[dict[str, Any]]]:
    """Latents [1, 16, F, 8, 8] of one clip, its forwards, and what was drawn."""
    lines: list[dict[str, Any]] = []
    engines = []
    for number in range(round(spending.times) if spending.plan == WHOLE else 1):
        engine = Engine(model, streams, at, how, texts, seed + 10_000 * number)
        drive(spending.settings(floor).make(engine.work, lines), engine.do)
        engines.append(engine)
    best = max(engines, key=lambda engine: engine.score)
    return torch.cat(best.clip, 2), sum(engine.stream.forwards for engine in engines), lines


def gated(
    model: WanTransformer, items: Sequence[Item], how: How, spending: Spending, floor: float, latents: int = LATENTS
) -> tuple[Streams, Tensor, list[int], list[float]]:
    """The streams of all prompts, their latents and forwards by prompt, and all scores of chunks."""
    streams = Streams(items, latents)
    clips, forwards, scores = [], [], []
    for at, script in enumerate(streams.scripts):
        texts = scored().texts(script.prompts)
        clip, count, lines = made(model, streams, at, how, texts, items[at].index, spending, floor)
        clips.append(clip)
        forwards.append(count)
        scores += [score for line in lines for score in line.get("scores", ())]
    return streams, torch.cat(clips), forwards, scores


def spent(
    model: WanTransformer, items: Sequence[Item], how: How, spending: Spending
) -> tuple[list[float], list[float]]:
    """Floors, rising, and the mean forwards at each over those of the plain stream. items: of validation."""
    _, _, plain, scores = gated(model, items, how, Spending(), 0.0)
    floors = [float(np.quantile(scores, share)) for share in SHARES]
    means = [sum(gated(model, items, how, spending, floor)[2]) / sum(plain) for floor in floors]
    return [min(scores) - 0.001, *floors], [1.0, *np.maximum.accumulate(means).tolist()]


def floor_for(times: float, floors: Sequence[float], means: Sequence[float]) -> float:
    """The floor at which so much is spent, between those that were tried; the highest where none spends it."""
    return float(np.interp(times, means, floors))
