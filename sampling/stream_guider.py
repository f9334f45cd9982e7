"""The guider of a stream: prompts by chunk, CFG through two caches, and the memory of a chunk and not of the clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.patcher_extension
import comfy.samplers

from .guided import accompanied
from .stream_model import KEY
from .stream_sampler import StreamSampler, streaming


class StreamingGuider(comfy.samplers.CFGGuider):
    """prompts: (chunk at which it begins, conditioning), rising from 0. negative: None with cfg 1 only. recache:
    whether what the cache holds is made again under a new prompt (as LongLive does), or stays as it is.

    ComfyUI would set memory aside for a whole clip at once; for a stream it is that of one chunk and of the cache, and
    of the weights of the stream's Chunk Gate.
    """

    def __init__(self, patcher, prompts: Sequence[tuple[int, list]], negative: list | None, cfg: float, recache: bool):
        super().__init__(patcher.clone())
        self.begins = [chunk for chunk, _ in prompts]
        self.recaches = frozenset(self.begins[1:]) if recache else frozenset()
        self.model_patcher.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, KEY, self._prepare
        )
        self.model_options = self.model_patcher.model_options
        conds = {f"prompt {number}": conditioning for number, (_, conditioning) in enumerate(prompts)}
        conds["positive"] = prompts[0][1]  # what others look for in a guider
        self.inner_set_conds(conds if negative is None else {**conds, "negative": negative})
        self.set_cfg(cfg)
        self._stream: StreamSampler | None = None

    def prompt_of(self, chunk: int) -> int:
        """The number of the prompt that this chunk is made with."""
        return max(number for number, begin in enumerate(self.begins) if begin <= max(chunk, 0))

    def predict_noise(self, x, timestep, model_options: dict[str, Any] | None = None, seed=None):
        told = ((model_options or {}).get("transformer_options") or {}).get(KEY, {})
        prompt = self.conds[f"prompt {self.prompt_of(told.get('chunk', 0))}"]
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds.get("negative"), prompt, self.cfg,
            model_options=model_options or {}, seed=seed,
        )  # fmt: skip

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        own, self._stream = self.model_patcher, streaming(sampler)
        self.model_patcher = accompanied(own, self._stream and self._stream.gate)
        try:
            return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self.model_patcher, self._stream = own, None

    def _prepare(self, execute, model, noise_shape, *args, **kwargs):
        """Core's prepare_sampling, for the latents that are in memory at a time."""
        if self._stream is not None and len(noise_shape) == 5:
            batch, channels, frames, *size = noise_shape
            one = model.model.memory_required([2 * batch, channels, 1, *size])
            cached = self._stream.cache_bytes(model.model, noise_shape, self.cfg != 1.0)
            needed = min(self._stream.settings.chunk, frames) + math.ceil(cached / max(one, 1))
            noise_shape = [batch, channels, needed, *size]
        return execute(model, noise_shape, *args, **kwargs)
