"""What an evaluation buys: good clips against model evaluations, every method beside every other at equal cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .evidence import Cell, Evidence
from .report_figures import Figure
from .report_tables import Paired, Table, absent, name_of
from .statistics import mean, of_means

DEFAULT = "race"


def races(evidence: Evidence) -> list[str]:
    return [method for method in evidence.methods if method.split("@")[0] == DEFAULT]


def raced_pairs(evidence: Evidence, method: str) -> Paired:
    """On the runs that were raced: what a race looks at is there for other seeds as well."""
    keys = evidence.rows.get(DEFAULT) or evidence.rows.get("base", {})
    return Paired(evidence, method, lambda _, row: (row["prompt_index"], row["seed"]) in keys)


def yields(evidence: Evidence) -> Table:
    """Good clips and cost of every method, and what it does to clips that were good."""
    columns = {
        "method": ("method", "text"), "runs": ("runs", "count"), "nfe": ("model evaluations beyond plain", "percent"),
        "seconds": ("time beyond plain", "percent"), "good": ("good clips", "percent"),
        "good_change": ("against plain", "change"), "spoiled": ("good clips spoiled", "percent"),
        "motion": ("motion, against plain", "signed"),
    }  # fmt: skip
    rows = []
    for method in evidence.methods:
        pairs = raced_pairs(evidence, method)
        if not pairs.count:
            continue
        was = pairs.values(pairs.base_rows, "good") == 1
        rows.append({
            "method": name_of(method), "runs": pairs.count, "nfe": pairs.overhead(),
            "seconds": pairs.overhead("seconds", "seconds_plain"), "good": pairs.of("good"),
            "good_change": pairs.change("good"), "motion": pairs.change("motion"),
            "spoiled": mean(pairs.values(pairs.rows, "good")[was] == 0, pairs.prompt[was]) if was.any() else None,
        })  # fmt: skip
    rows.sort(key=lambda row: row["nfe"]["value"])
    return Table("yield", "What an evaluation buys", columns, rows, "", absent(evidence, (DEFAULT,)))


def race_at_equal_cost(evidence: Evidence) -> Table:
    """Each rival beside the race whose cost is nearest to its own, at the same mean evaluations and time."""
    columns = {
        "rival": ("rival", "text"), "race": ("race", "text"), "runs": ("runs", "count"),
        "nfe": ("model evaluations beyond plain", "percent"), "change": ("good clips, race minus rival", "change"),
        "change_in_time": ("good clips, at equal time instead", "change"), "beats": ("the race beats it", "text"),
    }  # fmt: skip
    rows = []
    raced = {
        race: pairs.overhead()["value"] for race in races(evidence) if (pairs := raced_pairs(evidence, race)).count
    }
    for rival in evidence.methods:
        if rival == "base" or rival in races(evidence):
            continue
        theirs = raced_pairs(evidence, rival)
        if not (theirs.count and raced):
            continue
        cost = theirs.overhead()["value"]
        nearest = min(raced, key=lambda race, cost=cost: abs(raced[race] - cost))
        if row := at_equal_cost(evidence, nearest, rival):
            low, high = row["change"]["low"], row["change"]["high"]
            beats = "yes" if low > 0 else "no" if high < 0 else "open"
            rows.append(row | {"race": name_of(nearest), "beats": beats})
    note = "yes, no: the 95 % interval lies on one side; open: it holds both."
    return Table("race_equal_cost", "The race at equal cost", columns, rows, note, absent(evidence, (DEFAULT,)))


def figure_yield(evidence: Evidence, folder: Path) -> str | None:
    """Good clips against mean evaluations: a curve for each way to race, a point for every other method."""
    if not races(evidence):
        return None
    figure = Figure()
    curves: dict[str, list[tuple[float, float]]] = {}
    for method in evidence.methods:
        pairs = raced_pairs(evidence, method)
        if not pairs.count:
            continue
        kind = name_of(method) if method not in races(evidence) else "race, self_refine " + next(
            (part.partition("=")[2] for part in method.split("@")[-1].split(",") if part.startswith("self_refine")),
            "later",
        )  # fmt: skip
        nfe = 0.0 if method == "base" else 100 * pairs.overhead()["value"]
        curves.setdefault(kind, []).append((nfe, 100 * pairs.of("good")["value"]))
    markers = iter("sD^v<>pP*hHX8d" * 4)  # more methods than colours: each has a shape of its own
    for kind, points in sorted(curves.items(), key=lambda item: not item[0].startswith("race")):
        x, y = zip(*sorted(points), strict=True)
        style = {"marker": "o"} if kind.startswith("race") else {"marker": next(markers), "ls": "", "alpha": 0.8}
        figure.line(0, "yield", kind, x, y, **style)
    figure.axes[0].set(xlabel="model evaluations beyond a plain clip, %", ylabel="good clips, %")
    figure.axes[0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))  # beside, for it would hide points
    figure.canvas.set_size_inches(8, 3.6)
    return figure.finish(folder, "yield", legend=False)


def equal_nfe(evidence: Evidence) -> Table:
    """The paper's plan against rivals at the same mean number of model evaluations, and at the same mean time."""
    columns = {
        "rival": ("rival", "text"), "runs": ("runs", "count"), "ours": ("paper's plan on", "percent"),
        "theirs": ("rival on", "percent"), "nfe": ("model evaluations beyond plain", "percent"),
        "change": ("good clips, paper's plan minus rival", "change"),
        "score_change": ("final score, paper's plan minus rival", "signed"),
        "change_in_time": ("good clips, at equal time instead", "change"),
    }  # fmt: skip
    rivals = [m for m in evidence.methods if m != "base" and m.split("@")[0] not in ("efdi", "race")]
    rows = [row for rival in rivals if (row := at_equal_cost(evidence, "efdi", rival))]
    note = (
        "Of a dearer and a cheaper method, the dearer is used on a share of the runs only and the rest stays plain, so "
        "that both spend the same on average. Single-frame evaluations count like a video's; time tells them apart."
    )
    return Table("equal_nfe", "At equal cost", columns, rows, note, absent(evidence, ("efdi",)))


def at_equal_cost(evidence: Evidence, method: str, rival: str) -> dict[str, Any] | None:
    """Gains of both over plain, the dearer used on a share of the runs only; None where they share no runs or cost."""
    ours, theirs, base = (evidence.rows.get(name, {}) for name in (method, rival, "base"))
    keys = [key for key in theirs if key in ours and key in base]
    if not keys:
        return None
    prompt = np.asarray([key[0] for key in keys])

    def beyond(spent: str, plain: str) -> np.ndarray:
        """[2, runs]: what both spend beyond the plain run, as a share of it."""
        return np.asarray([[rows[key][spent] / rows[key][plain] - 1 for key in keys] for rows in (ours, theirs)])

    def gains(rows: dict, metric: str) -> np.ndarray:
        def value(row: dict) -> float:
            return evidence.good(row) if metric == "good" else math.nan if row[metric] is None else row[metric]

        return np.asarray([value(rows[key]) - value(base[key]) for key in keys])

    def difference(metric: str, spent: np.ndarray) -> Cell | None:
        if not (spent.mean(1) > 0).all():
            return None
        mine, other = gains(ours, metric), gains(theirs, metric)
        known = np.isfinite(mine) & np.isfinite(other)

        def statistic(means: np.ndarray) -> np.ndarray:
            gain, cost = means[:, :2], means[:, 2:]
            used = gain * cost.min(1, keepdims=True) / cost
            return used[:, 0] - used[:, 1]

        return of_means(statistic, [column[known] for column in (mine, other, *spent)], prompt[known])

    spent = beyond("nfe", "nfe_plain")
    cost = spent.mean(1)
    if not (cost > 0).all():
        return None
    return {
        "rival": name_of(rival), "runs": len(keys), "ours": float(cost.min() / cost[0]),
        "theirs": float(cost.min() / cost[1]), "nfe": float(cost.min()), "change": difference("good", spent),
        "score_change": difference("final_score", spent),
        "change_in_time": difference("good", beyond("seconds", "seconds_plain")),
    }  # fmt: skip
