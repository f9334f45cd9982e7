"""A database of runs that nobody sampled: traces that converge to a score that is right more often than not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foresight.evaluation.store import Store
from foresight.scoring.detector import Detector, DetectorSettings

STEPS, TAU = 50, 0.22
WORDS = ("red", "blue", "green", "cyan"), ("circle", "square", "star"), ("left", "right", "up")
METHODS = ("base", "efdi", "regenerate", "best_of_3", "reseed", "trial_1", "fixed_step@11", "efdi@tau=0.26")
SETTINGS = {"suite": "demo", "model": "made up", "steps": STEPS, "sampler": "euler", "scheduler": "simple", "cfg": 5.0,
            "shift": 0.4, "tau": TAU, "delta": 0.05, "scale": 1.0, "scorer": "viclip-l", "l2r": "none"}  # fmt: skip


def clip(colour: int) -> bytes:
    frames = [Image.new("RGB", (16, 16), (colour % 256, 40 * k, 90)) for k in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=100, loop=0)
    return file.getvalue()


def base_row(generator: np.random.Generator, prompt: int, seed: int, judged: bool) -> dict[str, Any]:
    ease = np.random.default_rng(prompt).normal(0, 0.02)
    score = 0.22 + ease + generator.normal(0, 0.03)
    steps = np.arange(1, STEPS + 1)
    trace = score + np.exp(-steps / 5) * generator.normal(-0.1, 0.05) + generator.normal(0, 0.003, STEPS)
    words = [group[prompt // 3**k % len(group)] for k, group in enumerate(WORDS)]
    detector = Detector(DetectorSettings.video(tau=TAU), STEPS)
    decision = next(d for k, s in enumerate(trace.tolist(), 1) if (d := detector.observe(k, s)))
    right = bool(score + generator.normal(0, 0.01) > 0.215)
    return {
        "suite": "demo", "prompt_index": prompt, "prompt": f"a {words[0]} {words[1]} moves {words[2]}, number {prompt}",
        "difficulty": ("easy", "medium", "hard")[prompt % 3], "seed": seed, "method": "base", "settings": "abc123",
        "right": right if judged else None, "predicted_score": decision.predicted_score, "final_score": float(score),
        "stop_step": decision.step, "rule": decision.rule, "accepted": decision.accepted, "trial": "0", "nfe": STEPS,
        "nfe_single_frame": 0, "nfe_plain": STEPS, "seconds": 73.0, "seconds_plain": 73.0, "seconds_inspection": 1.96,
        "inspections": STEPS, "inspections_single_frame": 0, "motion": 0.05 + 0.01 * float(generator.random()),
        "measures": {"count": float(generator.random()), "shape": float(score)}, "trace":
        [[int(k), round(float(s), 6), 1 - k / STEPS] for k, s in zip(steps, trace, strict=True)], "report": None,
        "notes": [], "base_seed": None, "clip": clip(17 * prompt + seed),
    }  # fmt: skip


def other_row(generator: np.random.Generator, base: dict[str, Any], method: str) -> dict[str, Any]:
    row = base | {"method": method, "trace": base["trace"][: base["stop_step"]], "report": None, "clip": None,
                  "base_seed": base["seed"], "inspections": base["stop_step"]}  # fmt: skip
    row["seconds_inspection"] = 0.0392 * row["inspections"]
    if base["accepted"] and method != "best_of_3":
        return row | {"seconds": 73.0 + row["seconds_inspection"]}
    better = base["final_score"] + float(generator.normal(0.03, 0.02))
    right = None if base["right"] is None else better > 0.215
    done = {"final_score": better, "right": right, "base_seed": None, "clip": clip(200), "motion": base["motion"] * 0.8}
    if method in ("best_of_3", "regenerate", "reseed"):
        runs = {"best_of_3": 3, "regenerate": 2, "reseed": 1 + base["stop_step"] / STEPS}[method]
        return row | done | {"nfe": round(STEPS * runs), "seconds": 73.0 * runs}
    if method.split("@")[0] == "race":
        return row | done | {"nfe": STEPS + 12, "seconds": 90.0, "trial": None, "rule": "race"}
    branch = ("1", "2", "2->1")[int(generator.integers(3))]
    return row | done | {"trial": branch, "nfe": 110, "nfe_single_frame": 24, "seconds": 95.0, "report":
                         report(branch, base["stop_step"])}  # fmt: skip


def report(branch: str, stop: int) -> dict[str, Any]:
    def trial(name: str, kind: str, video: int = 0, frame: int = 0, looks: int = 0, refinement: float = 0.0):
        verdict = looks and {"stop_step": looks, "trace": [[k, 0.2] for k in range(1, looks + 1)], "accepted": False}
        inspection = (0.0218 if frame else 0.0392) * looks
        seconds = {"sampling": 1.46 * video + 0.103 * frame, "inspection": inspection, "refinement": refinement}
        return {"trial": name, "kind": kind, "nfe_video": video, "nfe_single_frame": frame, "verdict": verdict or None,
                "seconds": seconds}  # fmt: skip

    parts = [trial("0", "sample", stop, looks=stop), trial("1", "probe", frame=24, looks=24)]
    if branch == "1":
        parts += [trial("1", "inject", 49)]
    else:
        again = STEPS if branch == "2" else stop
        parts += [trial("2", "refine", refinement=8.541), trial("2", "sample", again, looks=stop)]
    if branch == "2->1":
        parts += [trial("2->1", "probe", frame=24, looks=24), trial("2->1", "inject", 49)]
    return {"trial": branch, "trials": parts, "settings": {"steps": STEPS, "schedule_steps": STEPS}, "notes": []}


class Counting:
    """A worker whose rows say how often it was called."""

    calls = 0

    def __call__(self, job: Any) -> dict[str, Any]:
        self.calls += 1
        rows = [{"prompt_index": job.item.index, "prompt": job.item.prompt, "seed": seed, "method": method,
                 "nfe": self.calls} for method, seed in job.cells]  # fmt: skip
        return {"rows": rows, "machine": "m", "versions": {}}


def write(path: Path, prompts: int = 24, seeds: int = 4, methods=METHODS, judged: bool = True, **settings: Any) -> Path:
    """Runs of `methods` in a new database at `path`."""
    generator = np.random.default_rng(0)
    with Store(path, write=True) as store:
        meta = store.begin("python -m foresight.evaluation run", {"machine": "2 CPU cores"},
                           {"comfyui": "0.3.75", "torch": "2"}, SETTINGS | settings)  # fmt: skip
        rows = []
        for prompt in range(prompts):
            for seed in range(seeds):
                base = base_row(generator, prompt, seed, judged)
                rows += [base if method == "base" else other_row(generator, base, method) for method in methods]
        store.add(rows, meta)
    return path
