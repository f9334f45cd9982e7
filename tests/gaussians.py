"""An exact flow model: the x0 prediction of data that is a mixture of Gaussians, through ComfyUI's own samplers."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import torch

SHAPE = (2, 3, 4, 4)  # channels, frames, height, width


def sampling(kind=comfy.model_sampling.CONST, schedule=comfy.model_sampling.ModelSamplingDiscreteFlow):
    return type("ModelSampling", (schedule, kind), {})()


class Guided:
    """What a Sampler is given: calls go through the wrappers of the model options, as CFGGuider's do."""

    cfg = 1.0

    def __call__(self, x, sigma, model_options=None, seed=None):
        kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, self.model_options, is_model_options=True)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self.predict_noise, self, wrappers)
        return executor.execute(x, sigma, model_options, seed)


@dataclass
class Mixture(Guided):
    """Every value of the latent is drawn by itself from 0.5 N(-centre, spread^2) + 0.5 N(centre, spread^2).

    centre and spread may be tensors that broadcast against the latent. Stands for the guider that a Sampler is given.
    denoiser is E[x0 | x], in closed form.
    """

    centre: torch.Tensor | float = 1.0
    spread: torch.Tensor | float = 0.3
    model_sampling: torch.nn.Module = None

    def __post_init__(self):
        self.model_sampling = self.model_sampling or sampling()
        self.calls, self.model_options = [], {}
        self.model_patcher = SimpleNamespace(model=self, get_model_object=lambda name: self.model_sampling)
        self.inner_model = self  # samplers look for the model at this depth and one deeper
        self.on_call = lambda: None

    def scale_latent_inpaint(self, sigma, noise, latent_image, **_):
        return self.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1, 1), noise, latent_image)

    def predict_noise(self, x, sigma, model_options=None, seed=None):
        self.calls.append((float(sigma[0]), x.shape[0]))
        self.on_call()
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        flow = isinstance(self.model_sampling, comfy.model_sampling.CONST)
        signal = 1 - level if flow else torch.ones_like(level)
        centre, spread = torch.as_tensor(self.centre), torch.as_tensor(self.spread)
        variance = (signal * spread) ** 2 + level**2
        means = torch.stack([-centre * torch.ones_like(x), centre * torch.ones_like(x)])
        logits = -((x - signal * means) ** 2) / (2 * variance)
        posterior = means + signal * spread**2 / variance * (x - signal * means)
        return (torch.softmax(logits, 0) * posterior).sum(0)


def sample(sampler, model, steps=40, seed=3, noise=None, batch=1, mask=None, latent=None, callback=None, shift=5.0):
    """What a guider does with a sampler; gives the finished latent [B, C, F, H, W]."""
    t = torch.linspace(1, 0, steps + 1)
    sigmas = shift * t / (1 + (shift - 1) * t)
    if noise is None:
        noise = draw(seed, batch)
    latent = torch.zeros_like(noise) if latent is None else latent
    extra_args = {"model_options": {}, "seed": seed}
    return sampler.sample(model, sigmas, extra_args, callback, noise, latent, mask, True)


def draw(seed, batch=1):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))
