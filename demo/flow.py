"""Flow matching as ComfyUI's CONST: x = sigma * noise + (1 - sigma) * x0, the model predicts noise - x0."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .preset import CFG, SHIFT
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


def guided(model: WanTransformer, x: Tensor, sigma: Tensor, context: Tensor, cfg: float) -> Tensor:
    """The x0 prediction [B, C, F, h, w] at noise levels [B], guided (classifier-free) against the empty caption."""
    both = torch.cat([context, torch.zeros_like(context)])
    positive, negative = model(torch.cat([x, x]), sigma.mul(1000).repeat(2), both).float().chunk(2)
    return x - sigma[:, None, None, None, None] * (negative + cfg * (positive - negative))


@torch.no_grad()
def sample(
    model: WanTransformer, context: Tensor, noise: Tensor, steps: int = 50, cfg: float = CFG, shift: float = SHIFT,
    callback: Callable[[int, float, Tensor], None] | None = None, sigmas: Tensor | None = None, eta: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Ancestral Euler steps (ComfyUI's sample_euler_ancestral_RF; eta 0: plain Euler) with classifier-free guidance
    against the empty caption. seed: of the noise that the steps add.

    context: [B, tokens, text_dim]; noise: [B, C, F, h, w]. Returns x0 in model space, like noise. `callback` sees step
    (1-based), sigma and the x0 prediction before each step is taken. sigmas: a falling part of a schedule,
    instead of steps and shift; noise is then a latent at the first of them, and what comes back one at the last.
    """
    sigmas = schedule(steps, shift) if sigmas is None else sigmas
    generator = torch.Generator().manual_seed(seed)
    x = noise
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True), 1):
        x0 = guided(model, x, sigma.expand(len(x)), context, cfg)
        if callback is not None:
            callback(step, sigma.item(), x0)
        down = following * (1 + (following / sigma - 1) * eta)  # a step too far, made up for with fresh noise
        x = x0 + down / sigma * (x - x0)
        if eta and following > 0:
            scale = (1 - following) / (1 - down)
            fresh = (following**2 - (down * scale) ** 2).clamp_min(0).sqrt()
            x = scale * x + fresh * torch.randn(x.shape, generator=generator)
    return x
