"""The Streaming Sampler: a SAMPLER that makes a clip chunk by chunk, with a rolling cache of what was made before."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch

from ..trials.foreign import logger
from ..trials.plan import drive
from ..trials.stream import REUSE, Chunk, StreamSettings
from ..trials.stream_work import Work, plain
from .experts import TwoExpertGuider
from .line import recorded
from .noise_space import NoiseSpace
from .stream_cache import KVCache
from .stream_engine import Recent, StreamEngine
from .stream_model import CausalHooks, bytes_of, causal_by_file, make_room, require_streamable, tokens_of
from .stream_noise import drawn

NAME = "Streaming Sampler"
CORES_START = "ar_config"  # where core's ARVideoI2V leaves the latent that a stream starts from


@dataclass
class _State:
    """What a stream needs to go on in another call: its cache, on the CPU meanwhile, and where it stands. shown: the
    latents that it made last, as they come back from outside."""

    cache: KVCache
    recent: Recent
    shown: torch.Tensor
    chunks: int
    facts: tuple
    model: Callable[[], Any]  # a weak reference


@dataclass(eq=False)
class StreamSampler(comfy.samplers.Sampler):
    """Samples block-causal Wan models.

    settings: the schedule, the cache, and whether another call goes on from here. start: the latents [B, C, n, H, W],
    as a VAE gives them, that the clip begins with: an image, or a clip to extend. previous: the sampler that has made
    the clip of which `start` is the end; its stream goes on to the last bit. Streams of several calls draw their first
    noises by chunk, and do not take them from the NOISE that is connected. gate: a ChunkGate. refine: see StreamEngine.
    After a run: `result`, for the report.
    """

    settings: StreamSettings = field(default_factory=StreamSettings)
    start: torch.Tensor | None = None
    previous: StreamSampler | None = None
    gate: Any = None
    refine: Any = None
    result: dict[str, Any] = field(default_factory=dict, init=False)
    _state: _State | None = field(default=None, init=False, repr=False)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        begin, self.result = time.perf_counter(), {}
        options = extra_args.get("model_options", {})
        guided, model = self._require(model_wrap, options, noise, denoise_mask), model_wrap.inner_model
        given = self._given(model, options, noise)
        frames, n = noise.shape[2], 0 if given is None else given.shape[2]
        state, self._state = self._state_before(model, noise, given), None
        start, first = (state.cache.position, state.chunks) if state else (n, 0)
        shift = getattr(model.model_sampling, "shift", 1.0)
        chunks = self.settings.chunks(frames - n, shift, sigmas.tolist(), start, first)
        self._require_prompts(model_wrap, chunks)
        expected = self.cache_bytes(model, noise.shape, guided)
        cache = self._cache(model.diffusion_model, noise, state)
        logger.info("Foresight: the cache of %d latents takes %.1f MiB", cache.window, expected / 2**20)
        engine = StreamEngine(
            self.settings, model_wrap, extra_args, CausalHooks(model.diffusion_model, cache, options, NAME), cache,
            NoiseSpace.of(model.model_sampling), extra_args.get("seed") or 0,
            self._noise(noise[:, :, n:], chunks, start, extra_args),
            torch.zeros_like(noise[:, :, n:]) if latent_image is None else latent_image[:, :, n:].to(noise), start,
            lambda chunk: self.settings.cached(chunks, chunk), self.settings.context(chunks),
            frozenset(getattr(model_wrap, "recaches", ())), self.refine,
            given=given, recent=state.recent.copy() if state else Recent(cache.sink, cache.window),
        )  # fmt: skip
        make_room(expected, model_wrap, noise.device, getattr(engine.refine, "patcher", None))
        passes = [self.settings.passes(chunks, chunk) for chunk in chunks]
        refined = getattr(engine.refine, "steps", ())
        work = Work(chunks, passes, len(noise), engine.recaches, int(self.settings.kv == REUSE), refined)
        watcher = self.gate and self.gate.watcher(engine)
        self._show(engine, callback, work)
        try:
            if given is not None and state is None:
                engine.fill(given)
            with watcher.shown(work, engine.seed) if watcher else nullcontext():
                drive(watcher.plan(work) if watcher else plain(work), engine.do)
            output = engine.output[:, :, : sum(chunk.frames for chunk in engine.kept)]
            if self.settings.goes_on:
                self._put_state(engine, model, output)
            self.result = self._report(engine, work, chunks, expected, time.perf_counter() - begin)
            self.result |= watcher.report() if watcher else {}
            self.result |= engine.refine.report() if hasattr(engine.refine, "report") else {}
            return output if given is None else torch.cat([given, output], 2)
        finally:
            cache.free()
            if hasattr(engine.refine, "end"):
                engine.refine.end()

    def _require(
        self, guider: Any, options: dict[str, Any], noise: torch.Tensor, denoise_mask: torch.Tensor | None
    ) -> bool:
        """Raises ValueError for what cannot be streamed; else whether there is guidance."""
        if recorded(guider):
            raise ValueError(
                f"{NAME} cannot be raced: a candidate that is put aside would lose its cache. Connect a Chunk Gate to "
                "it, which draws chunks again (plan reseed: the clip), and sample with SamplerCustomAdvanced or the "
                "Monitored Sampler."
            )
        if isinstance(guider, TwoExpertGuider):
            raise ValueError(
                f"{NAME} has one cache, for one model, but Two-Expert Guider samples with two: connect a causal model "
                "by Streaming Guider or CFGGuider."
            )
        require_streamable(guider.inner_model, options, tuple(noise.shape), NAME)
        if denoise_mask is not None:
            raise ValueError(
                f"{NAME} cannot keep masked parts of a latent: what a chunk is made from is the chunks before. Remove "
                "the noise mask, and connect what the clip starts from as start."
            )
        guided = getattr(guider, "cfg", 1.0) != 1.0
        if guided and not (getattr(guider, "conds", None) or {}).get("negative"):
            raise ValueError(
                f"{NAME}: CFG is {guider.cfg}, but no negative is connected: connect one, or set CFG to 1."
            )
        return guided

    def _require_prompts(self, guider: Any, chunks: list[Chunk]) -> None:
        begins = {NAME: getattr(guider, "begins", [0]), "Chunk Gate": self.gate.begins if self.gate else [0]}
        for name, (*_, begin) in begins.items():
            if begin > chunks[-1].index and not self.settings.goes_on:
                raise ValueError(
                    f"{name}: a prompt begins at chunk {begin}, but the last chunk of this clip is {chunks[-1].index} "
                    "(they are counted from 0): begin it earlier, or make the clip longer."
                )

    def _cache(self, network: torch.nn.Module, noise: torch.Tensor, state: _State | None) -> KVCache:
        depth, window = self.gate.depth if self.gate else 0, self.settings.sees(noise.shape[2])
        if state is not None:
            cache = state.cache.copy(noise.device)
            cache.depth = depth
            return cache
        sink = min(self.settings.sink, window)
        return KVCache(len(network.blocks), tokens_of(network, noise.shape), window, sink, depth, self._spare)

    def cache_bytes(self, model: Any, shape: Sequence[int], guided: bool) -> int:
        """What the cache of a run will take. shape: of the latent, [B, C, F, H, W]."""
        return bytes_of(model, self.settings.sees(shape[2]) + self._spare, shape[0] * (1 + guided), shape)

    @property
    def _spare(self) -> int:
        return self.settings.chunk if self.refine is not None else 0

    def _given(self, model: Any, options: dict[str, Any], noise: torch.Tensor) -> torch.Tensor | None:
        """The latents that the clip begins with, in model space: this sampler's, or those of core's ARVideoI2V."""
        start = self.start
        if start is None:
            start = options.get("transformer_options", {}).get(CORES_START, {}).get("initial_latent")
        if start is None:
            return None
        if start.ndim != 5 or (start.shape[1], *start.shape[3:]) != (noise.shape[1], *noise.shape[3:]):
            raise ValueError(
                f"{NAME}: start is {list(start.shape)}, but the clip is {list(noise.shape)}: encode the image or clip "
                "at the clip's own width and height, with this model's VAE."
            )
        if start.shape[2] >= noise.shape[2]:
            raise ValueError(
                f"{NAME}: start has {start.shape[2]} latents and the clip {noise.shape[2]}, start included: make the "
                "clip longer (4 frames a latent)."
            )
        if len(start) not in (1, len(noise)):
            raise ValueError(
                f"{NAME}: start holds {len(start)} clips, and the latent {len(noise)}: give 1, or as many."
            )
        given = model.process_latent_in(start.to(noise.device, torch.float32))
        return given.to(noise).expand(len(noise), -1, -1, -1, -1)

    def _noise(self, noise: torch.Tensor, chunks: list[Chunk], start: int, extra_args: dict[str, Any]) -> torch.Tensor:
        if not (self.settings.goes_on or self.previous):
            return noise
        seed = extra_args.get("seed") or 0
        parts = [
            drawn(noise[:, :, chunk.start - start : chunk.start - start + chunk.frames], seed, chunk.start, 0, 0)
            for chunk in chunks
        ]
        return torch.cat(parts, 2)

    def _show(self, engine: StreamEngine, callback: Callable | None, work: Work) -> None:
        """Shows whoever samples each prediction, as the clip so far: finished chunks and the one that is being made."""
        if callback is None:
            return
        total, shown = sum(chunk.steps for chunk in work.chunks), 0

        def on_step(chunk: Chunk, _step: int, x0: torch.Tensor) -> None:
            nonlocal shown
            callback(min(shown, total - 1), engine.clip(chunk, x0), x0, total)
            shown += 1

        engine.on_step = on_step

    def _facts(self, model: Any, noise: torch.Tensor) -> tuple:
        """What has to be the same for a stream to go on where it stopped."""
        patcher = getattr(model, "current_patcher", None)
        whose = getattr(patcher, "patches_uuid", None)
        room = (self.settings.window, self.settings.sink, self._spare)
        return (whose, (len(noise), *noise.shape[3:]), room, self.settings.kv)

    def _state_before(self, model: Any, noise: torch.Tensor, given: torch.Tensor | None) -> _State | None:
        """The stream that ends with the given latents, where the previous sampler made it; else they are read anew."""
        state = self.previous._state if self.previous else None
        if state is None or given is None:
            return None
        if state.model() is not model or state.facts != self._facts(model, noise):
            return None
        length = min(given.shape[2], state.shown.shape[2])
        return state if torch.equal(given[:, :, -length:].cpu(), state.shown[:, :, -length:]) else None

    def _put_state(self, engine: StreamEngine, model: Any, output: torch.Tensor) -> None:
        shown = model.process_latent_in(model.process_latent_out(output.to(torch.float32)))
        self._state = _State(
            engine.cache.copy("cpu"), engine.recent, shown[:, :, -engine.cache.window :].cpu(),
            engine.kept[-1].index + 1, self._facts(model, output), weakref.ref(model),
        )  # fmt: skip

    def _report(
        self, engine: StreamEngine, work: Work, chunks: list[Chunk], expected: int, seconds: float
    ) -> dict[str, Any]:
        frames = engine.noise.shape[2]
        return {
            "nfe": engine.forwards, "nfe_plain": work.plain, "preset": self.settings.preset, "kv": self.settings.kv,
            "schedule": "".join(str(chunk.steps) for chunk in chunks), "chunk": self.settings.chunk,
            "first": engine.start, "frames": frames, "made": sum(chunk.frames for chunk in engine.kept),
            "window": engine.cache.window, "sink": engine.cache.sink, "cache_bytes": engine.cache.bytes,
            "cache_bytes_expected": expected, "seconds": round(seconds, 3),
            "causal_by_file": causal_by_file(engine.hooks.network),
        }


def streaming(sampler: comfy.samplers.Sampler) -> StreamSampler | None:
    """The stream that a SAMPLER makes, itself or inside a monitor."""
    while sampler is not None and not isinstance(sampler, StreamSampler):
        sampler = getattr(sampler, "inner", None)
    return sampler
