"""Wan 2.2 14B: two models that share one schedule, the high-noise and the low-noise expert, as one guider."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch

from .line import KINDS, wrapping

T2V_BOUNDARY, I2V_BOUNDARY = 0.875, 0.9  # sigmas; wan/configs/wan_t2v_A14B.py and wan_i2v_A14B.py of Wan 2.2


class TwoExpertGuider(comfy.samplers.CFGGuider):
    """The high-noise expert's guider; model calls below the boundary go to the low-noise expert.

    Samplers, the monitor and the trials see one guider and one schedule. Multistep samplers keep their history over the
    hand-over, as in Wan's own code; a graph with a sampler node for each expert starts it anew. Both experts are
    prepared by ComfyUI itself, the low-noise guider inside the high-noise one, so that each has its own patches, hooks
    and wrappers; the low-noise weights are loaded at the first call that needs them.

    boundary: sigmas from here upward are the high-noise expert's. switch_step: if above 0, the step (of these
    sigmas) after which the low-noise expert takes over, whatever the boundary; KSamplerAdvanced calls it end_at_step.
    """

    def __init__(self, high, low, boundary: float = T2V_BOUNDARY, switch_step: int = 0):
        super().__init__(high)
        self.low = comfy.samplers.CFGGuider(low)
        self.boundary = boundary
        self.switch_step = switch_step

    def inner_set_conds(self, conds):
        super().inner_set_conds(conds)
        self.low.inner_set_conds(conds)

    def set_cfg(self, cfg, low=None):
        """low: the low-noise expert's scale, if it has one of its own."""
        super().set_cfg(cfg)
        self.low.set_cfg(cfg if low is None else low)

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs
    ):
        low, load = copy.copy(self.low), _LoadLater()
        low.model_patcher = self.low.model_patcher.clone()
        low.model_patcher.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "foresight_experts", load
        )
        for name, models in self.model_patcher.additional_models.items():
            low.model_patcher.set_additional_models(name, models)  # the scorer stays loaded beside either expert

        def prepare(ready: comfy.samplers.Sampler) -> None:
            low.sample(noise, latent_image, ready, sigmas, denoise_mask, None, True, seed)

        both = _BothReady(sampler, prepare, load, self._first_high(sigmas))
        return super().inner_sample(
            noise, latent_image, device, both, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs
        )

    def _first_high(self, sigmas: torch.Tensor) -> float:
        """The lowest sigma of the high-noise expert."""
        if not self.switch_step:
            return self.boundary
        # Just above the step's own sigma: what a sampler evaluates between two steps stays with the earlier one.
        at = sigmas[min(self.switch_step, len(sigmas) - 1)].float().cpu()
        return torch.nextafter(at, torch.tensor(torch.inf)).item()


class _LoadLater:
    """A wrapper that lets ComfyUI prepare a model without loading its weights; call `now` to load them."""

    def __init__(self):
        self.now: Callable[[], Any] = lambda: None

    def __call__(self, executor, model, noise_shape, conds, *args, **kwargs):
        self.now = lambda: executor(model, noise_shape, conds, *args, **kwargs)
        return model.model, conds, []


class _BothReady(comfy.samplers.Sampler):
    """Has the low-noise guider prepared inside the high-noise one, and runs the user's sampler there."""

    def __init__(self, sampler, prepare: Callable[[comfy.samplers.Sampler], None], load: _LoadLater, first_high: float):
        self.sampler = sampler
        self.prepare = prepare
        self.load = load
        self.first_high = first_high

    def sample(self, model_wrap, sigmas, extra_args, callback, *rest):
        result = None

        def run(low, low_args: dict[str, Any], low_callback) -> None:
            nonlocal result
            callbacks = [each for each in (callback, low_callback) if each is not None]

            def call_each(*info):
                for each in callbacks:
                    each(*info)

            experts = _Experts(model_wrap, extra_args, low, low_args, self.load, self.first_high)
            with wrapping(model_wrap.model_options, KINDS.PREDICT_NOISE, experts):
                result = self.sampler.sample(model_wrap, sigmas, extra_args, call_each if callbacks else None, *rest)

        self.prepare(_Ready(run))
        return result  # in model space, as it is; the low-noise guider's own result would be taken out of it twice


class _Ready(comfy.samplers.Sampler):
    def __init__(self, run: Callable[..., None]):
        self.run = run

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *_):
        self.run(model_wrap, extra_args, callback)
        return noise


class _Experts:
    """A wrapper of the high-noise guider's calls: each goes to the expert of its noise level."""

    def __init__(
        self, high, high_args: dict[str, Any], low, low_args: dict[str, Any], load: _LoadLater, first_high: float
    ):
        self._high, self._high_options = high, high_args["model_options"]
        self._low, self._low_options = low, low_args["model_options"]
        self._load, self._first_high = load, first_high
        self._active = high

    def __call__(self, executor, x: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any], seed=None):
        expert = self._high if float(sigma.max()) >= self._first_high else self._low
        if expert is not self._active:
            self._active = expert
            if expert is self._low:
                self._load.now()
            else:  # only samplers that go back up need it again
                comfy.sampler_helpers.prepare_sampling(
                    expert.model_patcher, x.shape, expert.original_conds, expert.model_options
                )
        if expert is self._high:
            return executor(x, sigma, model_options, seed)
        return expert(x, sigma, model_options=self._carry(model_options), seed=seed)

    def _carry(self, options: dict[str, Any]) -> dict[str, Any]:
        """The low-noise expert's model options, with the functions that a sampler has added to the other's (CFG++)."""
        name = "sampler_post_cfg_function"
        functions = options.get(name, [])[len(self._high_options.get(name, [])):]
        if not functions:
            return self._low_options
        return {
            **self._low_options, name: [*self._low_options.get(name, []), *functions], "disable_cfg1_optimization": True
        }
