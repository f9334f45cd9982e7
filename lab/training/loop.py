"""The one training loop, and what a recipe, a task, brings to it."""

from __future__ import annotations

import datetime
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...l2r.learner import Learner


@dataclass
class Record:
    """How far a training has come, over all its restarts. curve: a row of minutes, step and Task.columns for each
    measurement. Minutes are for the record only: trainings are counted in steps, so that a busy machine learns as much,
    only later."""

    step: int = 0
    minutes: float = 0.0
    curve: list[list[float]] = field(default_factory=list)

    def described(self, task: str) -> dict[str, Any]:
        """For the file that is exported."""
        return {"recipe": f"foresight.lab.training {task}", "date": datetime.date.today().isoformat(),
                "torch": torch.__version__, "minutes": round(self.minutes, 1), "steps": self.step}  # fmt: skip


class Task(ABC):
    """A recipe: it owns its data, networks, losses, measure and export; the loop owns steps, clock and checkpoints.

    parts holds all that a stop must not lose. A task may have several learners there, as a student and its critic, and
    steps in `update` those whose turn it is.
    """

    steps: int  # of the recipe
    every = 200  # steps between measurements; after each there is a checkpoint
    columns: tuple[str, ...] = ()  # the figures that the curve is of
    usable_early = False  # whether it is exported at every measurement, or only at the end
    checkpoint: Path
    out: Path  # the file that `export` writes
    parts: dict[str, Learner | nn.Module | torch.Generator]

    @abstractmethod
    def update(self, step: int, steps: int) -> dict[str, Any]:
        """Learns from one batch, after `step` of `steps`. Gives figures to print: numbers or tensors of one."""

    def measure(self) -> dict[str, float]:
        """Figures on data that is not trained on. Draws from no generator of the training."""
        return {}

    @abstractmethod
    def export(self, record: Record) -> None:
        """Writes `out`, and leaves all parts as they are."""

    def state_dict(self) -> dict[str, Any]:
        return {name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
                for name, part in self.parts.items()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
            load(state[name])


def train(task: Task, steps: int, say: Callable[[str], None] = print) -> Record:
    """Trains until `steps`, from the task's checkpoint on where there is one: after a stop at any moment exactly as
    without. What is finished is passed over."""
    record = Record()
    if state := load_checkpoint(task.checkpoint):
        if "record" not in state:
            raise SystemExit(f"{task.checkpoint} is of an older training command: remove it to begin anew")
        task.load_state_dict(state["task"])
        record = Record(**state["record"])
        say(f"going on from step {record.step}")
    begin = time.monotonic() - 60 * record.minutes
    while record.step < steps:
        figures = task.update(record.step, steps)
        record.step += 1
        last = record.step == steps
        if last or record.step % task.every == 0:
            figures = {name: torch.as_tensor(value).item() for name, value in {**figures, **task.measure()}.items()}
            record.minutes = (time.monotonic() - begin) / 60
            record.curve.append([round(record.minutes, 2), record.step, *(round(figures[c], 4) for c in task.columns)])
            say(f"{record.minutes:.1f} min step {record.step} "
                + " ".join(f"{name} {value:.4f}" for name, value in figures.items()))  # fmt: skip
            if last or task.usable_early:
                task.export(record)
            # Last, so that what counts as done has its file written.
            save_checkpoint(task.checkpoint, {"task": task.state_dict(), "record": asdict(record)})
    if not task.out.exists():
        task.export(record)
    return record


def trapezoid(progress: float, warmup: float = 0.02, decay: float = 0.4) -> float:
    """Learning-rate factor at `progress` 0..1: linear up, flat, linear to zero."""
    return max(0.0, min(progress / warmup + 0.01, 1.0, (1.0 - progress) / decay))


def save_checkpoint(path: Path, state: dict) -> None:
    """Write beside and rename, so that a kill in between leaves the old checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(path: Path) -> dict | None:
    return torch.load(path, weights_only=True) if path.exists() else None
