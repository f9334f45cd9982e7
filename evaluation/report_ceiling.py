"""What `ceiling` has measured, as figures, a page and a picture, and beside the report's own tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .report_tables import Table
from .results import shown
from .statistics import bootstrap_within


def summary(rows: Sequence[dict[str, Any]], tau: float) -> dict[str, Any]:
    """By step: AUC within prompt of the branches (the ceiling), of the score of the preview there, and the share of the
    ceiling, above a coin, that the score reaches (None where the ceiling is no better than a coin, or where no prompt
    has both outcomes). rows: of the method `rebranch`. Without a judge a clip is good when it scores at least tau."""

    def good_of(verdict: bool | None, score: float) -> bool:
        return score >= tau if verdict is None else bool(verdict)

    good = np.asarray([good_of(row["right"], row["final_score"]) for row in rows])
    prompt = np.asarray([row["prompt_index"] for row in rows])
    traces = [dict(map(tuple, row["trace"])) for row in rows]
    mixed = [0 < good[prompt == index].mean() < 1 for index in np.unique(prompt)]
    steps = {}
    for step in rows[0]["report"]["branches"]:
        branched = [np.mean([good_of(*one) for one in row["report"]["branches"][step]]) for row in rows]
        scores = np.asarray([trace.get(int(step), math.nan) for trace in traces], float)
        ceiling, score = bootstrap_within(branched, good, prompt), bootstrap_within(scores, good, prompt)
        reached = (score["value"] - 0.5) / (ceiling["value"] - 0.5) if ceiling["value"] > 0.5 else None
        if not any(mixed):
            ceiling = score = None
        steps[step] = {"ceiling": ceiling, "score": score, "share_of_ceiling": reached}
    return {"clips": len(rows), "prompts": len(mixed), "prompts_with_both_outcomes": int(np.sum(mixed)),
            "good": float(good.mean()), "steps": steps}  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    where, settings, counts = document["environment"], document["settings"], document["summary"]
    lines = [
        "# How early can the outcome be known?", "",
        f"{counts['clips']} clips of {counts['prompts']} prompts, {100 * counts['good']:.0f} % good; only the "
        f"{counts['prompts_with_both_outcomes']} prompts with both outcomes tell. {settings['branches']} branches at "
        f"each step, {settings['schedule']} in all. Made by `{where['command']}` on {where['date']}, "
        f"{where['machine']}. In brackets: 95 % intervals from a bootstrap over prompts.", "",
        "| step | ceiling: AUC within prompt of re-branched clips | AUC within prompt of the preview's score | share "
        "of the ceiling above a coin |", "|---|---|---|---|",
    ]  # fmt: skip
    for step, row in counts["steps"].items():
        share = row["share_of_ceiling"]
        lines.append(f"| {step} | {shown(row['ceiling'], 'number')} | {shown(row['score'], 'number')} | "
                     f"{'-' if share is None else f'{100 * share:.0f} %'} |")  # fmt: skip
    return "\n".join([*lines, "", "![](ceiling.png)", ""])


def picture(document: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((5.2, 3.4), layout="constrained")
    axes, steps = figure.subplots(), document["summary"]["steps"]
    steps = {step: row for step, row in steps.items() if row["ceiling"]}
    for key, name in (("ceiling", "re-branched clips (ceiling)"), ("score", "score of the preview")):
        middle, low, high = ([row[key][k] for row in steps.values()] for k in ("value", "low", "high"))
        axes.plot([int(step) for step in steps], middle, marker="o", label=name)
        axes.fill_between([int(step) for step in steps], low, high, alpha=0.2)
    axes.axhline(0.5, color="0.5", lw=0.8)
    axes.set(xlabel=f"step of {document['settings']['schedule']}", ylabel="AUC within prompt")
    axes.legend()
    figure.savefig(path, dpi=110)


def read_ceiling(folder: Path) -> dict[str, Any] | None:
    path = folder / "ceiling.json"
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        markdown(document)
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} cannot be read ({type(error).__name__}: {error}): make it again, or remove it."
        raise ValueError(message) from None
    return document


def beside_ceiling(table: Table, ceiling: dict[str, Any] | None) -> Table:
    """A table of detectors with the ceiling at the measured step that is nearest to where each looks, if it is within
    a twentieth of the schedule."""
    if "auc_within" not in table.columns or not table.rows:
        return table
    if ceiling is None:
        missing = "No ceiling beside it: python -m foresight.evaluation ceiling measures it into the report's folder."
        return replace(table, missing=" ".join(filter(None, (table.missing, missing))))
    steps, near = ceiling["summary"]["steps"], ceiling["settings"]["schedule"] / 20

    def at(row: dict[str, Any]) -> Any:
        place = row.get("step") or row.get("mean_stop") or 0
        nearest = min(steps, key=lambda step: abs(int(step) - place))
        return steps[nearest]["ceiling"] if place and abs(int(nearest) - place) <= near else None

    columns = table.columns | {"ceiling": ("ceiling of AUC within prompt", "number")}
    return replace(table, columns=columns, rows=[row | {"ceiling": at(row)} for row in table.rows])
