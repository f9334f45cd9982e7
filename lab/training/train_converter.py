"""Trains a converter at the paper's scale, from any VAE that ComfyUI loads and a folder of videos:

    python -m foresight.lab.training.train_converter --vae VAE.safetensors --latent-format Wan21 --videos DIR \
        --out NAME.safetensors

The paper's recipe (A.2): clips of real video with enough motion, the VAE's encoder alone, pairs of latents and pixels.
A clip is encoded once and stays a while in a pool, from which crops are drawn. The same command goes on after a stop.
Beside NAME.safetensors stand NAME.log, the curve NAME.png and the state NAME.ckpt. Needs ComfyUI (COMFYUI_PATH).
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...evaluation.comfyui import load_vae
from ...l2r.checkpoint import PAPER, SUBPIXEL, save_l2r
from ...l2r.fit import WIDTH, Learner, check_pair, crops, fit_affine, half, psnr
from ...l2r.model import L2R
from ...l2r.pairs import encoded, fingerprint
from ...l2r.subpixel import SubpixelL2R
from .videos import Motion, clips, read_clip, split

Pair = tuple[Tensor, Tensor]
POOL = 48  # clips from which crops are drawn: at the paper's size 1.3 GB
STEPS_A_CLIP = 4  # how often the pool gives before it takes another clip
BATCH, CROP = 8, 24  # crops a step; latents a side
MEASURE = 500  # steps between two measurements
MEASURED = 8  # held-out clips


def start(architecture: str, pairs: Sequence[Pair], seed: int) -> L2R | SubpixelL2R:
    """The paper's layout as it is built, or the sub-pixel layout from its closed-form fit to the first clips."""
    if architecture == SUBPIXEL:
        return fit_affine(pairs).widened(WIDTH, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return L2R(pairs[0][0].shape[1], check_pair(*pairs[0]))


def train(
    encode: Callable[[Tensor], Pair], draw: Callable[[torch.Generator], Iterator[Tensor]], held_out: Sequence[Pair],
    out: Path, *, architecture: str, steps: int, seed: int, metadata: dict[str, Any],
    device: torch.device | str = "cpu", crop: int = CROP, say: Callable[[str], None] = print,
) -> L2R | SubpixelL2R:
    """encode: uint8 frames [T, H, W, 3] to a pair; draw: clips without end, by the generator; held_out: pairs that only
    measure; crop: latents a side."""
    # Clips have a generator of their own, so that after a stop new ones follow and not the first again.
    generator, clip_generator = (torch.Generator().manual_seed(seed + i) for i in (0, 1))
    state_path, log = out.with_suffix(".ckpt"), out.with_suffix(".log")
    state = torch.load(state_path, weights_only=True) if state_path.exists() else None
    if state:
        clip_generator.set_state(state["clip_generator"])
    source = draw(clip_generator)
    pool = [half(encode(next(source))) for _ in range(POOL)]
    learner = Learner(start(architecture, pool, seed), device)
    model, average = learner.model, learner.average
    step, minutes, curve = 0, 0.0, []
    if state:
        for part, saved in ((model, "model"), (learner.optimiser, "optimiser"), (average.model, "average")):
            part.load_state_dict(state[saved])
        generator.set_state(state["generator"])
        step, minutes, curve = state["step"], state["minutes"], state["curve"]
        average.updates = step
        say(f"going on from step {step}")
    begin = time.monotonic() - 60 * minutes
    while step < steps:
        if step % STEPS_A_CLIP == 0:
            pool = [*pool, half(encode(next(source)))][-POOL:]
        batch = crops(pool, model.scale, generator, BATCH, crop)
        loss = learner.step(*batch, generator, rate=2 * (1 - step / steps))
        step += 1
        if step % MEASURE == 0 or step == steps:
            minutes = (time.monotonic() - begin) / 60
            quality = psnr(average.model, held_out)
            curve.append([round(minutes, 2), step, round(loss.item(), 5), round(quality, 3)])
            line = f"{minutes:.1f} min step {step} loss {loss.item():.4f} held-out clips {quality:.2f} dB"
            say(line)
            with log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            kept = {"model": model.state_dict(), "average": average.model.state_dict(), "step": step,
                    "optimiser": learner.optimiser.state_dict(), "minutes": minutes, "curve": curve,
                    "generator": generator.get_state(), "clip_generator": clip_generator.get_state()}  # fmt: skip
            torch.save(kept, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
            save_l2r(average.model, out, metadata | {
                "psnr": round(quality, 2), "held_out": f"{len(held_out)} clips of other videos", "steps": step,
                "minutes": round(minutes, 1), "seed": seed, "date": datetime.date.today().isoformat(),
            })  # fmt: skip
            draw_curve(curve, out.with_suffix(".png"))
    return average.model


def draw_curve(curve: Sequence[Sequence[float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110)
    axes = figure.add_subplot(xlabel="step", ylabel="held-out clips, PSNR in dB")
    axes.plot([row[1] for row in curve], [row[3] for row in curve], marker=".")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="a VAE file that ComfyUI's VAELoader takes")
    parser.add_argument("--latent-format", required=True, help="a class of comfy/latent_formats.py, e.g. Wan21")
    parser.add_argument("--videos", type=Path, required=True, help="a folder; its folders are searched too")
    parser.add_argument("--out", type=Path, required=True, help="put it into models/foresight_l2r to have it found")
    parser.add_argument("--architecture", choices=(PAPER, SUBPIXEL), default=PAPER)
    parser.add_argument("--steps", type=int, default=120_000, help="the paper's 33,000 clips are 132,000")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=720)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--min-flow", type=float, default=0.5, help="mean optical flow, pixels a frame; 0: any clip")
    parser.add_argument("--flow-weights", type=Path, help="torchvision's raft_small or raft_large checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.min_flow and a.flow_weights is None:
        parser.error("--min-flow needs --flow-weights (torchvision's RAFT); with --min-flow 0 any clip is taken")
    try:
        files, measuring = split(a.videos)
    except ValueError as error:
        parser.error(str(error))
    vae, latent_format, device = load_vae(a.vae, a.latent_format)

    def encode(clip: Tensor) -> Pair:
        return encoded(vae, latent_format, clip.float() / 255)

    shape = a.frames, a.height, a.width
    readable = (clip for path in measuring if (clip := read_clip(path, *shape)) is not None)
    held_out = [encode(clip) for clip in islice(readable, MEASURED)]
    if not held_out:
        parser.error(f"none of the {len(measuring)} videos that measure has {a.frames} frames")
    motion = Motion(a.flow_weights, device) if a.min_flow else None

    def draw(generator: torch.Generator) -> Iterator[Tensor]:
        return clips(files, *shape, generator, lambda clip: motion is None or motion(clip) > a.min_flow)

    a.out.parent.mkdir(parents=True, exist_ok=True)
    train(
        encode, draw, held_out, a.out, architecture=a.architecture, steps=a.steps, seed=a.seed, device=device,
        metadata={"name": a.out.stem, "latent_format": a.latent_format, "vae": fingerprint(vae), "videos": len(files),
                  "recipe": "foresight.lab.training.train_converter", "min_flow": a.min_flow},
    )  # fmt: skip


if __name__ == "__main__":
    main()
