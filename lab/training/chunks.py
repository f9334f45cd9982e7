"""Data that takes long to make, kept on disk chunk by chunk: processes share the work, and a stop loses one each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .loop import load_checkpoint, save_checkpoint


def make_chunks(folder: Path, work: Callable[..., dict], jobs: Sequence[tuple]) -> list[dict[str, Any]]:
    """What `work(*job)` gives for each job, from folder/0.pt, 1.pt... where it was made before. work: a function of a
    module; tensors and plain values."""
    paths = [folder / f"{number}.pt" for number in range(len(jobs))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        print(f"{folder.name}: {len(missing)} of {len(jobs)} chunks to make", flush=True)
        # The models are too small for several threads: one process per core is twice as fast.
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            written = pool.map(_make, [paths[n] for n in missing], repeat(work), [jobs[n] for n in missing])
            for number, _ in enumerate(written, 1):
                print(f"{folder.name}: {number} of {len(missing)}", flush=True)
    return [load_checkpoint(path) for path in paths]


def _make(path: Path, work: Callable[..., dict], job: tuple) -> None:
    save_checkpoint(path, work(*job))
