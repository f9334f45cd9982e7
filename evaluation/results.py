"""What the evaluations share: resumable jobs over processes, where a result was made, and how figures are written."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def run_jobs(
    work: Path, jobs: Mapping[str, tuple], run: Callable[..., Any], *, workers: int, start: Callable[[], None]
) -> list[Any]:
    """run(*arguments) for each job, in the order of `jobs`. Results are kept in `work`, one JSON line [key, result]
    each, so that an interrupted evaluation goes on where it stopped; keys must name everything a result depends on."""
    work.parent.mkdir(parents=True, exist_ok=True)
    done = dict(map(json.loads, work.read_text().splitlines())) if work.exists() else {}
    # The demo models are too small for several threads, so cores are used by running several jobs at once.
    with work.open("a") as log, ProcessPoolExecutor(workers, get_context("spawn"), start) as pool:
        waiting = {pool.submit(run, *arguments): key for key, arguments in jobs.items() if key not in done}
        for finished in tqdm(as_completed(waiting), total=len(waiting)):
            key = waiting[finished]
            done[key] = finished.result()
            log.write(json.dumps([key, done[key]]) + "\n")
            log.flush()
    return [done[key] for key in jobs]


def environment(command: str) -> dict[str, Any]:
    import comfyui_version

    return {
        "command": command, "date": datetime.date.today().isoformat(), "comfyui": comfyui_version.__version__,
        "torch": torch.__version__, "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPU cores, {'CUDA' if torch.cuda.is_available() else 'no GPU'}",
    }  # fmt: skip


def percent(cell: Mapping[str, float], signed: bool = False) -> str:
    """A rate of `statistics` as text: value (low to high, count of how many)."""
    if cell.get("of") == 0:
        return "none"
    form = "{:+.1f}" if signed else "{:.1f}"
    value, low, high = (form.format(100 * cell[key]) for key in ("value", "low", "high"))
    count = f", {cell['count']} of {cell['of']}" if "of" in cell else ""
    return f"{value} % ({low} to {high}{count})"


def number(cell: Mapping[str, float]) -> str:
    return f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"


def publish(out: Path, name: str, document: dict[str, Any], page: str) -> None:
    """Writes and prints a result: JSON for programs, Markdown for people."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / f"{name}.md").write_text(page)
    print(page)
