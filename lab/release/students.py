"""Copies the streaming students' figures into their model card: ``python -m foresight.lab.release.students``.

From docs/results/streaming_students.json, which `python -m foresight.lab.experiments.streaming FOLDER` wrote, and from
the recipes beside the weights, into the part of docs/demo_family.md between two marks. What is in neither is open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...demo import preset
from ...evaluation.results import filled, percent

ROOT = Path(__file__).resolve().parents[2]
PAGE, SOURCE = ROOT / "docs" / "demo_family.md", ROOT / "docs" / "results" / "streaming_students.json"
RECIPES = ROOT / "weights" / "demo" / "diffusion_models"
NAMES = ("self_forcing, 4", "diagonal, 4322222")  # of the rows of preset.STUDENTS
OPEN = "open"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def card(document: Mapping[str, Any], recipes: list[Mapping[str, Any]]) -> str:
    """document: of the experiment; recipes: of preset.STUDENTS; each may be empty."""
    tables = document.get("tables", {})
    held = {row["name"]: row for row in tables.get("students", [])}
    long = {row["name"].split(",")[0]: row for row in tables.get("long", [])}
    found = [held.get(name) for name in NAMES]
    rolled = [long.get(name.split(",")[0]) for name in NAMES]
    rows = [
        ("training: steps, minutes of one core", [
            f"{recipe['steps']}, {recipe['minutes']:.0f}" if recipe else OPEN for recipe in recipes]),
        ("its curve", [f"`{Path(file).stem}.json`" for file in preset.STUDENTS]),
        ("forwards for 7 latents (what nothing reads is not run)", ["34", "17"]),
        (f"right clips of {document.get('prompts', 'the')} {document.get('split', 'test')} prompts", [
            percent(row["right"]) if row else OPEN for row in found]),
        ("right by part of a long clip, without a gate", [
            "; ".join(percent(each["right"]).split(" (")[0] for each in row["segments"]) if row else OPEN
            for row in rolled]),
    ]  # fmt: skip
    lines = ["| | four steps | diagonal |", "|---|---|---|", *(f"| {name} | {' | '.join(two)} |" for name, two in rows)]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The model card as it should be."""
    recipes = [read((RECIPES / file).with_suffix(".json")) for file in preset.STUDENTS]
    return filled(text, "students", card(read(SOURCE), recipes))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
