"""Native CogVideoX: a VP model, which ComfyUI's samplers cannot drive without help."""

from __future__ import annotations

import comfy.samplers
import torch

from ..trials.foreign import check_choice
from .compat import RAW_INPUT
from .line import KINDS, wrapping

RULES = ("ddim", "dpm")


def takes_raw_input(model_sampling: torch.nn.Module) -> bool:
    """Whether a model takes x_t as it is (ComfyUI's V_PREDICTION_DDPM) instead of scaling it itself."""
    return RAW_INPUT is not None and isinstance(model_sampling, RAW_INPUT)


def _scaled(executor, x: torch.Tensor, sigma: torch.Tensor, *args, **kwargs):
    """For samplers that think in x0 + sigma eps: the model gets (x0 + sigma eps) / sqrt(1 + sigma^2), which is the x_t
    of its training with alpha_bar = 1 / (1 + sigma^2)."""
    scale = (1 + sigma.square()).rsqrt().view(-1, *[1] * (x.ndim - 1))
    return executor(x * scale, sigma, *args, **kwargs)


class VPSampler(comfy.samplers.KSAMPLER):
    """A KSAMPLER for models that take x_t as it is.

    ComfyUI gives these models the schedule, the initial noise and the masks of the VE space; only their input is left
    unscaled, so that its samplers show them noise of standard deviation sigma (up to 4519) where they expect 1. Scaled,
    Euler is DDIM, Euler ancestral is DDIM with that eta, and DPM++ 2M SDE (midpoint) is CogVideoX's own DPM rule: tests
    compare all three with diffusers' CogVideoXDDIMScheduler and CogVideoXDPMScheduler.
    """

    def sample(self, model_wrap, *args, **kwargs):
        with wrapping(model_wrap.model_options, KINDS.PREDICT_NOISE, _scaled):
            return super().sample(model_wrap, *args, **kwargs)


def as_vp(sampler: comfy.samplers.KSAMPLER) -> VPSampler:
    return VPSampler(sampler.sampler_function, sampler.extra_options, sampler.inpaint_options)


def vp_sampler(rule: str, eta: float = 0.0) -> VPSampler:
    """CogVideoX's samplers. rule "ddim": eta 0 (deterministic) to 1; "dpm": its noise is fixed, eta is not used."""
    check_choice("rule", rule, RULES)
    if rule == "dpm":
        return as_vp(comfy.samplers.ksampler("dpmpp_2m_sde", {"eta": 1.0, "solver_type": "midpoint"}))
    if eta:
        return as_vp(comfy.samplers.ksampler("euler_ancestral", {"eta": eta}))
    return as_vp(comfy.samplers.ksampler("euler"))


def fitting(sampler: comfy.samplers.Sampler, model_sampling: torch.nn.Module) -> comfy.samplers.Sampler:
    """The sampler, as a VPSampler where the model needs one."""
    if type(sampler) is comfy.samplers.KSAMPLER and takes_raw_input(model_sampling):
        return as_vp(sampler)
    return sampler


def require_fitting(sampler: comfy.samplers.Sampler, model_sampling: torch.nn.Module) -> None:
    """ValueError for a sampler that the model cannot be sampled with."""
    if fitting(sampler, model_sampling) is not sampler:
        raise ValueError(
            "this model is native CogVideoX, which ComfyUI's samplers do not drive by themselves: connect the SAMPLER "
            "of CogVideoX Sampler instead of KSamplerSelect's."
        )


def trailing_sigmas(table: torch.Tensor, steps: int) -> torch.Tensor:
    """[steps + 1]: the sigmas at diffusers' "trailing" timesteps, then 0.

    table: a model's sigmas, one a timestep, rising. Trailing spacing starts at the last timestep, pure noise; CogVideoX
    was released with it. ValueError for more steps than timesteps.
    """
    if not 1 <= steps <= len(table):
        raise ValueError(f"steps is {steps}: this model has {len(table)} timesteps, so choose 1 to {len(table)}.")
    timesteps = torch.arange(steps, 0, -1, dtype=torch.float64).mul(len(table) / steps).round().long() - 1
    return torch.cat([table[timesteps], table.new_zeros(1)])
