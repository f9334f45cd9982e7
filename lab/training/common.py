"""What the demo family's training recipes share: clock, schedule, optimisers, checkpoints."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ...demo.world import Scene, render_batch, sample_scene

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "demo"
STATE = ROOT / ".foresight" / "train"
DATA_HELP = "share of the data to make; below 1 only to try the recipe out"


def part(count: int, share: float) -> int:
    """`share` of `count` prompts, and at least one of each difficulty in the proportion of the samples."""
    return max(6, round(count * share))


def trapezoid(progress: float, warmup: float = 0.02, decay: float = 0.4) -> float:
    """Learning-rate factor at `progress` 0..1: linear up, flat, linear to zero."""
    return max(0.0, min(progress / warmup + 0.01, 1.0, (1.0 - progress) / decay))


class Clock:
    """Wall-clock minutes of a training over its restarts. For the record only: trainings are counted in steps, so that
    a busy machine learns as much, only later."""

    def __init__(self, before: float = 0.0):
        self.before, self.started = before, time.monotonic()

    @property
    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.started) / 60


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix (Muon, Jordan et al. 2024), in fp32.

    matrix: [B, rows, columns], one batch per shape, because one call a matrix is what makes Muon slow on a CPU.
    """
    x = matrix / (matrix.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the hidden matrices; steps are scaled to the size of AdamW's."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                buffers = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    buffers.append(p.grad.lerp(buffer, group["momentum"]))  # Nesterov
                update = orthogonalise(torch.stack(buffers)) * (0.2 * max(shape) ** 0.5)
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=group["lr"])


def save_checkpoint(path: Path, state: dict) -> None:
    """Write beside and rename, so that a kill in between leaves the old checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(path: Path) -> dict | None:
    return torch.load(path, weights_only=True) if path.exists() else None


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


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per item of two batches in -1..1."""
    error = ((one.clamp(-1, 1) - other) / 2).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-10).log10()


def today() -> str:
    return datetime.date.today().isoformat()
