"""Streams of many prompts at once, and how many of their segments are right: for recipes on validation prompts, for the
evidence (lab/experiments/streaming.py) on test prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...demo.judge import Judgement
from ...demo.script import LATENTS, Script, judge_script, there_and_back, turning
from ...demo.stream import Stream, sample_stream, warp
from ...demo.wan_dit import WanTransformer
from ...demo.wan_vae import WanVAE, load_vae, to_vae_space
from ...evaluation.suites import Item, load_suite
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
    features = table.batch(range(len(table.rows))).unflatten(0, (len(scripts), -1))
    return features, torch.tensor([script.which for script in scripts])


@torch.no_grad()
def decode(vae: WanVAE, latents: Tensor) -> Tensor:
    """Model-space latents [B, 16, F, 8, 8] as clips [B, frames, 64, 64, 3] in 0..1."""
    at_once = max(2, 4 * LATENTS // latents.shape[2])  # as is quickest on a CPU, where one alone takes longest
    return torch.cat([to_pixels(vae.decode(to_vae_space(piece))) for piece in latents.split(at_once)])


@dataclass(frozen=True)
class How:
    """How streams are sampled. digits and last: see `schedule_of`. context_noise: see `sample_stream`. window and sink:
    in latents, 0: all are seen."""

    digits: str = "4"
    last: float | None = None
    context_noise: float | None = 0.0
    cfg: float = 1.0
    window: int = 0
    sink: int = 0


def trained_how(path: Path) -> How:
    """How the student in a file of these recipes was trained to be sampled; four clean steps where it does not say."""
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
    last, level = told.get("last", "None"), float(told.get("level", 0))
    context_noise = {"clean": 0.0, "last": None, "noisy": level}[told.get("history", "clean")]
    return How(told.get("digits", "4"), None if last == "None" else float(last), context_noise)


class Streams:
    """One stream for each prompt, always from the same noise for the same seed. turns: it changes half way."""

    def __init__(self, items: Sequence[Item], latents: int = LATENTS, turns: bool = False):
        script = turning if turns else there_and_back
        self.scripts = [script(item.scene, latents, item.index) for item in items]
        self.context, self.which = contexts(self.scripts)
        self.vae = load_vae(VAE)

    def sampled(self, model: WanTransformer, how: How, seed: int = 0) -> tuple[Tensor, int]:
        """Latents [B, 16, F, 8, 8], and the forwards that one clip took."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.scripts), 16, 1, 8, 8)
        stream = Stream(model, self.context, self.which, how.cfg, how.window, how.sink)
        schedule = schedule_of(how.digits, self.which.shape[1], how.last)
        latents = sample_stream(stream, schedule, lambda: torch.randn(shape, generator=generator), how.context_noise)
        return latents, stream.forwards

    def judged(self, clips: Tensor) -> list[list[Judgement]]:
        """By prompt and segment."""
        return [judge_script(clip, script) for clip, script in zip(clips, self.scripts, strict=True)]


class Measure(Streams):
    """The first validation prompts of the evaluation. share: of PROMPTS."""

    def __init__(self, share: float = 1.0, latents: int = LATENTS):
        super().__init__(load_suite("demo_validation", part(PROMPTS, share)).items, latents)

    def right(self, model: WanTransformer, how: How) -> float:
        """The share of clips that are right in every segment."""
        latents, _ = self.sampled(model, how)
        rights = [all(each.right for each in segments) for segments in self.judged(decode(self.vae, latents))]
        return sum(rights) / len(rights)
