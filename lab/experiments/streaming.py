"""What streaming students are worth on the demo world: schedules, history, windows, long rollouts, by forwards.

    python -m foresight.lab.experiments.streaming FOLDER --prompts 204

FOLDER holds causal.safetensors, self_forcing.safetensors and diagonal.safetensors (recipes of foresight.lab.training);
further students there are told as well, each as it was trained to be sampled. Whole batches run in plain torch, which
makes the clips that ComfyUI makes (tests/test_streaming_training.py). Each arm's results are kept in FOLDER, so a
stopped command goes on. Results are of test prompts; --validation is for choosing. Writes streaming_students.json and
streaming_students.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...demo.script import LATENTS, SEGMENT
from ...demo.wan_dit import load_transformer
from ...evaluation import statistics
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.results import percent
from ...evaluation.suites import load_suite
from ..training.causal import GUIDANCE
from ..training.streams import How, Streams, decode, trained_how
from .common import made_by, write

AT_ONCE = 51  # clips in a batch
FOUR, DIAGONAL = How(), How("4322222", 100.0, None)
TEACHER = How(digits="8", cfg=GUIDANCE)
LONG = LATENTS + 8 * SEGMENT  # nearly eight times the trained length, in whole segments


@dataclass(frozen=True)
class Arm:
    """table: where it is told. student: a file's name. against: the arm that it is compared with, pair by pair."""

    table: str
    name: str
    student: str
    how: How
    latents: int = LATENTS
    against: str | None = None

    @property
    def key(self) -> str:
        return f"{self.table}: {self.name}"


def arms(students: dict[str, How]) -> list[Arm]:
    """The paper's tables in this world. Each runs on one student, which was trained on its own schedule only. students:
    further ones."""
    made = [Arm("students", f"{name}, {how.digits}", name, how, against="students: self_forcing, 4")
            for name, how in (("causal", TEACHER), ("causal", replace(TEACHER, digits="4")), ("self_forcing", FOUR),
                              ("self_forcing", replace(FOUR, digits="4322222")), ("diagonal", DIAGONAL),
                              *students.items())]  # fmt: skip
    for digits in ("4222222", "5432222", "4333333", "4444444", "3333533", "3233343"):
        made.append(Arm("schedules", f"diagonal, {digits}", "diagonal", replace(DIAGONAL, digits=digits),
                        against="students: diagonal, 4322222"))  # fmt: skip
    for level in (0.0, 0.05, 0.1, 0.2, 0.357, 0.6, 1.0):
        for name, how in (("diagonal", DIAGONAL), ("self_forcing", FOUR)):
            made.append(Arm("history", f"{name}, level {level:g}", name, replace(how, context_noise=level),
                            against=f"students: {name}, {how.digits}"))  # fmt: skip
    for window in range(1, LATENTS + 1):
        for sink in (0, 1)[: 1 + (window > 1)]:
            how = replace(DIAGONAL, window=window, sink=sink)
            made.append(Arm("window", f"diagonal, window {window}, sink {sink}", "diagonal", how,
                            against="students: diagonal, 4322222"))  # fmt: skip
    for name, how in (("causal", replace(TEACHER, digits="4")), ("self_forcing", FOUR), ("diagonal", DIAGONAL)):
        long = replace(how, window=LATENTS, sink=0)
        made.append(Arm("long", f"{name}, {LONG} latents", name, long, LONG))
    return made


def run(arm: Arm, folder: Path, suite: str, prompts: int) -> dict[str, Any]:
    """rights: by prompt and segment; saturation and travel too; forwards of a clip; seconds a clip in a batch."""
    model = load_transformer(folder / f"{arm.student}.safetensors").requires_grad_(False)
    items = load_suite(suite, prompts).items
    rows: dict[str, list] = {"right": [], "saturation": [], "motion": []}
    seconds, forwards = 0.0, 0
    for start in range(0, len(items), AT_ONCE):
        streams = Streams(items[start : start + AT_ONCE], arm.latents)
        begin = time.perf_counter()
        latents, forwards = streams.sampled(model, arm.how, seed=start)
        seconds += time.perf_counter() - begin
        clips = decode(streams.vae, latents)
        for clip, judged, script in zip(clips, streams.judged(clips), streams.scripts, strict=True):
            spans = script.spans()
            rows["right"].append([each.right for each in judged])
            rows["saturation"].append([saturation(clip[span]) for span in spans])
            rows["motion"].append([motion(clip[span]) for span in spans])
    return {**rows, "forwards": forwards, "seconds": seconds / len(items), "groups": [item.group for item in items]}


def saturation(clip: Tensor) -> float:
    """Mean distance of a pixel's largest and smallest channel, 0..1."""
    return round(float((clip.amax(-1) - clip.amin(-1)).mean()), 5)


def motion(clip: Tensor) -> float:
    return round(float(clip.diff(dim=0).abs().mean()), 5) if len(clip) > 1 else 0.0


def kept(folder: Path, arm: Arm, suite: str, prompts: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, from the folder where this arm was run before with the same weights."""
    weights = hashlib.sha256((folder / f"{arm.student}.safetensors").read_bytes()).hexdigest()
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
    right = np.asarray(result["right"], float)
    whole, prompts = right.min(1), range(len(right))
    row: dict[str, Any] = {
        "name": arm.name, "forwards": result["forwards"], "seconds": round(result["seconds"], 4),
        "right": statistics.mean(whole, prompts),
        "motion": statistics.mean(np.mean(result["motion"], 1), prompts),
        "segments": [
            {"right": statistics.mean(right[:, at], prompts),
             "saturation": statistics.mean(np.asarray(result["saturation"])[:, at], prompts),
             "motion": statistics.mean(np.asarray(result["motion"])[:, at], prompts)}
            for at in range(right.shape[1])
        ],
    }  # fmt: skip
    if arm.against in results and arm.against != arm.key:
        rival = np.asarray(results[arm.against]["right"], float).min(1)
        row["change"] = statistics.mean(whole - rival, prompts)
    return row


TITLES = {
    "students": "Students, and the causal model that they start from",
    "schedules": "Schedules (paper, Tables 3, 5 and 6)",
    "history": "Noise of the history (paper, Figure 5a)",
    "window": "Window and sink (paper, Table 4)",
    "long": "Long rollouts, by segment",
}


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "# Streaming students of the demo world", "",
        f"{document['prompts']} {document['split']} prompts, one clip each, the same noise for all arms; a clip is "
        "right where every segment is. Forwards are all of them, those for the cache included (with guidance both "
        f"sides count as one). {made_by(document)}", "",
    ]  # fmt: skip
    for table, title in TITLES.items():
        rows = document["tables"].get(table, [])
        if not rows:
            continue
        lines += [f"## {title}", ""]
        if table == "long":
            for row in rows:
                lines += [f"{row['name']}, {row['forwards']} forwards:", "",
                          "| segment | right | saturation | motion |", "|---|---|---|---|"]  # fmt: skip
                for number, each in enumerate(row["segments"], 1):
                    lines.append(f"| {number} | {percent(each['right'])} | {each['saturation']['value']:.3f} | "
                                 f"{each['motion']['value']:.4f} |")  # fmt: skip
                lines.append("")
            continue
        lines += ["| arm | forwards | right | against its own, points | motion | seconds a clip in a batch |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for row in rows:
            change = percent(row["change"], signed=True) if "change" in row else "-"
            lines.append(f"| {row['name']} | {row['forwards']} | {percent(row['right'])} | {change} | "
                         f"{row['motion']['value']:.4f} | {row['seconds']:.3f} |")  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--prompts", type=int, default=204)
    options.add_argument("--validation", action="store_true", help="prompts for choosing, not for telling")
    options.add_argument("--table", action="append", choices=sorted(TITLES), help="only these tables, repeatable")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    a = options.parse_args(arguments)
    load_comfyui()  # its version is told
    suite = "demo_validation" if a.validation else "demo"
    files = sorted(path.stem for path in a.folder.glob("*.safetensors"))
    others = {name: trained_how(a.folder / f"{name}.safetensors") for name in files
              if name not in ("causal", "self_forcing", "diagonal")}  # fmt: skip
    results: dict[str, dict[str, Any]] = {}
    chosen = [arm for arm in arms(others)
              if arm.student in files and not (a.table and arm.table not in {*a.table, "students"})]  # fmt: skip
    for arm in chosen:
        with torch.inference_mode():
            results[arm.key] = kept(
                a.folder, arm, suite, a.prompts, lambda arm=arm: run(arm, a.folder, suite, a.prompts)
            )
        row = told(arm, results)
        print(f"{arm.key}: {percent(row['right'])}, {row['forwards']} forwards", flush=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    for arm in chosen:  # once all rivals are there
        tables.setdefault(arm.table, []).append(told(arm, results))
    document = {"split": "validation" if a.validation else "test", "prompts": a.prompts, "tables": tables}
    command = f"python -m foresight.lab.experiments.streaming FOLDER --prompts {a.prompts}"
    write(a.out, "streaming_students", command + (" --validation" if a.validation else ""), document, markdown)


if __name__ == "__main__":
    main()
