"""Streams of the demo family in plain torch: chunks of one latent, each in a few steps, beside a memory of the others.

Levels, schedules and what is kept of a chunk are as in trials/stream.py and sampling/stream_engine.py, which do the
same through ComfyUI; here whole batches run, with gradients where they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .wan_dit import Memory, WanTransformer

SHIFT = 5.0  # Wan's own, and that of the published streaming models
TOKENS = 16  # of one latent


def block_causal(latents: int, window: int = 0, sink: int = 0) -> Tensor:
    """The mask of [clean latents, noised latents] in one forward, bool [2 * tokens, 2 * tokens]: a clean latent sees
    the clean ones up to itself, a noised one the clean ones before it and itself. window: how many latents are seen,
    itself included, 0 all; sink: how many of them are the first of the clip."""
    at = torch.arange(latents)
    before = at[:, None] > at
    if window:
        before &= (at[:, None] - at < window - sink) | (at < sink)
    own = torch.eye(latents, dtype=torch.bool)
    none = torch.zeros_like(own)
    mask = torch.cat([torch.cat([before | own, none], 1), torch.cat([before, own], 1)])
    return mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)


def teacher_forced(
    model: WanTransformer, clean: Tensor, noised: Tensor, sigma: Tensor, context: Tensor, which: Tensor,
    mask: Tensor | None, history: Tensor | float = 0.0,
) -> Tensor:
    """Velocities of the noised latents [B, 16, F, 8, 8] at levels sigma [B, F], each beside the clean ones before it,
    in one forward. history: level of the clean ones, where they are not quite. mask: of `block_causal`; None: noised
    latents see each other and no clean ones, as in a model that makes whole clips."""
    if mask is None:
        return model(noised, 1000 * sigma, context, which=which)
    times = torch.arange(clean.shape[2]).repeat(2)
    levels = torch.cat([torch.zeros_like(sigma) + history, sigma], 1)
    both = model(
        torch.cat([clean, noised], 2), 1000 * levels, context, which=which.repeat(1, 2), times=times, mask=mask
    )  # fmt: skip
    return both[:, :, clean.shape[2] :]


class Stream:
    """One batch of streams. context [B, prompts, words, text_dim] and which [B, F] as WanTransformer takes them; cfg
    above 1 runs the empty prompt beside. window, sink: in latents, 0: all are seen. chunk: latents in one, tokens: of a
    latent. forwards: made so far, those for the memory included (which the papers do not count), one for both sides of
    the guidance."""

    def __init__(
        self, model: WanTransformer, context: Tensor, which: Tensor, cfg: float = 1.0, window: int = 0, sink: int = 0,
        chunk: int = 1, tokens: int = TOKENS,
    ):
        self.model, self.cfg = model, cfg
        context = torch.cat([context, torch.zeros_like(context)]) if cfg > 1 else context
        self.words = model.read(context)  # once for all chunks
        self.which = which.repeat(2, 1) if cfg > 1 else which
        self.most, self.sink, self.chunk = (window - chunk) * tokens if window else None, sink * tokens, chunk
        self.memory = [Memory() for _ in model.blocks]
        self.at, self.forwards = 0, 0

    @property
    def places(self) -> Tensor:
        """Where the latents of the open chunk are in their clip."""
        return torch.arange(self.at * self.chunk, (self.at + 1) * self.chunk)

    def predict(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The x0 prediction of the open chunk x [B, 16, chunk, 8, 8] at a noise level, one or [B]."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        rows = x.repeat(2, 1, 1, 1, 1) if self.cfg > 1 else x
        velocity = self.model(
            rows, 1000 * sigma.repeat(len(rows) // len(x)), self.words, which=self.which[:, self.places],
            times=self.places, memory=self.memory,
        )  # fmt: skip
        self.forwards += 1
        if self.cfg > 1:
            positive, negative = velocity.chunk(2)
            velocity = negative + self.cfg * (positive - negative)
        return x - sigma.view(-1, 1, 1, 1, 1) * velocity

    def keep(self) -> None:
        """What the latest forward has seen stays, and the next chunk opens."""
        for memory in self.memory:
            memory.keep(self.most, self.sink)
        self.at += 1


def warp(level: float, shift: float = SHIFT) -> float:
    """The sigma of a timestep (0..1000)."""
    share = level / 1000
    return shift * share / (1 + (shift - 1) * share)


Draw = Callable[[], Tensor]


def renoised(x0: Tensor, sigma: float, noise: Tensor) -> Tensor:
    return (1 - sigma) * x0 + sigma * noise


@torch.no_grad()
def sample_stream(
    stream: Stream, schedule: Sequence[Sequence[float]], draw: Draw, context_noise: float | None = 0.0
) -> Tensor:
    """Clips [B, 16, chunks, 8, 8]. schedule: each chunk's sigmas, falling. draw: fresh noise [B, 16, 1, 8, 8].
    context_noise: level at which a finished chunk is written to the memory by a forward of its own (0: clean); None:
    the last step's own keys and values stay, without a forward."""
    chunks = []
    for number, sigmas in enumerate(schedule):
        x = draw()
        for step, sigma in enumerate(sigmas):
            x0 = stream.predict(x, sigma)
            if step + 1 < len(sigmas):
                x = renoised(x0, sigmas[step + 1], draw())
        if context_noise is not None and number + 1 < len(schedule):
            stream.predict(renoised(x0, context_noise, draw()) if context_noise else x0, context_noise)
        if number + 1 < len(schedule):
            stream.keep()
        chunks.append(x0)
    return torch.cat(chunks, 2)
