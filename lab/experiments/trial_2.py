"""Trial 2, measured: does a reworded prompt repair what the detector rejects, and more than other noise does?

    python -m foresight.lab.experiments.trial_2 --rejected 200

On test prompts and seeds of the demo world, until so many base runs are rejected. Each of those is sampled again by
each way of Trial 2; the judge looks at every clip. `truth` is the upper bound of emphasis: it reads from the judge
which attribute failed worst, and emphasises the phrase that states it as `ablation` would. Finished prompts are kept in
a database, so an interrupted command goes on where it stopped. Writes refiner.json and refiner.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ...demo.judge import judge
from ...demo.text import NOUNS, split_words
from ...demo.world import RELATIONS, Scene
from ...evaluation import statistics
from ...evaluation.bench import BASE, Bench, Method, Row
from ...evaluation.demo_family import fingerprint
from ...evaluation.fill import cells
from ...evaluation.methods import load_method
from ...evaluation.results import percent
from ...evaluation.suites import Item, load_suite
from ...evaluation.workers import Spec, Worker
from ...refiner.ablation import AblationReworder, AblationSettings
from ...refiner.base import RewordingError, RewordingRequest
from ...refiner.phrases import Phrase, emphasise, split_phrases
from ...refiner.restart import SEED_STEP, RestartReworder
from ...scoring.words import plain
from .common import Rows, experiment, made_by, parser, write

FIRST_SEED = 3000
MOST_SEEDS = 50
PROMPTS = 60  # a third of each difficulty
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
        return _first(i for i, phrase in enumerate(words) if "background" in phrase)
    if attribute == "relation":
        # "left of", "to the left of", "above"; but not "a video of" or "moves left".
        leads = [i for i, phrase in enumerate(phrases) if phrase.lead == "preposition"]
        return _first(i for i in leads if _RELATIONS & set(words[i][:3]))
    number = int(attribute.split()[1]) if attribute.startswith("object") else len(scene.objects)
    thing = scene.objects[number - 1]
    named = [i for i, phrase in enumerate(words) if thing.colour in phrase and thing.shape in map(NOUNS.get, phrase)]
    if not attribute.endswith("direction"):
        return _first(named)
    moving = [i for i, phrase in enumerate(phrases) if phrase.lead == "verb" or "both" in words[i]]
    return _first([*(i for i in moving if i - 1 in named), *moving])


def _first(indices: Iterable[int]) -> int | None:
    return next(iter(indices), None)


def margins(item: Item, frames: np.ndarray) -> Row:
    """The judge with the margin of each attribute of the scene."""
    verdict = judge(torch.from_numpy(frames), item.scene)
    return {"right": bool(verdict.right), "measures": {name: float(value) for name, value in verdict.margins.items()}}


def load(name: str, steps: int) -> Method:
    """The ways of Trial 2 beside the evaluation's own methods."""
    return Method(name, partial(try_arm, name), in_process=True) if name in ARMS else load_method(name, steps)


def try_arm(arm: str, bench: Bench, seed: int) -> Row:
    """A rejected run sampled again by one way of Trial 2; its notes hold the phrase that was emphasised. Where there is
    none the run goes on as it is."""
    from ...sampling.run import monitored_sample
    from ...trials.report import run_report

    family, prompt = bench.backend.family, bench.item.prompt
    if arm == "truth":
        words = emphasis_of_what_failed(bench.item, bench.base(seed))
    elif arm == "restart":
        words = prompt, None
    else:
        words = bench.once(("ablation", seed), lambda: emphasis_of_ablation(bench, seed))
    if words is None:
        return bench.shared(seed, arm, seed)
    text, phrase = words
    noise_seed = seed if arm in ("ablation", "truth") else RestartReworder().reword(request(bench, seed)).seed
    result = monitored_sample(replace(family.inputs(prompt, noise_seed), guider=family.guider(text)))
    row = bench.sampled(seed, arm, result.latent, run_report(result.verdict))
    return row | {"notes": [phrase] if phrase else []}


def request(bench: Bench, seed: int) -> RewordingRequest:
    """What a refiner is shown of the run when the detector rejects it."""

    def stopped() -> RewordingRequest:
        from ...sampling.records import model_family
        from ...sampling.run import monitored_sample

        family, prompt = bench.backend.family, bench.item.prompt
        inputs = family.inputs(prompt, seed)
        verdict = monitored_sample(inputs, family.gate(prompt), stop="decided").verdict
        model = model_family(inputs.guider.model_patcher)
        return RewordingRequest(prompt, "", verdict.preview, verdict.predicted_score, seed, model)

    return bench.once(("request", seed), stopped)


def emphasis_of_ablation(bench: Bench, seed: int) -> tuple[str, str] | None:
    """The reworded prompt and the phrase that it emphasises."""
    try:
        refinement = AblationReworder(bench.backend.family.scorer).reword(request(bench, seed))
    except RewordingError:
        return None
    return refinement.prompt, refinement.evidence[0]["phrase"]


def emphasis_of_what_failed(item: Item, base: Row) -> tuple[str, str] | None:
    """The same by whoever knows the truth: nothing where the clip is right, or no phrase states what failed."""
    settings = AblationSettings()
    phrases, measures = split_phrases(item.prompt, settings.max_phrases), base["measures"]
    failed = None if base["right"] else stating(min(measures, key=measures.get), phrases, item.scene)
    if failed is None:
        return None
    text = emphasise(phrases, failed, settings.weight, settings.max_weight, settings.first)
    return text, plain(phrases[failed].text)


def outcomes(rows: Rows) -> list[Row]:
    """What `summarize` counts: the detector's verdict on each base run and, where it rejects, the judge's on the clip
    of each arm, the phrase that ablation emphasised, and the one that failed."""
    runs = []
    for key, base in rows[BASE].items():
        run = {"prompt_index": key[0], "accepted": base["accepted"]}
        if not base["accepted"]:
            arms = {arm: rows[arm][key] for arm in ARMS}
            phrase = {arm: next(iter(row["notes"]), None) for arm, row in arms.items()}
            run |= {"right": {BASE: base["right"], **{arm: row["right"] for arm, row in arms.items()}},
                    "emphasised": phrase["ablation"], "failed": phrase["truth"]}  # fmt: skip
        runs.append(run)
    return runs


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares with 95 % intervals, and paired differences, from a bootstrap over prompts."""
    rejected = [run for run in runs if not run["accepted"]]
    group = np.asarray([run["prompt_index"] for run in rejected])
    right = {arm: np.asarray([run["right"][arm] for run in rejected], bool) for arm in ("base", *ARMS)}
    failed = ~right["base"]
    everything = np.ones(len(rejected), bool)

    def difference(arm: str, other: str, among: np.ndarray) -> dict[str, float]:
        return statistics.mean(right[arm].astype(float) - right[other], group, among)

    stated = np.asarray([run["failed"] is not None for run in rejected])
    named = np.asarray([run["emphasised"] is not None and run["emphasised"] == run["failed"] for run in rejected])
    return {
        "runs": len(runs), "rejected": len(rejected), "prompts": len(set(group.tolist())),
        "right": {arm: statistics.share(values, everything, group) for arm, values in right.items()},
        "repaired": {arm: statistics.share(right[arm], failed, group) for arm in ARMS},
        "spoiled": {arm: statistics.share(~right[arm], ~failed, group) for arm in ARMS},
        "ablation_finds_what_failed": statistics.share(named, stated, group),
        "differences": {
            f"{arm} minus {other}": {
                "all": difference(arm, other, everything), "failed": difference(arm, other, failed)
            } for arm, other in PAIRS
        },
    }  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    summary = document["summary"]
    return "\n".join([
        "# Trial 2 on the demo family", "",
        f"{summary['rejected']} of {summary['runs']} runs were rejected, of {summary['prompts']} test prompts. "
        f"{made_by(document)}", "",
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
    options = parser(__doc__, "refiner", PROMPTS)
    options.add_argument("--rejected", type=int, default=200, help="go on seed by seed until so many runs are rejected")
    a = options.parse_args()
    command = f"python -m foresight.lab.experiments.trial_2 --rejected {a.rejected}"
    if a.prompts != PROMPTS:
        command += f" --prompts {a.prompts}"
    items, seeds = load_suite("demo", a.prompts).items, []
    make = partial(Worker, Spec(methods=(BASE, *ARMS), keep_clips=False), load=load, judge=margins)
    with experiment(a.work, items, make, {"weights": fingerprint()}, command, a.workers) as fill:
        base: dict = {}
        while sum(not row["accepted"] for row in base.values()) < a.rejected:
            if len(seeds) == MOST_SEEDS:
                raise SystemExit(f"{MOST_SEEDS} seeds a prompt gave too few rejected runs: use more --prompts")
            seeds.append(FIRST_SEED + len(seeds))
            base = fill(lambda _: cells([BASE], seeds))[BASE]
        rows = fill(lambda item: cells([BASE], seeds) + cells(
            list(ARMS), [seed for seed in seeds if not base[item.index, seed]["accepted"]]))
    tau = next(iter(base.values()))["report"]["settings"]["tau"]
    settings = {"prompts": len(items), "seeds": len(seeds), "first_seed": FIRST_SEED, "seed_step": SEED_STEP,
                "ablation": asdict(AblationSettings()), "tau": tau}  # fmt: skip
    write(a.out, "refiner", command, {"settings": settings, "summary": summarize(outcomes(rows))}, markdown)


if __name__ == "__main__":
    main()
