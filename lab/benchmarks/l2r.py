"""What previews are worth and what they cost: ``python -m foresight.lab.benchmarks.l2r --footage video.mp4``.

PSNR on held-out clips, time, parameters, arithmetic and peak memory of a VAE's own decoder, ComfyUI's TAEHV (random
weights: time and memory only), the best linear map, and this pack's converters: of the demo VAE in its own world, and
of a VAE trained on real footage (lab/training/footage.py). All are fitted to the same clips, but for what L2R
Calibrate makes of clips of its own. --full adds the paper's setting with random weights, for time and memory alone.
Writes docs/results/l2r.json and l2r.md. Latents and trained converters are kept: the same command goes on after a stop,
and what is measured in seconds is measured anew.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ...evaluation.comfyui import ROOT, load_vae
from ...evaluation.results import environment, publish
from ...l2r.calibration import calibrate
from ...l2r.checkpoint import PAPER, SUBPIXEL
from ...l2r.fit import fit_affine, key_frames, psnr, quality, refine
from ...l2r.model import L2R
from ...l2r.pairs import encoded, fingerprint
from ...l2r.subpixel import SubpixelL2R
from ..training import footage
from ..training.common import STATE, VAE, random_clips
from ..training.converter import Converter
from ..training.loop import load_checkpoint, save_checkpoint, train

LATENT_FORMAT = "Wan21"
DEMO_CLIPS, DEMO_HELD_OUT = 512, 48
SEEDS = {"learned": 6, "held_out": 990_006, "training": 1}
REFINE_SECONDS = 300
CROP = 8  # latents a side, in training: with the recipe's 24 two CPU cores would need a night for the paper's layout
PAPER_LATENT = (1, 16, 13, 60, 90)  # 49 frames of 480x720 (section A.2)
REPEAT, PATIENCE = 3, 5.0  # calls at least, and seconds at least
TUNING = "OMP_NUM_THREADS", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"  # times depend on them
CALIBRATED = "L2R Calibrate, its own clips alone"

Pair = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """The best map of each latent position to a colour (least squares), enlarged bilinearly."""

    def __init__(self, pairs: Sequence[Pair]):
        super().__init__()
        latents = torch.cat([latent.movedim(1, -1).flatten(0, -2) for latent, _ in pairs])
        self.scale = pairs[0][1].shape[2] // pairs[0][0].shape[-2]
        colours = torch.cat([
            F.avg_pool2d(frames.flatten(0, 1).movedim(-1, 1), self.scale).movedim(1, -1).flatten(0, -2)
            for _, frames in pairs
        ])
        rows = F.pad(latents, (0, 1), value=1.0)
        self.weight = nn.Parameter(torch.linalg.lstsq(rows, colours).solution)

    def forward(self, latent: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        latent = latent if frames is None else latent[:, :, frames]
        colours = latent.movedim(1, -1) @ self.weight[:-1] + self.weight[-1]
        enlarged = F.interpolate(colours.flatten(0, 1).movedim(-1, 1), scale_factor=self.scale, mode="bilinear")
        return enlarged.movedim(1, -1).unflatten(0, colours.shape[:2])


@dataclass
class Case:
    """A VAE and what its decoders are measured on. fitted, held_out: pairs of model-space latents and frames."""

    name: str
    vae: Any
    latent_format: Any
    device: torch.device
    fitted: list[Pair]
    held_out: list[Pair]
    clips: Tensor  # uint8 [N, T, H, W, 3] of held_out, all frames

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """The VAE's own, to all frames [1, T, H, W, 3]."""
        return lambda latent: self.vae.decode(self.latent_format.process_out(latent))


def case(name: str, path: Path, learned: Tensor, held_out: Tensor) -> Case:
    vae, latent_format, device = load_vae(path, LATENT_FORMAT)
    fitted, measured = (encode_once(vae, latent_format, clips) for clips in (learned, held_out))
    return Case(name, vae, latent_format, device, fitted, measured, held_out)


def digest(*parts: Any) -> str:
    """Eight digits of bytes or arrays."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:8]


def encode_once(vae: Any, latent_format: Any, clips: Tensor) -> list[Pair]:
    """clips: uint8 [N, T, H, W, 3]. Their latents are kept, because footage takes a quarter of an hour."""
    path = STATE / f"l2r_latents_{fingerprint(vae)}_{digest(clips.contiguous().numpy())}.pt"
    if (kept := load_checkpoint(path)) is None:
        kept = {"latents": [encoded(vae, latent_format, clip.float() / 255)[0] for clip in clips]}
        save_checkpoint(path, kept)
    return [
        (latent, key_frames(clip[None], latent.shape[2]).float() / 255)
        for latent, clip in zip(kept["latents"], clips, strict=True)
    ]


def trained(architecture: str, case: Case, steps: int) -> tuple[nn.Module, float]:
    """By `lab/training/converter.py`, from pairs that are already encoded, and the seconds it took. Kept until
    the pairs or anything in l2r/ changes."""

    def draw(generator: torch.Generator) -> Iterator[Pair]:
        while True:
            yield case.fitted[int(torch.randint(len(case.fitted), (), generator=generator))]

    sources = [path.read_bytes() for path in sorted((ROOT / "l2r").glob("*.py"))]
    pairs = (tensor.contiguous().numpy() for pair in case.fitted for tensor in pair)
    made_of = digest(*sources, str(CROP).encode(), *pairs)
    out = STATE / f"l2r_{made_of}_{architecture}_{steps}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    task = Converter(lambda pair: pair, draw, case.fitted[:1], out, architecture=architecture, seed=SEEDS["training"],
                     metadata={}, crop=CROP)  # fmt: skip
    return task.learner.result, 60 * train(task, steps).minutes


@torch.inference_mode()
def calibrated(case: Case, seconds: float) -> nn.Module:
    """What the node L2R Calibrate makes of the VAE alone, from clips of its own, as ComfyUI runs it."""
    settings = {"seconds": seconds, "save": False, "device": case.device}
    return calibrate(case.vae, case.latent_format, None, None, STATE, **settings)[0]


def timed(build: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    begin = time.monotonic()
    return build(), time.monotonic() - begin


def cost(decode: Callable[[Tensor], Any], latent: Tensor) -> dict[str, float]:
    """milliseconds (see `fastest`), gflop (of matrix products and convolutions, two for each multiplication) and
    peak_megabytes (beside what was there before) of decoding a latent."""

    @torch.no_grad()
    def run() -> None:
        decode(latent)

    peak = peak_bytes(run, latent.is_cuda)
    with FlopCounterMode(display=False) as counter:
        run()
    milliseconds = 1000 * fastest(run)
    return {"milliseconds": round(milliseconds, 2), "gflop": round(counter.get_total_flops() / 1e9, 4),
            "peak_megabytes": round(peak / 2**20, 1)}  # fmt: skip


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of REPEAT calls, or of as many more as fit into PATIENCE: what else the machine does can
    only add to them. A call before these must have warmed up."""
    times: list[float] = []
    while len(times) < REPEAT or sum(times) < PATIENCE:
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


def peak_bytes(run: Callable[[], Any], on_gpu: bool) -> int:
    """Most memory that a call takes at any moment. On the CPU (with glibc) a forked process measures itself, on one
    thread, because a fork takes no other threads along."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps back would be taken again unseen
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()

    def child() -> None:
        torch.set_num_threads(1)
        before = resident()
        run()
        answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)

    process = context.Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"measuring memory failed with exit code {process.exitcode}")
    return max(0, answer.get())


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())


def taehv(latent_format: Any) -> nn.Module:
    """ComfyUI's small decoder for Wan 2.1 in its real size, with random weights."""
    from comfy.taesd.taehv import TAEHV

    return TAEHV(16, latent_format=type(latent_format), show_progress_bar=False).eval()


@torch.no_grad()
def own_psnr(case: Case) -> float:
    """Of the VAE's own decoder, on the frames that the converters show."""
    values = []
    for latent, frames in case.held_out:
        shown = case.decoder()(latent)[:, :: max(1, (case.clips.shape[1] - 1) // max(1, frames.shape[1] - 1))]
        values.append(psnr(shown.float().cpu(), frames))
    return torch.cat(values).mean().item()


def rows(case: Case, steps: int, refine_seconds: float) -> list[dict[str, Any]]:
    latent = case.held_out[0][0]
    table = []

    def add(name: str, decode: Callable, module: nn.Module, decibels: float | None, seconds: float = 0.0) -> None:
        row = {"name": name, "vae": case.name, "psnr_db": decibels and round(decibels, 2), **cost(decode, latent),
               "parameters": parameters(module), "fit_seconds": round(seconds, 1)}  # fmt: skip
        table.append(row)
        print(row, flush=True)

    network = case.vae.first_stage_model
    add("VAE decoder", case.decoder(), nn.ModuleList([network.decoder, network.conv2]), own_psnr(case))
    small = taehv(case.latent_format)
    add("TAEHV (random weights)", small.decode, small.decoder, None)
    affine, fit_seconds = timed(lambda: fit_affine(case.fitted))
    better, more = timed(lambda: refine(fit_affine(case.fitted), case.fitted, refine_seconds))
    for name, (module, took) in {
        "linear map": timed(lambda: Linear(case.fitted)),
        "closed-form fit": (affine, fit_seconds),
        f"closed-form fit, refined for {refine_seconds:.0f} s": (better, more),
        CALIBRATED: timed(lambda: calibrated(case, 0)),
        f"{CALIBRATED}, refined for {refine_seconds:.0f} s": timed(lambda: calibrated(case, refine_seconds)),
        f"{PAPER}, {steps} steps": trained(PAPER, case, steps),
        f"{SUBPIXEL}, {steps} steps": trained(SUBPIXEL, case, steps),
    }.items():
        add(name, module, module, quality(module, case.held_out), took)
    return table


def full_size() -> list[dict[str, Any]]:
    """The paper's setting (Table S1: 19.7 ms for L2R, on an A100): time and memory, random weights."""
    import comfy.latent_formats
    from comfy.ldm.wan.vae import WanVAE

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.float16 if device.type == "cuda" else torch.float32
    latent = torch.randn(PAPER_LATENT, device=device, dtype=kind)
    network = WanVAE(dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                     temperal_downsample=[False, True, True], dropout=0.0)  # fmt: skip
    small = taehv(comfy.latent_formats.Wan21())
    table = []
    for name, module, decode in (
        ("VAE decoder", nn.ModuleList([network.decoder, network.conv2]), network.decode),
        ("TAEHV (random weights)", small.decoder, small.decode),
        (PAPER, paper := L2R(16, 8), paper), (SUBPIXEL, subpixel := SubpixelL2R(16, 8), subpixel),
    ):
        for part in (network, small, module):
            part.to(device, kind).eval()
        table.append({"name": name, "vae": "Wan 2.1, 480x720, 13 latent frames", "psnr_db": None,
                      **cost(decode, latent), "parameters": parameters(module), "fit_seconds": None})  # fmt: skip
        print(table[-1], flush=True)
    return table


def markdown(document: dict[str, Any]) -> str:
    made = document["environment"]
    lines = [
        "# Previews: what they are worth and what they cost", "",
        f"Made by `{made['command']}` on {made['date']}, {made['machine']}, torch {made['torch']}. PSNR in dB on "
        "held-out clips, against the frame that belongs to each latent frame; one clip decoded at a time; "
        f"the fastest of {REPEAT} calls or more.",
    ]  # fmt: skip
    for vae in dict.fromkeys(row["vae"] for row in document["rows"]):
        lines += ["", f"## {vae}", "", "| | PSNR | ms | parameters | GFLOP | peak MB | fitted in s |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        for row in document["rows"]:
            if row["vae"] == vae:
                decibels = "" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
                fitted = "" if not row["fit_seconds"] else f"{row['fit_seconds']:.1f}"
                lines.append(f"| {row['name']} | {decibels} | {row['milliseconds']:.1f} | {row['parameters']:,} | "
                             f"{row['gflop']:.2f} | {row['peak_megabytes']:.0f} | {fitted} |")  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path, help="see lab/training/footage.py; without it only the demo VAE")
    parser.add_argument("--full", action="store_true", help="the paper's setting too: needs a GPU, or patience")
    parser.add_argument("--steps", type=int, default=2000, help="of training either architecture")
    parser.add_argument("--refine", type=float, default=REFINE_SECONDS, help="seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    a = parser.parse_args()
    learned, held_out = (random_clips(torch.Generator().manual_seed(SEEDS[name]), count)
                         for name, count in (("learned", DEMO_CLIPS), ("held_out", DEMO_HELD_OUT)))  # fmt: skip
    cases = [("demo, width 8, 64x64, 5 latent frames", VAE, learned, held_out)]
    recipes = {}
    if a.footage:
        if not footage.VAE.exists():
            raise SystemExit("no VAE for footage: python -m foresight.lab.training footage_vae --video VIDEO trains it")
        recipes = {"footage_vae": json.loads(footage.VAE.with_suffix(".json").read_text(encoding="utf-8"))}
        cases.append(("footage, width 16, 480x720, 13 latent frames", footage.VAE, *footage.clips(a.footage)))
    table = [row for each in cases for row in rows(case(*each), a.steps, a.refine)]
    table += full_size() if a.full else []
    variables = "".join(f"{name}={os.environ[name]} " for name in TUNING if name in os.environ)
    command = variables + "python -m foresight.lab.benchmarks.l2r" + " --footage video.mp4" * bool(a.footage)
    command += " --full" * a.full
    document = {
        "schema": "foresight.l2r", "version": 1, "environment": environment(f"{command} --steps {a.steps}"),
        "settings": {"steps": a.steps, "refine_seconds": a.refine, "crop": CROP, "repeat": REPEAT,
                     "seeds": SEEDS} | recipes,
        "rows": table,
    }  # fmt: skip
    publish(a.out, "l2r", document, markdown(document))


if __name__ == "__main__":
    main()
