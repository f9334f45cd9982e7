"""Search for a stream's noise in plain torch: best of N and search over path, chunk by chunk (AutoRefiner, Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...demo.stream import Stream, renoised

Verifier = Callable[[Tensor, float], Tensor]  # (the clip so far [B, 16, F, 8, 8], its level) -> [B], higher is better


@torch.no_grad()
def searched(
    stream: Stream, schedule: Sequence[Sequence[float]], count: int, path: bool, verifier: Verifier,
    draw: Callable[[int], Tensor],
) -> Tensor:
    """Clips [B, 16, chunks, 8, 8], as the plans BEST and PATH of trials/stream_plans.py make them with a clean cache.
    count: draws of each chunk, or, with path, of each step. draw: noise of a draw's number; 0 is the plain stream's."""
    clip: list[Tensor] = []

    def best(candidates: list[Tensor], sigma: float) -> Tensor:
        scores = torch.stack([verifier(torch.cat([*clip, each], 2), sigma) for each in candidates])
        return torch.stack(candidates)[scores.argmax(0), torch.arange(scores.shape[1])]

    def step(before: Tensor | None, sigma: float, number: int) -> Tensor:
        noise = draw(number)
        return stream.predict(noise if before is None else renoised(before, sigma, noise), sigma)

    for number, sigmas in enumerate(schedule):
        chosen = None
        if path:
            for sigma in sigmas:
                chosen = best([step(chosen, sigma, each) for each in range(count)], sigma)
        else:
            made = []
            for each in range(count):
                x0 = None
                for sigma in sigmas:
                    x0 = step(x0, sigma, each)
                made.append(x0)
            chosen = best(made, sigmas[-1])
        if number + 1 < len(schedule):
            stream.predict(chosen, 0.0)
            stream.keep()
        clip.append(chosen)
    return torch.cat(clip, 2)
