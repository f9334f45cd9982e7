"""What fills a database: which results are missing, who makes them, and how they are kept. One process writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from ..scoring.detector import DetectorSettings
from .bench import BASE, REUSED, Cell
from .graph_settings import FAMILIES, PACK
from .store import Store
from .suites import Item
from .workers import Job, Outcome, in_processes


def model_settings(model: str, family: str | None, steps: int | None, judge: str | None) -> dict[str, Any]:
    """Everything that results depend on, besides prompt, seed and method."""
    if family:
        settings: dict[str, Any] = {"family": family}
    else:
        settings = {"model": model, **asdict(FAMILIES[model])}
        for of_the_example in ("prompt", "seed"):
            del settings[of_the_example]
        settings["steps"] = steps or settings["steps"]
    if model == "demo" and not family:
        from .demo_family import fingerprint

        settings |= {"weights": fingerprint()}
    detectors = {"video": asdict(DetectorSettings.video()), "single_frame": asdict(DetectorSettings.single_frame())}
    return settings | {"judge": judge, "detector": detectors}


def fingerprint_of(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def cells(methods: Sequence[str], seeds: Sequence[int], method_seeds: int | None = None) -> list[Cell]:
    """Every method on every seed; all but base on the first `method_seeds` only, where that is given."""
    return [(m, seed) for m in methods for seed in (seeds if m == BASE else seeds[:method_seeds])]


def missing(items: Iterable[Item], cells_of: Callable[[Item], Sequence[Cell]], rows: Iterable[dict]) -> list[Job]:
    """One job for each prompt of which one of its cells is not in `rows`."""
    done, known = set(), {}
    for row in rows:
        done.add((row["prompt_index"], row["prompt"], row["seed"], row["method"]))
        if row["method"] in REUSED:
            known.setdefault((row["prompt_index"], row["prompt"]), {})[row["method"], row["seed"]] = row
    jobs = []
    for item in items:
        absent = tuple((m, seed) for m, seed in cells_of(item) if (item.index, item.prompt, seed, m) not in done)
        if absent:
            jobs.append(Job(item, absent, known.get((item.index, item.prompt), {})))
    return jobs


def keep(store: Store, jobs: list[Job], outcomes: Iterable[Outcome], command: str, settings: dict[str, Any]) -> int:
    """Writes what comes in, from this process alone; returns the number of prompts that failed."""
    marks = {"suite": settings["suite"], "settings": settings["fingerprint"]}
    metas: dict[str, int] = {}
    failed = 0
    with tqdm(total=sum(len(job.cells) for job in jobs), unit="result") as bar:
        for job, result in outcomes:
            bar.update(len(job.cells))
            if isinstance(result, Exception):
                failed += 1
                tqdm.write(f"prompt {job.item.index} failed ({type(result).__name__}: {result}); the others go on")
                continue
            where = {"machine": result["machine"], "versions": result["versions"] | {"foresight": PACK["ver"]}}
            name = json.dumps(where, sort_keys=True)
            if name not in metas:
                plain = [row for row in (*result["rows"], *job.known.values()) if row["method"] == BASE]
                used = plain[0]["report"]["settings"] if plain else {}  # every method of a suite looks at a base run
                scorers = {key: used[key] for key in ("tau", "delta", "scale", "scorer", "l2r") if key in used}
                metas[name] = store.begin(command, **where, settings=settings | scorers)
            store.add([row | marks for row in result["rows"]], metas[name])
    return failed


def complete(
    store: Store, items: Sequence[Item], cells_of: Callable[[Item], Sequence[Cell]], make: Callable[[], Callable],
    settings: dict[str, Any], command: str, workers: int,
) -> list[dict[str, Any]]:
    """All rows of these settings, after what is missing of `cells_of` was made in processes of this machine. make: see
    `workers.in_processes`; settings: with the keys suite and fingerprint. SystemExit where a prompt failed."""
    jobs = missing(items, cells_of, store.rows(settings["fingerprint"]))
    outcomes = in_processes(make, jobs, workers) if jobs else ()
    if failed := keep(store, jobs, outcomes, command, settings):
        raise SystemExit(f"{failed} prompts failed; the same command tries them again.")
    return store.rows(settings["fingerprint"])
