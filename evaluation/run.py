"""Runs a suite of prompts x seeds x methods through ComfyUI and keeps every result in one SQLite file.

    python -m foresight.evaluation run --suite demo --quick --out out/evidence
    python -m foresight.evaluation run --suite demo --full --out out/evidence
    python -m foresight.evaluation run --suite my.txt --model wan2.1_t2v_1.3b --server http://127.0.0.1:8188 --out out

An interrupted command goes on where it stopped; one with more prompts, seeds or methods adds to what is there. What a
table needs is made from the file by `python -m foresight.evaluation report`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..trials.race import SELF_REFINE
from .bench import BASE, MethodError
from .evidence import DATABASE
from .fill import cells, fingerprint_of, keep, missing, model_settings
from .graph_settings import FAMILIES
from .methods import STANDARD, load_method
from .raced import outdated
from .report import main as report
from .results import command_parser
from .store import Store, StoreError
from .suites import SuiteError, load_suite
from .workers import Job, Spec, Worker, in_processes, over_servers

# The paper's sweep (0.22, 0.26, 0.30; Table S6) in any scorer's units, and its cure for lost motion.
SWEEP = ("efdi@tau=+0.04", "efdi@tau=+0.08")
GENTLE = "efdi@injection_strength=0.5"
# Races at budgets of 10 to 100 %, and what else spends evaluations; they need the models in process.
RACES = tuple(f"race@budget={budget:g},self_refine={mode}" for mode in SELF_REFINE for budget in (0.1, 0.2, 0.5, 1.0))
RIVALS = ("best_of_2", "self_refine@light", "self_refine", "search")
FIXED = 0.24  # of the schedule: near the dynamic detector's mean stop (paper: 11 of 50, demo family: 12)
# Time of a result in plain runs: base is also scored at every step, decoded and judged; the others are what they cost
# when 30 % of the runs are rejected, as measured on the demo family. Methods that only look at base clips are free.
WEIGHT = {BASE: 1.9, "efdi": 1.0, "trial_1": 0.7, "trial_2": 0.6, "fixed_step": 0.8, "regenerate": 0.4}
RAISED = 2.2  # times that, with a raised tau
SECONDS = 1.8  # of a plain run of the demo model on one core of two that are busy


class Problem(Exception):
    """Something the user can put right; shown without a traceback."""


def estimate(jobs: list[Job], rows: list[dict[str, Any]], workers: int, demo: bool) -> str:
    """What is ahead, in words, from the plain runs in the database where there are any."""
    cells = [method for job in jobs for method, _ in job.cells]
    text = f"{len(jobs)} prompts, {len(cells)} results to make"
    measured = [row["seconds_plain"] for row in rows if row["method"] == BASE]
    seconds = sum(measured) / len(measured) if measured else SECONDS if demo else None
    if seconds is None:
        return f"{text}; how long it takes shows after the first prompt"
    whole = sum(WEIGHT.get(m.partition("@")[0], float(":" in m)) * (RAISED if "tau=+" in m else 1) for m in cells)
    source = "the runs that are there" if measured else "2 busy CPU cores"
    minutes = max(1, round(seconds * whole / workers / 60))
    return f"{text}, about {minutes} min ({seconds:.1f} s a plain run, from {source})"


def options(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("run", __doc__)
    add = parser.add_argument
    add("--suite", default="demo", help="demo, vbench, or a text file with one prompt a line")
    add("--out", type=Path, required=True, help=f"folder for {DATABASE} and the report")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="9 prompts, 3 seeds: minutes")
    size.add_argument("--full", action="store_true", help="510 prompts, 3 seeds, also other thresholds: hours")
    add("--prompts", type=int, help="only the first prompts of the suite")
    add("--seeds", type=int, default=3, help="seeds of the base runs (default 3)")
    add("--method-seeds", type=int, default=1, help="how many of them the other methods run on (default 1)")
    add("--first-seed", type=int, default=1000)
    add("--method", action="append", dest="methods", metavar="METHOD",
        help="a method (see evaluation/methods.py), repeatable; default: the paper's. A plug-in is module:function")
    add("--also", action="append", default=[], metavar="METHOD", help="a method beside the default ones, repeatable")
    add("--model", default="demo", choices=sorted(FAMILIES), help="the model, as in workflows/; not the demo: --server")
    add("--family", help="module:function that gives another model in process (see backend.InProcess)")
    add("--steps", type=int, help="other than the model's own number of steps")
    add("--judge", help="module:function(item, frames) -> {'right': bool or None, 'measures': {name: number}}")
    add("--workers", type=int, default=os.cpu_count(), help="processes, one thread each (default: one a core)")
    add("--server", action="append", metavar="URL", help="a running ComfyUI with this pack; repeat for more")
    add("--ray", metavar="ADDRESS", help="a Ray cluster ('auto', or host:port): one ComfyUI on each GPU")
    add("--no-clips", action="store_true", help="keep no clips in the database")
    add("--no-report", action="store_true", help="make no report when all is done")
    a = parser.parse_args(arguments)
    a.typed = arguments
    return a


def chosen_methods(a: argparse.Namespace, steps: int) -> tuple[list[str], list[str]]:
    """What is made for all prompts first, so that a run that is stopped early has its tables, and what comes then."""
    remote = a.server or (a.ray and a.model != "demo")
    ours = () if remote else ("race",)
    first = a.methods or [*STANDARD, *ours, f"fixed_step@{max(1, round(FIXED * steps))}"]
    first = list(dict.fromkeys([BASE, *first]))  # base: what every comparison stands on
    full = (*SWEEP, GENTLE, *(() if remote else (*RACES, *RIVALS)))
    then = [*(full if a.full and not a.methods else ()), *a.also]
    for name in (*first, *then):
        if load_method(name, steps).in_process and remote:
            raise Problem(f"method {name!r} is a plug-in and needs the models in process: leave --server out.")
    return first, [name for name in dict.fromkeys(then) if name not in first]


def make(a: argparse.Namespace, store: Store, jobs: list[Job], methods: list[str], settings: dict[str, Any]) -> int:
    """Makes what is missing of these methods; returns the number of prompts that failed."""
    if not jobs:
        return 0
    spec = Spec(a.model, a.family, a.steps, a.judge, tuple(methods), not a.no_clips)
    if a.ray:
        from .ray_pool import over_ray

        outcomes = over_ray(spec, jobs, a.ray)
    elif a.server:
        outcomes = over_servers(spec, jobs, a.server)
    else:
        outcomes = in_processes(partial(Worker, spec), jobs, min(a.workers, len(jobs)))
    command = f"python -m foresight.evaluation run {shlex.join(a.typed)}"
    return keep(store, jobs, outcomes, command, settings)


def run(arguments: list[str]) -> int:
    a = options(arguments)
    for name in ("seeds", "method_seeds", "workers"):
        if getattr(a, name) < 1:
            raise Problem(f"--{name.replace('_', '-')} is {getattr(a, name)}: it must be 1 or more.")
    if a.server and a.ray:
        raise Problem("--server and --ray exclude each other: a Ray cluster starts its own ComfyUI.")
    if a.model != "demo" and not (a.server or a.ray or a.family):
        raise Problem(f"{a.model} runs in a ComfyUI of yours: start it and name it with --server.")
    if a.steps is not None and a.steps < 1:
        raise Problem(f"--steps is {a.steps}: it must be 1 or more.")
    count = a.prompts or (9 if a.quick else 510 if a.full else None)
    suite = load_suite(a.suite, count)
    for note in suite.notes:
        print(f"{suite.name}: {note}")
    settings = model_settings(a.model, a.family, a.steps, a.judge)
    settings |= {"fingerprint": fingerprint_of(settings)}
    stages = chosen_methods(a, a.steps or settings.get("steps", 50))
    seeds = list(range(a.first_seed, a.first_seed + a.seeds))
    settings |= {
        "suite": suite.name, "prompts": len(suite.items), "seeds": seeds, "method_seeds": a.method_seeds,
        "methods": [*stages[0], *stages[1]],
    }
    with Store(a.out / DATABASE, write=True) as store:
        store.remove(row for row in store.rows(settings["fingerprint"]) if outdated(row))

        def ahead(methods: list[str]) -> list[Job]:
            of_each = cells(methods, seeds, a.method_seeds)
            return missing(suite.items, lambda _: of_each, store.rows(settings["fingerprint"]))

        workers = len(a.server or ()) or a.workers
        rows = store.rows(settings["fingerprint"])
        demo = a.model == "demo" and not a.family
        print(estimate(ahead(settings["methods"]), rows, workers, demo), flush=True)
        if failed := sum(make(a, store, ahead(methods), methods, settings) for methods in stages):
            raise Problem(f"{failed} prompts failed; the same command tries them again.")
        print(f"{len(store.rows(settings['fingerprint']))} results are in {store.path}")
    if not a.no_report:
        report([str(a.out), "--settings", settings["fingerprint"]])
    return 0


def main(arguments: list[str]) -> None:
    try:
        run(arguments)
    except (Problem, SuiteError, MethodError, StoreError, ConnectionError) as problem:
        sys.exit(f"evaluation run: {problem}")
    except KeyboardInterrupt:
        sys.exit("evaluation run: stopped; the same command goes on from here")
