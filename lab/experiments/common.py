"""What the experiments share: their command line, and the way from the results that they want to rows of a database."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...evaluation.bench import Row
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.fill import Cell, complete, fingerprint_of
from ...evaluation.results import environment, publish
from ...evaluation.store import Store
from ...evaluation.suites import Item

Rows = dict[str, dict[tuple[int, int], Row]]  # method -> (prompt_index, seed) -> row
Fill = Callable[[Callable[[Item], Sequence[Cell]]], Rows]


def parser(description: str, name: str, prompts: int, seeds: int | None = None) -> argparse.ArgumentParser:
    """The options of an experiment's command; prompts and seeds: how many by default."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompts", type=int, default=prompts)
    if seeds is not None:
        options.add_argument("--seeds", type=int, default=seeds, help="of each prompt")
    options.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options.add_argument("--work", type=Path, default=ROOT / "out" / f"{name}.sqlite", help="database of what is done")
    return options


@contextmanager
def experiment(
    work: Path, items: Sequence[Item], make: Callable[[], Callable], settings: dict[str, Any], command: str,
    workers: int,
) -> Iterator[Fill]:
    """A function that makes what is missing of each prompt's cells, and gives the rows of all of them. settings: what
    results depend on besides prompt, seed and method."""
    settings = settings | {"fingerprint": fingerprint_of(settings), "suite": settings.get("suite", "demo")}
    load_comfyui()
    with Store(work, write=True) as store:

        def fill(cells_of: Callable[[Item], Sequence[Cell]]) -> Rows:
            rows = complete(store, items, cells_of, make, settings, command, workers)
            known = {(row["prompt_index"], row["prompt"], row["seed"], row["method"]): row for row in rows}
            by_method: Rows = {}
            for item in items:
                for method, seed in cells_of(item):
                    row = known[item.index, item.prompt, seed, method]
                    by_method.setdefault(method, {})[item.index, seed] = row
            return by_method

        yield fill


def made_by(document: dict[str, Any]) -> str:
    """How and where, for a page."""
    where = document["environment"]
    return (
        f"Made by `{where['command']}` on {where['date']}, {where['machine']}, ComfyUI {where['comfyui']}, torch "
        f"{where['torch']}. In brackets: 95 % intervals from a bootstrap over prompts."
    )


def write(out: Path, name: str, command: str, document: dict[str, Any], page: Callable[[dict[str, Any]], str]) -> None:
    """Publishes the document with its schema and where it was made, and the page that `page` makes of it."""
    whole = {"schema": f"foresight.{name}", "version": 1, "environment": environment(command), **document}
    publish(out, name, whole, page(whole))
