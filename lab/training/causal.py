"""Causal autoregressive diffusion by teacher forcing: the demo's transformer learns to make a clip latent by latent,
each beside the clean ones before it (the first stage of Causal-Forcing, arXiv 2602.02214, at this family's size).

It is the student that distillation starts from, and the teacher whose scores it is distilled to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...demo.stream import block_causal, teacher_forced
from ...demo.wan_dit import WanTransformer, load_transformer
from ...l2r.learner import Learner
from .common import STATE, TRANSFORMER
from .dit import DROPOUT, draw_sigma
from .long_clips import LongClips
from .loop import Record, Task, trapezoid
from .streams import How, Measure

BATCH, LR = 48, 4e-4
GUIDANCE = 2.0  # ComfyUI's CFG: this family's best (docs/demo_family.md)
# Of the batches: the history is not quite clean, up to this level, as a stream's own is not either.
NOISY_SHARE, NOISY_MOST = 0.5, 0.3
CONFIG = {"config": json.dumps({"transformer": {"causal_ar": True}})}  # what core loads as causal from 0.33 on


def save_causal(
    model: WanTransformer, path: Path, recipe: dict[str, Any], record: Record, columns: list[str], config: dict = CONFIG
) -> None:
    """As ComfyUI's stock loaders read it, fp16; the recipe beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, {key: str(value) for key, value in recipe.items()} | config)
    recipe |= {"curve": record.curve, "curve_columns": ["minutes", "step", *columns]}
    path.with_suffix(".json").write_text(json.dumps(recipe, indent=1) + "\n")


def forcing_loss(
    model: WanTransformer, x0: Tensor, sigma: Tensor, noise: Tensor, context: Tensor, which: Tensor, history: Tensor,
    history_noise: Tensor, mask: Tensor | None,
) -> Tensor:
    """Mean squared error of the velocity. x0 [B, 16, F, 8, 8]; sigma [B, F]; history [B, 1]: the level of the latents
    before."""
    level, kept = sigma[:, None, :, None, None], history[:, None, :, None, None]
    velocity = teacher_forced(
        model, (1 - kept) * x0 + kept * history_noise, (1 - level) * x0 + level * noise, sigma, context, which, mask,
        history,
    )  # fmt: skip
    return (velocity - (noise - x0)).square().mean()


class Causal(Task):
    """scale: share of the data. start: the transformer that it begins with. both_ways: a teacher of whole clips
    instead, all of whose latents see each other (only its validation loss is measured)."""

    steps, every, usable_early = 700, 100, True

    def __init__(
        self, seed: int = 1, scale: float = 1.0, start: Path = TRANSFORMER, export: Path = STATE / "causal.safetensors",
        compile: bool = True, both_ways: bool = False,
    ):
        self.out, self.checkpoint = export, export.with_suffix(".pt")
        self.data = LongClips(scale, seed)
        self.settings = {"seed": seed, "clips": len(self.data), "start": start.name}
        self.held = max(4, len(self.data) // 20)  # the last clips are for the validation loss
        model = load_transformer(start).train()
        optimiser = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
        self.learner = Learner(model, optimiser, decay=0.995)
        self.generator = torch.Generator().manual_seed(seed)
        self.mask = None if both_ways else block_causal(self.data.latents.shape[2])
        self.measured = None if both_ways else Measure(scale)
        self.columns = ("loss", "validation") if both_ways else ("loss", "validation", "right")
        self.running = torch.tensor(torch.nan)
        self.parts = {"transformer": self.learner, "generator": self.generator}
        if compile:
            for block in model.blocks:
                block.compile(dynamic=False)

    def _loss(self, model: WanTransformer, rows: Tensor, generator: torch.Generator, dropout: float) -> Tensor:
        x0, count = self.data.latents[rows].float(), len(rows)
        noise, other = (torch.randn(x0.shape, generator=generator) for _ in range(2))
        levels = 1 if self.mask is None else x0.shape[2]
        sigma = draw_sigma(levels * count, "clips", generator).view(count, -1).expand(-1, x0.shape[2])
        noisy = torch.rand(count, 1, generator=generator) < NOISY_SHARE
        history = NOISY_MOST * torch.rand(count, 1, generator=generator) * noisy
        dropped = torch.rand(count, generator=generator) < dropout
        context = self.data.texts(torch.where(dropped, -1, rows).tolist())
        return forcing_loss(model, x0, sigma, noise, context, self.data.which[rows], history, other, self.mask)

    def update(self, step: int, steps: int) -> dict[str, Any]:
        rows = torch.randint(len(self.data) - self.held, (BATCH,), generator=self.generator)
        loss = self._loss(self.learner.network, rows, self.generator, DROPOUT)
        self.learner.step(loss, trapezoid(step / steps, decay=0.5))
        now = loss.detach()
        self.running = now if self.running.isnan() else self.running.lerp(now, 0.05)
        return {"loss": self.running}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        rows = torch.arange(len(self.data) - self.held, len(self.data))
        model = self.learner.result
        loss = self._loss(model, rows, torch.Generator().manual_seed(0), 0.0)
        right = {} if self.measured is None else {"right": self.measured.right(model, How(cfg=GUIDANCE))}
        return {"validation": loss.item()} | right

    def export(self, record: Record) -> None:
        recipe, config = record.described("causal") | self.settings, {} if self.mask is None else CONFIG
        save_causal(self.learner.result, self.out, recipe, record, [*self.columns], config)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.running = state["running"]
