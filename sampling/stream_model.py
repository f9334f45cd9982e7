"""Wan, made block-causal by ComfyUI's own hooks: block patches, the attention override and the shift of its rope.

The stock network then sees, besides a chunk's own tokens, the keys and values that the cache holds; its weights,
wrappers, LoRAs and attention backend stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch

from ..trials.stream import cache_bytes
from .self_refine import refuse_caches
from .stream_cache import KVCache

KEY = "foresight_stream"  # where a forward says which chunk it makes, in transformer_options
EXACT = 256  # positions up to here are whole in every type that networks run in


def require_streamable(model: Any, model_options: dict[str, Any], shape: tuple[int, ...], name: str) -> None:
    """Raises ValueError where a model, or what is in its path, cannot be streamed. shape: of the latent."""
    network = getattr(model, "diffusion_model", None)
    kind = type(network)
    if kind is not comfy.ldm.wan.model.WanModel and not causal_by_file(network):
        raise ValueError(
            f"{name} runs Wan 2.1 text-to-video models that were made causal (Self-Forcing, CausVid, LongLive, "
            f"Causal-Forcing, Diagonal Distillation); this one is {type(model).__name__} with {kind.__name__}. Load "
            "one of those, or take another sampler."
        )
    if network.img_emb is not None or network.in_dim != network.out_dim or network.ref_conv is not None:
        raise ValueError(
            f"{name} starts from images by the latents that come first, and not by a model's own image input: load a "
            f"text-to-video model (this one reads {network.in_dim} channels and gives {network.out_dim})."
        )
    if len(shape) != 5 or shape[1] != network.out_dim:
        raise ValueError(
            f"{name} needs a video latent [batch, {network.out_dim}, frames, height, width], not {list(shape)}: make "
            "it with EmptyHunyuanLatentVideo, or another node for Wan."
        )
    refuse_caches({"model_options": model_options}, name)
    if model_options.get("context_handler") is not None:
        raise ValueError(
            f"{name} has a window of its own and cannot run inside context windows: take the context windows node out "
            "of the model's path, and set window here."
        )


def causal_by_file(network: torch.nn.Module) -> bool:
    """Whether its file says that it was trained to be causal, which has core load it as a class of its own."""
    return type(network).__name__ == "CausalWanModel"


class CausalHooks:
    """The hooks of one run, and the model options that carry them.

    network: a WanModel. A forward is `begin`, the model's call with `options`, `end`. With an x0 prediction `beside`,
    the network reads it (as clean) and the chunk (at the level that is asked for) as one sequence, both at the chunk's
    own positions; the prediction does not see the chunk. That is AutoRefiner's reflective cache in one forward.
    """

    def __init__(self, network: torch.nn.Module, cache: KVCache, model_options: dict[str, Any], name: str):
        self.network, self.cache, self.name = network, cache, name
        self.layers = len(network.blocks)
        self.options = comfy.model_patcher.create_model_options_clone(model_options)
        own = self.options.setdefault("transformer_options", {})
        self._rope = dict(own.get("rope_options") or {})
        self._override = own.get("optimized_attention_override")
        own["optimized_attention_override"] = self._attention
        replaced = own.setdefault("patches_replace", {}).setdefault("dit", {})
        for layer in range(self.layers):
            replaced["double_block", layer] = self._block(layer, replaced.get(("double_block", layer)))
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        comfy.patcher_extension.add_wrapper_with_key(kind, KEY, self._network, self.options, is_model_options=True)
        self._layer: int | None = None  # whose self-attention comes next
        self._keys: tuple[int, ...] = ()
        self._seen: list[int] = []
        self._visits = 0
        self._size: tuple[int, int] = (0, 0)
        self._freqs: torch.Tensor | None = None
        self._beside: torch.Tensor | None = None
        self._history = True

    def begin(
        self, size: tuple[int, int], beside: torch.Tensor | None = None, history: bool = True, **told: Any
    ) -> None:
        """A forward of the cache's open chunk starts. size: the latent's height and width; history: whether it sees the
        chunks before; told: for guiders that choose by chunk."""
        self._seen, self._visits, self._layer, self._size, self._freqs = [], 0, None, size, None
        self._beside, self._history = beside, history
        own = self.options["transformer_options"]
        own["rope_options"] = {**self._rope, "shift_t": self._rope.get("shift_t", 0.0) + self.cache.position}
        own[KEY] = told

    def end(self) -> None:
        """Raises ValueError where the network did not run whole, so that the cache has a hole."""
        self._beside, calls = None, self._visits // self.layers
        if not self._seen or self._visits != self.layers * calls:
            raise ValueError(
                f"{self.name}: the model was called, but {'no' if not self._seen else 'not every'} block of it ran, so "
                "the cache of keys and values has a hole. Take what skips evaluations or blocks (TeaCache, skip-layer "
                "guidance, prompts for a part of the steps, a race) out of the model's path."
            )

    def _block(self, layer: int, before: Any):
        def patch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            if layer == 0:
                self._call(tuple(args["transformer_options"].get("cond_or_uncond", (0,))))
            self._visits, self._layer = self._visits + 1, layer
            if args["img"].dtype != torch.float32 and self.cache.position + self.cache.opened > EXACT:
                args = {**args, "pe": self._positions(args)}
            if self._beside is not None:
                places = args["pe"][:, : self.cache.opened * self.cache.tokens]
                args = {**args, "pe": torch.cat([places, places], 1)}
            return before(args, extra) if before is not None else extra["original_block"](args)

        return patch

    def _call(self, keys: tuple[int, ...]) -> None:
        repeated = sorted({key for key in keys if keys.count(key) > 1 or key in self._seen})
        if repeated:
            side = ("positive", "negative")[repeated[0]] if repeated[0] < 2 else f"number {repeated[0]}"
            raise ValueError(
                f"{self.name}: the {side} conditioning was evaluated twice for one step, but a stream has one cache "
                "for it. Take out combined or scheduled conditionings, and guidance that evaluates the model once more."
            )
        self._keys = keys
        self._seen += keys

    def _network(self, execute, x, timestep, *args, **kwargs):
        if self._beside is None:
            return execute(x, timestep, *args, **kwargs)
        frames = x.shape[2]
        beside = self._beside.to(x).repeat(len(x) // len(self._beside), 1, 1, 1, 1)
        levels = timestep[:, None].expand(-1, frames)
        levels = torch.cat([torch.zeros_like(levels), levels], 1)
        return execute(torch.cat([beside, x], 2), levels, *args, **kwargs)[:, :, frames:]

    def _attention(self, func, q, k, v, *args, **kwargs):
        def attention(q, k, v):
            if self._override is not None:
                return self._override(func, q, k, v, *args, **kwargs)
            return func(q, k, v, *args, **kwargs)

        if self._layer is None:
            return attention(q, k, v)
        layer, self._layer = self._layer, None  # the first attention in a block is its self-attention
        joined = self._beside is not None
        k, v = (each.to(q.dtype) for each in self.cache.attend(layer, self._keys, k, v, joined, self._history))
        if not joined:
            return attention(q, k, v)
        own = q.shape[1] // 2
        parts = attention(q[:, :own], k[:, :-own], v[:, :-own]), attention(q[:, own:], k, v)
        return torch.cat(parts, 1)

    def _positions(self, args: dict[str, Any]) -> torch.Tensor:
        """The chunk's rope in float32: core counts positions in the network's own type, which has no room for large
        ones (bfloat16 rounds 257 to 256)."""
        if self._freqs is None:
            self._freqs = self.network.rope_encode(
                self.cache.opened, *self._size, device=args["img"].device, dtype=torch.float32,
                transformer_options=args["transformer_options"],
            )  # fmt: skip
        return self._freqs


def bytes_of(model: Any, window: int, rows: int, shape: Sequence[int]) -> int:
    """What the cache of a stream takes: `window` latents of shape [B, C, F, H, W] for `rows` batch rows."""
    dtype, network = getattr(model, "manual_cast_dtype", None) or model.get_dtype(), model.diffusion_model
    return cache_bytes(len(network.blocks), rows, window * tokens_of(network, shape), network.dim, dtype.itemsize)


def tokens_of(network: torch.nn.Module, shape: Sequence[int]) -> int:
    """Tokens of one latent."""
    _, high, wide = network.patch_size
    return -(-shape[3] // high) * -(-shape[4] // wide)


def make_room(expected: int, guider: Any, device: torch.device, refiner: Any = None) -> None:
    """Asks ComfyUI for the memory of a cache that is about to be made, beside the models of this run. refiner: a model
    of its own that refines noise."""
    model = guider.inner_model
    used = [model.current_patcher, *(getattr(guider, "loaded_models", None) or ()), *([refiner] if refiner else [])]
    keep = [
        loaded for loaded in comfy.model_management.current_loaded_models
        if loaded.model is not None and any(loaded.model.is_clone(patcher) for patcher in used)
    ]  # fmt: skip
    comfy.model_management.free_memory(expected, device, keep)
