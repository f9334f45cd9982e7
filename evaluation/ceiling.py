"""How early anything can be known on a model's schedule: the ceiling of every detector, by re-branching.

    python -m foresight.evaluation ceiling --suite demo --prompts 24 --seeds 4 --out out/evidence

Each clip is sampled to its end. Then the x0 prediction of a step is given fresh noise at that step's sigma, and a few
such branches are finished too. What of the outcome was decided by then, the branches share with the clip; what was not,
they draw anew. So how well the branches' mean verdict foretells the clip's own, among clips of one prompt, bounds what
any detector can say there that looks at the x0 prediction. A few branches are a noisy mean, so the figure is rather too
low than too high. Finished clips are kept in a JSON-lines file; an interrupted command goes on where it stopped.

The models run in this process's ComfyUI: the demo family, or with --family your own (see backend.InProcess).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .backend import InProcess
from .methods import WATCH
from .report_page import shown
from .results import environment, publish, run_jobs
from .run import fingerprint_of, model_settings
from .statistics import bootstrap_within
from .suites import Item, SuiteError, load_suite
from .workers import Spec, Worker

PLACES = (0.06, 0.1, 0.16, 0.2, 0.28, 0.4)  # of the schedule: steps 3, 5, 8, 10, 14 and 20 of 50
BRANCH_SEED = 10_000_000  # seeds of branches: far from those that are evaluated
FIRST_SEED = 1000

_worker: Worker | None = None


def start(spec: Spec) -> None:
    global _worker
    _worker = Worker(spec)


@torch.inference_mode()
def rebranch(inputs: Any, x0: torch.Tensor, step: int, seed: int) -> dict[str, Any]:
    """Finishes a clip from step `step` (1-based) on, from its x0 prediction there [1, C, F, h, w] (as VAE.decode takes
    it) with other noise. ComfyUI itself adds noise at the first sigma it is given, whatever the model's noise space."""
    from ..sampling.noise import SeededNoise
    from ..sampling.run import monitored_sample

    part = replace(inputs, noise=SeededNoise(seed), sigmas=inputs.sigmas[step - 1 :], latent={"samples": x0})
    return monitored_sample(part).latent


@torch.inference_mode()
def branch_out(backend: InProcess, judge: Any, item: Item, seed: int, at: Sequence[int], branches: int) -> dict:
    """One clip with its branches: good (None where there is no judge), score of the finished clip and its trace, and
    for each step of `at` the same of every branch: [[good, score], ...]."""
    from ..sampling.run import monitored_sample

    family = backend.family
    inputs = family.inputs(item.prompt, seed)
    base = monitored_sample(inputs, family.gate(item.prompt, **WATCH), stop="never", keep_steps=True)

    def outcome(latent: dict[str, Any]) -> list:
        clip = backend.finished(item.prompt, latent, None)
        return [judge(item, clip.frames)["right"], clip.final_score]

    good, score = outcome(base.latent)
    steps_x0 = base.steps_x0["samples"]
    found = {
        str(step): [
            outcome(rebranch(inputs, steps_x0[step - 1 : step], step, BRANCH_SEED * (branch + 1) + seed))
            for branch in range(branches)
        ]
        for step in at
    }
    trace = [[step, value] for step, value in base.verdict.record.best.trace]
    return {"prompt_index": item.index, "prompt": item.prompt, "seed": seed, "good": good, "score": score,
            "trace": trace, "branches": found}  # fmt: skip


def work(item: Item, seed: int, at: Sequence[int], branches: int) -> dict[str, Any]:
    return branch_out(_worker.backend, _worker.judge, item, seed, at, branches)


def summary(records: Sequence[dict[str, Any]], tau: float) -> dict[str, Any]:
    """By step: AUC within prompt of the branches (the ceiling), of the score of the preview there, and the share of the
    ceiling, above a coin, that the score reaches (None where the ceiling is no better than a coin, or where no prompt
    has both outcomes). Without a judge a clip is good when it scores at least tau."""

    def good_of(verdict: bool | None, score: float) -> bool:
        return score >= tau if verdict is None else bool(verdict)

    good = np.asarray([good_of(record["good"], record["score"]) for record in records])
    prompt = np.asarray([record["prompt_index"] for record in records])
    traces = [dict(map(tuple, record["trace"])) for record in records]
    mixed = [0 < good[prompt == index].mean() < 1 for index in np.unique(prompt)]
    steps = {}
    for step in records[0]["branches"]:
        branched = [np.mean([good_of(*one) for one in record["branches"][step]]) for record in records]
        seen = np.asarray([trace.get(int(step), math.nan) for trace in traces], float)
        known = np.isfinite(seen)
        ceiling = bootstrap_within(branched, good, prompt)
        score = bootstrap_within(seen[known], good[known], prompt[known])
        reached = (score["value"] - 0.5) / (ceiling["value"] - 0.5) if ceiling["value"] > 0.5 else None
        told = {"ceiling": ceiling, "score": score} if any(mixed) else {"ceiling": None, "score": None}
        steps[step] = told | {"share_of_ceiling": reached}
    return {"clips": len(records), "prompts": len(mixed), "prompts_with_both_outcomes": int(np.sum(mixed)),
            "good": float(good.mean()), "steps": steps}  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    made, settings, found = document["environment"], document["settings"], document["summary"]
    lines = [
        "# How early can the outcome be known?", "",
        f"{found['clips']} clips of {found['prompts']} prompts, {100 * found['good']:.0f} % good; only the "
        f"{found['prompts_with_both_outcomes']} prompts with both outcomes tell. {settings['branches']} branches at "
        f"each step, {settings['schedule']} in all. Made by `{made['command']}` on {made['date']}, {made['machine']}. "
        "In brackets: 95 % intervals from a bootstrap over prompts.", "",
        "| step | ceiling: AUC within prompt of re-branched clips | AUC within prompt of the preview's score | share "
        "of the ceiling above a coin |", "|---|---|---|---|",
    ]  # fmt: skip
    for step, row in found["steps"].items():
        share = row["share_of_ceiling"]
        lines.append(f"| {step} | {shown(row['ceiling'], 'number')} | {shown(row['score'], 'number')} | "
                     f"{'-' if share is None else f'{100 * share:.0f} %'} |")  # fmt: skip
    return "\n".join([*lines, "", "![](ceiling.png)", ""])


def picture(document: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((5.2, 3.4), layout="constrained")
    axes, steps = figure.subplots(), document["summary"]["steps"]
    steps = {step: row for step, row in steps.items() if row["ceiling"]}
    for key, name in (("ceiling", "re-branched clips (ceiling)"), ("score", "score of the preview")):
        middle, low, high = ([row[key][k] for row in steps.values()] for k in ("value", "low", "high"))
        axes.plot([int(step) for step in steps], middle, marker="o", label=name)
        axes.fill_between([int(step) for step in steps], low, high, alpha=0.2)
    axes.axhline(0.5, color="0.5", lw=0.8)
    axes.set(xlabel=f"step of {document['settings']['schedule']}", ylabel="AUC within prompt")
    axes.legend()
    figure.savefig(path, dpi=110)


def steps_at(places: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    """ValueError for steps that the schedule does not have."""
    at = places or sorted({max(1, round(place * steps)) for place in PLACES})
    if wrong := [step for step in at if not 1 <= step <= steps]:
        raise ValueError(f"--at names step {wrong[0]}, but the schedule has steps 1 to {steps}.")
    return tuple(at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m foresight.evaluation ceiling", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--suite", default="demo", help="demo, vbench, or a text file with one prompt a line")
    add("--prompts", type=int, default=24, help="the first prompts of the suite")
    add("--seeds", type=int, default=4, help="clips of each prompt")
    add("--branches", type=int, default=2, help="finished from each step of each clip")
    add("--at", type=int, nargs="+", metavar="STEP", help="steps to branch at (default: 6 to 40 %% of the schedule)")
    add("--steps", type=int, default=50, help="of the schedule")
    add("--family", help="module:function that gives another model in process (see backend.InProcess)")
    add("--judge", help="module:function(item, frames) -> {'right': bool or None, 'measures': {name: number}}")
    add("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    add("--out", type=Path, required=True, help="folder for ceiling.json, .md and .png")
    a = parser.parse_args(argv)
    try:
        for name in ("seeds", "branches", "steps", "workers"):
            if getattr(a, name) < 1:
                raise ValueError(f"--{name} is {getattr(a, name)}: it must be 1 or more.")
        at = steps_at(a.at, a.steps)
        suite = load_suite(a.suite, a.prompts)
        settings = model_settings("demo", a.family, a.steps, a.judge)
    except (ValueError, SuiteError) as error:
        raise SystemExit(f"ceiling: {error}") from None
    spec = Spec("demo", a.family, a.steps, a.judge, (), keep_clips=False)
    seeds = range(FIRST_SEED, FIRST_SEED + a.seeds)
    jobs = {
        json.dumps([fingerprint_of(settings), item.prompt, seed, at, a.branches]): (item, seed, at, a.branches)
        for item in suite.items for seed in seeds
    }  # fmt: skip
    records = run_jobs(a.out / "ceiling.jsonl", jobs, work, workers=a.workers, start=partial(start, spec))
    worker = Worker(spec)  # for this process's ComfyUI and the scorer's tau
    command = f"python -m foresight.evaluation ceiling --suite {a.suite} --prompts {len(suite.items)} --seeds {a.seeds}"
    command += f" --branches {a.branches} --steps {a.steps} --at {' '.join(map(str, at))}"
    document = {
        "schema": "foresight.ceiling", "version": 1, "environment": environment(command),
        "settings": {"suite": suite.name, "schedule": a.steps, "at": at, "branches": a.branches, "seeds": list(seeds),
                     "family": a.family or "demo"},
        "summary": summary(records, worker.backend.family.scorer.tau),
    }  # fmt: skip
    publish(a.out, "ceiling", document, markdown(document))
    picture(document, a.out / "ceiling.png")


if __name__ == "__main__":
    main()
