"""How early anything can be known on a model's schedule: the ceiling of every detector, by re-branching.

    python -m foresight.evaluation ceiling --suite demo --prompts 24 --seeds 4 --out out/evidence

Each clip is sampled to its end. Then the x0 prediction of a step is given fresh noise at that step's sigma, and a few
such branches are finished too. What of the outcome was decided by then, the branches share with the clip; what was not,
they draw anew. So how well the branches' mean verdict foretells the clip's own, among clips of one prompt, bounds what
any detector can say there that looks at the x0 prediction. A few branches are a noisy mean, so the figure is rather too
low than too high. Finished prompts are kept in ceiling.sqlite; an interrupted command goes on where it stopped.

The models run in this process's ComfyUI: the demo family, or with --family your own (see backend.InProcess).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .bench import WATCH, Bench, Method, Row
from .comfyui import load_comfyui
from .fill import cells, complete, fingerprint_of, model_settings
from .report_ceiling import markdown, picture, summary
from .results import command_parser, environment, publish
from .store import Store, StoreError
from .suites import SuiteError, load_suite
from .workers import Spec, Worker

PLACES = (0.06, 0.1, 0.16, 0.2, 0.28, 0.4)  # of the schedule: steps 3, 5, 8, 10, 14 and 20 of 50
BRANCH_SEED = 10_000_000  # seeds of branches: far from those that are evaluated
FIRST_SEED = 1000


@torch.inference_mode()
def rebranch(inputs: Any, x0: torch.Tensor, step: int, seed: int) -> dict[str, Any]:
    """Finishes a clip from step `step` (1-based) on, from its x0 prediction there [1, C, F, h, w] (as VAE.decode takes
    it) with other noise. ComfyUI itself adds noise at the first sigma it is given, whatever the model's noise space."""
    from ..sampling.noise import SeededNoise
    from ..sampling.run import monitored_sample

    part = replace(inputs, noise=SeededNoise(seed), sigmas=inputs.sigmas[step - 1 :], latent={"samples": x0})
    return monitored_sample(part).latent


def watched(bench: Bench, seed: int) -> Any:
    """The plain clip as sampling.run gives it, scored at every step and never stopped, with all x0 predictions."""
    from ..sampling.run import monitored_sample

    family, prompt = bench.backend.family, bench.item.prompt
    return bench.once(("watched", seed), lambda: monitored_sample(
        family.inputs(prompt, seed), family.gate(prompt, **WATCH), stop="never", keep_steps=True))  # fmt: skip


def rebranching(name: str, _: int, at: Sequence[int], branches: int) -> Method:
    """The method that finishes a clip and its branches. Its rows are the clip's; their report is {"branches": {step:
    [[good (None where there is no judge), score], ...]}}."""

    def run(bench: Bench, seed: int) -> Row:
        from ..trials.report import run_report

        backend, item = bench.backend, bench.item
        inputs, clip = backend.family.inputs(item.prompt, seed), watched(bench, seed)

        def outcome(latent: dict[str, Any]) -> list:
            finished = backend.finished(item.prompt, latent, None)
            return [bench.judge(item, finished.frames)["right"], finished.final_score]

        steps_x0 = clip.steps_x0["samples"]
        outcomes = {
            str(step): [
                outcome(rebranch(inputs, steps_x0[step - 1 : step], step, BRANCH_SEED * (branch + 1) + seed))
                for branch in range(branches)
            ]
            for step in at
        }
        trace = [[step, score] for step, score in clip.verdict.record.best.trace]
        row = bench.sampled(seed, name, clip.latent, run_report(clip.verdict), trace=trace)
        return row | {"report": {"branches": outcomes, "tau": backend.family.scorer.tau}}

    return Method(name, run, in_process=True)


def steps_at(places: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    """ValueError for steps that the schedule does not have."""
    at = places or sorted({max(1, round(place * steps)) for place in PLACES})
    if wrong := [step for step in at if not 1 <= step <= steps]:
        raise ValueError(f"--at names step {wrong[0]}, but the schedule has steps 1 to {steps}.")
    return tuple(at)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("ceiling", __doc__)
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
    return parser.parse_args(arguments)


def measure(a: argparse.Namespace) -> None:
    for name in ("seeds", "branches", "steps", "workers"):
        if getattr(a, name) < 1:
            raise ValueError(f"--{name} is {getattr(a, name)}: it must be 1 or more.")
    at, suite = steps_at(a.at, a.steps), load_suite(a.suite, a.prompts)
    settings, seeds = model_settings("demo", a.family, a.steps, a.judge), range(FIRST_SEED, FIRST_SEED + a.seeds)
    settings |= {"fingerprint": fingerprint_of(settings), "suite": suite.name}
    method = f"rebranch@{'+'.join(map(str, at))}x{a.branches}"
    spec = Spec("demo", a.family, a.steps, a.judge, (method,), keep_clips=False)
    make = partial(Worker, spec, load=partial(rebranching, at=at, branches=a.branches))
    command = f"python -m foresight.evaluation ceiling --suite {a.suite} --prompts {len(suite.items)} --seeds {a.seeds}"
    command += f" --branches {a.branches} --steps {a.steps} --at {' '.join(map(str, at))}"
    with Store(a.out / "ceiling.sqlite", write=True) as store:
        complete(store, suite.items, lambda _: cells([method], seeds), make, settings, command, a.workers)
        prompts = {(item.index, item.prompt) for item in suite.items}
        rows = [row for row in store.rows(settings["fingerprint"], method=method)
                if (row["prompt_index"], row["prompt"]) in prompts and row["seed"] in seeds]  # fmt: skip
    load_comfyui()
    document = {
        "schema": "foresight.ceiling", "version": 1, "environment": environment(command),
        "settings": {"suite": suite.name, "schedule": a.steps, "at": at, "branches": a.branches, "seeds": list(seeds),
                     "family": a.family or "demo"},
        "summary": summary(rows, rows[0]["report"]["tau"]),
    }  # fmt: skip
    publish(a.out, "ceiling", document, markdown(document))
    picture(document, a.out / "ceiling.png")


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        measure(options(arguments))
    except (ValueError, SuiteError, StoreError) as error:
        raise SystemExit(f"ceiling: {error}") from None


if __name__ == "__main__":
    main()
