"""Fits the L2R converter to the demo VAE: ``python -m foresight.lab.training.train_l2r --steps 1500``.

Needs the VAE's encoder only (paper, A.2). Latent frame i is paired with pixel frame 4i, the last one it encodes. Half
of each batch is made to look like x0 predictions: mixtures of two clips (a prediction at high noise is a mean over what
may come) and noise. The same command resumes after a stop.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ...demo.wan_vae import load_vae, to_model_space
from ...l2r.averaging import Average
from ...l2r.checkpoint import load_l2r, save_l2r
from ...l2r.model import L2R
from .common import (
    ROOT,
    STATE,
    WEIGHTS,
    Clock,
    load_checkpoint,
    random_clips,
    save_checkpoint,
    to_network,
    today,
    trapezoid,
)

VAE = WEIGHTS / "vae" / "foresight_demo_wan_vae.safetensors"
EXPORT = ROOT / "weights" / "l2r" / "foresight_demo_l2r.safetensors"
BATCH = 12
LR = 4e-3
NOISE = 0.3  # largest standard deviation of the noise on latents
HELD_OUT_SEED = 990_002


@torch.no_grad()
def pairs(vae: torch.nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Model-space latents [N, 16, 5, 8, 8] of uint8 clips, and the pixel frames [N, 5, 64, 64, 3] in 0..1."""
    latents = torch.cat([to_model_space(vae.encode(to_network(part))) for part in clips.split(16)])
    return latents, clips[:, ::4].float() / 255


def x0_like(latents: Tensor, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixes the second half of a batch with the first, pixels alike, and adds noise to its latents."""
    half = len(latents) // 2
    share = torch.rand(half, 1, 1, 1, 1, generator=generator)
    noise = torch.randn(latents[half:].shape, generator=generator)
    noise = noise * NOISE * torch.rand(share.shape, generator=generator)
    mixed = latents[half:].lerp(latents[:half], share) + noise
    return torch.cat([latents[:half], mixed]), torch.cat([frames[:half], frames[half:].lerp(frames[:half], share)])


@torch.no_grad()
def psnr(model: L2R, latents: Tensor, frames: Tensor) -> Tensor:
    """dB per clip against the rendered frames."""
    out = torch.cat([model(part) for part in latents.split(16)])
    return -10 * (out - frames).square().flatten(1).mean(1).log10()


def train(steps: int, seed: int, clip_count: int, export: Path) -> None:
    path, generator = STATE / f"l2r_{seed}.pt", torch.Generator().manual_seed(seed)
    vae = load_vae(VAE)
    latents, frames = pairs(vae, random_clips(generator, clip_count))
    print(f"{clip_count} clips encoded", flush=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = L2R()
    average = Average(model, 0.99)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-4)
    clock, step = Clock(), 0
    if state := load_checkpoint(path):
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.updates = step = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        clock = Clock(state["spent"])
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = LR * trapezoid(step / steps)
        chosen = torch.randint(clip_count, (BATCH,), generator=generator)
        x, target = x0_like(latents[chosen], frames[chosen], generator)
        error = model(x) - target
        loss = error.abs().mean() + error.square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model)
        step += 1
        if step % 100 == 0 or step == steps:
            print(f"{clock.minutes:.1f} min step {step} loss {loss.item():.4f} "
                  f"train {psnr(average.model, latents[:32], frames[:32]).mean():.2f} dB", flush=True)
            save_checkpoint(path, {"model": model.state_dict(), "average": average.model.state_dict(), "step": step,
                                   "optimiser": optimiser.state_dict(), "generator": generator.get_state(),
                                   "spent": clock.minutes})
    described = {"name": "foresight-demo-l2r", "latent_format": "Wan21", "vae": VAE.name,
                 "recipe": "foresight.lab.training.train_l2r", "date": today(),
                 "minutes": round(clock.minutes, 1), "steps": step,
                 "clips": clip_count, "seed": seed}
    export.parent.mkdir(parents=True, exist_ok=True)
    save_l2r(average.model, export, described)
    figures = evaluate(vae, export)
    save_l2r(average.model, export, described | figures)
    print(figures)


def evaluate(vae: torch.nn.Module, path: Path, count: int = 128) -> dict[str, float]:
    """PSNR in dB of the written converter, and of the VAE's own decoder, on held-out clips' latent frames."""
    clips = random_clips(torch.Generator().manual_seed(HELD_OUT_SEED), count)
    latents, frames = pairs(vae, clips)
    ours = psnr(load_l2r(path), latents, frames)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(to_network(clips[:32])))[:, :, ::4].movedim(1, -1).add(1).div(2).clamp(0, 1)
    reference = -10 * (decoded - frames[:32]).square().flatten(1).mean(1).log10()
    return {"psnr": round(ours.mean().item(), 2), "psnr_worst": round(ours.min().item(), 2),
            "psnr_vae_decoder": round(reference.mean().item(), 2), "held_out_clips": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--export", type=Path, default=EXPORT)
    parser.add_argument("--evaluate", action="store_true", help="only measure the exported converter")
    arguments = parser.parse_args()
    if arguments.evaluate:
        print(evaluate(load_vae(VAE), arguments.export))
    else:
        train(arguments.steps, arguments.seed, arguments.clips, arguments.export)


if __name__ == "__main__":
    main()
