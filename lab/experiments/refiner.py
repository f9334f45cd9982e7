"""What noise refiners are worth on the demo world, beside every other way to spend forwards on a stream.

    python -m foresight.lab.experiments.refiner FOLDER --prompts 204

FOLDER holds the student (self_forcing.safetensors, or --student), and FOLDER/refiners what the recipe `refiner` of
foresight.lab.training made for it: path_dmd, path_reward, start_dmd, start_reward, weights_dmd, weights_reward, which
the claims are about, and any others for ablations (each says itself how it was trained). Whole batches run in plain
torch, which makes the clips that ComfyUI makes (tests/test_noise_refiner.py). Each arm's results are kept in
FOLDER/arms, so a stopped command goes on. Results are of test prompts; --validation is for choosing. Writes
refiner_streams.json and refiner_streams.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ...demo.script import LATENTS
from ...demo.stream import Stream
from ...demo.wan_dit import load_transformer
from ...evaluation import statistics
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.suites import load_suite
from ...sampling.refiner_file import RefinerSettings, describe
from ..training.refiner import LatentJudge
from ..training.refining import PATH, WEIGHTS, sampled
from ..training.streams import Streams, decode, schedule_of
from .common import write
from .refiner_page import markdown
from .stream_search import Verifier, searched
from .streaming import AT_ONCE, kept, motion, saturation

SEEDS = 5
REWARD, SCORER = "latent reward", "scorer"
NONE = "none"
STARTS = ((5, 1), (3, 2))  # of a race: so many starts of so many chunks, of which the best goes on


@dataclass(frozen=True)
class Arm:
    """name: told. student: its file. kind: "plain", "search" or the `what` of a file of the recipe; that file's name
    and digest. digits: steps by chunk. count, path, verifier: see `searched`. seeds: clips of each prompt."""

    name: str
    student: str
    kind: str = "plain"
    file: str = ""
    digest: str = ""
    digits: str = "4"
    count: int = 1
    path: bool = False
    verifier: str = ""
    seeds: int = SEEDS


def arms(folder: Path, student: str, seeds: int) -> list[Arm]:
    made = [Arm(NONE, student, seeds=seeds), Arm("7 steps instead of 4", student, digits="7", seeds=seeds)]
    few = min(seeds, 2)  # searches take five times as long
    for verifier in (REWARD, SCORER):
        for count in (2, 5):
            made.append(Arm(f"best of {count} by chunk, {verifier}", student, "search", count=count, verifier=verifier,
                            seeds=few))  # fmt: skip
        made.append(Arm(f"search over path of 5, {verifier}", student, "search", count=5, path=True, verifier=verifier,
                        seeds=few))  # fmt: skip
    for path in sorted((folder / "refiners").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            what = (file.metadata() or {}).get("what")
        if what is not None:  # the LoRA beside a whole model does not say
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            made.append(Arm(path.stem, student, what, path.name, digest, seeds=seeds))
    return made


the_judge = cache(LatentJudge)


class Batch(Streams):
    """Streams of some prompts, and what their clips are judged by besides the program. number: of their first prompt.
    """

    def __init__(self, items: list, number: int, judge: LatentJudge):
        super().__init__(items)
        self.number, self.judge = number, judge
        self.texts = judge.texts([script.prompts[0] for script in self.scripts])
        self.shape = (len(items), 16, 1, 8, 8)

    def seed(self, seed: int) -> int:
        return self.number + 10_000 * seed

    def features(self, clip: Tensor) -> Tensor:
        return self.judge.scored.look(clip[:, None])[:, 0]

    def verifier(self, name: str) -> Verifier:
        if name == REWARD:
            return lambda clip, sigma: self.judge(clip, sigma, self.texts)
        return lambda clip, _: (self.features(clip) * self.texts).sum(-1)

    def draws(self, seed: int) -> Callable[[int], Tensor]:
        generators = [torch.Generator().manual_seed(self.seed(seed) + 1000 * number) for number in range(10)]
        return lambda number: torch.randn(self.shape, generator=generators[number])


def make(arm: Arm, folder: Path, batch: Batch, seed: int) -> tuple[Tensor, int, Tensor | None]:
    """Latents, the forwards that one clip took, and the changes of the noise."""
    student = load_transformer(folder / f"{arm.student}.safetensors").requires_grad_(False)
    if arm.kind == "search":
        stream, schedule = Stream(student, batch.context, batch.which), schedule_of(arm.digits, LATENTS)
        verifier = batch.verifier(arm.verifier)
        return searched(stream, schedule, arm.count, arm.path, verifier, batch.draws(seed)), stream.forwards, None
    network, how, what = None, RefinerSettings(), PATH
    if arm.file:
        path, what = folder / "refiners" / arm.file, arm.kind
        network = load_transformer(path).requires_grad_(False)
        if what != WEIGHTS:
            described = describe(path)
            described.require(student, "refiner")
            how = described.settings
    return sampled(batch, student, network, how, what, arm.digits, batch.seed(seed))


def run(arm: Arm, folder: Path, suite: str, prompts: int) -> dict[str, Any]:
    """By prompt and seed: right, motion, saturation, and reward and score of the first chunks and of the whole clip
    (by number of chunks); by prompt how alike its clips are; the size of the changes; forwards and seconds a clip."""
    items, judge = load_suite(suite, prompts).items, the_judge()
    by_prompt: dict[str, list] = {name: [] for name in ("right", "motion", "saturation", REWARD, SCORER, "alike")}
    looked = sorted({chunks for _, chunks in STARTS} | {LATENTS}) if arm.name == NONE else [LATENTS]
    seconds, forwards, changes = 0.0, 0, []
    level = schedule_of(arm.digits, 1)[0][-1]
    for start in range(0, len(items), AT_ONCE):
        batch = Batch(items[start : start + AT_ONCE], start, judge)
        rows: dict[str, list] = {name: [] for name in by_prompt if name != "alike"}
        features = []
        for seed in range(arm.seeds):
            begin = time.perf_counter()
            latents, forwards, change = make(arm, folder, batch, seed)
            seconds += time.perf_counter() - begin
            clips = decode(batch.vae, latents)
            rows["right"].append([all(each.right for each in judged) for judged in batch.judged(clips)])
            rows["motion"].append([motion(clip) for clip in clips])
            rows["saturation"].append([saturation(clip) for clip in clips])
            for name in (REWARD, SCORER):
                seen = [batch.verifier(name)(latents[:, :, :chunks], level) for chunks in looked]
                rows[name].append([dict(zip(map(str, looked), each, strict=True))
                                   for each in torch.stack(seen, 1).tolist()])  # fmt: skip
            features.append(batch.features(latents))
            if change is not None:
                changes.append(change.square().mean().sqrt().item())
        for name, by_seed in rows.items():
            by_prompt[name] += [list(each) for each in zip(*by_seed, strict=True)]
        by_prompt["alike"] += alike(torch.stack(features, 1))
    size = sum(changes) / len(changes) if changes else 0.0
    return {**by_prompt, "change": size, "forwards": forwards, "seconds": seconds / len(items) / arm.seeds}


def alike(features: Tensor) -> list[float]:
    """Of normalised features [prompts, seeds, D] the mean cosine of two different seeds, by prompt."""
    seeds = features.shape[1]
    cosines = features @ features.transpose(1, 2)
    others = cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)
    return (others / max(1, seeds * (seeds - 1))).tolist()


def told(arm: Arm, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of an arm, with intervals over prompts; changes are against no refiner, on the same seeds."""
    result, plain = results[arm.name], results[NONE]
    prompts = range(len(result["right"]))

    def mean(values: np.ndarray) -> dict[str, float]:
        return statistics.mean(values, prompts)

    def by_prompt(of: dict[str, Any], name: str) -> np.ndarray:
        values = [[each[str(LATENTS)] if isinstance(each, dict) else each for each in row[: arm.seeds]]
                  for row in of[name]]  # fmt: skip
        return np.asarray(values, float).mean(1)

    row: dict[str, Any] = {
        "name": arm.name, "what": arm.kind, "forwards": result["forwards"], "seeds": arm.seeds,
        "seconds": round(result["seconds"], 4), "noise_changed_by": round(result["change"], 4),
    }  # fmt: skip
    for name in ("right", "motion", "saturation", REWARD, SCORER):
        own = by_prompt(result, name)
        row[name] = {**mean(own), "change": mean(own - by_prompt(plain, name))}
    if arm.seeds > 1:
        own = np.asarray(result["alike"])
        row["alike"] = {**mean(own), "change": mean(own - np.asarray(plain["alike"]))}
    return row


def races(plain: dict[str, Any], passes: int) -> list[dict[str, Any]]:
    """Of the clips without a refiner: some are begun, and the best by its first chunks goes on; or all are finished and
    the best kept. A stream's beginning does not depend on what follows it, so nothing has to be made anew."""
    seeds, prompts, made = len(plain["right"][0]), range(len(plain["right"])), []
    steps = plain["forwards"] - passes  # of the whole clip
    for count, chunks in (*STARTS, (2, LATENTS), (SEEDS, LATENTS)):
        if count > seeds:
            continue
        begun = min(chunks * (steps // LATENTS + 1), plain["forwards"])
        for name in (REWARD, SCORER):
            chosen = [int(np.argmax([each[str(chunks)] for each in row[:count]])) for row in plain[name]]
            row = {"name": f"{count} starts of {chunks} chunks, {name}", "what": "race", "seeds": 1,
                   "forwards": plain["forwards"] + (count - 1) * begun}  # fmt: skip
            for what in ("right", "motion", "saturation"):
                values = np.asarray(plain[what], float)
                picked = np.take_along_axis(values, np.asarray(chosen)[:, None], 1)[:, 0]
                change = statistics.mean(picked - values.mean(1), prompts)
                row[what] = {**statistics.mean(picked, prompts), "change": change}
            made.append(row)
    return made


def curves(folder: Path) -> dict[str, Any]:
    """How the trainings went: the columns and rows of each recipe's file."""
    found = {}
    for path in sorted((folder / "refiners").glob("*.json")):
        recipe = json.loads(path.read_text())
        if "curve" in recipe:
            found[path.stem] = {name: recipe[name] for name in ("curve_columns", "curve", "what", "mode", "rank",
                                "told", "prediction", "seen", "refined", "strength", "minutes", "steps")}  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--student", default="self_forcing")
    options.add_argument("--prompts", type=int, default=204)
    options.add_argument("--seeds", type=int, default=SEEDS, help="of each prompt")
    options.add_argument("--validation", action="store_true", help="prompts for choosing, not for telling")
    options.add_argument("--only", action="append", help="only arms whose names hold this, and no refiner; repeatable")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    a = options.parse_args(arguments)
    load_comfyui()  # its version is told
    suite = "demo_validation" if a.validation else "demo"
    results: dict[str, dict[str, Any]] = {}
    rows = []
    for arm in arms(a.folder, a.student, a.seeds):
        if a.only and arm.name != NONE and not any(part in arm.name for part in a.only):
            continue
        with torch.inference_mode():
            results[arm.name] = kept(
                a.folder, arm, suite, a.prompts, lambda arm=arm: run(arm, a.folder, suite, a.prompts)
            )
        rows.append(told(arm, results))
        print(f"{arm.name}: right {rows[-1]['right']['value']:.3f}, {rows[-1]['forwards']} forwards", flush=True)
    document = {
        "split": "validation" if a.validation else "test", "prompts": a.prompts, "student": a.student,
        "rows": rows + races(results[NONE], LATENTS - 1), "curves": curves(a.folder),
    }  # fmt: skip
    command = f"python -m foresight.lab.experiments.refiner FOLDER --student {a.student} --prompts {a.prompts} "
    command += f"--seeds {a.seeds}" + (" --validation" if a.validation else "")
    write(a.out, "refiner_streams", command, document, markdown)


if __name__ == "__main__":
    main()
