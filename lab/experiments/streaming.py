"""What streaming students are worth on the demo world: schedules, history, windows, long rollouts, gates, by forwards.

    python -m foresight.lab.experiments.streaming FOLDER

FOLDER holds causal.safetensors, self_forcing.safetensors and diagonal.safetensors (recipes of foresight.lab.training);
further students there are told as well, each as it was trained to be sampled, those named ablation_*.safetensors
(there or in FOLDER/ablations) against ablation_full.safetensors (docs/streaming.md has the commands that train them).
Whole batches run in plain torch, which makes the clips that ComfyUI makes (tests/test_streaming_training.py). Each
arm's results are kept in FOLDER, so a stopped command goes on, and two may share the work by --table (and another
--out), which a last call then puts together: half an hour of one core, ablations included. Results are of test prompts;
--validation is for choosing, and floors of the gate are found on validation prompts. Writes streaming_students.json,
streaming_students.md, and what docs/streaming.md tells of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ...demo import flow
from ...demo.judge import Judgement, judge
from ...demo.preset import CFG, STEPS
from ...demo.script import LATENTS, SEGMENT
from ...demo.stream import Stream, sample_stream
from ...demo.wan_dit import WanTransformer, load_transformer
from ...demo.world import FRAMES
from ...evaluation import statistics
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.results import filled, percent
from ...evaluation.suites import Item, load_suite
from ..training.causal import GUIDANCE
from ..training.common import TRANSFORMER
from ..training.streams import How, Streams, decode, schedule_of, trained_how
from .common import write
from .stream_gate import LONG_SPENDINGS, SPENDINGS, VALIDATED, Spending, floor_for, gated, spent
from .streaming_claims import comparisons, verdicts
from .streaming_page import TITLES, markdown, summary

OUT = ROOT / "docs" / "results"
AT_ONCE = 51  # clips in a batch
PROMPTS = 510  # all test prompts
MOST = {"window": 204, "history": 204, "gate": 68, "long": 102, "long gate": 102}  # prompts where it takes long
FOUR, DIAGONAL = How(), How("4322222", 100.0, None)
TEACHER = How(digits="8", cfg=GUIDANCE)
GATED = 3 * LATENTS  # as in the streaming demo
LONG = LATENTS + 8 * SEGMENT  # nearly eight times the trained length, in whole segments
WHOLE = "whole clips"  # the demo's transformer by itself: five latents at once
FULL = "ablation_full"
TIMED = 7  # repetitions of a timing


@dataclass(frozen=True)
class Arm:
    """table: where it is told. student: a file's name, or WHOLE. against: the arm that it is compared with, pair by
    pair. turns: the prompt changes half way. spending: of a gate."""

    table: str
    name: str
    student: str
    how: How
    latents: int = LATENTS
    against: str | None = None
    turns: bool = False
    spending: Spending | None = None

    @property
    def key(self) -> str:
        return f"{self.table}: {self.name}"

    @property
    def moving(self) -> bool:
        """Whether only prompts that state a motion are asked for, which can turn."""
        return self.turns or self.table == "long gate"

    def weights(self, folder: Path) -> Path:
        return TRANSFORMER if self.student == WHOLE else students_in(folder)[self.student]


def students_in(folder: Path) -> dict[str, Path]:
    """By name; ablations may be in a folder of their own."""
    paths = [*folder.glob("*.safetensors"), *(folder / "ablations").glob("ablation_*.safetensors")]
    return {path.stem: path for path in sorted(paths)}


def arms(students: dict[str, How]) -> list[Arm]:
    """The paper's tables in this world. Each runs on one student, which was trained on its own schedule only. students:
    further ones."""
    four, own = "students: self_forcing, 4", "students: diagonal, 4322222"
    others = {name: how for name, how in students.items() if not name.startswith("ablation_")}
    made = [Arm("students", f"{name}, {how.digits}", name, how, against=four)
            for name, how in (("causal", TEACHER), ("causal", replace(TEACHER, digits="4")), ("self_forcing", FOUR),
                              ("self_forcing", replace(FOUR, digits="4322222")), ("diagonal", DIAGONAL),
                              *others.items())]  # fmt: skip
    made.append(Arm("students", f"{WHOLE}, {STEPS}", WHOLE, How(str(STEPS), cfg=CFG), against=four))
    for digits in ("4222222", "5432222", "4333333", "4444444", "3333533", "3233343"):
        made.append(Arm("schedules", f"diagonal, {digits}", "diagonal", replace(DIAGONAL, digits=digits), against=own))
    for name in sorted(students.keys() - others.keys(), key=lambda name: (name != FULL, name)):
        how, full = students[name], students.get(FULL)
        made.append(Arm("ablation", f"{name}, {how.digits}", name, how,
                        against=full and f"ablation: {FULL}, {full.digits}"))  # fmt: skip
    for name, how in (("causal", TEACHER), ("self_forcing", FOUR), ("self_forcing", replace(FOUR, digits="4322222")),
                      ("diagonal", DIAGONAL), *(("diagonal", replace(DIAGONAL, digits=digits))
                                                for digits in ("4222222", "4444444", "3333533"))):  # fmt: skip
        rival = "turns: diagonal, 4322222" if name == "diagonal" else "turns: self_forcing, 4"
        made.append(Arm("turns", f"{name}, {how.digits}", name, how, turns=True, against=rival))
    for name, spending in SPENDINGS.items():
        made.append(Arm("gate", f"self_forcing, {name}", "self_forcing", FOUR, spending=spending,
                        against="gate: self_forcing, no gate"))  # fmt: skip
    for name in ("no gate", "best of 3 by chunk, 2", "up to 3 chunks taken back, 2"):
        made.append(Arm("gate", f"diagonal, {name}", "diagonal", DIAGONAL, spending=SPENDINGS[name],
                        against="gate: diagonal, no gate"))  # fmt: skip
    for name, spending in LONG_SPENDINGS.items():
        made.append(Arm("long gate", name, "self_forcing", replace(FOUR, window=LATENTS), GATED, "long gate: no gate",
                        spending=spending))  # fmt: skip
    for name, how in (("causal", replace(TEACHER, digits="4")), ("self_forcing", FOUR), ("diagonal", DIAGONAL)):
        long = replace(how, window=LATENTS, sink=0)
        made.append(Arm("long", f"{name}, {LONG} latents", name, long, LONG))
    for level in (0.0, 0.05, 0.1, 0.2, 0.357, 0.6, 1.0):
        for name, how in (("diagonal", DIAGONAL), ("self_forcing", FOUR)):
            made.append(Arm("history", f"{name}, level {level:g}", name, replace(how, context_noise=level),
                            against=f"students: {name}, {how.digits}"))  # fmt: skip
    for window in range(1, LATENTS + 1):
        for sink in (0, 1)[: 1 + (1 < window < LATENTS)]:
            how = replace(DIAGONAL, window=window, sink=sink)
            made.append(Arm("window", f"diagonal, window {window}, sink {sink}", "diagonal", how, against=own))
    return made


def run(arm: Arm, folder: Path, suite: str, prompts: int) -> dict[str, Any]:
    """By prompt and segment: right, saturation, and motion (see `travelled`); forwards of a clip, by prompt where they
    differ; seconds a clip, in batches but for a gate."""
    model = load_transformer(arm.weights(folder)).requires_grad_(False)
    items = [item for item in load_suite(suite, prompts).items if not arm.moving or moves(item)]
    rows: dict[str, list] = {"right": [], "saturation": [], "motion": [], "forwards": []}
    seconds, floor = 0.0, 0.0
    if arm.spending and arm.spending.has_floor:
        floor = floor_for(arm.spending.times, *floors(arm, folder, model, min(prompts, VALIDATED)))
    for start in range(0, len(items), AT_ONCE):
        batch = items[start : start + AT_ONCE]
        begin = time.process_time()
        if arm.student == WHOLE:
            streams, latents, forwards = whole(model, batch)
        elif arm.spending:
            streams, latents, forwards, _ = gated(model, batch, arm.how, arm.spending, floor, arm.latents)
        else:
            streams = Streams(batch, arm.latents, arm.turns)
            latents, count = streams.sampled(model, arm.how, seed=start)
            forwards = [count] * len(batch)
        seconds += time.process_time() - begin
        rows["forwards"] += forwards
        clips = decode(streams.vae, latents)
        for clip, script in zip(clips, streams.scripts, strict=True):
            spans = [slice(0, len(clip))] if arm.student == WHOLE else script.spans()
            judged = [judge(clip[span], scene) for span, scene in zip(spans, script.scenes, strict=True)]
            rows["right"].append([each.right for each in judged])
            rows["saturation"].append([saturation(clip[span]) for span in spans])
            rows["motion"].append([travelled(each, clip[span]) for each, span in zip(judged, spans, strict=True)])
    told = {"seconds": seconds / len(items), "groups": [item.group for item in items]}
    return {**rows, **told, **({"floor": floor} if floor else {})}


def moves(item: Item) -> bool:
    return any(thing.motion not in (None, "still") for thing in item.scene.objects)


def whole(model: WanTransformer, items: list[Item]) -> tuple[Streams, Tensor, list[int]]:
    """The demo's own clips of 17 frames."""
    streams = Streams(items)
    noise = torch.stack([flow.start_noise(item.index, [0], 1 + FRAMES // 4)[0] for item in items])
    latents = flow.sample(model, streams.context[:, 0], noise, STEPS, CFG, seed=items[0].index)
    return streams, latents, [STEPS] * len(items)


def floors(arm: Arm, folder: Path, model: WanTransformer, count: int) -> tuple[list[float], list[float]]:
    """Of the arm's plan, whatever it is to spend. Kept."""
    plan = replace(arm, name="floors", spending=replace(arm.spending, times=0.0))
    items = load_suite("demo_validation", count).items
    return kept(folder, plan, "demo_validation", count, lambda: spent(model, items, arm.how, arm.spending))


def saturation(clip: Tensor) -> float:
    """Mean distance of a pixel's largest and smallest channel, 0..1."""
    return round(float((clip.amax(-1) - clip.amin(-1)).mean()), 5)


def motion(clip: Tensor) -> float:
    return round(float(clip.diff(dim=0).abs().mean()), 5) if len(clip) > 1 else 0.0


def travelled(judged: Judgement, clip: Tensor) -> float | None:
    """Pixels a frame that the objects which are to move go their stated way; 1 is what the world does. None where none
    is to move."""
    return round(float(np.mean(judged.travel)) / (len(clip) - 1), 5) if judged.travel else None


def kept(
    folder: Path, arm: Arm, suite: str, prompts: int, make: Callable[[], Any], weights: Path | None = None
) -> Any:
    """What `make` gives, from the folder where this arm was run before with the same weights: the student's."""
    weights = hashlib.sha256((weights or folder / f"{arm.student}.safetensors").read_bytes()).hexdigest()
    told = json.dumps([asdict(arm), suite, prompts, weights], sort_keys=True)
    path = folder / "arms" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    if path.exists():
        return json.loads(path.read_text())
    result = make()
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(result))
    path.with_suffix(".tmp").replace(path)
    return result


def told(arm: Arm, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of an arm, with intervals over prompts."""
    result = results[arm.key]
    right, saturated, moved = (np.asarray(result[name], float) for name in ("right", "saturation", "motion"))
    prompts = range(len(right))
    forwards = statistics.mean(result["forwards"], prompts)
    row: dict[str, Any] = {
        "name": arm.name, "prompts": len(right), "forwards": round(forwards["value"], 2),
        "seconds": round(result["seconds"], 4), "right": statistics.mean(right.min(1), prompts),
        "motion": statistics.mean(mean_motion(result), prompts),
        "segments": [
            {"right": statistics.mean(right[:, at], prompts), "saturation": statistics.mean(saturated[:, at], prompts),
             "motion": statistics.mean(moved[:, at], prompts)}
            for at in range(right.shape[1])
        ],
    }  # fmt: skip
    row["parts_right"] = statistics.mean(right.mean(1), prompts)
    if right.shape[1] > 1:
        row["later_right"] = statistics.mean(right[:, 1:].mean(1), prompts)
    if arm.spending:
        row |= {"forwards_interval": forwards, "times_asked": arm.spending.times, "floor": result.get("floor")}
    if arm.against in results and arm.against != arm.key:
        rival = np.asarray(results[arm.against]["right"], float)
        both = min(len(rival), len(right))
        row["change"] = statistics.mean(right.min(1)[:both] - rival.min(1)[:both], range(both))
        if right.shape == rival.shape:
            row["parts_change"] = statistics.mean((right - rival).mean(1), prompts)
    return row


def mean_motion(result: dict[str, Any]) -> np.ndarray:
    """By prompt, over its segments; NaN where nothing is to move."""
    moved = np.ma.masked_invalid(np.asarray(result["motion"], float))
    return moved.mean(1).filled(np.nan)


def timings(folder: Path, students: list[str]) -> list[dict[str, Any]]:
    """Of one clip alone, in the time that one thread was at work: seconds until its first chunk is there, and for all
    of it, decoding left out; medians of rounds in which all take their turn."""
    items = load_suite("demo_validation", 1).items
    streams, generator = Streams(items), torch.Generator().manual_seed(0)

    def sampled(model: WanTransformer, how: How, chunks: int) -> None:
        sample_stream(Stream(model, streams.context, streams.which, how.cfg), schedule_of(how.digits, chunks, how.last),
                      lambda: torch.randn(1, 16, 1, 8, 8, generator=generator), how.context_noise)  # fmt: skip

    calls: dict[str, list[Callable[[], Any]]] = {}
    for name, how in (("causal", TEACHER), ("self_forcing", FOUR), ("diagonal", DIAGONAL)):
        if name in students:
            model = load_transformer(folder / f"{name}.safetensors").requires_grad_(False)
            calls[f"{name}, {how.digits}"] = [partial(sampled, model, how, chunks) for chunks in (1, LATENTS)]
    transformer = load_transformer(TRANSFORMER).requires_grad_(False)
    calls[f"{WHOLE}, {STEPS}"] = [partial(whole, transformer, items)]
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(TIMED):
        for name, made in calls.items():
            seconds[name].append([])
            for call in made:
                begin = time.thread_time()
                call()
                seconds[name][-1].append(time.thread_time() - begin)
    medians = {name: np.median(rounds[1:], 0).tolist() for name, rounds in seconds.items()}
    return [{"name": name, "first": round(each[0], 4), "all": round(each[-1], 4)} for name, each in medians.items()]


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--prompts", type=int, default=PROMPTS, help=f"less in some tables: {MOST}")
    options.add_argument("--validation", action="store_true", help="prompts for choosing, not for telling")
    options.add_argument("--table", action="append", choices=sorted(TITLES), help="only these tables, repeatable")
    options.add_argument("--minutes", type=float, help="begin no arm after so many; what is not there is open")
    options.add_argument("--out", type=Path, default=OUT)
    a = options.parse_args(arguments)
    begin = time.monotonic()
    load_comfyui()  # its version is told
    torch.set_num_threads(1)  # networks are small, and times are those of one thread
    suite = "demo_validation" if a.validation else "demo"
    files = students_in(a.folder)
    others = {name: trained_how(path) for name, path in files.items()
              if name not in ("causal", "self_forcing", "diagonal")}  # fmt: skip
    known = {arm.key: arm for arm in arms(others) if arm.student in (WHOLE, *files)}
    wanted = [arm for arm in known.values() if arm.table in (a.table or TITLES)]
    rivals = {arm.against for arm in wanted}
    chosen = [arm for arm in known.values() if arm in wanted or arm.key in rivals]
    results: dict[str, dict[str, Any]] = {}
    for arm in chosen:
        if a.minutes is not None and time.monotonic() - begin > 60 * a.minutes:
            print(f"{arm.key}: not begun", flush=True)
            continue
        count = min(a.prompts, MOST.get(arm.table, a.prompts))
        with torch.inference_mode():
            results[arm.key] = kept(a.folder, arm, suite, count, partial(run, arm, a.folder, suite, count),
                                    arm.weights(a.folder))  # fmt: skip
        row = told(arm, results)
        print(f"{arm.key}: {percent(row['right'])}, {row['forwards']} forwards", flush=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    for key in results:  # once all rivals are there
        tables.setdefault(known[key].table, []).append(told(known[key], results))
    with torch.inference_mode():
        times = timings(a.folder, [*files])
    recipes = {name: trained(path) for name, path in files.items()}
    fair = {key: result for key, result in results.items() if known[key].table != "ablation"
            or recipes[known[key].student].get("steps") == recipes.get(FULL, {}).get("steps")}  # fmt: skip
    document = {
        "split": "validation" if a.validation else "test", "prompts": a.prompts, "tables": tables, "timings": times,
        "comparisons": comparisons(fair), "trained": recipes,
    }  # fmt: skip
    document["claims"] = verdicts(document)
    command = f"python -m foresight.lab.experiments.streaming FOLDER --prompts {a.prompts}"
    write(a.out, "streaming_students", command + (" --validation" if a.validation else ""), document, markdown)
    if a.out == OUT and not a.validation:
        page = ROOT / "docs" / "streaming.md"
        page.write_text(filled(page.read_text(encoding="utf-8"), "students", summary(document)), encoding="utf-8")


def trained(path: Path) -> dict[str, str]:
    """What a file says of its training."""
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
    names = ("recipe", "steps", "regression", "guidance", "digits", "last", "history", "level", "flow", "kind", "start")
    return {name: told[name] for name in names if name in told}


if __name__ == "__main__":
    main()
