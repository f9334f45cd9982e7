"""What looking costs in a race: ``python -m foresight.lab.benchmarks.race``.

Races demo prompts by the shipped preset with the panel closed, in one process of one thread, and sets what is spent on
looks (previews, scores, the finished clip's score, what is written for the report) beside what is spent on sampling.
Writes docs/results/race_inspection.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ...evaluation.comfyui import ROOT
from ...evaluation.demo_family import DemoFamily, start_worker
from ...evaluation.raced import rules_of
from ...evaluation.results import environment
from ...evaluation.suites import load_suite

FIRST_SEED = 1000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "race_inspection.json")
    options = parser.parse_args(arguments)
    start_worker()
    from ...sampling.records import model_family
    from ...sampling.run import monitored_sample

    family = DemoFamily()
    from ...sampling.race import run_race
    from ...trials.report import run_report

    rules = rules_of({}, family.scorer.name, model_family(family.model), family.steps)
    monitored_sample(family.inputs("a red circle", 0))  # the first run also loads and warms up
    shares, looks = [], []
    for item in load_suite("demo_validation", options.prompts).items:
        inputs = family.inputs(item.prompt, FIRST_SEED + item.index)
        report = run_report(run_race(inputs, family.gate(item.prompt), rules).verdict)
        spent = [trial["seconds"] for trial in report["trials"]]
        shares.append(sum(each["inspection"] for each in spent) / sum(each["sampling"] for each in spent))
        looks.append(sum(len(trial["verdict"]["trace"]) for trial in report["trials"] if trial["verdict"]))
    content = {
        "environment": environment("python -m foresight.lab.benchmarks.race"), "first_seed": FIRST_SEED,
        "prompts": options.prompts, "looks_of_a_clip": float(np.mean(looks)),
        "inspection_of_sampling": {"mean": float(np.mean(shares)), "median": float(np.median(shares)),
                                   "highest": max(shares)},
    }  # fmt: skip
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["inspection_of_sampling"]), f"of sampling, {np.mean(looks):.1f} looks a clip")


if __name__ == "__main__":
    main()
