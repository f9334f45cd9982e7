"""The recipe of a converter at the paper's scale (A.2), from any VAE that ComfyUI loads and a folder of videos: clips
of real video with enough motion, the VAE's encoder alone, pairs of latents and pixels.

A clip is encoded once and stays a while in a pool, from which crops are drawn. Beside NAME.safetensors stand NAME.log,
the curve NAME.png and the state NAME.ckpt. Needs ComfyUI (COMFYUI_PATH).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...evaluation.comfyui import load_vae
from ...l2r.checkpoint import PAPER, SUBPIXEL, save_l2r
from ...l2r.fit import WIDTH, check_pair, crops, fit_affine, half, learn, learner, quality
from ...l2r.model import L2R
from ...l2r.pairs import encoded, fingerprint
from .loop import Record, Task
from .videos import Motion, clips, read_clip, split

Pair = tuple[Tensor, Tensor]
POOL = 48  # clips from which crops are drawn: at the paper's size 1.3 GB
STEPS_A_CLIP = 4  # how often the pool gives before it takes another clip
BATCH, CROP = 8, 24  # crops a step; latents a side
MEASURED = 8  # held-out clips


class Converter(Task):
    """encode: uint8 frames [T, H, W, 3] to a pair; draw: clips without end, by the generator; held_out: pairs that only
    measure; crop: latents a side."""

    steps, every, columns, usable_early = 120_000, 500, ("loss", "held_out"), True  # the paper's 33,000 clips: 132,000

    def __init__(
        self, encode: Callable[[Tensor], Pair], draw: Callable[[torch.Generator], Iterator[Tensor]],
        held_out: Sequence[Pair], out: Path, *, architecture: str, seed: int, metadata: dict[str, Any],
        device: torch.device | str = "cpu", crop: int = CROP,
    ):
        self.encode, self.draw, self.held_out, self.out = encode, draw, held_out, out
        self.checkpoint, self.crop, self.metadata = out.with_suffix(".ckpt"), crop, metadata | {"seed": seed}
        self.generator, self.clip_generator = (torch.Generator().manual_seed(seed + i) for i in (0, 1))
        # The clip generator's state before each clip of the pool: a stop loses the pool, and reads the same again.
        self.pool: list[tuple[Tensor, Pair]] = []
        self.source = draw(self.clip_generator)
        if architecture == SUBPIXEL:  # from its closed-form fit to the first clips
            self.fill()
            model = fit_affine([pair for _, pair in self.pool])
            model = model.widened(WIDTH, torch.Generator().manual_seed(seed))
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = L2R(held_out[0][0].shape[1], check_pair(*held_out[0]))
        self.learner = learner(model, device)
        self.parts = {"converter": self.learner, "generator": self.generator}

    def fill(self, more: int = 0) -> None:
        while len(self.pool) < POOL + more:
            state = self.clip_generator.get_state()
            self.pool.append((state, half(self.encode(next(self.source)))))
        self.pool = self.pool[-POOL:]

    def update(self, step: int, steps: int) -> dict[str, Any]:
        self.fill()
        if step % STEPS_A_CLIP == 0:
            self.fill(1)
        pairs = [pair for _, pair in self.pool]
        batch = crops(pairs, self.learner.network.scale, self.generator, BATCH, self.crop)
        return {"loss": learn(self.learner, *batch, self.generator, rate=2 * (1 - step / steps))}

    def measure(self) -> dict[str, float]:
        return {"held_out": quality(self.learner.result, self.held_out)}

    def export(self, record: Record) -> None:
        save_l2r(self.learner.result, self.out, record.described("converter") | self.metadata | {
            "psnr": round(record.curve[-1][-1], 2), "held_out": f"{len(self.held_out)} clips of other videos"})
        lines = [f"{minutes:.1f} min step {step} loss {loss:.4f} held-out clips {decibels:.2f} dB\n"
                 for minutes, step, loss, decibels in record.curve]  # fmt: skip
        self.out.with_suffix(".log").write_text("".join(lines), encoding="utf-8")
        draw_curve(record.curve, self.out.with_suffix(".png"))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"clip_generator": self.pool[0][0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.clip_generator.set_state(state["clip_generator"])
        self.pool, self.source = [], self.draw(self.clip_generator)


def draw_curve(curve: Sequence[Sequence[float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110)
    axes = figure.add_subplot(xlabel="step", ylabel="held-out clips, PSNR in dB")
    axes.plot([row[1] for row in curve], [row[3] for row in curve], marker=".")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)


def from_videos(
    vae: Path, latent_format: str, videos: Path, out: Path, architecture: Literal["paper", "subpixel"] = PAPER,
    height: int = 480, width: int = 720, frames: int = 49, min_flow: float = 0.5, flow_weights: Path | None = None,
    seed: int = 0,
) -> Converter:
    """vae: a file that ComfyUI's VAELoader takes; latent_format: a class of comfy/latent_formats.py, e.g. Wan21;
    videos: a folder, whose folders are searched too; out: put it into models/foresight_l2r to have it found; min_flow:
    mean optical flow of a clip in pixels a frame, 0: any clip; flow_weights: torchvision's raft_small or raft_large
    checkpoint."""
    if min_flow and flow_weights is None:
        raise SystemExit("--min-flow needs --flow-weights (torchvision's RAFT); with --min-flow 0 any clip is taken")
    try:
        files, measuring = split(videos)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    loaded, format_, device = load_vae(vae, latent_format)

    def encode(clip: Tensor) -> Pair:
        return encoded(loaded, format_, clip.float() / 255)

    shape = frames, height, width
    readable = (clip for path in measuring if (clip := read_clip(path, *shape)) is not None)
    held_out = [encode(clip) for clip in islice(readable, MEASURED)]
    if not held_out:
        raise SystemExit(f"none of the {len(measuring)} videos that measure has {frames} frames")
    motion = Motion(flow_weights, device) if min_flow else None

    def draw(generator: torch.Generator) -> Iterator[Tensor]:
        return clips(files, *shape, generator, lambda clip: motion is None or motion(clip) > min_flow)

    out.parent.mkdir(parents=True, exist_ok=True)
    return Converter(
        encode, draw, held_out, out, architecture=architecture, seed=seed, device=device,
        metadata={"name": out.stem, "latent_format": latent_format, "vae": fingerprint(loaded), "videos": len(files),
                  "min_flow": min_flow},
    )  # fmt: skip
