"""Recipes of VAEs of Wan's architecture: the demo family's, whole or its decoder alone, on rendered clips."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...demo.wan_vae import AttentionBlock, ResidualBlock, WanVAE, load_vae, to_model_space
from ...l2r.fit import psnr
from ...l2r.learner import Learner
from .common import STATE, VAE, random_clips, to_network, to_pixels
from .loop import Record, Task, trapezoid

IMAGE_SHARE = 0.28  # of the steps
CROP = 32
CROP_FRAMES = 13
IMAGE_BATCH, CLIP_BATCH = 24, 6
IMAGE_LR, CLIP_LR = 3e-3, 2.5e-3
LATENT_NOISE = 0.1
LATENT_PENALTY = 5e-4
OBJECT_WEIGHT = 3.0  # most pixels are background, and the caption is about the rest
DECODER_LR, DECODER_BATCH, DECODER_NOISE = 1.5e-3, 4, 0.05
HELD_OUT_SEED, HELD_OUT = 990_001, 96
CLIPS, DECODER_CLIPS = 4096, 1024


def initialise(vae: WanVAE) -> None:
    """Start as a linear network that keeps signals at their size, residual branches nearly silent.

    Default initialisation shrinks the signal by half in each of a dozen layers until only biases are left, and stays at
    wrong colours for a quarter of an hour.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.zeros_(module.bias)
            weight = module.weight.data
            if module.weight.ndim == 5:
                # As images train only the last tap, a clip starts as that same network frame by frame.
                weight[:, :, :-1] = 0
                weight = weight[:, :, -1]
            if "time_conv" in name:
                channels = torch.arange(len(weight))
                weight.zero_()[channels, channels % weight.shape[1]] = 1
            elif "residual" not in name and "to_qkv" not in name:
                matrix = nn.init.orthogonal_(torch.empty(len(weight), weight[0].numel()))
                weight.copy_(matrix.view_as(weight))
        if isinstance(module, ResidualBlock):
            module.residual[-1].weight.data *= 0.05
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.proj.weight)


def cut(clips: Tensor, count: int, frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Random pieces of clips [N, T, H, W, 3] in time and space, [count, frames, size, size, 3]."""
    def draw(limit: int) -> list[int]:
        return torch.randint(limit, (count,), generator=generator).tolist()

    length, height, width = clips.shape[1:4]
    return torch.stack([
        clips[n, t : t + frames, y : y + size, x : x + size]
        for n, t, y, x in zip(draw(len(clips)), draw(length - frames + 1), draw(height - size + 1),
                              draw(width - size + 1), strict=True)
    ])


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE, weighted towards what differs from the most common brightness of the crop, the background."""
    background = target.flatten(2).median(-1).values[..., None, None, None]
    weight = 1 + OBJECT_WEIGHT * ((target - background).abs().amax(1, keepdim=True) > 0.1)
    error = out - target
    return ((error.abs() + error.square()) * weight).mean() / weight.float().mean()


def held_out_clips() -> Tensor:
    """Clips of the world that no training has met."""
    return random_clips(torch.Generator().manual_seed(HELD_OUT_SEED), HELD_OUT)


@torch.no_grad()
def encode(vae: WanVAE, clips: Tensor) -> Tensor:
    """Latents of uint8 clips [N, T, H, W, 3]."""
    return torch.cat([vae.encode(to_network(part)) for part in clips.split(16)])


@torch.no_grad()
def measure(vae: WanVAE, clips: Tensor) -> dict[str, float]:
    """PSNR in dB over whole clips, uint8 [N, T, H, W, 3], and over their first frames as images."""
    video, image = (
        torch.cat([psnr(to_pixels(vae.decode(vae.encode(x))), to_pixels(x)) for x in map(to_network, some.split(16))])
        for some in (clips, clips[:, :1])
    )
    return {"psnr_clips": video.mean().item(), "psnr_clips_worst": video.min().item(),
            "psnr_images": image.mean().item(), "held_out_clips": len(clips)}  # fmt: skip


def write(vae: WanVAE, clips: Tensor, held_out: Tensor, recipe: dict[str, Any], path: Path) -> None:
    """Writes fp16 weights that ComfyUI's VAELoader takes, with the figures of what was written, there and as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in vae.state_dict().items()}
    save_file(state, path)
    vae = load_vae(path)
    latents = to_model_space(encode(vae, clips[:256]))
    figures = measure(vae, held_out) | {
        "latent_mean_abs": latents.mean((0, 2, 3, 4)).abs().max().item(),
        "latent_std": [round(v, 3) for v in latents.std((0, 2, 3, 4)).tolist()],
    }
    metadata = recipe | {k: v for k, v in figures.items() if k.startswith("psnr")}
    save_file(state, path, {k: str(v) for k, v in metadata.items()})
    path.with_suffix(".json").write_text(json.dumps(recipe | figures, indent=1) + "\n")
    print(figures)


class WholeVAE(Task):
    """Images first (a 2-D network, the last temporal taps), then inflation to clips. At the end the latents are
    whitened. clips, held_out: uint8 [N, T, H, W, 3]; crops are taken of the first, the second only measure."""

    steps, columns = 6560, ("clips", "images")

    def __init__(self, clips: Tensor, held_out: Tensor, dim: int, seed: int, out: Path, compile: bool = True):
        self.clips, self.held_out, self.out = clips, held_out, out
        self.checkpoint = STATE / f"{out.stem}_{seed}.pt"
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.vae = WanVAE(dim)
            initialise(self.vae)
        self.settings = {"dim": dim, "seed": seed, "clips": len(clips)}
        self.learner = Learner(
            self.vae, torch.optim.AdamW(self.vae.parameters(), lr=IMAGE_LR, betas=(0.9, 0.98), weight_decay=1e-4),
            decay=0.998,
        )  # fmt: skip
        self.parts = {"vae": self.learner, "generator": self.generator}
        if compile:
            self.reconstruct = torch.compile(self.reconstruct, dynamic=False)

    def reconstruct(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.vae.encode(x)
        return self.vae.decode(latent + noise), latent

    def update(self, step: int, steps: int) -> dict[str, Any]:
        progress = step / steps
        if progress < IMAGE_SHARE:
            # The first clip steps warm up again; the image stage stays high, as clips go on from there.
            count, frames, rate = IMAGE_BATCH, 1, min(1.0, progress / IMAGE_SHARE * 20 + 0.01)
        else:
            count, frames = CLIP_BATCH, CROP_FRAMES
            rate = CLIP_LR / IMAGE_LR * trapezoid((progress - IMAGE_SHARE) / (1 - IMAGE_SHARE))
        x = to_network(cut(self.clips, count, frames, CROP, self.generator))
        shape = (len(x), self.vae.z_dim, (x.shape[2] + 3) // 4, CROP // 8, CROP // 8)
        noise = torch.randn(shape, generator=self.generator) * LATENT_NOISE
        rebuilt, latent = self.reconstruct(x, noise)
        loss = reconstruction_loss(rebuilt, x)
        self.learner.step(loss + LATENT_PENALTY * latent.square().mean(), rate)
        return {"loss": loss, "latent_std": latent.std()}

    def measure(self) -> dict[str, float]:
        figures = measure(self.learner.result, self.held_out[:16])
        return {"clips": figures["psnr_clips"], "images": figures["psnr_images"]}

    def export(self, record: Record) -> None:
        vae = copy.deepcopy(self.learner.result)
        vae.whiten_latents(encode(vae, self.clips[:512]))
        recipe = record.described("vae") | self.settings | {
            "curve": record.curve, "curve_columns": ["minutes", "step", "psnr_clips", "psnr_images"]}
        write(vae, self.clips, self.held_out, recipe, self.out)


def demo_vae(dim: int = 8, seed: int = 1, export: Path = VAE, compile: bool = True) -> WholeVAE:
    clips = random_clips(torch.Generator().manual_seed(seed), CLIPS)
    return WholeVAE(clips, held_out_clips(), dim, seed, export, compile)


class Decoder(Task):
    """Goes on with the decoder of an exported VAE alone, on whole clips: models trained on its latents stay valid."""

    steps, every, columns = 1450, 100, ("clips",)

    def __init__(self, seed: int = 1, export: Path = VAE, compile: bool = True):
        self.out, self.checkpoint = export, STATE / f"{export.stem}_decoder.pt"
        self.recipe = json.loads(export.with_suffix(".json").read_text())
        self.generator = torch.Generator().manual_seed(seed + 1000)
        self.clips, self.held_out = random_clips(self.generator, DECODER_CLIPS), held_out_clips()
        vae = load_vae(export)
        self.latents = encode(vae, self.clips)
        self.spread = self.latents.std((0, 2, 3, 4)).view(1, -1, 1, 1, 1)
        parameters = [*vae.conv2.parameters(), *vae.decoder.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=DECODER_LR, betas=(0.9, 0.98), weight_decay=1e-4)
        self.learner = Learner(vae, optimiser, decay=0.998)
        self.parts = {"vae": self.learner, "generator": self.generator}
        self.decode = torch.compile(vae.decode, dynamic=False) if compile else vae.decode

    def update(self, step: int, steps: int) -> dict[str, Any]:
        rows = torch.randint(len(self.clips), (DECODER_BATCH,), generator=self.generator)
        target, latent = to_network(self.clips[rows]), self.latents[rows]
        noise = torch.randn(latent.shape, generator=self.generator) * self.spread * DECODER_NOISE
        loss = reconstruction_loss(self.decode(latent + noise), target)
        self.learner.step(loss, trapezoid(step / steps, decay=0.6))
        return {"loss": loss}

    def measure(self) -> dict[str, float]:
        return {"clips": measure(self.learner.result, self.held_out[:16])["psnr_clips"]}

    def export(self, record: Record) -> None:
        recipe = {k: v for k, v in self.recipe.items() if not k.startswith(("psnr", "latent", "held"))}
        recipe |= {"decoder_steps": record.step}
        write(self.learner.result, self.clips, self.held_out, recipe, self.out)
