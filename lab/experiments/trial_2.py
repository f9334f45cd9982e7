"""Trial 2, measured: does a refined prompt repair what the detector rejects, and more than other noise does?

    python -m foresight.lab.experiments.trial_2 --rejected 200

On test prompts and seeds of the demo world, until so many base runs are rejected. Each of those is sampled to its end
as it is, and again by each way of Trial 2; the judge looks at every clip. `truth` is the upper bound of emphasis: it is
told by the judge which attribute failed worst, and emphasises the phrase that states it as `ablation` would. Finished
runs are kept in a JSON-lines file, so an interrupted command goes on where it stopped. Writes refiner.json and
refiner.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...demo.captions import prompts
from ...demo.judge import judge
from ...demo.text import NOUNS, split_words
from ...demo.world import RELATIONS, Scene
from ...evaluation import statistics
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.demo_family import DemoFamily, family, fingerprint, start_worker
from ...evaluation.results import environment, percent, publish, run_jobs
from ...refiner.ablation import AblationRefiner, AblationSettings
from ...refiner.base import RefinementError, RefinementRequest
from ...refiner.phrases import Phrase, emphasise, plain, split_phrases
from ...refiner.restart import SEED_STEP, RestartRefiner
from .main_job import DIFFICULTIES, Job

FIRST_SEED = 3000
MOST_SEEDS = 50
PROMPTS = 60  # a third of each difficulty, the same as main_job's
ARMS = {
    "ablation": "`ablation`: the phrase that the preview lacks is emphasised; same noise",
    "restart": "`restart`: same prompt, other noise",
    "truth": "the phrase that truly failed is emphasised (upper bound); same noise",
    "both": "`ablation`'s prompt and other noise",
}
PAIRS = (("ablation", "restart"), ("truth", "restart"), ("ablation", "base"), ("restart", "base"), ("both", "restart"))


_RELATIONS = {*(name.split()[0] for name in RELATIONS), "over", "under"}


def stating(attribute: str, phrases: list[Phrase], scene: Scene) -> int | None:
    """The index of the phrase of a demo caption that states a judged attribute; None where none does.

    A count is stated by what names the last object: it is the one that is missing most often.
    """
    words = [split_words(plain(phrase.text)) for phrase in phrases]
    if attribute == "background":
        return _first(i for i, said in enumerate(words) if "background" in said)
    if attribute == "relation":
        # "left of", "to the left of", "above"; but not "a video of" or "moves left".
        leads = [i for i, phrase in enumerate(phrases) if phrase.lead == "preposition"]
        return _first(i for i in leads if _RELATIONS & set(words[i][:3]))
    number = int(attribute.split()[1]) if attribute.startswith("object") else len(scene.objects)
    thing = scene.objects[number - 1]
    named = [i for i, said in enumerate(words) if thing.colour in said and thing.shape in map(NOUNS.get, said)]
    if not attribute.endswith("direction"):
        return _first(named)
    moving = [i for i, phrase in enumerate(phrases) if phrase.lead == "verb" or "both" in words[i]]
    return _first([*(i for i in moving if i - 1 in named), *moving])


def _first(indices: Iterable[int]) -> int | None:
    return next(iter(indices), None)


def try_trials(family: DemoFamily, prompt: str, scene: Scene, seed: int) -> dict[str, Any]:
    """The detector's verdict on a base run and, where it rejects, the judge's on the finished clip of each arm."""
    from ...sampling.noise import reseeded
    from ...sampling.records import model_family
    from ...sampling.run import monitored_sample

    given, gate = family.inputs(prompt, seed), family.gate(prompt)
    stopped = monitored_sample(given, gate, stop="decided").verdict
    if stopped.accepted:
        return {"accepted": True}
    base = judge(family.decode(monitored_sample(given).latent), scene)
    request = RefinementRequest(
        prompt, "", stopped.preview, stopped.predicted_score, seed, model_family(given.guider.model_patcher)
    )
    run = {"accepted": False, "right": {"base": base.right}, "prompts": {}, "margins": base.margins}

    def tried(arm: str, text: str, seed: int | None = None) -> None:
        inputs = replace(given, guider=family.guider(text), noise=reseeded(given.noise, seed))
        run["prompts"][arm] = text
        run["right"][arm] = judge(family.decode(monitored_sample(inputs).latent), scene).right

    restart = RestartRefiner().refine(request)
    tried("restart", restart.prompt, restart.seed)
    try:
        refined = AblationRefiner(family.scorer).refine(request)
    except RefinementError:  # the run then goes on as it is
        run["right"] |= {"ablation": base.right, "both": base.right}
        run["found"] = None
    else:
        tried("ablation", refined.prompt)
        tried("both", refined.prompt, restart.seed)
        run["found"] = refined.evidence[0]["phrase"]

    settings = AblationSettings()
    phrases = split_phrases(prompt, settings.max_phrases)
    failed = None if base.right else stating(min(base.margins, key=base.margins.get), phrases, scene)
    run["failed"] = None if failed is None else plain(phrases[failed].text)
    if failed is None:  # nothing has failed, so whoever knows the truth lets the run go on
        run["right"]["truth"] = base.right
    else:
        tried("truth", emphasise(phrases, failed, settings.weight, settings.max_weight, settings.first))
    return run


@torch.inference_mode()
def run_job(job: Job) -> dict[str, Any]:
    described = {field: getattr(job, field) for field in ("prompt_index", "difficulty", "prompt", "seed")}
    return described | try_trials(family(), job.prompt, job.scene, job.seed)


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares with 95 % intervals, and paired differences, from a bootstrap over prompts."""
    rejected = [run for run in runs if not run["accepted"]]
    group = np.asarray([run["prompt_index"] for run in rejected])
    right = {arm: np.asarray([run["right"][arm] for run in rejected], bool) for arm in ("base", *ARMS)}
    failed = ~right["base"]
    everything = np.ones(len(rejected), bool)

    def difference(arm: str, other: str, among: np.ndarray) -> dict[str, float]:
        gain = np.where(among, right[arm].astype(float) - right[other], np.nan)
        return statistics.bootstrap(lambda rows: np.nanmean(gain[rows]) if among[rows].any() else np.nan, group)

    told = np.asarray([run["failed"] is not None for run in rejected])
    named = np.asarray([run["found"] is not None and run["found"] == run["failed"] for run in rejected])
    return {
        "runs": len(runs), "rejected": len(rejected), "prompts": len(set(group.tolist())),
        "right": {arm: statistics.share(values, everything, group) for arm, values in right.items()},
        "repaired": {arm: statistics.share(right[arm], failed, group) for arm in ARMS},
        "spoiled": {arm: statistics.share(~right[arm], ~failed, group) for arm in ARMS},
        "ablation_finds_what_failed": statistics.share(named, told, group),
        "differences": {
            f"{arm} minus {other}": {
                "all": difference(arm, other, everything), "failed": difference(arm, other, failed)
            } for arm, other in PAIRS
        },
    }  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    summary, made = document["summary"], document["environment"]
    return "\n".join([
        "# Trial 2 on the demo family", "",
        f"{summary['rejected']} of {summary['runs']} runs were rejected, of {summary['prompts']} test prompts. Made by "
        f"`{made['command']}` on {made['date']}, {made['machine']}, ComfyUI {made['comfyui']}, torch {made['torch']}. "
        "In brackets: 95 % intervals from a bootstrap over prompts.", "",
        "| Trial 2 | right clips of all rejected | failed clips repaired | good clips spoiled |", "|---|---|---|---|",
        f"| none: the rejected run to its end | {percent(summary['right']['base'])} | | |",
        *(f"| {words} | {percent(summary['right'][arm])} | {percent(summary['repaired'][arm])} | "
          f"{percent(summary['spoiled'][arm])} |" for arm, words in ARMS.items()), "",
        "| paired difference | points, all rejected | points, failed clips |", "|---|---|---|",
        *(f"| {name} | {percent(row['all'], signed=True)} | {percent(row['failed'], signed=True)} |"
          for name, row in summary["differences"].items()), "",
        f"`ablation` emphasises the phrase that states what failed worst in "
        f"{percent(summary['ablation_finds_what_failed'])} of the failed clips. Where the rejected clip is in fact "
        "right, nothing has failed, and the upper bound lets it go on; so it spoils none.", "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejected", type=int, default=200, help="go on seed by seed until so many runs are rejected")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="test prompts, a third of each difficulty")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "refiner.jsonl", help="finished runs")
    a = parser.parse_args()
    chosen = [(name, *entry) for name in DIFFICULTIES for entry in prompts("test", name, a.prompts // 3)]
    weights, runs, seeds = fingerprint(), [], 0
    while sum(not run["accepted"] for run in runs) < a.rejected:
        if seeds == MOST_SEEDS:
            raise SystemExit(f"{seeds} seeds a prompt gave fewer than {a.rejected} rejected runs: use more --prompts")
        jobs = [Job(i, *entry, FIRST_SEED + seeds) for i, entry in enumerate(chosen)]
        keyed = {f"{weights} {job.seed} {job.prompt}": (job,) for job in jobs}
        runs += run_jobs(a.work, keyed, run_job, workers=a.workers, start=start_worker)
        seeds += 1
    load_comfyui()
    command = f"python -m foresight.lab.experiments.trial_2 --rejected {a.rejected}"
    if a.prompts != PROMPTS:
        command += f" --prompts {a.prompts}"
    document = {
        "schema": "foresight.refiner", "version": 1,
        "settings": {
            "prompts": len(chosen), "seeds": seeds, "first_seed": FIRST_SEED, "seed_step": SEED_STEP,
            "ablation": asdict(AblationSettings()), "tau": family().gate("any").video.tau,
        },
        "environment": environment(command), "summary": summarize(runs), "runs": runs,
    }  # fmt: skip
    publish(a.out, "refiner", document, markdown(document))


if __name__ == "__main__":
    main()
