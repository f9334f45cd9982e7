"""The figures of the evidence report: the paper's Figures 10 to 14, each as PNG and with its curves as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .evidence import Evidence, metric_of
from .report_claims import metrics
from .report_tables import Table, spread_within

Curves = list[tuple[str, str, str, str]]  # panel, series, x, y: one CSV row each
POINTS = 64  # of a curve at most, in the CSV
PANEL = (3.4, 2.7)  # inches


class Figure:
    """Panels whose every line is also a series of the CSV. Matplotlib is loaded only where a figure is made."""

    def __init__(self, panels: int = 1):
        from matplotlib.figure import Figure as Canvas

        columns = min(panels, 3)
        rows = math.ceil(panels / columns)
        self.canvas = Canvas((PANEL[0] * max(columns, 1.5), PANEL[1] * rows), layout="constrained")
        self.axes = list(self.canvas.subplots(rows, columns, squeeze=False).flat)
        self.curves: Curves = []
        for spare in self.axes[panels:]:
            spare.set_axis_off()

    def line(self, panel: int, name: str, series: str, x, y, **style) -> None:
        self.axes[panel].plot(x, y, label=series, **style)
        points = np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int)
        self.curves += [(name, series, f"{x[point]:.5g}", f"{y[point]:.5g}") for point in points]

    def finish(self, folder: Path, stem: str, legend: bool = True) -> str:
        """Writes both files; the picture's name."""
        for axes in self.axes:
            if legend and axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7)
        self.canvas.savefig(folder / f"{stem}.png", dpi=110)
        with (folder / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("panel", "series", "x", "y"), *self.curves])
        return f"{stem}.png"


def cumulative(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of an empirical CDF."""
    values = np.sort(values[np.isfinite(values)])
    return values, np.arange(1, len(values) + 1) / max(len(values), 1)


def figure_10(evidence: Evidence, folder: Path) -> str:
    """Error of the score by step, over all runs and within prompt, beside what is known without looking."""
    base, figure = evidence.base, Figure()
    steps = np.arange(1, base.steps + 1)
    error = np.nanmean(np.abs(base.traces - base.score[:, None]), 0) / base.range
    figure.line(0, "error", "over all runs", steps, error)
    centred = spread_within(base.score, base.prompt)
    inside = [np.nanmean(np.abs(spread_within(scores, base.prompt) - centred)) for scores in base.traces.T]
    figure.line(0, "error", "within prompt", steps, np.asarray(inside) / base.range)
    known = np.full(len(steps), np.nanmean(np.abs(centred)) / base.range)
    figure.line(0, "error", "knowing the prompt's mean only", steps, known, ls="--", color="0.5")
    first, last = evidence.detector.window(base.steps)
    figure.axes[0].axvspan(first, last, color="0.92", zorder=0)
    figure.axes[0].set(xlabel=f"step of {base.steps}", ylabel="error of the final score / its range", ylim=(0, None))
    return figure.finish(folder, "figure_10")


def figure_11(proxies: Table, folder: Path) -> str | None:
    """PR-AUC of the final score for other measures."""
    if not proxies.rows:
        return None
    names = list(dict.fromkeys(row["metric"] for row in proxies.rows))
    figure = Figure(len(names))
    for panel, name in enumerate(names):
        rows = [row for row in proxies.rows if row["metric"] == name]
        for key, series in (("over_all", "over all"), ("within", "within prompt"), ("caption", "the caption alone")):
            heights = [row[key]["value"] for row in rows]
            figure.line(panel, name, series, [row["q"] for row in rows], heights, marker="o")
        figure.axes[panel].axhline(0.5, color="0.5", lw=0.8)
        figure.axes[panel].set(title=name, xlabel="q (top and bottom)", ylabel="PR-AUC", ylim=(0.3, 1.02))
    return figure.finish(folder, "figure_11")


def figure_12(evidence: Evidence, folder: Path) -> str:
    """Distributions of the final score with tau, and how often a score is good."""
    base, figure = evidence.base, Figure(2)
    edges = np.histogram_bin_edges(base.score[np.isfinite(base.score)], 24)
    middle = (edges[1:] + edges[:-1]) / 2
    for series, chosen in (("good clips", ~base.failed), ("failures", base.failed)):
        heights, _ = np.histogram(base.score[chosen], edges)
        figure.line(0, "distribution", series, middle, heights / max(heights.sum(), 1), drawstyle="steps-mid")
    wide = np.quantile(base.score[np.isfinite(base.score)], np.linspace(0, 1, 9))
    centre, share = [], []
    for low, high in zip(wide[:-1], wide[1:], strict=True):
        here = (base.score >= low) & (base.score <= high)
        if here.any():
            centre.append((low + high) / 2)
            share.append(float((~base.failed[here]).mean()))
    figure.line(1, "share of good clips", "all runs", centre, share, marker="o")
    for axes, label in zip(figure.axes, ("share of clips", "share of good clips"), strict=True):
        axes.axvline(evidence.tau, color="0.4", ls="--", lw=1)
        axes.set(xlabel="final score (dashed: tau)", ylabel=label)
    return figure.finish(folder, "figure_12")


def figure_13(evidence: Evidence, folder: Path) -> str | None:
    """CDFs of every measure of the rejected runs: finished plainly, with the trials, and with another seed."""
    rejected = [key for key, row in evidence.rows.get("efdi", {}).items()
                if row["accepted"] is False and key in evidence.rows["base"]]  # fmt: skip
    if not rejected:
        return None
    names = metrics(evidence)
    figure = Figure(len(names))
    for panel, name in enumerate(names):
        for method, series in (("base", "plain"), ("efdi", "paper's plan"), ("reseed", "another seed")):
            rows = [evidence.rows[method][key] for key in rejected if key in evidence.rows.get(method, {})]
            if rows:
                figure.line(panel, name, series, *cumulative(metric_of(rows, name)), drawstyle="steps-post")
        figure.axes[panel].set(title=name, ylabel="share of rejected runs", ylim=(0, 1.02))
    return figure.finish(folder, "figure_13")


def figure_14(evidence: Evidence, folder: Path) -> str:
    """CDFs of the final score of what the detector passed and rejected, over all and within prompt."""
    base, figure = evidence.base, Figure(2)
    outcome = base.replay(evidence.detector)
    panels = (("over all runs", base.score), ("less the prompt's mean", spread_within(base.score, base.prompt)))
    for panel, (name, values) in enumerate(panels):
        for series, chosen in (("passed", outcome.accepted), ("rejected", outcome.rejected)):
            if chosen.any():
                figure.line(panel, name, series, *cumulative(values[chosen]), drawstyle="steps-post")
        figure.axes[panel].set(title=name, xlabel="final score", ylabel="share of runs", ylim=(0, 1.02))
    return figure.finish(folder, "figure_14")


def draw(evidence: Evidence, tables: dict[str, Table], folder: Path) -> dict[str, str]:
    """Title -> file name of every figure that can be made of this database."""
    makers: dict[str, Callable[[], str | None]] = {
        "Error of the score by step (paper, Figure 10)": lambda: figure_10(evidence, folder),
        "The final score as a proxy (paper, Figure 11)": lambda: figure_11(tables["proxies"], folder),
        "Distributions and tau (paper, Figure 12; no real videos, no human study)": lambda: figure_12(evidence, folder),
        "Rejected runs, repaired (paper, Figure 13)": lambda: figure_13(evidence, folder),
        "Passed and rejected (paper, Figure 14)": lambda: figure_14(evidence, folder),
    }
    return {title: name for title, make in makers.items() if (name := make())}
