"""The recipe of the demo family's converter. It needs the VAE's encoder only (paper, A.2).

Latent frame i is paired with pixel frame 4i, the last one it encodes. Half of each batch is made to look like x0
predictions: mixtures of two clips (a prediction at high noise is a mean over what may come) and noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...demo.wan_vae import load_vae, to_model_space
from ...l2r.checkpoint import load_l2r, save_l2r
from ...l2r.decode import decode
from ...l2r.fit import psnr
from ...l2r.learner import Learner
from ...l2r.model import L2R
from .common import CONVERTER, STATE, VAE, random_clips, to_network, to_pixels
from .loop import Record, Task, trapezoid
from .vae import encode

BATCH = 12
LR = 4e-3
NOISE = 0.3  # largest standard deviation of the noise on latents
HELD_OUT_SEED, HELD_OUT = 990_002, 128
CLIPS = 1024


def pairs(vae: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Model-space latents [N, 16, 5, 8, 8] of uint8 clips, and the pixel frames [N, 5, 64, 64, 3] in 0..1."""
    return to_model_space(encode(vae, clips)), clips[:, ::4].float() / 255


def x0_like(latents: Tensor, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixes the second half of a batch with the first, pixels alike, and adds noise to its latents."""
    half = len(latents) // 2
    share = torch.rand(half, 1, 1, 1, 1, generator=generator)
    noise = torch.randn(latents[half:].shape, generator=generator)
    noise = noise * NOISE * torch.rand(share.shape, generator=generator)
    mixed = latents[half:].lerp(latents[:half], share) + noise
    return torch.cat([latents[:half], mixed]), torch.cat([frames[:half], frames[half:].lerp(frames[:half], share)])


class DemoL2R(Task):
    steps, every, columns = 700, 100, ("train",)

    def __init__(self, seed: int = 1, scale: float = 1.0, export: Path = CONVERTER):
        self.out, self.checkpoint, self.seed = export, STATE / f"l2r_{seed}.pt", seed
        self.generator = torch.Generator().manual_seed(seed)
        self.vae = load_vae(VAE)
        self.latents, self.frames = pairs(self.vae, random_clips(self.generator, max(32, round(CLIPS * scale))))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = L2R()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-4)
        self.learner = Learner(model, optimiser, decay=0.99)
        self.parts = {"l2r": self.learner, "generator": self.generator}

    def update(self, step: int, steps: int) -> dict[str, Any]:
        rows = torch.randint(len(self.latents), (BATCH,), generator=self.generator)
        x, target = x0_like(self.latents[rows], self.frames[rows], self.generator)
        error = self.learner.network(x) - target
        loss = error.abs().mean() + error.square().mean()
        self.learner.step(loss, trapezoid(step / steps))
        return {"loss": loss}

    def measure(self) -> dict[str, float]:
        return {"train": psnr(decode(self.learner.result, self.latents[:32]), self.frames[:32]).mean().item()}

    def export(self, record: Record) -> None:
        described = record.described("l2r") | {"name": "foresight-demo-l2r", "latent_format": "Wan21", "vae": VAE.name,
                                               "clips": len(self.latents), "seed": self.seed}  # fmt: skip
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_l2r(self.learner.result, self.out, described)
        figures = evaluate(self.vae, self.out)
        save_l2r(self.learner.result, self.out, described | figures)
        print(figures)


def evaluate(vae: nn.Module, path: Path) -> dict[str, float]:
    """PSNR in dB of the written converter, and of the VAE's own decoder, on held-out clips' latent frames."""
    clips = random_clips(torch.Generator().manual_seed(HELD_OUT_SEED), HELD_OUT)
    latents, frames = pairs(vae, clips)
    ours = psnr(decode(load_l2r(path), latents), frames)
    with torch.no_grad():
        own = psnr(to_pixels(vae.decode(vae.encode(to_network(clips[:32])))[:, :, ::4]), frames[:32])
    return {"psnr": round(ours.mean().item(), 2), "psnr_worst": round(ours.min().item(), 2),
            "psnr_vae_decoder": round(own.mean().item(), 2), "held_out_clips": HELD_OUT}  # fmt: skip
