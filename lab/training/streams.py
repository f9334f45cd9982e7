"""How good a streaming model is, on validation prompts: the share of its clips that are right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...demo.script import LATENTS, Script, judge_script, there_and_back
from ...demo.stream import Stream, sample_stream, warp
from ...demo.wan_dit import WanTransformer
from ...demo.wan_vae import WanVAE, load_vae, to_vae_space
from ...evaluation.suites import load_suite
from ...trials.stream import PRESETS, steps_by_chunk
from .common import VAE, part, to_pixels
from .latents import TextTable

PROMPTS = 60


def schedule_of(digits: str, chunks: int, last: float | None = None) -> list[tuple[float, ...]]:
    """Sigmas by chunk. last: the timestep of each chunk's last step, None: that of an even schedule."""
    preset = PRESETS["Self-Forcing" if last is None else "Diagonal Distillation"]
    return [tuple(warp(level) for level in preset.timesteps(steps)) for steps in steps_by_chunk(digits, chunks)]


def contexts(scripts: Sequence[Script]) -> tuple[Tensor, Tensor]:
    """context [B, prompts, words, dim] and which [B, latents] of scripts with as many segments each."""
    prompts = [script.prompts for script in scripts]
    table = TextTable([text for texts in prompts for text in texts])
    return table.batch(range(len(table.rows))).unflatten(0, (len(scripts), -1)), torch.tensor(
        [script.which for script in scripts]
    )


@torch.no_grad()
def decode(vae: WanVAE, latents: Tensor) -> Tensor:
    """Model-space latents [B, 16, F, 8, 8] as clips [B, frames, 64, 64, 3] in 0..1."""
    return torch.cat([to_pixels(vae.decode(to_vae_space(part))) for part in latents.split(8)])


class Measure:
    """The first validation prompts of the evaluation, one clip each, always from the same noise."""

    def __init__(self, share: float = 1.0, latents: int = LATENTS):
        items = load_suite("demo_validation", part(PROMPTS, share)).items
        self.scripts = [there_and_back(item.scene, latents, item.index) for item in items]
        self.context, self.which = contexts(self.scripts)
        self.vae = load_vae(VAE)

    def clips(
        self, model: WanTransformer, digits: str, cfg: float = 1.0, last: float | None = None,
        context_noise: float | None = 0.0, window: int = 0, sink: int = 0, seed: int = 0,
    ) -> tuple[Tensor, int]:
        """Clips, and the forwards that one took."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.scripts), 16, 1, 8, 8)
        stream = Stream(model, self.context, self.which, cfg, window, sink)
        schedule = schedule_of(digits, self.which.shape[1], last)
        latents = sample_stream(stream, schedule, lambda: torch.randn(shape, generator=generator), context_noise)
        return decode(self.vae, latents), stream.forwards

    def right(self, model: WanTransformer, digits: str, **how) -> float:
        """The share of clips that are right in every segment."""
        clips, _ = self.clips(model, digits, **how)
        rights = [all(each.right for each in judge_script(clip, script))
                  for clip, script in zip(clips, self.scripts, strict=True)]  # fmt: skip
        return sum(rights) / len(rights)
