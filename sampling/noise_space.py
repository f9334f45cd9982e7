"""How a model mixes signal and noise. Everything in this pack that re-noises goes through `NoiseSpace`."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import torch

from .compat import FROM_PICTURES
from .vp import takes_raw_input


def from_pictures(model_sampling: torch.nn.Module) -> bool:
    """Whether the model starts from a picture or clip alone, so that every seed gives the same."""
    return isinstance(model_sampling, FROM_PICTURES)


@dataclass(frozen=True)
class NoiseSpace:
    """x_sigma = signal(sigma) * x0 + noise(sigma) * eps, for one family of models."""

    name: str
    noise_scale: float = 1.0

    @classmethod
    def of(cls, model_sampling: torch.nn.Module) -> NoiseSpace:
        """The space of a ComfyUI model. Raises ValueError for parameterizations that this pack cannot re-noise.

        COSMOS_RFLOW is variance exploding too: its sigma is t / (1 - t) of the flow (comfy/model_sampling.py). So is
        native CogVideoX as a sampler sees it; VPSampler scales what its model gets.
        """
        sampling = comfy.model_sampling
        if not from_pictures(model_sampling):
            if isinstance(model_sampling, sampling.CONST):
                return FlowSpace("flow", getattr(model_sampling, "noise_scale", 1.0))
            exploding = (sampling.EPS, sampling.COSMOS_RFLOW)
            if isinstance(model_sampling, exploding) or takes_raw_input(model_sampling):
                return VESpace("ve")
        kinds = [base.__name__ for base in type(model_sampling).__bases__]
        raise ValueError(
            f"Foresight cannot add noise the way this model does ({', '.join(kinds)}): injection and self-refinement "
            "work with flow models (Wan, Hunyuan, LTX) and with eps, v and EDM models. Sample it without them."
        )

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(signal, noise) factors at sigma."""
        raise ValueError(f"{self.name} has no coefficients")

    def renoise(self, x0: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The paper's AddNoise: x0 with noise eps at sigma, all in model space and of one shape."""
        signal, noise = self.coefficients(sigma)
        return noise * eps + signal * x0


class FlowSpace(NoiseSpace):
    """Rectified flow (ComfyUI's CONST): (1 - sigma) x0 + sigma eps."""

    def coefficients(self, sigma):
        return 1.0 - sigma, sigma * self.noise_scale


class VESpace(NoiseSpace):
    """Variance exploding (ComfyUI's EPS, V_PREDICTION, EDM; CogVideoX behind VPSampler): x0 + sigma eps."""

    def coefficients(self, sigma):
        return torch.ones_like(sigma), sigma
