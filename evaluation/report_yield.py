"""What an evaluation buys: good clips against model evaluations, every method beside every other at equal cost."""

from __future__ import annotations

from pathlib import Path

from .evidence import Evidence
from .report_cost import DEFAULT, at_equal_cost
from .report_figures import Figure
from .report_tables import Paired, Table, absent, name_of
from .statistics import mean


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
