"""What the demo family's recipes share: where its files are, and rendered clips to learn from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...demo import preset
from ...demo.world import Scene, render_batch, sample_scene

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "demo"
STATE = ROOT / ".foresight" / "train"
VAE = WEIGHTS / "vae" / preset.VAE
TRANSFORMER = WEIGHTS / "diffusion_models" / preset.TRANSFORMER
STREAMER, DIAGONAL = (WEIGHTS / "diffusion_models" / file for file in preset.STUDENTS)
CONVERTER = ROOT / "weights" / "l2r" / preset.CONVERTER
SCORER = WEIGHTS / "viclip" / preset.SCORER
REWARD = WEIGHTS / "reward" / preset.REWARD


def part(count: int, share: float) -> int:
    """`share` of `count` prompts, and at least one of each difficulty in the proportion of the samples."""
    return max(6, round(count * share))


def random_scenes(generator: torch.Generator, count: int, shares: dict[str, float]) -> list[Scene]:
    """`count` scenes, difficulties drawn by `shares` (relative)."""
    names = list(shares)
    draws = torch.multinomial(torch.tensor(list(shares.values())), count, replacement=True, generator=generator)
    return [sample_scene(generator, names[i]) for i in draws]


def random_clips(generator: torch.Generator, count: int) -> Tensor:
    """Rendered clips of random scenes, uint8 [count, 17, 64, 64, 3]."""
    scenes = random_scenes(generator, count, {"easy": 0.3, "medium": 0.3, "hard": 0.4})
    return torch.cat([render_batch(scenes[i : i + 64], generator) for i in range(0, count, 64)])


def to_network(clips: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float [B, 3, F, H, W] in -1..1."""
    return clips.movedim(-1, 1).float().div_(127.5).sub_(1)


def to_pixels(x: Tensor) -> Tensor:
    """float [B, 3, F, H, W] in -1..1 -> [B, F, H, W, 3] in 0..1."""
    return x.movedim(1, -1).add(1).div(2).clamp(0, 1)
