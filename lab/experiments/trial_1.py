"""Which way of injecting repairs most and spoils least? Trial 1's settings on the demo family, beside reseeding.

    python -m foresight.lab.experiments.trial_1 --prompts 86 --seeds 8

On validation prompts, because the best setting becomes the demo's preset. The judge says which clips failed, not the
detector: what injection can do is one question, whether it is called for another. Each setting runs on the failed clips
of a prompt and on as many good ones; the rival draws other noise. Finished prompts are kept in a JSON-lines file, so an
interrupted command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...demo.captions import prompts
from ...demo.flow import start_noise
from ...demo.judge import judge
from ...demo.world import Scene
from ...evaluation import statistics
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.demo_family import family, fingerprint, start_worker
from ...evaluation.results import environment, percent, publish, run_jobs

FIRST_SEED = 9000
PROBE_STEP = 24  # of 50, the mean stop of the paper's probes (Table S4)
FRAMES = 5
RESEED = "reseed"
# start, steps, noise, mask, strength of InjectionSettings, the first is the paper's; and the rival's draws of noise.
# The second part is what the first suggests: early starts, and noise that is not the one that failed.
PARTS = (
    (
        (2, 2, "initial", "linear", 1.0),
        (4, 2, "initial", "linear", 1.0), (4, 2, "fresh", "linear", 1.0), (4, 2, "initial", "first frame", 1.0),
        (7, 2, "initial", "linear", 1.0), (7, 2, "fresh", "linear", 1.0),
        (10, 2, "fresh", "linear", 1.0),
        f"{RESEED} 1", f"{RESEED} 2",
    ),
    (
        (2, 2, "fresh", "linear", 1.0), (2, 4, "fresh", "linear", 1.0), (2, 2, "fresh", "linear", 0.5),
        (3, 2, "fresh", "linear", 1.0),
    ),
)  # fmt: skip


@torch.inference_mode()
def sweep_prompt(index: int, prompt: str, scene: Scene, seeds: list[int], part: tuple) -> dict[str, Any]:
    """Verdicts by setting of `part` on a prompt's failed clips and as many good ones; `probe_right` says whose frame is
    right."""
    from ...sampling.injection import Anchor, Injection, InjectionSettings
    from ...sampling.noise import FixedNoise
    from ...sampling.run import monitored_sample

    def given(noise: Tensor) -> Any:
        inputs = family().inputs(prompt, seeds[0])
        return replace(inputs, noise=FixedNoise(noise, seeds[0]), latent={"samples": torch.zeros_like(noise)})

    def verdicts(latent: dict[str, Tensor]) -> list[bool]:
        items = [family().vae.decode(latent["samples"][i : i + 1]) for i in range(len(latent["samples"]))]
        return [judge(clip.reshape(-1, *clip.shape[-3:]), scene).right for clip in items]

    noise = start_noise(index, seeds, FRAMES)
    base = verdicts(monitored_sample(given(noise)).latent)
    failed, good = ([i for i, right in enumerate(base) if right == wanted] for wanted in (False, True))
    chosen = failed + good[: len(failed)]
    found = {"prompt_index": index, "base": [base[i] for i in chosen], "probe_right": [], "after": {}}
    if not failed:
        return found
    noise = noise[chosen]
    single = monitored_sample(given(noise[:, :, :1]), keep_steps=True)
    at_stop = single.steps_x0["samples"].unflatten(0, (-1, len(chosen)))[PROBE_STEP - 1]
    found["probe_right"] = verdicts({"samples": at_stop})
    anchor = Anchor(family().model.model.process_latent_in(at_stop))
    for setting in part:
        if isinstance(setting, str):
            again = [seeds[i] + 100_000 * int(setting.split()[-1]) for i in chosen]
            name, result = setting, monitored_sample(given(start_noise(index, again, FRAMES)))
        else:
            settings = InjectionSettings(*setting)
            name = json.dumps(asdict(settings))
            result = monitored_sample(given(noise), injection=Injection(anchor, settings))
        found["after"][name] = verdicts(result.latent)
    return found


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A prompt's parts as one; what they share came from the same noise."""
    first = parts[0]
    if any(part["base"] != first["base"] or part["probe_right"] != first["probe_right"] for part in parts):
        raise RuntimeError(f"prompt {first['prompt_index']}: the same noise gave other clips in another part")
    return first | {"after": {name: after for part in parts for name, after in part["after"].items()}}


def summarize(prompts_found: list[dict[str, Any]]) -> dict[str, Any]:
    """For each setting the repaired share of failures, where the probe was right, wrong and over all, and the spoiled
    share of good clips, with 95 % intervals from a bootstrap over prompts."""
    with_failures = [found for found in prompts_found if found["after"]]
    if not with_failures:
        raise SystemExit("no clip failed, so there is nothing to repair: use more or harder prompts")
    group = np.concatenate([[found["prompt_index"]] * len(found["base"]) for found in with_failures])
    base, probe = (np.concatenate([found[key] for found in with_failures]).astype(bool) for key in
                   ("base", "probe_right"))  # fmt: skip

    def share(of: np.ndarray, among: np.ndarray) -> dict[str, float]:
        return statistics.share(of, among, group)

    def verdicts(name: str) -> np.ndarray:
        return np.concatenate([found["after"][name] for found in with_failures]).astype(float)

    names = list(with_failures[0]["after"])
    rival = np.mean([verdicts(name) for name in names if name.startswith(RESEED)], axis=0)

    def above_rival(after: np.ndarray, among: np.ndarray) -> dict[str, float]:
        gain = np.where(among, after - rival, np.nan)
        return statistics.bootstrap(lambda rows: np.nanmean(gain[rows]) if among[rows].any() else np.nan, group)

    table = {}
    for name in names:
        after = verdicts(name)
        table[name] = {
            "above_reseeding_where_probe_right": above_rival(after, ~base & probe),
            "repaired": share(after > 0, ~base), "repaired_where_probe_right": share(after > 0, ~base & probe),
            "repaired_where_probe_wrong": share(after > 0, ~base & ~probe), "spoiled": share(after == 0, base),
            "spoiled_where_probe_right": share(after == 0, base & probe),
        }  # fmt: skip
    return {"prompts": len(prompts_found), "failed_clips": int((~base).sum()),
            "failed_clips_with_right_probe": int((~base & probe).sum()), "settings": table}


def markdown(document: dict[str, Any]) -> str:
    summary, made = document["summary"], document["environment"]

    def name(key: str) -> str:
        if not key.startswith("{"):
            return key
        return "start {start}, K {steps}, {noise} noise, {mask} mask, strength {strength}".format(**json.loads(key))

    columns = ("repaired_where_probe_right", "repaired_where_probe_wrong", "repaired", "spoiled_where_probe_right",
               "spoiled")  # fmt: skip
    return "\n".join([
        "# Injection on the demo family", "",
        f"{summary['failed_clips']} failed clips of {summary['prompts']} validation prompts; the probe was right on "
        f"{summary['failed_clips_with_right_probe']}. Made by `{made['command']}` on {made['date']}, "
        f"{made['machine']}, ComfyUI {made['comfyui']}, torch {made['torch']}. In brackets: 95 % intervals from a "
        "bootstrap over prompts. The first row is the paper's setting; reseeding is sampling again with other noise, "
        "and the second column is paired with the mean of its draws.", "",
        "| setting | repaired, probe right | above reseeding | repaired, probe wrong | repaired, all | "
        "spoiled, probe right | spoiled, all |", "|---|---|---|---|---|---|---|",
        *(f"| {name(key)} | {percent(row[columns[0]])} | "
          f"{percent(row['above_reseeding_where_probe_right'], signed=True)} | "
          f"{' | '.join(percent(row[c]) for c in columns[1:])} |" for key, row in summary["settings"].items()), "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=86, help="validation prompts, half medium, half hard")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "injection_sweep.jsonl", help="finished prompts")
    a = parser.parse_args()
    by_difficulty = (prompts("validation", name, a.prompts // 2) for name in ("medium", "hard"))
    chosen = [entry for pair in zip(*by_difficulty, strict=True) for entry in pair]
    seeds, weights = list(range(FIRST_SEED, FIRST_SEED + a.seeds)), fingerprint("diffusion_models", "vae")
    jobs = {
        f"{weights} {i} {a.seeds} {entry[0]} {json.dumps(part)}": (i, *entry, seeds, part)
        for i, entry in enumerate(chosen) for part in PARTS
    }
    results = run_jobs(a.work, jobs, sweep_prompt, workers=a.workers, start=start_worker)
    found = [merged(results[i : i + len(PARTS)]) for i in range(0, len(results), len(PARTS))]
    load_comfyui()
    document = {
        "schema": "foresight.injection_sweep", "version": 1,
        "environment": environment(
            f"python -m foresight.lab.experiments.trial_1 --prompts {a.prompts} --seeds {a.seeds}"),
        "summary": summarize(found),
    }  # fmt: skip
    publish(a.out, "injection_sweep", document, markdown(document))


if __name__ == "__main__":
    main()
