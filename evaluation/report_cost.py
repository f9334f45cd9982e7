"""Two methods of unequal cost, held against each other at the same mean number of evaluations and in the same time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .evidence import Cell, Evidence
from .report_tables import Table, absent, name_of
from .statistics import of_means

DEFAULT = "race"


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
