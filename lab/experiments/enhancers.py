"""Do self-refinement and latent search pay? Each against its own number of model evaluations spent plainly.

    python -m foresight.lab.experiments.enhancers --prompts 60 --seeds 3

For each prompt and seed of the demo world's test split: the base clip; self-refinement beside the same sampler with as
many steps as it takes evaluations, and beside the better of two shorter clips; latent search with each reward, and beam
search, beside as many steps and beside best-of-N. Every clip is watched by the detector but not stopped: what stopping
and taking another seed would have given ("with detection") costs a further run only where the detector rejects. The
judge looks at all finished clips. Finished prompts are kept in a database, so an interrupted command goes on where it
stopped. Writes enhancers.json and enhancers.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ...demo import preset
from ...demo.clip_quality import motion_quality, visual_quality
from ...demo.judge import find_objects
from ...evaluation.backend import Sampled
from ...evaluation.bench import Row
from ...evaluation.demo_family import WATCHED, DemoFamily, fingerprint
from ...evaluation.fill import cells
from ...evaluation.results import percent, shown
from ...evaluation.statistics import mean, share
from ...evaluation.suites import Item, load_suite
from ...evaluation.workers import Spec, Worker
from ...scoring.latent_reward import load_reward
from ..training.common import REWARD
from .common import Rows, experiment, made_by, parser, write

FIRST_SEED, SEED_STEP = 5000, 100  # candidates of a search take the seeds that follow
RESEED_STEP = 100_000  # to the seed that is taken after a rejection
BASE, REFINE, SEARCH = preset.STEPS, 75, 150  # model evaluations of the three groups
MILLISECONDS = 38  # an evaluation with all that goes with it, in the run of docs/results; for the estimate


@dataclass(frozen=True)
class Arm:
    """One way of making a clip. budget: its model evaluations. method: of the evaluation. reward: what it looks for."""

    name: str
    budget: int
    method: str
    reward: str = "alignment"

    @property
    def searches(self) -> bool:
        return self.method.startswith("search@")


def _searches(reward: str) -> list[Arm]:
    def arm(name: str, options: str) -> Arm:
        return Arm(f"{name}, {reward}", SEARCH, f"search@{options},budget={SEARCH},reward={reward}", reward)

    # Eight candidates, because six (the authors') come to 129 evaluations on average, and best-of-N counts in fifties.
    return [
        arm("search", "candidates=8,beta=0.1"),
        arm("search, own seeds", "candidates=8,beta=1"),
        *[arm("beam", "method=beam,candidates=8,beta=1")] * (reward == "alignment"),
        arm("best of 3", "method=best of N,candidates=3,beta=1"),
    ]


ARMS = (
    Arm("base", BASE, "base"),
    Arm("self-refine", REFINE, "self_refine"),
    Arm("75 steps", REFINE, "steps@75"),
    Arm("best of 2, 37 steps each", REFINE, f"search@method=best of N,candidates=2,beta=1,steps=37,budget={REFINE}"),
    Arm("150 steps", SEARCH, "steps@150"),
    *_searches("alignment"),
    *_searches("latent"),
)


def rivals(arm: Arm) -> list[str]:
    """What an arm is compared with: the base, and others of as many evaluations."""
    if arm.budget == REFINE:
        return ["base", "75 steps", "best of 2, 37 steps each"]
    return ["base", "150 steps", f"best of 3, {arm.reward}"]


def measures(rewards: Sequence[str], family: DemoFamily, item: Item, clip: Sampled) -> Row:
    """Of a finished clip: how well it moves and looks, whatever the caption says, the rewards' last word, and the
    scorer's feature, from which diversity is computed."""
    objects, frames = find_objects(clip.source), len(clip.source)
    x0 = family.model.model.process_latent_in(clip.latent["samples"])
    return {
        "coherent_motion": round(motion_quality(objects, frames), 4),
        "looks": round(visual_quality(objects, frames), 4),
        **{f"{name} reward": round(float(family.reward(item.prompt, name).score(x0, 0.0, preset.STEPS)), 5)
           for name in rewards},
        "feature": [round(value, 4) for value in family.scorer.encode_frames(clip.source).tolist()],
    }  # fmt: skip


def spent_at_stop(row: Row) -> int:
    """Evaluations made when the detector stops a run. A search is over by then, and only finishing is saved."""
    report, stop = row["report"], row["stop_step"]
    details = report["trials"][0]["details"]
    if search := details.get("search"):
        return row["nfe"] - (report["settings"]["steps"] - max(stop, *map(int, search["population"])))
    passes = (details.get("self_refine") or {}).get("passes", {})
    return stop + sum(count for step, count in passes.items() if int(step) <= stop)


def outcomes(rows: Rows, arms: Sequence[Arm]) -> list[Row]:
    """What `summarize` counts: all arms by prompt and seed. A rejected run is followed by one of another seed, whose
    row is the same method's."""

    def outcome(arm: Arm, key: tuple[int, int]) -> Row:
        row, further = rows[arm.method][key], rows[arm.method].get((key[0], key[1] + RESEED_STEP))
        rewards = {name: row["measures"][f"{name} reward"] for name in {arm.reward for arm in arms}}
        return {
            "right": row["right"], "nfe": row["nfe"], "accepted": row["accepted"], "rewards": rewards,
            "motion": row["measures"]["coherent_motion"], "looks": row["measures"]["looks"],
            "feature": row["measures"]["feature"], "right_detected": (further or row)["right"],
            "nfe_detected": spent_at_stop(row) + further["nfe"] if further else row["nfe"],
        }  # fmt: skip

    keys = [key for key in rows["base"] if key[1] < FIRST_SEED + RESEED_STEP]
    return [
        {"prompt_index": key[0], "seed": key[1], "arms": {arm.name: outcome(arm, key) for arm in arms}} for key in keys
    ]


def diversity(runs: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Prompt -> mean cosine distance of the scorer's features of its clips, pair by pair of seeds."""
    by_prompt: dict[int, list[np.ndarray]] = {}
    for run in runs:
        by_prompt.setdefault(run["prompt_index"], []).append(np.asarray(run["arms"][name]["feature"]))

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    return {
        prompt: float(np.mean([distance(*pair) for pair in combinations(features, 2)]))
        for prompt, features in by_prompt.items() if len(features) > 1
    }  # fmt: skip


def summarize(runs: list[dict[str, Any]], arms: list[Arm]) -> dict[str, Any]:
    """All figures with 95 % intervals (bootstrap over prompts)."""
    group = np.asarray([run["prompt_index"] for run in runs])

    def column(name: str, key: str) -> np.ndarray:
        return np.asarray([run["arms"][name][key] for run in runs], float)

    def reward(name: str, key: str) -> np.ndarray:
        return np.asarray([run["arms"][name]["rewards"][key] for run in runs], float)

    spread = {arm.name: diversity(runs, arm.name) for arm in arms}

    def distance(values: dict[int, float]) -> dict[str, float] | None:
        return mean(list(values.values()), list(values)) if values else None

    def compared(name: str, rival: str) -> dict[str, Any]:
        apart = {prompt: spread[name][prompt] - spread[rival][prompt] for prompt in spread[name]}
        return {
            **{key: mean(column(name, key) - column(rival, key), group)
               for key in ("right", "motion", "looks", "nfe", "right_detected", "nfe_detected")},
            "diversity": distance(apart),
        }

    everything = np.ones(len(runs), bool)
    table = {
        arm.name: {
            "budget": arm.budget, "right": share(column(arm.name, "right"), everything, group),
            "right_detected": share(column(arm.name, "right_detected"), everything, group),
            **{key: mean(column(arm.name, key), group) for key in ("motion", "looks", "nfe", "nfe_detected")},
            "rejected": share(1 - column(arm.name, "accepted"), everything, group),
            "diversity": distance(spread[arm.name]),
        }
        for arm in arms
    }
    names = set(table)
    hacking = {}
    for arm in arms:
        if not arm.searches or arm.budget != SEARCH:
            continue
        before, after = column("base", "right"), column(arm.name, "right")
        gains = {key: reward(arm.name, key) - reward("base", key) for key in runs[0]["arms"]["base"]["rewards"]}
        # In units of the base clips' spread, so that the two rewards can stand side by side.
        scale = {key: reward("base", key).std() or 1.0 for key in gains}
        rose = gains[arm.reward] > 0
        hacking[arm.name] = {
            "own_reward": mean(gains[arm.reward] / scale[arm.reward], group),
            **{f"reward_{key}": mean(gain / scale[key], group) for key, gain in gains.items()},
            "right": mean(after - before, group), "reward_rose": share(rose, everything, group),
            "spoiled_where_rose": share(after < before, rose & (before == 1), group),
            "repaired_where_rose": share(after > before, rose & (before == 0), group),
        }
    return {
        "runs": len(runs), "prompts": len(np.unique(group)), "arms": table,
        "against": {arm.name: {rival: compared(arm.name, rival) for rival in rivals(arm) if rival in names - {arm.name}}
                    for arm in arms if arm.name != "base"},
        "reward_hacking": hacking,
    }  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """The same figures as a page for people."""
    summary = document["summary"]
    arms, against, hacking = summary["arms"], summary["against"], summary["reward_hacking"]

    def difference(name: str, rival: str) -> str:
        cell = against[name][rival]
        return (f"| {name} | {rival} | {percent(cell['right'], True)} | {shown(cell['motion'], 'signed')} | "
                f"{shown(cell['looks'], 'signed')} | {shown(cell['diversity'], 'signed')} | "
                f"{percent(cell['right_detected'], True)} | {cell['nfe_detected']['value']:+.1f} |")  # fmt: skip

    lines = [
        "# Self-refinement and latent search on the demo family", "",
        f"{summary['runs']} runs of each: {summary['prompts']} test prompts, {document['settings']['seeds']} seeds "
        f"each. {made_by(document)} *right*: by the judge. *motion*: share of the objects' steps from frame to frame "
        "that are coherent; *looks*: how clearly objects have one colour and one shape, both 0 to 1 and whatever the "
        "caption says. *diversity*: mean distance (1 - cosine of the scorer's features) between a prompt's clips. "
        "*With detection*: where the detector rejects, the run is stopped and made once more with another seed.", "",
        *([f"**The latent reward was not tried: {document['settings']['no_latent_reward']}**", ""]
          if document["settings"]["no_latent_reward"] else []),
        "| | NFE | right | motion | looks | diversity | right with detection | NFE with detection |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {cell['nfe']['value']:.1f} | {percent(cell['right'])} | {shown(cell['motion'], 'number')} | "
          f"{shown(cell['looks'], 'number')} | {shown(cell['diversity'], 'number')} | "
          f"{percent(cell['right_detected'])} | {cell['nfe_detected']['value']:.1f} |"
          for name, cell in arms.items()), "",
        "## Paired differences", "",
        "Against the base clip of the same seed, and against as many evaluations spent plainly. *right* in points.", "",
        "| | minus | right | motion | looks | diversity | right with detection | NFE with detection |",
        "|---|---|---|---|---|---|---|---|",
        *(difference(name, rival) for name, rivals_of in against.items() for rival in rivals_of), "",
        "## Is the reward fooled?", "",
        "Gains over the base clip of the same seed; rewards in units of the base clips' spread. A reward that rises "
        "where the other and the judge do not is being exploited.", "",
        "| | own reward | alignment reward | latent reward | right, points | right clips spoiled where its reward rose "
        "| wrong clips repaired where it rose |", "|---|---|---|---|---|---|---|",
        *(f"| {name} | {shown(cell['own_reward'], 'signed')} | {shown(cell.get('reward_alignment'), 'signed')} | "
          f"{shown(cell.get('reward_latent'), 'signed')} | {percent(cell['right'], True)} | "
          f"{percent(cell['spoiled_where_rose'])} | {percent(cell['repaired_where_rose'])} |"
          for name, cell in hacking.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def unusable(reward: Path = REWARD) -> str | None:
    """Why there is no latent reward to try, None where there is one."""
    try:
        load_reward(reward)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def main() -> None:
    options = parser(__doc__, "enhancers", prompts=60, seeds=3)
    options.add_argument("--quick", action="store_true", help="3 prompts, 2 seeds: only to try it out")
    a = options.parse_args()
    if a.quick:
        a.prompts, a.seeds = 3, 2
    missing = unusable()
    arms = [arm for arm in ARMS if arm.reward != "latent" or not missing]
    methods, items = [arm.method for arm in arms], load_suite("demo", a.prompts).items
    seeds = [FIRST_SEED + SEED_STEP * k for k in range(a.seeds)]
    evaluations = sum(arm.budget for arm in arms) * 1.3  # three of ten are rejected, and made again
    minutes = len(items) * len(seeds) * evaluations * MILLISECONDS / 60_000 / a.workers
    print(f"{len(items) * len(seeds)} times about {evaluations:.0f} model evaluations: about {minutes:.0f} minutes "
          f"with {a.workers} processes on cores of their own", flush=True)
    measure = partial(measures, sorted({arm.reward for arm in arms}))
    make = partial(Worker, Spec(methods=tuple(methods), keep_clips=False), measure=measure)
    command = f"python -m foresight.lab.experiments.enhancers --prompts {a.prompts} --seeds {a.seeds}"
    weights = {"weights": fingerprint(*WATCHED, "reward"), "latent_reward": missing}
    with experiment(a.work, items, make, weights, command, a.workers) as fill:
        first = cells(methods, seeds)
        rows = fill(lambda _: first)
        rows = fill(lambda item: first + [
            (method, seed + RESEED_STEP) for method, seed in first if not rows[method][item.index, seed]["accepted"]])
    settings = {
        "prompts": len(items), "seeds": a.seeds, "first_seed": FIRST_SEED, "steps": preset.STEPS,
        "sampler": preset.SAMPLER, "cfg": preset.CFG, "shift": preset.SHIFT, "no_latent_reward": missing,
        "budgets": {arm.name: arm.budget for arm in arms},
    }  # fmt: skip
    summary = summarize(outcomes(rows, arms), arms)
    write(a.out, "enhancers", command, {"settings": settings, "summary": summary}, markdown)


if __name__ == "__main__":
    main()
