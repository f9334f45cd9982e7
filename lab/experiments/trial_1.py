"""Which way of injecting repairs most and spoils least? Trial 1's settings on the demo family, beside reseeding.

    python -m foresight.lab.experiments.trial_1 --prompts 86 --seeds 8

On validation prompts, because the best setting becomes the demo's preset. The judge says which clips failed, not the
detector: what injection can do is one question, whether it is called for another. Each setting runs on the failed clips
of a prompt and on as many good ones; the rival draws other noise. Finished prompts are kept in a database, so an
interrupted command goes on where it stopped. Writes injection_sweep.json and injection_sweep.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ...demo.captions import prompts
from ...demo.flow import start_noise
from ...evaluation import statistics
from ...evaluation.bench import Bench, Method, Row
from ...evaluation.demo_family import fingerprint
from ...evaluation.fill import Cell, cells
from ...evaluation.results import percent
from ...evaluation.suites import Item
from ...evaluation.workers import Spec, Worker
from .common import Rows, experiment, made_by, parser, write

FIRST_SEED = 9000
RESEED_STEP = 100_000  # seeds of the rival: far from the ones that are evaluated
RESEEDS = 2  # the rival's draws of noise
PROBE_STEP = 24  # of 50, the mean stop of the paper's probes (Table S4)
FRAMES = 5
PLAIN, PROBE, INJECTED = "plain", "probe", "injection@"
# start, steps, noise, mask, strength of InjectionSettings; the first is the paper's, the last four what the others
# suggest: early starts, and noise that is not the one that failed.
SETTINGS = (
    (2, 2, "initial", "linear", 1.0),
    (4, 2, "initial", "linear", 1.0), (4, 2, "fresh", "linear", 1.0), (4, 2, "initial", "first frame", 1.0),
    (7, 2, "initial", "linear", 1.0), (7, 2, "fresh", "linear", 1.0),
    (10, 2, "fresh", "linear", 1.0),
    (2, 2, "fresh", "linear", 1.0), (2, 4, "fresh", "linear", 1.0), (2, 2, "fresh", "linear", 0.5),
    (3, 2, "fresh", "linear", 1.0),
)  # fmt: skip
METHODS = {INJECTED + ",".join(map(str, setting)): setting for setting in SETTINGS}


def load(name: str, _: int) -> Method:
    """plain, probe (the single frame as it is at PROBE_STEP), or an injection of it."""
    return Method(name, partial(try_setting, name), in_process=True)


def try_setting(name: str, bench: Bench, seed: int) -> Row:
    from ...sampling.injection import Anchor, Injection, InjectionSettings
    from ...sampling.noise import FixedNoise
    from ...sampling.run import monitored_sample
    from ...trials.report import run_report

    family = bench.backend.family
    noise = start_noise(bench.item.index, [seed], FRAMES)

    def inputs(noise: torch.Tensor) -> Any:
        plain = family.inputs(bench.item.prompt, seed)
        return replace(plain, noise=FixedNoise(noise, seed), latent={"samples": torch.zeros_like(noise)})

    def probe() -> dict[str, torch.Tensor]:
        single = inputs(noise[:, :, :1])
        single = replace(single, sigmas=single.sigmas[: PROBE_STEP + 1])
        return {"samples": monitored_sample(single, keep_steps=True).steps_x0["samples"][-1:]}

    if name == PLAIN:
        result = monitored_sample(inputs(noise))
        return bench.sampled(seed, name, result.latent, run_report(result.verdict))
    frame = bench.once((PROBE, seed), probe)
    if name == PROBE:
        return bench.sampled(seed, name, frame, None, nfe=PROBE_STEP, nfe_single_frame=PROBE_STEP)
    anchor = Anchor(family.model.model.process_latent_in(frame["samples"]))
    result = monitored_sample(inputs(noise), injection=Injection(anchor, InjectionSettings(*METHODS[name])))
    return bench.sampled(seed, name, result.latent, run_report(result.verdict))


def chosen(plain: dict[tuple[int, int], Row], item: Item) -> list[int]:
    """The seeds of a prompt's failed clips, and of as many good ones."""
    right = {seed: row["right"] for (index, seed), row in plain.items() if index == item.index}
    failed, good = ([seed for seed in right if right[seed] == outcome] for outcome in (False, True))
    return failed + good[: len(failed)]


def trials(seeds: Sequence[int]) -> list[Cell]:
    """What is tried on these clips of a prompt."""
    again = [seed + RESEED_STEP * (k + 1) for k in range(RESEEDS) for seed in seeds]
    return cells([PROBE, *METHODS], seeds) + cells([PLAIN], again)


def outcomes(rows: Rows, items: Sequence[Item], seeds: dict[int, list[int]]) -> list[dict[str, Any]]:
    """By prompt: verdicts on its chosen clips as they were, `after` each setting (empty where nothing failed), and
    whether their single frames are right."""
    from ...sampling.injection import InjectionSettings

    def right(method: str, item: Item, further: int = 0) -> list[bool]:
        return [rows[method][item.index, seed + further]["right"] for seed in seeds[item.index]]

    return [
        {
            "prompt_index": item.index, "base": right(PLAIN, item), "probe_right": right(PROBE, item), "after": {
                **{json.dumps(asdict(InjectionSettings(*setting))): right(name, item)
                   for name, setting in METHODS.items()},
                **{f"reseed {k}": right(PLAIN, item, RESEED_STEP * k) for k in range(1, RESEEDS + 1)},
            } if seeds[item.index] else {},
        }
        for item in items
    ]  # fmt: skip


def summarize(prompts_after: list[dict[str, Any]]) -> dict[str, Any]:
    """For each setting the repaired share of failures, where the probe was right, wrong and over all, and the spoiled
    share of good clips, with 95 % intervals from a bootstrap over prompts."""
    with_failures = [one for one in prompts_after if one["after"]]
    if not with_failures:
        raise SystemExit("no clip failed, so there is nothing to repair: use more or harder prompts")
    group = np.concatenate([[one["prompt_index"]] * len(one["base"]) for one in with_failures])
    base, probe = (np.concatenate([one[key] for one in with_failures]).astype(bool) for key in
                   ("base", "probe_right"))  # fmt: skip

    def share(of: np.ndarray, among: np.ndarray) -> dict[str, float]:
        return statistics.share(of, among, group)

    def verdicts(name: str) -> np.ndarray:
        return np.concatenate([one["after"][name] for one in with_failures]).astype(float)

    names = list(with_failures[0]["after"])
    rival = np.mean([verdicts(name) for name in names if name.startswith("reseed")], axis=0)

    table = {}
    for name in names:
        after = verdicts(name)
        table[name] = {
            "above_reseeding_where_probe_right": statistics.mean(after - rival, group, ~base & probe),
            "repaired": share(after > 0, ~base), "repaired_where_probe_right": share(after > 0, ~base & probe),
            "repaired_where_probe_wrong": share(after > 0, ~base & ~probe), "spoiled": share(after == 0, base),
            "spoiled_where_probe_right": share(after == 0, base & probe),
        }  # fmt: skip
    return {"prompts": len(prompts_after), "failed_clips": int((~base).sum()),
            "failed_clips_with_right_probe": int((~base & probe).sum()), "settings": table}


def markdown(document: dict[str, Any]) -> str:
    summary = document["summary"]

    def name(key: str) -> str:
        if not key.startswith("{"):
            return key
        return "start {start}, K {steps}, {noise} noise, {mask} mask, strength {strength}".format(**json.loads(key))

    columns = ("repaired_where_probe_right", "repaired_where_probe_wrong", "repaired", "spoiled_where_probe_right",
               "spoiled")  # fmt: skip
    return "\n".join([
        "# Injection on the demo family", "",
        f"{summary['failed_clips']} failed clips of {summary['prompts']} validation prompts; the probe was right on "
        f"{summary['failed_clips_with_right_probe']}. {made_by(document)} The first row is the paper's setting; "
        "reseeding is sampling again with other noise, and the second column is paired with the mean of its draws.", "",
        "| setting | repaired, probe right | above reseeding | repaired, probe wrong | repaired, all | "
        "spoiled, probe right | spoiled, all |", "|---|---|---|---|---|---|---|",
        *(f"| {name(key)} | {percent(row[columns[0]])} | "
          f"{percent(row['above_reseeding_where_probe_right'], signed=True)} | "
          f"{' | '.join(percent(row[c]) for c in columns[1:])} |" for key, row in summary["settings"].items()), "",
    ])  # fmt: skip


def main() -> None:
    a = parser(__doc__, "injection_sweep", prompts=86, seeds=8).parse_args()
    by_difficulty = (prompts("validation", name, a.prompts // 2) for name in ("medium", "hard"))
    texts = [entry for pair in zip(*by_difficulty, strict=True) for entry in pair]
    items = [Item(index, text, "", scene) for index, (text, scene) in enumerate(texts)]
    command = f"python -m foresight.lab.experiments.trial_1 --prompts {a.prompts} --seeds {a.seeds}"
    make = partial(Worker, Spec(methods=(PLAIN, PROBE, *METHODS), keep_clips=False), load=load)
    settings = {"suite": "demo, validation", "weights": fingerprint("diffusion_models", "vae")}
    first = cells([PLAIN], range(FIRST_SEED, FIRST_SEED + a.seeds))
    with experiment(a.work, items, make, settings, command, a.workers) as fill:
        plain = fill(lambda _: first)[PLAIN]
        seeds = {item.index: chosen(plain, item) for item in items}
        rows = fill(lambda item: first + trials(seeds[item.index]))
    write(a.out, "injection_sweep", command, {"summary": summarize(outcomes(rows, items, seeds))}, markdown)


if __name__ == "__main__":
    main()
