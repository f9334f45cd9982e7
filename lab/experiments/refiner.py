"""What noise refiners are worth on the demo world, beside every other way to spend forwards on a stream.

    python -m foresight.lab.experiments.refiner FOLDER --prompts 204

FOLDER holds the student (self_forcing.safetensors, or --student), and FOLDER/refiners what the recipe `refiner` of
foresight.lab.training made for it: path_dmd, path_reward, start_dmd, start_reward, weights_dmd, weights_reward, which
the claims are about, and any others for ablations (each says itself how it was trained). Whole batches run in plain
torch, which makes the clips that ComfyUI makes (tests/test_noise_refiner.py). Each arm's results are kept in
FOLDER/arms, so a stopped command goes on, as does one that ended by --minutes. Results are of test prompts;
--validation is for choosing. Writes refiner_streams.json and refiner_streams.md, and what docs/streaming.md tells of
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
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
from ...evaluation.results import filled, percent
from ...evaluation.suites import load_suite
from ...sampling.refiner_file import RefinerSettings, describe
from ..training.refiner import LatentJudge
from ..training.refining import PATH, WEIGHTS, sampled
from ..training.streams import Streams, decode, schedule_of
from .common import write
from .refiner_page import CLAIMS, NONE, markdown, summary
from .stream_search import Verifier, searched
from .streaming import AT_ONCE, OUT, kept, motion, saturation
from .streaming_claims import verdicts

SEEDS = 2
SEARCHED = 204  # prompts of a search, of one seed: it takes four times as long as no refiner
REWARD, SCORER = "latent reward", "scorer"
MOTION_UNITS = 1000  # told in thousandths of white, since a clip's is about one hundredth
LONGER = "7 steps instead of 4"
STARTS = ((5, 1), (3, 2))  # of a race: so many starts of so many chunks, of which the best goes on


@dataclass(frozen=True)
class Arm:
    """name: told. student: its file. kind: "plain", "search" or the `what` of a file of the recipe; that file's name
    and digest. digits: steps by chunk. count, path, verifier: see `searched`. seeds: clips of each prompt; most:
    prompts, None: all."""

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
    most: int | None = None


def arms(folder: Path, student: str, seeds: int) -> list[Arm]:
    """What matters most first: ablations have longer names. No refiner has a seed more, for races among its clips."""
    made = []
    for path in sorted((folder / "refiners").glob("*.safetensors"), key=lambda path: (path.stem.count("_"), path)):
        with safe_open(path, "pt") as file:
            what = (file.metadata() or {}).get("what")
        if what is not None:  # the LoRA beside a whole model does not say
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            made.append(Arm(path.stem, student, what, path.name, digest, seeds=seeds))
    made.append(Arm(LONGER, student, digits="7", seeds=seeds))
    for verifier in (REWARD, SCORER):
        for name, path in (("best of 5 by chunk", False), ("search over path of 5", True)):
            made.append(Arm(f"{name}, {verifier}", student, "search", count=5, path=path, verifier=verifier, seeds=1,
                            most=SEARCHED))  # fmt: skip
    return [Arm(NONE, student, seeds=seeds + 1), *made]


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
    (by number of chunks); by prompt how alike its first 1, 2 ... clips are; the size of the changes; forwards and
    seconds a clip."""
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
            begin = time.process_time()
            latents, forwards, change = make(arm, folder, batch, seed)
            seconds += time.process_time() - begin
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
        looks = torch.stack(features, 1)
        by_seeds = [alike(looks[:, :seeds]) for seeds in range(1, arm.seeds + 1)]
        by_prompt["alike"] += [list(each) for each in zip(*by_seeds, strict=True)]
    size = sum(changes) / len(changes) if changes else 0.0
    return {**by_prompt, "change": size, "forwards": forwards, "seconds": seconds / len(items) / arm.seeds}


def alike(features: Tensor) -> list[float]:
    """Of normalised features [prompts, seeds, D] the mean cosine of two different seeds, by prompt."""
    seeds = features.shape[1]
    cosines = features @ features.transpose(1, 2)
    others = cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)
    return (others / max(1, seeds * (seeds - 1))).tolist()


Values = dict[str, np.ndarray]  # by measure, of each prompt


def values(result: dict[str, Any], seeds: int) -> Values:
    """Of an arm, the mean of its first seeds."""

    def number(cell: Any) -> float:
        return cell[str(LATENTS)] if isinstance(cell, dict) else cell

    found = {name: np.asarray([[number(cell) for cell in row[:seeds]] for row in result[name]], float).mean(1)
             for name in ("right", "motion", "saturation", REWARD, SCORER)}  # fmt: skip
    found["motion"] *= MOTION_UNITS
    return found | ({"alike": np.asarray(result["alike"])[:, seeds - 1]} if seeds > 1 else {})


def changes(own: Values, plain: Values) -> Values:
    """Against no refiner, on the prompts of both."""
    return {name: each - plain[name][: len(each)] for name, each in own.items() if name in plain}


def row(own: Values, change: Values, **about: Any) -> dict[str, Any]:
    """Of a table, with intervals over prompts."""
    prompts = range(len(own["right"]))
    cells = {name: {**statistics.mean(each, prompts), "change": statistics.mean(change[name], prompts)}
             for name, each in own.items()}  # fmt: skip
    return {**about, "prompts": len(prompts), **cells}


def races(plain: dict[str, Any], passes: int) -> dict[str, tuple[int, Values, Values]]:
    """By name the forwards, values and changes. Of the clips without a refiner some are begun, and the best by its
    first chunks goes on; or all are finished and the best kept. A stream's beginning does not depend on what follows
    it, so nothing has to be made anew. The change is against the mean of all seeds."""
    seeds, made = len(plain["right"][0]), {}
    steps = plain["forwards"] - passes  # of the whole clip
    for count, chunks in (*STARTS, *((count, LATENTS) for count in range(2, seeds + 1))):
        if count > seeds:
            continue
        begun = min(chunks * (steps // LATENTS + 1), plain["forwards"])
        for name in (REWARD, SCORER):
            chosen = [int(np.argmax([each[str(chunks)] for each in row[:count]])) for row in plain[name]]
            own, change = {}, {}
            for what in ("right", "motion", "saturation"):
                every = np.asarray(plain[what], float) * (MOTION_UNITS if what == "motion" else 1)
                own[what] = np.take_along_axis(every, np.asarray(chosen)[:, None], 1)[:, 0]
                change[what] = own[what] - every.mean(1)
            made[f"{count} starts of {chunks} chunks, {name}"] = (plain["forwards"] + (count - 1) * begun, own, change)
    return made


def comparisons(changed: dict[str, Values], steps: dict[str, int]) -> dict[str, dict[str, float]]:
    """By claim whose arms were run, the difference of arm and rival on the same prompts, with its interval. changed:
    by arm, against no refiner. steps: of the trained ones; those of unequal steps are not compared."""
    found = {}
    for claim in CLAIMS:
        if len({steps[name] for name in (claim.arm, claim.rival) if name in steps}) > 1:
            continue
        sides = [changed.get(name, {}).get(claim.measure) for name in (claim.arm, claim.rival) if name != NONE]
        if any(side is None for side in sides):
            continue
        both = min(map(len, sides))
        difference = sides[0][:both] - sum(side[:both] for side in sides[1:])
        found[claim.name] = {**statistics.mean(difference, range(both)), "prompts": both}
    return found


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
    options.add_argument("--minutes", type=float, help="begin no arm after so many; what is not there is open")
    options.add_argument("--validation", action="store_true", help="prompts for choosing, not for telling")
    options.add_argument("--only", action="append", help="only arms whose names hold this, and no refiner; repeatable")
    options.add_argument("--out", type=Path, default=OUT)
    a = options.parse_args(arguments)
    begin = time.monotonic()
    load_comfyui()  # its version is told
    torch.set_num_threads(1)  # networks are small, and times are those of one thread
    suite = "demo_validation" if a.validation else "demo"
    rows, changed, plain = [], {}, {}
    for arm in arms(a.folder, a.student, a.seeds):
        if a.only and arm.name != NONE and not any(part in arm.name for part in a.only):
            continue
        if plain and a.minutes is not None and time.monotonic() - begin > 60 * a.minutes:
            print(f"{arm.name}: not begun", flush=True)
            continue
        count = min(a.prompts, arm.most or a.prompts)
        with torch.inference_mode():
            result = kept(a.folder, arm, suite, count, partial(run, arm, a.folder, suite, count))
        plain = plain or result
        own = values(result, arm.seeds)
        change = changes(own, values(plain, arm.seeds))
        changed[arm.name] = change
        rows.append(row(own, change, name=arm.name, what=arm.kind, forwards=result["forwards"], seeds=arm.seeds,
                        seconds=round(result["seconds"], 4), noise_changed_by=round(result["change"], 4)))  # fmt: skip
        print(f"{arm.name}: {percent(rows[-1]['right'])}, {rows[-1]['forwards']} forwards", flush=True)
    for name, (forwards, own, change) in races(plain, LATENTS - 1).items():
        changed[name] = change
        rows.append(row(own, change, name=name, what="race", forwards=forwards, seeds=1))
    trained = curves(a.folder)
    document = {
        "split": "validation" if a.validation else "test", "prompts": a.prompts, "student": a.student, "rows": rows,
        "comparisons": comparisons(changed, {name: each["steps"] for name, each in trained.items()}),
        "curves": trained,
    }  # fmt: skip
    document["claims"] = verdicts(document, CLAIMS)
    command = f"python -m foresight.lab.experiments.refiner FOLDER --student {a.student} --prompts {a.prompts} "
    command += f"--seeds {a.seeds}" + (" --validation" if a.validation else "")
    write(a.out, "refiner_streams", command, document, markdown)
    if a.out == OUT and not a.validation:
        page = ROOT / "docs" / "streaming.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), "refiners", summary(document)), encoding="utf-8")


if __name__ == "__main__":
    main()
