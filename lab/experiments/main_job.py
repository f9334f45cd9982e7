"""The main job, measured: does the detector foretell failures, do the trials repair them, at what cost?

    python -m foresight.lab.experiments.main_job --prompts 60 --seeds 6

For each prompt and seed of the demo world's test split: the base run to its end (inspected, never stopped), and, where
the detector rejects it, the hierarchy and its rival at the same number of model evaluations (stop and reseed); the
judge looks at every finished clip. Finished runs are kept in a JSON-lines file, so an interrupted command goes on where
it stopped. Writes main_job.json and main_job.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...demo.captions import prompts
from ...demo.judge import judge
from ...demo.world import Scene
from ...evaluation import statistics
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.demo_family import DemoFamily, family, fingerprint, start_worker
from ...evaluation.results import environment, number, percent, publish, run_jobs
from ...evaluation.statistics import auc, bootstrap, bootstrap_within, text_only_scores
from ...scoring.inspector import Gate

DIFFICULTIES = ("easy", "medium", "hard")
FIRST_SEED = 1000
RESEED_STEP = 100_000  # seeds of the rival: far from the ones that are evaluated


def evaluate_one(family: DemoFamily, prompt: str, scene: Scene, seed: int) -> dict[str, Any]:
    """One prompt and seed: base, hierarchy and rival, judged.

    The base clip comes from the watched run, which is the plain one to the last bit (promise 1, tested); a run that the
    detector accepts is therefore its own hierarchy and its own rival.
    """
    from ...nodes.back_ends import DEFAULT, make_reworder
    from ...sampling.hierarchy import run_hierarchy
    from ...sampling.injection import InjectionSettings
    from ...sampling.run import monitored_sample
    from ...trials.report import run_report

    def right(latent) -> bool:
        return bool(judge(family.decode(latent), scene).right)

    gate = family.gate(prompt)
    base = monitored_sample(family.inputs(prompt, seed), gate, stop="never")
    record = base.verdict.record
    run = {
        "right_base": right(base.latent), "accepted": record.accepted, "predicted_score": record.best.predicted_score,
        "stop_step": record.best.stop_step, "rule": record.best.rule,
        "trace": [list(point) for point in record.best.trace],
        "nfe_plain": record.nfe_video, "seconds_plain": record.seconds["sampling"],
    }  # fmt: skip
    if record.accepted:
        return run | {
            "trial": "0", "right_final": run["right_base"], "nfe": record.nfe_video, "nfe_single_frame": 0,
            "seconds": sum(record.seconds.values()), "refined_prompt": None, "probe_scores": [], "notes": [],
            "right_reseed": run["right_base"], "nfe_reseed": record.nfe_video, "reseeds": 0,
        }  # fmt: skip
    result = run_hierarchy(
        family.inputs(prompt, seed), gate, family.guider, negative="",
        reworder=make_reworder(DEFAULT, family.scorer), injection=InjectionSettings(),
    )  # fmt: skip
    report = run_report(result.verdict)
    probes = [trial["verdict"] for trial in report["trials"] if trial["kind"] == "probe"]
    spent = report["trials"][0]["nfe_video"]
    return run | {
        "trial": report["trial"], "right_final": right(result.latent), "nfe": report["nfe"],
        "nfe_single_frame": report["nfe_single_frame"], "seconds": report["seconds"],
        "refined_prompt": report["refined_prompt"], "notes": report["notes"],
        "probe_scores": [probe and probe["predicted_score"] for probe in probes],
        **reseed(family, prompt, gate, seed, spent, budget=report["nfe"], right=right),
    }  # fmt: skip


def reseed(
    family: DemoFamily, prompt: str, gate: Gate, seed: int, spent: int, *, budget: int, right: Callable[[Any], bool]
) -> dict[str, Any]:
    """The plainest rival: after a rejection take another seed, within the hierarchy's own model evaluations.

    spent: evaluations of the rejected run. While the budget allows a further attempt after a rejected one, attempts are
    watched; the last one runs to its end.
    """
    from ...sampling.run import monitored_sample

    window_end = gate.video.window(family.steps)[1]
    attempt = 0
    while True:
        attempt += 1
        last = spent + window_end + family.steps > budget
        given = family.inputs(prompt, seed + attempt * RESEED_STEP)
        result = monitored_sample(given, None if last else gate)
        spent += result.verdict.record.nfe_video
        if last or result.verdict.accepted:
            return {"right_reseed": right(result.latent), "nfe_reseed": spent, "reseeds": attempt}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures with 95 % intervals (bootstrap over prompts)."""
    group = np.asarray([run["prompt_index"] for run in runs])
    outcomes = ("right_base", "right_final", "right_reseed")
    base, final, rival = (np.asarray([run[key] for run in runs]) for key in outcomes)
    score = np.asarray([np.nan if run["predicted_score"] is None else run["predicted_score"] for run in runs])
    text = text_only_scores([run["prompt"] for run in runs], base, group)
    rejected = ~np.asarray([run["accepted"] for run in runs])
    trial = np.asarray([run["trial"] for run in runs])
    step10 = np.asarray([dict(map(tuple, run["trace"])).get(10, np.nan) for run in runs])

    def share(of: np.ndarray, among: np.ndarray) -> dict[str, float]:
        return statistics.share(of, among, group)

    def mean(values) -> dict[str, float]:
        values = np.asarray(values, float)
        return bootstrap(lambda rows: values[rows].mean(), group)

    def overall(values: np.ndarray) -> dict[str, float]:
        return bootstrap(lambda rows: auc(values[rows], base[rows]), group)

    nfe, plain = np.asarray([run["nfe"] for run in runs]), np.asarray([run["nfe_plain"] for run in runs])
    seconds = np.asarray([[run["seconds"], run["seconds_plain"]] for run in runs])
    everything = np.ones(len(runs), bool)
    mixed = [0 < base[group == prompt].mean() < 1 for prompt in np.unique(group)]
    detector = {
        "auc_over_all": overall(score),
        "auc_within_prompt": bootstrap_within(score, base, group),
        "auc_text_only": overall(text),
        "auc_over_text_only": bootstrap(
            lambda rows: auc(score[rows], base[rows]) - auc(text[rows], base[rows]), group
        ),
        "prompts_with_both_outcomes": {"count": int(np.sum(mixed)), "of": len(mixed)},
        "rejected": share(rejected, everything),
        "failures_caught": share(rejected, ~base),
        "good_clips_rejected": share(rejected, base),
        "mean_stop_step": mean([run["stop_step"] or np.nan for run in runs]),
    }  # fmt: skip
    if np.isfinite(step10).sum() > len(runs) // 2:
        known = np.isfinite(step10)
        detector["auc_within_prompt_step_10"] = bootstrap_within(step10[known], base[known], group[known])
    trials = {}
    for name in sorted(set(trial[rejected])):
        here = rejected & (trial == name)
        trials[name] = {
            "runs": int(here.sum()), "repaired": share(final, here & ~base), "spoiled": share(~final, here & base),
            "repaired_by_reseeding": share(rival, here & ~base), "spoiled_by_reseeding": share(~rival, here & base),
        }  # fmt: skip
    return {
        "runs": len(runs),
        "prompts": len(mixed),
        "right_by_difficulty": {
            name: share(base, np.asarray([run["difficulty"] == name for run in runs])) for name in DIFFICULTIES
        },
        "detector": detector,
        "trials": trials,
        "all_trials": {
            "repaired": share(final, rejected & ~base), "spoiled": share(~final, rejected & base),
            "repaired_by_reseeding": share(rival, rejected & ~base),
            "spoiled_by_reseeding": share(~rival, rejected & base),
        },  # fmt: skip
        "right": {
            "base": share(base, everything), "hierarchy": share(final, everything), "reseed": share(rival, everything),
            "hierarchy_minus_base": mean(final.astype(float) - base),
            "hierarchy_minus_reseed": mean(final.astype(float) - rival),
        },  # fmt: skip
        "cost": {
            "nfe_overhead": bootstrap(lambda rows: nfe[rows].sum() / plain[rows].sum() - 1, group),
            "nfe_overhead_reseed": mean(np.asarray([run["nfe_reseed"] for run in runs]) / plain - 1),
            "seconds_overhead": bootstrap(lambda rows: seconds[rows, 0].sum() / seconds[rows, 1].sum() - 1, group),
        },
    }


def markdown(document: dict[str, Any]) -> str:
    """The same figures as a page for people."""
    summary, environment = document["summary"], document["environment"]
    detector, right, cost = summary["detector"], summary["right"], summary["cost"]

    rows = {**summary["trials"], "all": {"runs": detector["rejected"]["count"], **summary["all_trials"]}}
    lines = [
        "# The main job on the demo family", "",
        f"{summary['runs']} runs: {summary['prompts']} test prompts, {document['settings']['seeds']} seeds each. "
        f"Made by `{environment['command']}` on {environment['date']}, {environment['machine']}, "
        f"ComfyUI {environment['comfyui']}, torch {environment['torch']}. "
        "In brackets: 95 % intervals from a bootstrap over prompts.", "",
        "## Does the predicted score foretell the judge's verdict on the finished base clip?", "",
        "| | AUC |", "|---|---|",
        f"| predicted score, over all runs | {number(detector['auc_over_all'])} |",
        f"| predicted score, within prompt | {number(detector['auc_within_prompt'])} |",
        f"| a predictor that reads only the caption, over all runs | {number(detector['auc_text_only'])} |",
        f"| difference over all (score minus caption) | {number(detector['auc_over_text_only'])} |", "",
        f"Prompts with both outcomes: {detector['prompts_with_both_outcomes']['count']} of "
        f"{detector['prompts_with_both_outcomes']['of']}; only these tell within prompt. "
        f"Failures caught: {percent(detector['failures_caught'])}. "
        f"Good clips rejected: {percent(detector['good_clips_rejected'])}. "
        f"Mean stop step: {number(detector['mean_stop_step'])}.", "",
        "## What do the trials repair and spoil?", "",
        "| trial that the run ended in | runs | failures repaired | good clips spoiled | repaired by reseeding | "
        "spoiled by reseeding |", "|---|---|---|---|---|---|",
        *(
            f"| {name} | {cell['runs']} | {percent(cell['repaired'])} | {percent(cell['spoiled'])} | "
            f"{percent(cell['repaired_by_reseeding'])} | {percent(cell['spoiled_by_reseeding'])} |"
            for name, cell in rows.items()
        ), "",
        "## Right clips, and what they cost", "",
        "| | right | model evaluations beyond plain sampling |", "|---|---|---|",
        f"| base | {percent(right['base'])} | 0 |",
        f"| hierarchy | {percent(right['hierarchy'])} | {percent(cost['nfe_overhead'])} |",
        f"| stop and reseed, within the hierarchy's evaluations of each run | {percent(right['reseed'])} | "
        f"{percent(cost['nfe_overhead_reseed'])} |", "",
        f"Hierarchy minus base: {percent(right['hierarchy_minus_base'], True)} points. "
        f"Hierarchy minus reseeding: {percent(right['hierarchy_minus_reseed'], True)} points. "
        f"Seconds beyond plain sampling: {percent(cost['seconds_overhead'])}. "
        "Single-frame evaluations count 1 each in the table, though they are cheaper than a video's.", "",
        "Right base clips by difficulty: "
        + ", ".join(f"{name} {percent(cell)}" for name, cell in summary["right_by_difficulty"].items()) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)


@dataclass(frozen=True)
class Job:
    prompt_index: int
    difficulty: str
    prompt: str
    scene: Scene
    seed: int


@torch.inference_mode()
def run_job(job: Job) -> dict[str, Any]:
    run = evaluate_one(family(), job.prompt, job.scene, job.seed)
    described = {field: getattr(job, field) for field in ("prompt_index", "difficulty", "prompt", "seed")}
    return described | run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60, help="test prompts, a third of each difficulty")
    parser.add_argument("--seeds", type=int, default=6, help="seeds a prompt")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "main_job.jsonl", help="finished runs")
    arguments = parser.parse_args()
    count = arguments.prompts // len(DIFFICULTIES)
    chosen = [(name, *entry) for name in DIFFICULTIES for entry in prompts("test", name, count)]
    jobs = [
        Job(index, difficulty, prompt, scene, FIRST_SEED + seed)
        for seed in range(arguments.seeds)
        for index, (difficulty, prompt, scene) in enumerate(chosen)
    ]
    weights = fingerprint()
    keyed = {f"{weights} {job.prompt_index} {job.seed} {job.prompt}": (job,) for job in jobs}
    runs = run_jobs(arguments.work, keyed, run_job, workers=arguments.workers, start=start_worker)
    load_comfyui()
    command = f"python -m foresight.lab.experiments.main_job --prompts {arguments.prompts} --seeds {arguments.seeds}"
    gate, used = family().gate("any"), family()
    document = {
        "schema": "foresight.main_job", "version": 1,
        "settings": {
            "prompts": len(chosen), "seeds": arguments.seeds, "first_seed": FIRST_SEED, "steps": used.steps,
            "shift": used.shift, "cfg": used.cfg, "sampler": used.sampler, "tau": gate.video.tau,
            "delta": gate.delta, "scorer": used.scorer.name,
        },
        "environment": environment(command), "summary": summarize(runs), "runs": runs,
    }  # fmt: skip
    publish(arguments.out, "main_job", document, markdown(document))


if __name__ == "__main__":
    main()
