"""AutoRefiner (arXiv 2512.11203): a network that changes the noise which each step of a stream adds.

x0 before, history -> T: noise -> change; the next step starts from (1 - s) x0 + s (noise + change), equation 10. T is
the stream's own network with other weights, and asked through the stream's own cache (`StreamEngine.reflect`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_management
import torch
from torch import Tensor

from ..trials.stream import Chunk
from .refiner_file import NOISE, Described
from .stream_engine import StreamEngine
from .stream_model import CausalHooks, require_streamable

NODE = "Noise Refiner"


@dataclass(frozen=True)
class NoiseRefiner:
    """What a stream's noise is refined by. patcher: of its network, a model of its own; else lora: what ComfyUI's
    loader reads, put on the base's weights around each of the refiner's forwards.

    Safeguards, which keep the noise as the base knows it: renormalised: noise and change together have the spread that
    the noise had; most: how large the change may be, as a share of the noise (root mean square, by clip), 0: any.
    """

    described: Described
    patcher: Any = None
    lora: Mapping[str, Tensor] | None = None
    renormalised: bool = False
    most: float = 0.0

    def __post_init__(self):
        if not 0 <= self.most < float("inf"):
            raise ValueError(f"{NODE}: most_change is {self.most}: it is a share from 0 (no limit) up, such as 0.5.")

    def attach(self, engine: StreamEngine) -> Refining:
        """What refines in this run. ValueError for another base than its own."""
        guider = engine.model
        self.described.require(guider.inner_model.diffusion_model, NODE)
        options = engine.extra_args.get("model_options", {})
        other = copy.copy(guider)
        if self.patcher is None:
            _toggle(other, self.lora, options)
            return Refining(self, engine, other, engine.hooks)
        require_streamable(self.patcher.model, options, tuple(engine.noise.shape), NODE)
        loaded = [guider.inner_model.current_patcher, *(getattr(guider, "loaded_models", None) or ()), self.patcher]
        comfy.model_management.load_models_gpu(loaded)
        self.patcher.pre_run()
        other.inner_model = self.patcher.model
        hooks = CausalHooks(self.patcher.model.diffusion_model, engine.cache, options, NODE)
        return Refining(self, engine, other, hooks, self.patcher)

    def refined(self, noise: Tensor, change: Tensor) -> Tensor:
        """Noise [B, ...] with its change; without any, the noise to the last bit."""
        over = tuple(range(1, noise.ndim))
        if self.most:
            size = change.square().mean(over, keepdim=True).sqrt()
            change = change * (self.most / size).clamp(max=1)
        changed = noise + change
        if self.renormalised:
            changed = changed * (noise.std(over, keepdim=True) / changed.std(over, keepdim=True))
        return changed


@dataclass
class Refining:
    """A refiner in one run. model: a guider that asks its network. steps: before which it takes a forward each."""

    refiner: NoiseRefiner
    engine: StreamEngine
    model: Any
    hooks: CausalHooks
    patcher: Any = None
    forwards: int = 0
    sizes: dict[int, list[Tensor]] = field(default_factory=dict)  # of changes, by step

    @property
    def steps(self) -> frozenset[int]:
        return frozenset(filter(self.refiner.described.settings.refines, range(1, 100)))

    def __call__(self, noise: Tensor, before: Tensor, _cache: Any, chunk: Chunk, step: int) -> Tensor:
        how = self.refiner.described.settings
        if not how.refines(step):
            return noise
        sigma = 1.0 if how.level == NOISE else chunk.sigmas[step]
        seen = before if how.prediction else None
        made = self.engine.reflect(chunk, seen, noise, sigma, how.history, self.model, self.hooks)
        change = (noise - made) / sigma  # the network's own output: a flow model's is noise - x0
        self.forwards += 1
        self.sizes.setdefault(step, []).append(change.square().mean().sqrt())
        return self.refiner.refined(noise, change)

    def end(self) -> None:
        if self.patcher is not None:
            self.patcher.cleanup()

    def report(self) -> dict[str, Any]:
        sizes = {str(step): round(float(torch.stack(each).mean()), 4) for step, each in sorted(self.sizes.items())}
        return {"refiner": {"name": self.refiner.described.name, "forwards": self.forwards, "change_by_step": sizes}}


def _toggle(guider: Any, lora: Mapping[str, Tensor], options: dict[str, Any]) -> None:
    """The guider's conditionings get ComfyUI's hook for these weights: core puts them on the model for the forwards of
    such conditionings, takes them off for others, and whichever way sampling ends."""
    patcher = guider.inner_model.current_patcher
    if getattr(patcher, "is_dynamic", bool)():
        raise ValueError(
            f"{NODE}: this refiner is a LoRA, which ComfyUI's dynamic VRAM cannot put on and off within a run. Start "
            "ComfyUI with --disable-dynamic-vram, or take the refiner as a whole model."
        )
    _require_fitting(lora, patcher.model)
    own = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    conds = [each for side in guider.conds.values() for each in side]
    theirs = [each["hooks"] for each in conds if each.get("hooks") is not None]
    everything = comfy.hooks.HookGroup.combine_all_hooks([*theirs, own])
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    patcher.register_all_hook_patches(everything, target, options, comfy.hooks.HookGroup())
    patcher.set_hook_mode(comfy.hooks.EnumHookMode.MaxSpeed)  # both sets of weights are kept
    combined = {None: own}  # one group for all that had the same, as core tells groups apart

    def hooked(cond: dict[str, Any]) -> dict[str, Any]:
        before = cond.get("hooks")
        if before not in combined:
            combined[before] = comfy.hooks.HookGroup.combine_all_hooks([before, own])
        return {**cond, "hooks": combined[before]}

    guider.conds = {name: [hooked(cond) for cond in side] for name, side in guider.conds.items()}


def _require_fitting(lora: Mapping[str, Tensor], model: Any) -> None:
    """ValueError where a weight of a LoRA has no place in the model, or another shape: core would leave it out."""
    known = comfy.lora.model_lora_keys_unet(model, {})
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for name, weight in lora.items():
        layer, part = name.removesuffix(".weight").rsplit(".", 1)
        there = shapes.get(known.get(layer), ())
        fits = {
            "lora_down": there[1:2] == tuple(weight.shape[1:2]), "lora_up": there[:1] == tuple(weight.shape[:1]),
            "set_weight": there == tuple(weight.shape), "alpha": bool(there),
        }  # fmt: skip
        if not there or not fits.get(part):
            raise ValueError(
                f"{NODE}: the refiner's '{name}' {list(weight.shape)} does not fit the connected model, which has "
                f"{list(there) or 'nothing'} there: take the refiner that was trained for it."
            )
