"""Trains the demo family's Wan VAE on rendered clips: ``python -m foresight.lab.training.train_vae --steps 7000``.

Images first (a 2-D network, the last temporal taps), then inflation to clips. The same command resumes after a stop.
At the end the latents are whitened and an fp16 checkpoint is written that ComfyUI's VAELoader takes.
``--decoder-steps 1450`` goes on with the decoder of the exported file alone: models trained on its latents stay valid.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...demo.wan_vae import AttentionBlock, ResidualBlock, WanVAE, load_vae, to_model_space
from ...l2r.averaging import Average
from .common import (
    STATE,
    WEIGHTS,
    Clock,
    load_checkpoint,
    psnr,
    random_clips,
    save_checkpoint,
    to_network,
    today,
    trapezoid,
)

EXPORT = WEIGHTS / "vae" / "foresight_demo_wan_vae.safetensors"
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
CLIPS = 4096


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
    """Clips of the world that no training has seen."""
    return random_clips(torch.Generator().manual_seed(HELD_OUT_SEED), HELD_OUT)


@torch.no_grad()
def measure(vae: WanVAE, clips: Tensor) -> dict[str, float]:
    """PSNR in dB over whole clips, uint8 [N, T, H, W, 3], and over their first frames as images."""
    video, image = [], []
    for part in clips.split(16):
        x = to_network(part)
        video.append(psnr(vae.decode(vae.encode(x)), x))
        image.append(psnr(vae.decode(vae.encode(x[:, :, :1])), x[:, :, :1]))
    video, image = torch.cat(video), torch.cat(image)
    return {"psnr_clips": video.mean().item(), "psnr_clips_worst": video.min().item(),
            "psnr_images": image.mean().item(), "held_out_clips": len(clips)}


@torch.no_grad()
def export(
    vae: WanVAE, clips: Tensor, held_out: Tensor, recipe: dict, path: Path = EXPORT, whiten: bool = True
) -> dict:
    """Whiten the latents of `vae` (in place), write fp16, and measure what was written."""
    if whiten:
        vae.whiten_latents(torch.cat([vae.encode(to_network(part)) for part in clips[:512].split(16)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in vae.state_dict().items()}
    save_file(state, path)
    vae = load_vae(path)
    latents = to_model_space(torch.cat([vae.encode(to_network(part)) for part in clips[:256].split(16)]))
    figures = measure(vae, held_out) | {
        "latent_mean_abs": latents.mean((0, 2, 3, 4)).abs().max().item(),
        "latent_std": [round(v, 3) for v in latents.std((0, 2, 3, 4)).tolist()],
    }
    metadata = recipe | {k: v for k, v in figures.items() if k.startswith("psnr")}
    save_file(state, path, {k: str(v) for k, v in metadata.items()})
    path.with_suffix(".json").write_text(json.dumps(recipe | figures, indent=1) + "\n")
    return figures


def train(clips: Tensor, held_out: Tensor, steps: int, dim: int, seed: int, export_path: Path = EXPORT) -> None:
    """clips, held_out: uint8 [N, T, H, W, 3]; crops are taken of the first, the second only measure."""
    path = STATE / f"{export_path.stem}_{seed}.pt"
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = WanVAE(dim)
        initialise(vae)
    average = Average(vae, 0.998)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=IMAGE_LR, betas=(0.9, 0.98), weight_decay=1e-4)
    clock, step, curve = Clock(), 0, []
    if state := load_checkpoint(path):
        vae.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.updates = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        clock, step, curve = Clock(state["spent"]), state["step"], state["curve"]

    def reconstruct(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latent = vae.encode(x)
        return vae.decode(latent + noise), latent

    compiled = torch.compile(reconstruct, dynamic=False)
    while step < steps:
        progress = step / steps
        images = progress < IMAGE_SHARE
        stage = progress / IMAGE_SHARE if images else (progress - IMAGE_SHARE) / (1 - IMAGE_SHARE)
        for group in optimiser.param_groups:
            # The first clip steps warm up again; the image stage stays high, as clips go on from there.
            group["lr"] = IMAGE_LR * min(1.0, stage * 20 + 0.01) if images else CLIP_LR * trapezoid(stage)
        count, frames = (IMAGE_BATCH, 1) if images else (CLIP_BATCH, CROP_FRAMES)
        x = to_network(cut(clips, count, frames, CROP, generator))
        shape = (len(x), vae.z_dim, (x.shape[2] + 3) // 4, CROP // 8, CROP // 8)
        noise = torch.randn(shape, generator=generator) * LATENT_NOISE
        out, latent = compiled(x, noise)
        loss = reconstruction_loss(out, x)
        optimiser.zero_grad(set_to_none=True)
        (loss + LATENT_PENALTY * latent.square().mean()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae)
        step += 1
        if step % 200 == 0 or step == steps:
            figures = measure(average.model, held_out[:16])
            curve.append([round(clock.minutes, 2), step, round(figures["psnr_clips"], 2),
                          round(figures["psnr_images"], 2)])
            print(f"{clock.minutes:.1f} min step {step} loss {loss.item():.4f} latent std {latent.std().item():.2f} "
                  f"clips {figures['psnr_clips']:.2f} dB images {figures['psnr_images']:.2f} dB", flush=True)
            save_checkpoint(path, {"model": vae.state_dict(), "average": average.model.state_dict(), "step": step,
                                   "optimiser": optimiser.state_dict(), "generator": generator.get_state(),
                                   "spent": clock.minutes, "curve": curve})
    recipe = {"recipe": "foresight.lab.training.train_vae", "date": today(), "torch": torch.__version__, "dim": dim,
              "seed": seed, "minutes": round(clock.minutes, 1), "steps": step, "clips": len(clips),
              "curve": curve, "curve_columns": ["minutes", "step", "psnr_clips", "psnr_images"]}
    print(export(average.model, clips, held_out, recipe, export_path))


def train_decoder(steps: int, seed: int, path: Path = EXPORT, clip_count: int = 1024) -> None:
    """Go on with the decoder of an exported VAE, on whole clips, its latents unchanged. Resumes like `train`."""
    vae, generator = load_vae(path), torch.Generator().manual_seed(seed + 1000)
    recipe = json.loads(path.with_suffix(".json").read_text())
    clips, held_out = random_clips(generator, clip_count), held_out_clips()
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_network(part)) for part in clips.split(16)])
    spread = latents.std((0, 2, 3, 4)).view(1, -1, 1, 1, 1)
    parameters = [*vae.conv2.parameters(), *vae.decoder.parameters()]
    average = Average(vae, 0.998)
    optimiser = torch.optim.AdamW(parameters, lr=DECODER_LR, betas=(0.9, 0.98), weight_decay=1e-4)
    decode = torch.compile(vae.decode, dynamic=False)
    state_path = STATE / f"{path.stem}_decoder.pt"
    step = 0
    if state := load_checkpoint(state_path):
        vae.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        average.updates = step = state["step"]
    while step < steps:
        optimiser.param_groups[0]["lr"] = DECODER_LR * trapezoid(step / steps, decay=0.6)
        chosen = torch.randint(clip_count, (DECODER_BATCH,), generator=generator)
        target, latent = to_network(clips[chosen]), latents[chosen]
        noise = torch.randn(latent.shape, generator=generator) * spread * DECODER_NOISE
        loss = reconstruction_loss(decode(latent + noise), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update(vae)
        step += 1
        if step % 100 == 0 or step == steps:
            print(f"decoder step {step} loss {loss.item():.4f} "
                  f"clips {measure(average.model, held_out[:16])['psnr_clips']:.2f} dB", flush=True)
            save_checkpoint(state_path, {"model": vae.state_dict(), "average": average.model.state_dict(), "step": step,
                                         "optimiser": optimiser.state_dict()})
    keep = {k: v for k, v in recipe.items() if not k.startswith(("psnr", "latent", "held"))}
    keep |= {"decoder_steps": step}
    print(export(average.model, clips, held_out, keep, path, whiten=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decoder-steps", type=int, help="go on with the exported file's decoder instead")
    parser.add_argument("--export", type=Path, default=EXPORT)
    arguments = parser.parse_args()
    if arguments.decoder_steps:
        train_decoder(arguments.decoder_steps, arguments.seed, arguments.export)
        return
    clips = random_clips(torch.Generator().manual_seed(arguments.seed), CLIPS)
    train(clips, held_out_clips(), arguments.steps, arguments.dim, arguments.seed, arguments.export)


if __name__ == "__main__":
    main()
