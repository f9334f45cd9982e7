"""Single-frame semantic injection (paper, Algorithm 1)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch

from ..trials.foreign import check_choice
from .noise import following
from .noise_space import NoiseSpace
from .segments import Segments, require_ksampler

NOISES = ("initial", "fresh")
MASKS = ("linear", "constant", "first frame")


@dataclass(frozen=True)
class InjectionSettings:
    """How an anchor is injected; the defaults are Algorithm 1.

    start: the step (1-based) at whose noise level the video starts; steps: the paper's K. noise: "initial" keeps the
    run's own noise and with it the seed's layout, "fresh" draws other noise. mask: weight over the latent frames
    ("linear": 1 to 0). strength: share of the anchor in every blend; 0 is the plain run.
    """

    start: int = 2
    steps: int = 2
    noise: str = "initial"
    mask: str = "linear"
    strength: float = 1.0

    def __post_init__(self):
        if self.start < 1 or self.steps < 1:
            raise ValueError(f"start is {self.start} and steps is {self.steps}: both count from 1.")
        check_choice("noise", self.noise, NOISES)
        check_choice("mask", self.mask, MASKS)
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}: set it between 0 (plain run) and 1.")

    def weights(self, frames: int) -> torch.Tensor:
        """Temporal mask [frames], times strength (paper, A.4: 1 at the first frame, decaying linearly to 0)."""
        if self.mask == "constant":
            mask = torch.ones(frames)
        elif self.mask == "first frame":
            mask = torch.zeros(frames)
            mask[0] = 1.0
        else:
            mask = torch.linspace(1.0, 0.0, frames)
        return mask * self.strength


@dataclass(frozen=True)
class Anchor:
    """The single-frame x0 prediction at the probe's stop: latent [B, C, 1, H, W] in model space, None if there is none.

    verdict is the probe's; its history travels on into the injected run's report. gate: the probe's; an injected run is
    not judged, only shown with it.
    """

    latent: torch.Tensor | None
    verdict: Any = None
    gate: Any = None


@dataclass(frozen=True)
class Injection:
    anchor: Anchor
    settings: InjectionSettings = field(default_factory=InjectionSettings)


class InjectionSampler(comfy.samplers.Sampler):
    """Starts the video from the anchor instead of from pure noise, and blends it in over the first steps.

    Algorithm 1 blends before step k for k = start .. start + K - 1; the first of these changes nothing, because the
    run has just been set to the anchor at that level. Evaluations: N - (start - 1); with strength < 1 the plain run's
    first steps are sampled too, so that 0 gives the plain run.
    """

    def __init__(self, inner: comfy.samplers.Sampler, injection: Injection):
        self.inner = require_ksampler(inner, "Latent injection")
        self.injection = injection

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
        disable_pbar=False,
    ):
        def inject(model, x, sigmas, extra_args=None, callback=None, disable=None, **_):
            return self._inject(Segments(self.inner, model, sigmas, extra_args, callback, disable), x, noise)

        # KSAMPLER keeps what belongs to the ends of a run: masks, noise scaling, callback.
        outer = copy.copy(self.inner)
        outer.sampler_function = inject
        return outer.sample(
            model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )

    def require(self, model_sampling: torch.nn.Module, steps: int) -> NoiseSpace:
        """The space of a model that can be injected into, on a schedule of `steps`; ValueError for what cannot."""
        if self.injection.settings.start > steps:
            raise ValueError(
                f"the injection starts at step {self.injection.settings.start}, but the schedule has {steps} steps: "
                "start earlier."
            )
        return NoiseSpace.of(model_sampling)

    def _inject(self, segments: Segments, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        settings, sigmas = self.injection.settings, segments.sigmas
        first, total = settings.start - 1, len(sigmas) - 1
        space = self.require(segments.model.inner_model.inner_model.model_sampling, total)
        anchor = self._expand(x)
        if settings.noise == "fresh":
            seed = following(segments.extra_args.get("seed") or 0, 1)  # not the seed of the run's own noise
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(noise.shape, generator=generator, dtype=torch.float32)
        eps = noise.to(x)
        weights = settings.weights(x.shape[2]).to(x).view(1, 1, -1, 1, 1)
        if settings.strength == 1.0:
            x = space.renoise(anchor, eps, sigmas[first])  # Algorithm 1, line 3
        else:
            x = segments.advance(x, 0, first)
            x = torch.lerp(x, space.renoise(anchor, eps, sigmas[first]), settings.strength)
        last = min(first + settings.steps - 1, total - 1)
        for step in range(first + 1, last + 1):
            x = segments.advance(x, step - 1, step)
            x = torch.lerp(x, space.renoise(anchor, eps, sigmas[step]), weights)  # lines 6 to 8
        return segments.advance(x, last, total)

    def _expand(self, x: torch.Tensor) -> torch.Tensor:
        """The anchor over all frames and items of x (Algorithm 1, line 1)."""
        anchor = self.injection.anchor.latent.to(x)
        if x.ndim != 5:
            raise ValueError(f"injection needs a video latent [B, C, F, H, W]; this one has {x.ndim} dimensions.")
        batch, channels, _, height, width = x.shape
        if anchor.shape[0] not in (1, batch) or anchor.shape[1:] != (channels, 1, height, width):
            raise ValueError(
                f"the anchor is {tuple(anchor.shape)}, but the latent {tuple(x.shape)} needs one of "
                f"{(batch, channels, 1, height, width)}: probe with the same latent and model."
            )
        return anchor.expand(x.shape)
