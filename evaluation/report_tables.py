"""The tables of the evidence report, as numbers: the paper's Tables 1, S2, S4 to S7, and what the paper leaves out.

Differences are paired by prompt and seed; intervals (95 %) are from a bootstrap over prompts. Quality is the judge's
verdict where there is one (else: a final score of at least tau), the final score stands for overall consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .calibrate import all_candidates, compare, folds_of
from .cost import at_thresholds, measured
from .enhanced import ENHANCED
from .evidence import Base, Cell, Evidence, Outcomes, column, metric_of
from .paper_cost import BRANCHES
from .paper_cost import table_s4 as branch_costs
from .statistics import mean, ratio, text_only_scores
from .store import StoreError

MAIN = {"base": "Plain", "regenerate": "+ Regeneration (refined prompt)",
        "regenerate_plain": "+ Regeneration (new seed)", "efdi": "+ paper's plan (Trial 2: other noise)",
        "efdi@refiner=ablation": "+ paper's plan (Trial 2: other words)",
        "reseed": "+ Stop and reseed", "best_of_3": "Best of 3",
        "audition_3": "Audition of 3", "trial_1": "Trial 1 alone", "trial_2": "Trial 2 alone"}  # fmt: skip
INJECTED = ("1", "2->1")


def name_of(method: str) -> str:
    """A method in words; those without a name of their own by their settings."""
    return MAIN.get(method, method.replace("efdi", "paper's plan").replace("@", ": ").replace(",", ", "))


@dataclass(frozen=True)
class Table:
    """columns: key -> (heading, kind); kinds: text, count, number, percent, change (signed percent points), signed.
    Values are plain, or cells with value, low, high. missing: why it is empty or lacks rows."""

    name: str
    title: str
    columns: dict[str, tuple[str, str]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    missing: str = ""


def absent(evidence: Evidence, methods: Iterable[str]) -> str:
    """Which of the methods have no runs."""
    gone = [name for name in methods if not evidence.pairs(name)]
    return f"No runs of {', '.join(gone)} in this database: add --method {' --method '.join(gone)}." if gone else ""


class Paired:
    """A method's runs beside a rival's of the same prompt and seed, by default the base runs. keep: of the pairs."""

    def __init__(
        self, evidence: Evidence, method: str, keep: Callable[[dict, dict], bool] = lambda base, row: True,
        rival: str = "base",
    ):
        pairs = [pair for pair in evidence.pairs(method, rival) if keep(*pair)]
        self.evidence, self.count = evidence, len(pairs)
        self.base_rows, self.rows = [base for base, _ in pairs], [row for _, row in pairs]
        self.prompt = column(self.rows, "prompt_index", int) if pairs else np.zeros(0, int)

    def values(self, rows: Sequence[dict], metric: str) -> np.ndarray:
        if metric == "good":
            return np.asarray([self.evidence.good(row) for row in rows])
        if metric == "time":  # in plain runs
            return column(rows, "seconds") / column(rows, "seconds_plain")
        return metric_of(rows, metric)

    def of(self, metric: str, base: bool = False) -> Cell:
        return mean(self.values(self.base_rows if base else self.rows, metric), self.prompt)

    def change(self, metric: str) -> Cell:
        return mean(self.values(self.rows, metric) - self.values(self.base_rows, metric), self.prompt)

    def overhead(self, spent: str = "nfe", plain: str = "nfe_plain") -> Cell:
        """Beyond the plain run, as a share of it; spent and plain: nfe and nfe_plain, or seconds and seconds_plain."""
        cell = ratio(column(self.rows, spent), column(self.base_rows, plain), self.prompt)
        return {key: value - 1 for key, value in cell.items()}


def table_1(evidence: Evidence, name: str = "table_1", methods: Sequence[str] | None = None, title: str = "") -> Table:
    """Quality and cost of each method."""
    every = (m for m in (*MAIN, *evidence.methods) if m in MAIN or "@" not in m or m.split("@")[0] in ENHANCED)
    methods = list(dict.fromkeys(methods or every))
    rows = []
    # Base runs have more seeds than the other methods: its row is of the runs that these share.
    shared = set().union(*(evidence.rows[m] for m in methods if m != "base" and m in evidence.rows))
    for method in methods:
        pairs = Paired(evidence, method, lambda _, row: not shared or (row["prompt_index"], row["seed"]) in shared)
        if pairs.count:
            rows.append({
                "method": name_of(method), "runs": pairs.count, "good": pairs.of("good"),
                "good_change": pairs.change("good"), "final_score": pairs.of("final_score"),
                "score_change": pairs.change("final_score"), "nfe": pairs.overhead(),
                "seconds": pairs.overhead("seconds", "seconds_plain"),
            })  # fmt: skip
    return Table(name, title or "Comparison with regeneration (paper, Table 1)", {
        "method": ("method", "text"), "runs": ("runs", "count"), "good": ("good clips", "percent"),
        "good_change": ("against plain", "change"), "final_score": ("final score", "number"),
        "score_change": ("against plain", "signed"), "nfe": ("model evaluations beyond plain", "percent"),
        "seconds": ("time beyond plain", "percent"),
    }, rows, "A single frame's evaluation counts like a video's, so evaluations overstate what probes cost.",
        absent(evidence, methods))  # fmt: skip


def table_s5(evidence: Evidence) -> Table:
    return table_1(evidence, "table_s5", ("base", "best_of_3", "efdi"), "Comparison with best of 3 (paper, Table S5)")


def table_s6(evidence: Evidence) -> Table:
    """The measured sweep: every efdi@tau=... beside the default."""
    swept = [m for m in evidence.methods if m.startswith("efdi@tau=") and "," not in m]
    table = table_1(evidence, "table_s6", ("base", "efdi", *swept), "Effect of the threshold (paper, Table S6)")
    missing = "" if swept else "No other thresholds were run: add --method efdi@tau=+0.04."
    note = f"The default tau is {evidence.tau:g}, this scorer's own."
    return replace(table, note=note, missing=" ".join(filter(None, (table.missing, missing))))


def table_s6_predicted(evidence: Evidence) -> Table:
    """What thresholds would cost, by the cost model on logged traces."""
    columns = {"tau": ("tau", "number"), "rejected": ("rejected", "percent"), "mean_stop": ("mean stop step", "number"),
               "overhead": ("time beyond plain", "percent"), "low": ("cheapest way", "percent"),
               "high": ("dearest way", "percent")}  # fmt: skip
    title = "What thresholds would cost, by the cost model"
    try:
        model = measured(evidence)
        spread = float(np.nanstd(evidence.base.score))
        taus = [round(evidence.tau + share * spread, 4) for share in (-1, -0.5, 0, 0.5, 1, 1.5)]
        rows = at_thresholds(evidence, model, taus)
    except (StoreError, ValueError) as error:
        return Table("table_s6_predicted", title, columns, missing=str(error))
    note = (
        "From the traces of the base runs; the division of failures between the trials is taken to stay (the ways: if "
        "all went the cheapest or the dearest)."
    )
    return Table("table_s6_predicted", title, columns, rows, note)


def spread_within(values: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Values less their prompt's mean."""
    centred = values.astype(float).copy()
    for index in np.unique(prompt):
        here = prompt == index
        centred[here] -= np.nanmean(values[here]) if np.isfinite(values[here]).any() else 0.0
    return centred


def foresight_row(base: Base, name: str, predicted: np.ndarray, step: float) -> dict[str, Any]:
    """What a score says of the finished clip: over all runs, within prompt, and beside the caption alone."""
    inside = np.abs(spread_within(predicted, base.prompt) - spread_within(base.score, base.prompt)) / base.range
    return {
        "detector": name, "step": step, "error": base.error(predicted), "error_within": base.mean(inside),
        "auc": base.over_all(predicted), "over_text_only": base.over_text_only(predicted),
        "auc_within": base.within(predicted),
    }  # fmt: skip


FORESIGHT = {
    "detector": ("what is read", "text"), "step": ("mean step", "number"),
    "error": ("error of the final score", "number"), "error_within": ("error within prompt", "number"),
    "auc": ("AUC over all", "number"), "over_text_only": ("AUC beyond the caption's", "signed"),
    "auc_within": ("AUC within prompt", "number"),
}  # fmt: skip


def caption_row(base: Base) -> dict[str, Any]:
    """The same for predictors that read only the caption."""
    guess = text_only_scores(base.captions, base.score, base.prompt)
    flat = np.abs(spread_within(base.score, base.prompt)) / base.range
    return {"detector": "the caption alone", "step": 0, "error": base.error(guess), "error_within": base.mean(flat),
            "auc": base.over_all(base.text_only), "over_text_only": None, "auc_within": base.within(base.text_only)}


def foresight(evidence: Evidence) -> Table:
    """Figure 10 as a table, with what the paper does not split."""
    base = evidence.base
    places = sorted({max(1, round(share * base.steps)) for share in (0.02, 0.06, 0.1, 0.16, 0.2, 0.28, 0.4, 0.6, 1.0)})
    rows = [caption_row(base), *(foresight_row(base, f"preview at step {k}", base.traces[:, k - 1], k) for k in places),
            foresight_row(base, "finished clip", base.score, base.steps)]  # fmt: skip
    note = (
        "Errors are divided by the range of the final scores, as in the paper. Within prompt, each score is taken less "
        "its prompt's mean: what is left is what seeds of one prompt differ in."
    )
    return Table("foresight", "What previews tell, by step (paper, Figure 10)", FORESIGHT, rows, note)


def table_s2(evidence: Evidence) -> Table:
    """Fixed step against dynamic at the same mean step, with the paired difference of errors."""
    base, own = evidence.base, evidence.detector
    dynamic = base.replay(own)
    at = max(1, round(dynamic.mean_stop))
    fixed = base.fixed(at, own.tau)

    def row(name: str, outcome: Outcomes) -> dict[str, Any]:
        gain = np.abs(outcome.predicted - base.score) - np.abs(fixed.predicted - base.score)
        return foresight_row(base, name, outcome.predicted, outcome.mean_stop) | {
            "error_change": base.mean(gain / base.range), "caught": base.share(outcome.rejected, base.failed),
            "good_rejected": base.share(outcome.rejected, ~base.failed),
        }  # fmt: skip

    return Table("table_s2", "Dynamic against fixed step at the same mean step (paper, Table S2)", FORESIGHT | {
        "error_change": ("error against fixed", "signed"), "caught": ("failures caught", "percent"),
        "good_rejected": ("good clips rejected", "percent"),
    }, [row(f"fixed step {at}", fixed), row("dynamic", dynamic), caption_row(base)])  # fmt: skip


def detectors(evidence: Evidence) -> Table:
    """Rule-based, calibrated, conformal and fixed-step detectors (evaluation.calibrate)."""
    columns = {
        "detector": ("detector", "text"), "mean_stop": ("mean stop step", "number"), "error": ("error", "number"),
        "auc_over_all": ("AUC over all", "number"), "over_text_only": ("AUC beyond the caption's", "signed"),
        "auc_within": ("AUC within prompt", "number"), "caught": ("failures caught", "percent"),
        "good_rejected": ("good clips rejected", "percent"), "caught_more": ("caught, against rule-based", "change"),
        "good_rejected_more": ("good rejected, against rule-based", "change"),
    }  # fmt: skip
    title = "Detectors at nearly equal mean stop step; what was fitted is tried on other prompts"
    try:
        folds_of(evidence.base, 5)
        rows = compare(evidence, all_candidates(evidence, "caught"))
    except ValueError as error:
        return Table("detectors", title, columns, missing=str(error))
    return Table("detectors", title, columns, [{"detector": name} | row for name, row in rows.items()])


def table_s4(evidence: Evidence) -> Table:
    """Branches of the efdi runs: executions and overhead, measured and by the cost model."""
    columns = {
        "branch": ("branch", "text"), "runs": ("runs", "count"), "video_steps": ("video steps", "number"),
        "video_inspections": ("video inspections", "number"), "single_frame_steps": ("single-frame steps", "number"),
        "refinements": ("refinements", "number"), "seconds": ("seconds", "number"),
        "measured": ("time beyond plain, measured", "percent"), "modelled": ("by the cost model", "percent"),
        "good": ("good clips", "percent"), "good_change": ("against plain", "change"),
    }  # fmt: skip
    title = "Branches: executions and overhead (paper, Table S4)"
    if missing := absent(evidence, ("efdi",)):
        return Table("table_s4", title, columns, missing=missing)
    try:
        model = measured(evidence)
        modelled = {row["branch"]: row["per_sample_overhead"] for row in branch_costs(model)}
        modelled["all"] = model.overhead()
    except (StoreError, ValueError):
        modelled = {}
    rows = []
    for branch in (*BRANCHES, "all"):
        pairs = Paired(evidence, "efdi", lambda _, row, b=branch: b == "all" or branch_of(row) == b)
        if not pairs.count:
            continue
        video = column(pairs.rows, "nfe") - column(pairs.rows, "nfe_single_frame")
        rows.append({
            "branch": branch, "runs": pairs.count, "video_steps": float(video.mean()),
            "video_inspections": float(column(pairs.rows, "inspections").mean()),
            "single_frame_steps": float(column(pairs.rows, "nfe_single_frame").mean()),
            "refinements": float(np.mean([refinements(row) for row in pairs.rows])),
            "seconds": float(column(pairs.rows, "seconds").mean()),
            "measured": pairs.overhead("seconds", "seconds_plain"), "modelled": modelled.get(branch),
            "good": pairs.of("good"), "good_change": pairs.change("good"),
        })  # fmt: skip
    return Table("table_s4", title, columns, rows, "A rejected run that no trial could help counts to branch 2.")


def branch_of(row: dict[str, Any]) -> str:
    """As the cost model counts: stopped and sampled plainly costs what Trial 2 does."""
    return "2" if row["trial"] == "0" and not row["accepted"] else row["trial"]


def refinements(row: dict[str, Any]) -> int:
    return sum(trial["kind"] == "refine" for trial in row["report"]["trials"]) if row["report"] else 0
