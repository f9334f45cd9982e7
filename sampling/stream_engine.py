"""Carries out the plans of a stream: makes steps of chunks, keeps candidates, fills the cache, takes chunks back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch

from ..trials.stream import REUSE, Chunk, StreamSettings, pieces
from ..trials.stream_work import Back, Keep, Seen, Step
from .noise_space import NoiseSpace
from .stream_cache import KVCache
from .stream_model import CausalHooks
from .stream_noise import drawn

Model = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way to make a chunk, after some steps: its x0 prediction, and the input and level of its last forward."""

    x0: torch.Tensor
    x: torch.Tensor
    sigma: float
    step: int


class Recent:
    """The exact latents that the cache may hold: the first `sink`, and the last `window`, by their number."""

    def __init__(self, sink: int, window: int):
        self.sink, self.window = sink, window
        self.frames: dict[int, torch.Tensor] = {}

    def copy(self) -> Recent:
        other = Recent(self.sink, self.window)
        other.frames = dict(self.frames)
        return other

    def put(self, start: int, latents: torch.Tensor) -> None:
        end = start + latents.shape[2]
        self.frames |= {start + at: latents[:, :, at].clone() for at in range(latents.shape[2])}
        self.frames = {at: f for at, f in self.frames.items() if at < self.sink or end - self.window <= at < end}

    def drop(self, end: int) -> None:
        self.frames = {at: frame for at, frame in self.frames.items() if at < end}

    def take(self, start: int, frames: int) -> torch.Tensor:
        return torch.stack([self.frames[at] for at in range(start, start + frames)], 2)


@dataclass
class StreamEngine:
    """One run. model: the guider, as a sampler is given it. noise and latent: [B, C, F, H, W] in model space, of the
    new latents, the first of which is number `start` of the stream; output: where they are written. cached: whether a
    chunk is needed in the cache; context: the noise (sigma) of what goes there. recaches: chunks before which the cache
    is made anew. Counts `forwards` of the model, those of the cache included.

    refine(noise, x0 before, cache, chunk, step) gives the noise that an x0 prediction is mixed with instead of `noise`;
    where it has an `attach(engine)`, that gives what refines in this run. score(step, x0): of each item where the step
    is a look. on_step(chunk, step, x0) sees every prediction; on_keep(chunk, x0) every finished chunk, and says whether
    to go on.
    """

    settings: StreamSettings
    model: Model
    extra_args: dict[str, Any]
    hooks: CausalHooks
    cache: KVCache
    space: NoiseSpace
    seed: int
    noise: torch.Tensor
    latent: torch.Tensor
    start: int
    cached: Callable[[Chunk], bool]
    context: float
    recaches: frozenset[int] = frozenset()
    refine: Any = None
    score: Callable[[Step, torch.Tensor], tuple[float, ...]] | None = None
    on_step: Callable[[Chunk, int, torch.Tensor], None] = lambda *_: None
    on_keep: Callable[[Chunk, torch.Tensor], bool] = lambda *_: True
    on_back: Callable[[list[Chunk]], None] = lambda _: None
    forwards: int = 0
    recent: Recent = field(default_factory=lambda: Recent(0, 0))
    output: torch.Tensor = field(init=False)
    given: torch.Tensor | None = None  # what the clip begins with
    kept: list[Chunk] = field(default_factory=list)
    _candidates: list[Candidate] = field(default_factory=list)
    _last: int | None = None  # the candidate whose keys and values lie in the open chunk
    _ready: int | None = None  # the chunk for which the cache was prepared

    def __post_init__(self):
        self.output = torch.zeros_like(self.noise)
        if hasattr(self.refine, "attach"):
            self.refine = self.refine.attach(self)

    def clip(self, chunk: Chunk, x0: torch.Tensor, item: int | None = None) -> torch.Tensor:
        """The clip so far: what it began with, the finished chunks, and this one as it is predicted. item: that of the
        batch of which x0 alone is."""
        whose = slice(None) if item is None else slice(item, item + 1)
        before = self.output[whose, :, : chunk.start - self.start]
        given = None if self.given is None else self.given[whose]
        return torch.cat([part for part in (given, before, x0) if part is not None], 2)

    def reflect(
        self, chunk: Chunk, before: torch.Tensor | None, noise: torch.Tensor, sigma: float, history: bool = True,
        model: Model | None = None, hooks: CausalHooks | None = None,
    ) -> torch.Tensor:
        """What a model makes of noise at this level with the x0 prediction before it, and the history, in view
        (AutoRefiner's reflective cache), in one forward. What is held stays as it was; the open chunk is to be written
        again. model and hooks: of a refiner whose network is another one, with keys and values like this one's."""
        return self._forward(chunk.index, noise, sigma, model, hooks, beside=before, history=history)

    def do(self, action: Step | Keep | Back) -> Any:
        if isinstance(action, Step):
            return self._step(action)
        return self._keep(action) if isinstance(action, Keep) else self._back(action)

    def fill(self, latents: torch.Tensor) -> None:
        """Given latents go into the cache as if they had been made, and are the stream's first."""
        self.recent.put(0, latents)
        for start, frames in pieces(latents.shape[2], self.settings.chunk):
            self._take_in(0, latents[:, :, start : start + frames])
        self.cache.settle(self.cache.position)

    def _take_in(self, index: int, x0: torch.Tensor) -> None:
        self.cache.open(x0.shape[2])
        self._context(index, x0)
        self.cache.commit()

    def _context(self, index: int, x0: torch.Tensor) -> None:
        """The forward after which the cache holds a finished chunk."""
        x = x0
        if self.context:
            eps = drawn(x0, self.seed, self.cache.position, "context")
            x = self.space.renoise(x0, eps, self._level(x0, self.context))
        self._forward(index, x, self.context)

    def _prepare(self, chunk: Chunk) -> None:
        if self._ready == chunk.index:
            return
        self._ready = chunk.index
        if chunk.index in self.recaches and self.cache.held:
            self._recache(chunk.index)
        self.cache.open(chunk.frames)
        self._candidates, self._last = [], None

    def _recache(self, index: int) -> None:
        """Makes what the cache holds again, under the prompt of this chunk (LongLive)."""
        end, held = self.cache.position, self.cache.held
        sink = min(self.cache.sink, held)
        runs = [(0, sink), (end - held + sink, held - sink)] if end > held else [(0, held)]
        self.cache.clear()
        for run, length in runs:
            for start, frames in pieces(length, self.settings.chunk):
                self.cache.position = run + start
                self._take_in(index, self.recent.take(run + start, frames))
        self.cache.settle(end)

    def _step(self, action: Step) -> Seen:
        chunk, step = action.chunk, action.step
        self._prepare(chunk)
        at = slice(chunk.start - self.start, chunk.start - self.start + chunk.frames)
        sigma = chunk.sigmas[step]
        if step == 0:
            noise, latent = self.noise[:, :, at], self.latent[:, :, at]
            if action.draw:
                noise = drawn(noise, self.seed, chunk.start, 0, action.draw)
            x = self.space.renoise(latent, noise, self._level(noise, sigma))
        else:
            before = self._mixed(action.base).x0
            noise = drawn(before, self.seed, chunk.start, step, action.draw)
            if self.refine is not None:
                noise = self.refine(noise, before, self.cache, chunk, step)
            x = self.space.renoise(before, noise, self._level(before, sigma))
        x0 = self._forward(chunk.index, x, sigma)
        self._candidates.append(Candidate(x0, x, sigma, step))
        self._last = len(self._candidates) - 1
        self.on_step(chunk, step, x0)
        return Seen(self._last, self.score(action, x0) if self.score is not None else ())

    def _keep(self, action: Keep) -> bool:
        chunk, picks = action.chunk, action.picks
        chosen = self._mixed(picks)
        at = chunk.start - self.start
        self.output[:, :, at : at + chunk.frames] = chosen.x0
        if self.cached(chunk):
            if self.settings.kv == REUSE:
                if set(picks) != {self._last}:  # the cache holds another candidate's keys and values
                    self._forward(chunk.index, chosen.x, chosen.sigma)
            else:
                self._context(chunk.index, chosen.x0)
            self.recent.put(chunk.start, chosen.x0)
            self.cache.commit()
        self.kept.append(chunk)
        self._candidates, self._last, self._ready = [], None, None
        return self.on_keep(chunk, chosen.x0)

    def _back(self, action: Back) -> None:
        taken = self.kept[-action.chunks :]
        self.cache.back(action.chunks)
        del self.kept[-action.chunks :]
        self.recent.drop(taken[0].start)
        self._candidates, self._last, self._ready = [], None, taken[0].index
        self.on_back(taken)

    def _mixed(self, picks: tuple[int, ...]) -> Candidate:
        """The candidate of which each batch item is that of its own pick."""
        chosen = [self._candidates[pick] for pick in picks]
        if len(set(picks)) == 1:
            return chosen[0]
        x0, x = (
            torch.cat([getattr(each, name)[at : at + 1] for at, each in enumerate(chosen)]) for name in ("x0", "x")
        )
        return Candidate(x0, x, chosen[0].sigma, chosen[0].step)

    def _level(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.full((), sigma, dtype=torch.float32, device=x.device)

    def _forward(
        self, index: int, x: torch.Tensor, sigma: float, model: Model | None = None, hooks: CausalHooks | None = None,
        **seen: Any,
    ) -> torch.Tensor:
        # Core looks for the user's cancel in callbacks only, and cache passes have none.
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.forwards += 1
        hooks = hooks or self.hooks
        hooks.begin(tuple(x.shape[-2:]), chunk=index, start=self.cache.position, **seen)
        levels = self._level(x, sigma) * x.new_ones([len(x)])
        denoised = (model or self.model)(x, levels, **{**self.extra_args, "model_options": hooks.options})
        hooks.end()
        return denoised

