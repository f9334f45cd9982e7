"""Causal consistency distillation: the first few-step student, which distribution matching starts from.

From a rendered clip, noised to one level of a grid, the causal model takes one guided Euler step to the next; the
student's prediction before that step is to be the averaged student's after it (consistency distillation, Song et al.
2023, arXiv 2303.01469). The history is the clean clip, so each latent of a clip is an example at a level of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...demo.flow import shifted
from ...demo.stream import SHIFT, block_causal, renoised, teacher_forced
from ...demo.wan_dit import WanTransformer, load_transformer
from ...l2r.learner import Learner
from .causal import GUIDANCE, save_causal
from .common import STATE
from .long_clips import LongClips
from .loop import Record, Task, trapezoid
from .streams import How, Measure

BATCH, LR = 32, 2e-4
GRID = 16  # Euler steps from noise to clip; the four-step levels are every fourth of them


def levels(count: int = GRID) -> Tensor:
    """[count + 1] sigmas from 1 to 0, evenly spread before the shift."""
    return shifted(torch.linspace(1, 0, count + 1), SHIFT)


class Consistency(Task):
    """start: the causal model, which is also the teacher. scale: share of the clips."""

    steps, every, columns, usable_early = 300, 100, ("loss", "right"), True

    def __init__(
        self, start: Path = STATE / "causal.safetensors", export: Path = STATE / "consistency.safetensors",
        seed: int = 1, scale: float = 1.0,
    ):
        self.out, self.checkpoint = export, export.with_suffix(".pt")
        self.data, self.measured = LongClips(scale, seed), Measure(scale)
        self.settings = {"seed": seed, "start": start.name}
        self.teacher = load_transformer(start).requires_grad_(False)
        student = load_transformer(start).train()
        optimiser = torch.optim.AdamW(student.parameters(), LR, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        self.student = Learner(student, optimiser, decay=0.95)
        self.generator = torch.Generator().manual_seed(seed)
        self.mask, self.levels = block_causal(self.data.latents.shape[2]), levels()
        self.running = torch.tensor(torch.nan)
        self.parts = {"student": self.student, "generator": self.generator}

    def _predict(
        self, model: WanTransformer, clean: Tensor, x: Tensor, sigma: Tensor, context: Tensor, which: Tensor
    ) -> Tensor:
        return x - _wide(sigma) * teacher_forced(model, clean, x, sigma, context, which, self.mask)

    def loss(self, clean: Tensor, noise: Tensor, at: Tensor, context: Tensor, which: Tensor) -> Tensor:
        """clean, noise [B, 16, F, 8, 8]; at [B, F]: where in the grid each latent is, 0 the noisiest."""
        sigma, following = self.levels[at], self.levels[at + 1]
        x = renoised(clean, _wide(sigma), noise)
        with torch.no_grad():
            twice = [each.repeat(2, *[1] * (each.ndim - 1)) for each in (clean, x, sigma, which)]
            both = torch.cat([context, torch.zeros_like(context)])
            velocity = teacher_forced(self.teacher, *twice[:3], both, twice[3], self.mask)
            positive, negative = velocity.chunk(2)
            stepped = x + _wide(following - sigma) * (negative + GUIDANCE * (positive - negative))
            target = self._predict(self.student.result, clean, stepped, following, context, which)
        return (self._predict(self.student.network, clean, x, sigma, context, which) - target).square().mean()

    def update(self, step: int, steps: int) -> dict[str, Any]:
        generator = self.generator
        rows = torch.randint(len(self.data), (BATCH,), generator=generator)
        clean = self.data.latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        at = torch.randint(GRID, (BATCH, clean.shape[2]), generator=generator)
        loss = self.loss(clean, noise, at, self.data.texts(rows.tolist()), self.data.which[rows])
        self.student.step(loss, trapezoid(step / steps))
        now = loss.detach()
        self.running = now if self.running.isnan() else self.running.lerp(now, 0.05)
        return {"loss": self.running}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        return {"right": self.measured.right(self.student.result, How())}

    def export(self, record: Record) -> None:
        recipe = record.described("consistency") | self.settings
        save_causal(self.student.result, self.out, recipe, record, [*self.columns])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.running = state["running"]


def _wide(level: Tensor) -> Tensor:
    """[B, F] -> [B, 1, F, 1, 1]."""
    return level[:, None, :, None, None]
