"""Copies the race's figures into README and evidence page: ``python -m foresight.lab.release.published``.

From docs/results/race/evidence.json, which `python -m foresight.evaluation report DATABASE --out docs/results/race`
wrote, into the parts of both pages that stand between two marks. A test holds the pages to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...evaluation.results import filled, shown

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "results" / "race" / "evidence.json"
DEFAULT, REFINED = "race", "race: budget=0.2, self_refine=all"


def _points(cell: dict[str, float]) -> str:
    return shown(cell, "change").replace(" %", "")


def _nfe(row: dict[str, Any]) -> str:
    return shown(row["nfe"]["value"], "percent")


def headline(document: dict[str, Any]) -> str:
    rows = {row["method"]: row for row in document["tables"]["yield"]["rows"]}
    plain, ours, refined = (rows[name] for name in ("Plain", DEFAULT, REFINED))
    good, was, most = (shown(row["good"]["value"], "percent") for row in (ours, plain, refined))
    gain = _points(ours["good_change"]).replace(" (", " points, ").rstrip(")")
    return (
        "![Right clips against model evaluations, every method beside every other]"
        "(docs/results/race/evidence/yield.png)\n\n"
        f"On {ours['runs']} test prompts of the demo world, where a program judges every clip, the default race has "
        f"{good} right clips where\nplain sampling has {was} ({gain}), for {_nfe(ours)} more model evaluations; with "
        f"every candidate self-refined\n{most} for {_nfe(refined)} ([all tables](docs/results/race/evidence.md), "
        "[what they say](docs/evidence.md#on-the-demo-family-the-race)).\n"
    )


def _raced(row: dict[str, Any]) -> str:
    name = row["method"] + " (the default)" * (row["method"] == DEFAULT)
    seconds, spoiled = (shown(row[key]["value"], "percent") for key in ("seconds", "spoiled"))
    good = shown(row["good"], "percent")
    return f"| {name} | {_nfe(row)} | {seconds} | {good} | {_points(row['good_change'])} | {spoiled} |"


def _rival(row: dict[str, Any]) -> str:
    cost, gain = shown(row["nfe"], "percent"), _points(row["change"])
    return f"| {row['rival']} | {row['race']} | {cost} | {gain} | {row['beats']} |"


def tables(document: dict[str, Any]) -> str:
    yields, beside = (document["tables"][name]["rows"] for name in ("yield", "race_equal_cost"))
    plain = next(row for row in yields if row["method"] == "Plain")
    raced = [row for row in yields if row["method"].startswith(DEFAULT)]
    made = document["environment"]
    verdicts = [row["beats"] for row in beside]
    lines = [
        f"{plain['runs']} test prompts (the first of the suite), each method on seed 1000, {made['machine']}, "
        f"{made['started'][:10]}. The\npreset was fitted on validation prompts before. Intervals are 95 %, from a "
        f"bootstrap over prompts; plain sampling has\n{shown(plain['good'], 'percent')} right here. "
        "[All tables](results/race/evidence.md), with the command that made them at their head.\n",
        "| method | evaluations beyond plain | time beyond plain | right clips | against plain, points | spoiled |",
        "|---|---|---|---|---|---|",
        *map(_raced, raced),
        "\nspoiled: of the clips that plain sampling has right. Beside each rival stands, for each way to\n"
        "self-refine, the race whose cost is nearest, the dearer of the two thinned out to the same mean\n"
        "evaluations:\n",
        "| rival | race | evaluations beyond plain | right clips, race minus rival, points | is it beaten? |",
        "|---|---|---|---|---|",
        *map(_rival, beside),
        f"\nOf these {len(verdicts)} comparisons the race surely wins {verdicts.count('yes')}; "
        f"{verdicts.count('open')} are open at this number of prompts, {verdicts.count('no')} are lost.\n",
    ]
    return "\n".join(lines)


PAGES = {ROOT / "README.md": ("yield", headline), ROOT / "docs" / "evidence.md": ("yield tables", tables)}


def main() -> None:
    document = json.loads(SOURCE.read_text(encoding="utf-8"))
    for path, (name, write) in PAGES.items():
        page = path.read_text(encoding="utf-8")
        path.write_text(filled(page, name, write(document)), encoding="utf-8")


if __name__ == "__main__":
    main()
