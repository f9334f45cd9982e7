"""Trains a VAE of the Wan architecture on real footage: ``python -m foresight.lab.training.train_footage_vae VIDEO``.

The demo family's VAE knows only its own world, so `lab/benchmarks/l2r.py` needs a second one. Same recipe as the demo's
(lab/training/train_vae.py), width 16. The same command goes on after a stop.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import footage
from .common import STATE
from .train_vae import cut, train

EXPORT = STATE / "footage_vae.safetensors"
WIDTH = 16
CLIPS, HELD_OUT, FRAMES, SIZE = 2048, 96, 17, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path, help="see lab/training/footage.py")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    learned, held_out = footage.clips(a.video)
    generator = torch.Generator().manual_seed(a.seed)
    train(
        cut(learned, CLIPS, FRAMES, SIZE, generator), cut(held_out, HELD_OUT, FRAMES, SIZE, generator),
        a.steps, WIDTH, a.seed, EXPORT,
    )  # fmt: skip


if __name__ == "__main__":
    main()
