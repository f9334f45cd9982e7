"""Flow matching as ComfyUI's CONST: x = sigma * noise + (1 - sigma) * x0, the model predicts noise - x0."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .wan_dit import WanTransformer


def shifted(t: Tensor, shift: float) -> Tensor:
    """Time 0..1 -> sigma 0..1, as ModelSamplingSD3 shifts; below 1 a schedule spends more steps at low noise."""
    return shift * t / (1 + (shift - 1) * t)


def schedule(steps: int, shift: float) -> Tensor:
    """Sigmas [steps + 1] from 1 to 0, the scheduler "normal" of ComfyUI for flow models up to its table's rounding."""
    return shifted(torch.linspace(1, 0, steps + 1), shift)


def start_noise(prompt: int, seeds: Iterable[int], frames: int) -> Tensor:
    """The noise [seeds, 16, frames, 8, 8] that a prompt's clips start from, by the prompt's number and the seeds."""
    return torch.stack([
        torch.randn(16, frames, 8, 8, generator=torch.Generator().manual_seed(1_000_003 * seed + prompt))
        for seed in seeds
    ])


@torch.no_grad()
def sample(
    model: WanTransformer, context: Tensor, noise: Tensor, steps: int = 50, cfg: float = 4.0, shift: float = 0.4,
    callback: Callable[[int, float, Tensor], None] | None = None, sigmas: Tensor | None = None,
) -> Tensor:
    """Euler with classifier-free guidance against the empty caption.

    context: [B, tokens, text_dim]; noise: [B, C, F, h, w]. Returns x0 in model space, like noise. `callback` sees step
    (1-based), sigma and the x0 prediction before each step is taken. sigmas: a falling part of a schedule,
    instead of steps and shift; noise is then a latent at the first of them, and what comes back one at the last.
    """
    sigmas = schedule(steps, shift) if sigmas is None else sigmas
    both = torch.cat([context, torch.zeros_like(context)])
    x = noise
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True), 1):
        timestep = sigma.mul(1000).expand(2 * len(x))
        positive, negative = model(torch.cat([x, x]), timestep, both).float().chunk(2)
        velocity = negative + cfg * (positive - negative)
        if callback is not None:
            callback(step, sigma.item(), x - sigma * velocity)
        x = x + (following - sigma) * velocity
    return x
