"""What settings will cost, by the paper's cost model (section B.2), on the paper's timings or on your own.

    python -m foresight.evaluation cost                                   the paper's Table S4, to the printed digit
    python -m foresight.evaluation cost out/evidence --tau 0.26 0.30      your logged runs at other thresholds
    python -m foresight.evaluation cost --like Wan2.1-1.3B --video-step 0.9 --rejected 0.35
    python -m foresight.evaluation cost --like Wan2.1-1.3B --prompts 946 --seeds 5 --gpus 64

With a database the timings, the mean stop steps and the division of failures between the trials are measured from its
efdi runs, and each tau is tried on the traces of its base runs. How newly rejected runs would divide between the trials
is not known beforehand: the division is taken to stay, and the range says what if all went the cheapest or dearest way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .evidence import Evidence, load
from .paper_cost import PAPER, REGENERATED, CostModel, PrimitiveTimes, from_reports, suite_cost, table_s4
from .results import command_parser
from .store import StoreError

TIMES = tuple(PrimitiveTimes.__annotations__)


def as_report(row: dict[str, Any]) -> dict[str, Any]:
    """The run report of a row; a run that passed shares the base clip and has none of its own."""
    if row["report"]:
        return row["report"]
    verdict = row["stop_step"] and {"stop_step": row["stop_step"], "trace": [None] * row["inspections"]}
    seconds = {"sampling": row["seconds"] - row["seconds_inspection"], "inspection": row["seconds_inspection"],
               "refinement": 0.0}  # fmt: skip
    trial = {"kind": "sample", "verdict": verdict, "seconds": seconds, "nfe_video": row["nfe"], "nfe_single_frame": 0}
    return {"trial": "0", "trials": [trial], "settings": {}}


def measured(evidence: Evidence) -> CostModel:
    """The cost model of the database's own efdi runs. StoreError when there are none."""
    rows = list(evidence.rows.get("efdi", {}).values())
    if not rows:
        raise StoreError(f"{evidence.path} has no runs of the method efdi, by which costs are measured: run it too.")
    model = from_reports(map(as_report, rows), str(evidence.settings.get("model", "your model")))
    return replace(model, steps=evidence.steps)


def at_thresholds(evidence: Evidence, model: CostModel, taus: Iterable[float]) -> list[dict[str, Any]]:
    """For each tau the share of base runs that would be rejected, and the overhead that follows."""
    rows = []
    for tau in taus:
        outcome = evidence.base.replay(replace(evidence.detector, tau=tau))
        share = float(outcome.rejected.mean())
        there = replace(model.at(share), video_stop=outcome.mean_stop)
        low, high = there.range_at(share)
        rows.append({"tau": tau, "rejected": share, "mean_stop": outcome.mean_stop, "overhead": there.overhead(),
                     "low": low, "high": high, "seconds": model.plain_seconds * (1 + there.overhead())})  # fmt: skip
    return rows


def thresholds_table(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [
        "| tau | rejected | mean stop step | time beyond plain sampling (range) | seconds a clip |",
        "|---|---|---|---|---|",
        *(f"| {row['tau']:g} | {100 * row['rejected']:.1f} % | {row['mean_stop']:.1f} | {100 * row['overhead']:.2f} % "
          f"({100 * row['low']:.1f} to {100 * row['high']:.1f}) | {row['seconds']:.2f} |" for row in rows),
    ]  # fmt: skip


def branch_table(model: CostModel) -> list[str]:
    """Table S4 in Markdown."""
    return [
        f"{model.name}: a plain run takes {model.plain_seconds:.2f} s ({model.steps} steps)", "",
        "| branch | runs | video steps | video inspections | single-frame steps | single-frame inspections | "
        "refinements | seconds | per sample | overall |", "|---|---|---|---|---|---|---|---|---|---|",
        *(f"| {row['branch']} | {row['runs']:g}/{row['of']:g} | {row['video_step']:.2f} | "
          f"{row['video_inspection']:.2f} | {row['single_frame_step']:.0f} | {row['single_frame_inspection']:.0f} | "
          f"{row['refinement']:g} | {row['seconds']:.2f} | {100 * row['per_sample_overhead']:.2f} % | "
          f"{100 * row['overall_overhead']:.2f} % |" for row in table_s4(model)), "",
        f"Time beyond plain sampling, over all runs: {100 * model.overhead():.2f} %",
    ]  # fmt: skip


def suite_lines(
    model: CostModel, methods: Sequence[str], prompts: int, seeds: int, gpus: int, failed: float
) -> list[str]:
    cost = suite_cost(model, methods, prompts, seeds, gpus, failed)
    each = ", ".join(f"{name} {seconds / 3600:.1f}" for name, seconds in cost["seconds_by_method"].items())
    return [
        f"{prompts} prompts x {seeds} seeds: {cost['runs']} runs of each method; GPU hours: {each}.",
        f"In all {cost['gpu_hours']:.1f} GPU hours; on {gpus} GPUs {cost['hours']:.2f} h, at most "
        f"{cost['hours_at_most']:.2f} h until the last is done (decoding, judging and loading are not counted).",
    ]  # fmt: skip


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("cost", __doc__)
    add = parser.add_argument
    add("database", type=Path, nargs="?", help="the database of `run`, or its folder; without it: the paper's timings")
    add("--settings", help="fingerprint of the runs' settings, where the database holds several")
    add("--tau", type=float, nargs="+", help="thresholds to try on the database's traces")
    add("--like", choices=sorted(PAPER), help="the paper's model whose numbers are taken where nothing else is given")
    for name in TIMES:
        add(f"--{name.replace('_', '-')}", type=float, metavar="SECONDS", help="instead of the measured time")
    add("--steps", type=int, help="of the schedule; mean stop steps keep their place in it")
    add("--rejected", type=float, help="share of runs that are rejected, instead of the measured one")
    add("--prompts", type=int, help="what a suite of so many prompts takes (VBench has 946)")
    add("--seeds", type=int, default=1)
    add("--gpus", type=int, default=1)
    add("--methods", default="base,efdi,regenerate,best_of_3", help="of that suite, with commas")
    return parser.parse_args(argv)


def changed(model: CostModel, a: argparse.Namespace) -> CostModel:
    """The model with what the user knows better."""
    times = {name: value for name in TIMES if (value := getattr(a, name)) is not None}
    for name, value in times.items():
        if value < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: seconds cannot be below 0.")
    model = replace(model, times=replace(model.times, **times))
    if a.steps is not None:
        if a.steps < 1:
            raise ValueError(f"--steps is {a.steps}: a run needs at least 1.")
        scale = a.steps / model.steps
        model = replace(model, steps=a.steps, video_stop=model.video_stop * scale,
                        single_frame_stop=model.single_frame_stop * scale)  # fmt: skip
    return model if a.rejected is None else model.at(a.rejected)


def answer(a: argparse.Namespace) -> list[str]:
    if a.tau and not a.database:
        raise ValueError("--tau needs a database: which runs another threshold rejects is read from logged scores.")
    if a.database:
        evidence = load(a.database, a.settings)
        models, failed = [measured(evidence)], float(evidence.base.failed.mean())
    else:
        models = [PAPER[a.like]] if a.like else list(PAPER.values())
    lines = []
    for model in models:
        if not a.database:
            failed = REGENERATED[model.name] / PAPER[model.name].runs
        model = changed(model, a)
        lines += [*branch_table(model), ""]
        if a.tau:
            lines += [*thresholds_table(at_thresholds(evidence, model, [evidence.tau, *a.tau])), ""]
        if a.prompts:
            lines += [*suite_lines(model, a.methods.split(","), a.prompts, a.seeds, a.gpus, failed), ""]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    try:
        print("\n".join(answer(options(argv))))
    except (StoreError, ValueError) as error:
        raise SystemExit(f"cost: {error}") from None


if __name__ == "__main__":
    main()
