"""Do self-refinement and latent search pay? Each against its own number of model evaluations spent plainly.

    python -m foresight.lab.experiments.enhancers --prompts 60 --seeds 3

For each prompt and seed of the demo world's test split: the base clip; self-refinement beside the same sampler with as
many steps as it takes evaluations, and beside the better of two shorter clips; latent search with each reward, and beam
search, beside as many steps and beside best-of-N. Every clip is watched by the detector but not stopped: what stopping
and taking another seed would have given ("with detection") costs a further run only where the detector rejects. The
judge looks at all finished clips. Finished runs are kept in a JSON-lines file, so an interrupted command goes on where
it stopped. Writes enhancers.json and enhancers.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...demo import preset
from ...demo.captions import prompts
from ...demo.clip_quality import motion_quality, visual_quality
from ...demo.judge import find_objects, judge
from ...demo.world import Scene
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.demo_family import WATCHED, DemoFamily, family, fingerprint, start_worker
from ...evaluation.results import environment, percent, publish, run_jobs
from ...evaluation.statistics import bootstrap, share
from ...scoring.latent_reward import LatentReward, RewardModel, load_reward
from .main_job import DIFFICULTIES, RESEED_STEP

FIRST_SEED, SEED_STEP = 5000, 100  # candidates of a search take the seeds that follow
REWARD_FILE = ROOT / "weights" / "demo" / "reward" / preset.REWARD
BASE, REFINE, SEARCH = preset.STEPS, 75, 150  # model evaluations of the three groups
MILLISECONDS = 38  # an evaluation with all that goes with it, in the run of docs/results; for the estimate


@dataclass(frozen=True)
class Arm:
    """One way of making a clip. budget: its model evaluations. refine: with Self-Refine's T2V plan. method: of the
    search, with so many candidates and this beta and reward."""

    name: str
    budget: int
    steps: int = preset.STEPS
    refine: bool = False
    method: str | None = None
    candidates: int = 1
    beta: float = 1.0
    reward: str = "alignment"


def _searches(reward: str) -> list[Arm]:
    def arm(name: str, **settings: Any) -> Arm:
        return Arm(f"{name}, {reward}", SEARCH, reward=reward, **settings)

    # Eight candidates, because six (the authors') come to 129 evaluations on average, and best-of-N counts in fifties.
    return [
        arm("search", method="resampling", candidates=8, beta=0.1),
        arm("search, own seeds", method="resampling", candidates=8),
        *[arm("beam", method="beam", candidates=8)] * (reward == "alignment"),
        arm("best of 3", method="best of N", candidates=3),
    ]


ARMS = (
    Arm("base", BASE),
    Arm("self-refine", REFINE, refine=True),
    Arm("75 steps", REFINE, steps=75),
    Arm("best of 2, 37 steps each", REFINE, steps=37, method="best of N", candidates=2),
    Arm("150 steps", SEARCH, steps=150),
    *_searches("alignment"),
    *_searches("latent"),
)


def rivals(arm: Arm) -> list[str]:
    """What an arm is compared with: the base, and others of as many evaluations."""
    if arm.budget == REFINE:
        return ["base", "75 steps", "best of 2, 37 steps each"]
    return ["base", "150 steps", f"best of 3, {arm.reward}"]


@lru_cache(maxsize=1)
def reward_model() -> RewardModel:
    return load_reward(REWARD_FILE)


def rewards(family: DemoFamily, prompt: str, names: set[str]) -> dict[str, Any]:
    from ...scoring.reward import AlignmentReward

    made = {"alignment": AlignmentReward(family.gate(prompt))}
    if "latent" in names:
        made["latent"] = LatentReward(reward_model(), family.scorer, prompt)
    return made


def given(family: DemoFamily, arm: Arm, prompt: str, seed: int, known: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The sampling inputs of an arm, and where its search will report."""
    import comfy.samplers

    from ...sampling.search import SearchSampler, SearchSettings
    from ...sampling.self_refine import PRESETS, self_refining

    inputs, found = family.inputs(prompt, seed), {}
    sampler = self_refining(inputs.sampler, PRESETS["T2V"].settings()) if arm.refine else inputs.sampler
    if arm.method:
        settings = SearchSettings(candidates=arm.candidates, method=arm.method, beta=arm.beta, budget=arm.budget,
                                  at_once=arm.candidates)
        sampler = SearchSampler(sampler, known[arm.reward], settings, found)
    model_sampling = family.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, preset.SCHEDULER, arm.steps)
    return replace(inputs, sampler=sampler, sigmas=sigmas), found


def sampled(inputs: Any, found: dict[str, Any], gate: Any = None, stop: str = "never") -> tuple[Any, dict[str, Any]]:
    """The result of a run, and the report of its search or refinement, empty for plain ones."""
    from ...sampling.run import monitored_sample
    from ...sampling.self_refine import SelfRefine

    result = monitored_sample(inputs, gate, stop=stop)
    function = getattr(inputs.sampler, "sampler_function", None)
    return result, function.result.report() if isinstance(function, SelfRefine) else found


def spent_at_stop(arm: Arm, stop: int, nfe: int, report: dict[str, Any]) -> int:
    """Evaluations made when the detector stops a run at a step. A search is over by then, and only finishing is saved.
    report: of the whole run, a search's or a refinement's."""
    if arm.method:
        return nfe - (arm.steps - max(stop, *map(int, report["population"])))
    return stop + sum(passes for step, passes in report.get("passes", {}).items() if int(step) <= stop)


@torch.inference_mode()
def run_job(prompt_index: int, difficulty: str, prompt: str, scene: Scene, seed: int, names: tuple[str, ...]) -> dict:
    """All arms on one prompt and seed."""
    used = family()
    arms = [arm for arm in ARMS if arm.name in names]
    known = rewards(used, prompt, {arm.reward for arm in arms})

    def looked_at(latent) -> dict[str, Any]:
        clip = used.decode(latent)
        found, x0 = find_objects(clip), used.model.model.process_latent_in(latent["samples"])
        return {
            "right": bool(judge(clip, scene).right), "motion": round(motion_quality(found, len(clip)), 4),
            "looks": round(visual_quality(found, len(clip)), 4),
            "rewards": {name: round(float(each.score(x0, 0.0, preset.STEPS)), 5) for name, each in known.items()},
            "feature": [round(value, 4) for value in used.scorer.encode_frames(clip).tolist()],
        }  # fmt: skip

    found = {}
    for arm in arms:
        result, report = sampled(*given(used, arm, prompt, seed, known), used.gate(prompt))
        record = result.verdict.record
        run = looked_at(result.latent) | {"nfe": record.nfe_video, "accepted": record.accepted, "notes": record.message}
        run |= {"right_detected": run["right"], "nfe_detected": run["nfe"]}
        if arm.method:
            run |= {"winner": report["winner"], "population": report["population"], "notes": report["notes"]}
        if not record.accepted:
            again, _ = sampled(*given(used, arm, prompt, seed + RESEED_STEP, known))
            spent = spent_at_stop(arm, record.best.stop_step, run["nfe"], report)
            run |= {
                "right_detected": bool(judge(used.decode(again.latent), scene).right),
                "nfe_detected": spent + again.verdict.record.nfe_video,
            }  # fmt: skip
        found[arm.name] = run
    return {"prompt_index": prompt_index, "difficulty": difficulty, "prompt": prompt, "seed": seed, "arms": found}


def diversity(runs: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Prompt -> mean cosine distance of the scorer's features of its clips, pair by pair of seeds."""
    by_prompt: dict[int, list[np.ndarray]] = {}
    for run in runs:
        by_prompt.setdefault(run["prompt_index"], []).append(np.asarray(run["arms"][name]["feature"]))
    return {
        prompt: float(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(seen, 2)]))
        for prompt, seen in by_prompt.items() if len(seen) > 1
    }  # fmt: skip


def summarize(runs: list[dict[str, Any]], arms: list[Arm]) -> dict[str, Any]:
    """All figures with 95 % intervals (bootstrap over prompts)."""
    group = np.asarray([run["prompt_index"] for run in runs])

    def column(name: str, key: str) -> np.ndarray:
        return np.asarray([run["arms"][name][key] for run in runs], float)

    def reward(name: str, key: str) -> np.ndarray:
        return np.asarray([run["arms"][name]["rewards"][key] for run in runs], float)

    def mean(values: np.ndarray) -> dict[str, float]:
        return bootstrap(lambda rows: values[rows].mean(), group)

    spread = {arm.name: diversity(runs, arm.name) for arm in arms}

    def distance(values: dict[int, float]) -> dict[str, float] | None:
        numbers = np.asarray(list(values.values()))
        return bootstrap(lambda rows: numbers[rows].mean(), list(values)) if len(numbers) else None

    def compared(name: str, rival: str) -> dict[str, Any]:
        apart = {prompt: spread[name][prompt] - spread[rival][prompt] for prompt in spread[name]}
        return {
            **{key: mean(column(name, key) - column(rival, key))
               for key in ("right", "motion", "looks", "nfe", "right_detected", "nfe_detected")},
            "diversity": distance(apart),
        }

    everything = np.ones(len(runs), bool)
    table = {
        arm.name: {
            "budget": arm.budget, "right": share(column(arm.name, "right"), everything, group),
            "right_detected": share(column(arm.name, "right_detected"), everything, group),
            **{key: mean(column(arm.name, key)) for key in ("motion", "looks", "nfe", "nfe_detected")},
            "rejected": share(1 - column(arm.name, "accepted"), everything, group),
            "diversity": distance(spread[arm.name]),
        }
        for arm in arms
    }
    names = set(table)
    hacking = {}
    for arm in arms:
        if not arm.method or arm.budget != SEARCH:
            continue
        before, after = column("base", "right"), column(arm.name, "right")
        gains = {key: reward(arm.name, key) - reward("base", key) for key in runs[0]["arms"]["base"]["rewards"]}
        # In units of the base clips' spread, so that the two rewards can stand side by side.
        scale = {key: reward("base", key).std() or 1.0 for key in gains}
        rose = gains[arm.reward] > 0
        hacking[arm.name] = {
            "own_reward": mean(gains[arm.reward] / scale[arm.reward]),
            **{f"reward_{key}": mean(gain / scale[key]) for key, gain in gains.items()},
            "right": mean(after - before), "reward_rose": share(rose, everything, group),
            "spoiled_where_rose": share(after < before, rose & (before == 1), group),
            "repaired_where_rose": share(after > before, rose & (before == 0), group),
        }
    return {
        "runs": len(runs), "prompts": len(np.unique(group)), "arms": table,
        "against": {arm.name: {rival: compared(arm.name, rival) for rival in rivals(arm) if rival in names - {arm.name}}
                    for arm in arms if arm.name != "base"},
        "reward_hacking": hacking,
    }  # fmt: skip


def points(cell: dict[str, float]) -> str:
    return percent(cell, signed=True).replace(" %", "", 1)


def plain(cell: dict[str, float] | None, form: str = "{:.3f}") -> str:
    if cell is None:
        return "-"
    value, low, high = (form.format(cell[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def markdown(document: dict[str, Any]) -> str:
    """The same figures as a page for people."""
    summary, made = document["summary"], document["environment"]
    arms, against, hacking = summary["arms"], summary["against"], summary["reward_hacking"]

    def difference(name: str, rival: str) -> str:
        cell = against[name][rival]
        return (f"| {name} | {rival} | {points(cell['right'])} | {plain(cell['motion'], '{:+.3f}')} | "
                f"{plain(cell['looks'], '{:+.3f}')} | {plain(cell['diversity'], '{:+.3f}')} | "
                f"{points(cell['right_detected'])} | {cell['nfe_detected']['value']:+.1f} |")  # fmt: skip

    lines = [
        "# Self-refinement and latent search on the demo family", "",
        f"{summary['runs']} runs of each: {summary['prompts']} test prompts, {document['settings']['seeds']} seeds "
        f"each. Made by `{made['command']}` on {made['date']}, {made['machine']}, ComfyUI {made['comfyui']}, torch "
        f"{made['torch']}. In brackets: 95 % intervals from a bootstrap over prompts. *right*: by the judge. *motion*: "
        "share of the objects' steps from frame to frame that are coherent; *looks*: how clearly objects have one "
        "colour and one shape, both 0 to 1 and whatever the caption says. *diversity*: mean distance (1 - cosine of "
        "the scorer's features) between a prompt's clips. *With detection*: where the detector rejects, the run is "
        "stopped and made once more with another seed.", "",
        *([f"**The latent reward was not tried: {document['settings']['no_latent_reward']}**", ""]
          if document["settings"]["no_latent_reward"] else []),
        "| | NFE | right | motion | looks | diversity | right with detection | NFE with detection |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {cell['nfe']['value']:.1f} | {percent(cell['right'])} | {plain(cell['motion'])} | "
          f"{plain(cell['looks'])} | {plain(cell['diversity'])} | {percent(cell['right_detected'])} | "
          f"{cell['nfe_detected']['value']:.1f} |" for name, cell in arms.items()), "",
        "## Paired differences", "",
        "Against the base clip of the same seed, and against as many evaluations spent plainly. *right* in points.", "",
        "| | minus | right | motion | looks | diversity | right with detection | NFE with detection |",
        "|---|---|---|---|---|---|---|---|",
        *(difference(name, rival) for name, found in against.items() for rival in found), "",
        "## Is the reward fooled?", "",
        "Gains over the base clip of the same seed; rewards in units of the base clips' spread. A reward that rises "
        "where the other and the judge do not is being exploited.", "",
        "| | own reward | alignment reward | latent reward | right, points | right clips spoiled where its reward rose "
        "| wrong clips repaired where it rose |", "|---|---|---|---|---|---|---|",
        *(f"| {name} | {plain(cell['own_reward'], '{:+.2f}')} | {plain(cell.get('reward_alignment'), '{:+.2f}')} | "
          f"{plain(cell.get('reward_latent'), '{:+.2f}')} | {points(cell['right'])} | "
          f"{percent(cell['spoiled_where_rose'])} | {percent(cell['repaired_where_rose'])} |"
          for name, cell in hacking.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def usable(load: Callable[[], Any] = reward_model) -> str | None:
    """Why there is no latent reward to try, None where there is one."""
    try:
        load()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60, help="test prompts, a third of each difficulty")
    parser.add_argument("--seeds", type=int, default=3, help="seeds a prompt")
    parser.add_argument("--quick", action="store_true", help="3 prompts, 2 seeds: only to try it out")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "enhancers.jsonl", help="finished runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.prompts, arguments.seeds = 3, 2
    missing = usable()
    arms = [arm for arm in ARMS if arm.reward != "latent" or not missing]
    chosen = [(name, *entry) for name in DIFFICULTIES
              for entry in prompts("test", name, arguments.prompts // len(DIFFICULTIES))]
    names, weights = tuple(arm.name for arm in arms), fingerprint(*WATCHED, "reward")
    jobs = {
        f"{weights} {index} {seed} {entry[1]} {' | '.join(names)}": (index, *entry, seed, names)
        for seed in (FIRST_SEED + SEED_STEP * k for k in range(arguments.seeds)) for index, entry in enumerate(chosen)
    }
    evaluations = sum(arm.budget for arm in arms) * 1.3  # three of ten are rejected, and made again
    minutes = len(jobs) * evaluations * MILLISECONDS / 60_000 / arguments.workers
    print(f"{len(jobs)} jobs of about {evaluations:.0f} model evaluations: about {minutes:.0f} minutes with "
          f"{arguments.workers} processes on cores of their own", flush=True)
    runs = run_jobs(arguments.work, jobs, run_job, workers=arguments.workers, start=start_worker)
    load_comfyui()
    summary = summarize(runs, arms)
    for run in runs:
        for each in run["arms"].values():
            del each["feature"]
    command = f"python -m foresight.lab.experiments.enhancers --prompts {arguments.prompts} --seeds {arguments.seeds}"
    document = {
        "schema": "foresight.enhancers", "version": 1,
        "settings": {
            "prompts": len(chosen), "seeds": arguments.seeds, "first_seed": FIRST_SEED, "steps": preset.STEPS,
            "sampler": preset.SAMPLER, "cfg": preset.CFG, "shift": preset.SHIFT, "no_latent_reward": missing,
            "budgets": {arm.name: arm.budget for arm in arms},
        },
        "environment": environment(command), "summary": summary, "runs": runs,
    }  # fmt: skip
    publish(arguments.out, "enhancers", document, markdown(document))


if __name__ == "__main__":
    main()
