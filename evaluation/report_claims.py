"""What the interventions do beyond the averages, and which of the paper's claims survive the split within prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .backend import read_webp
from .bench import BASE
from .evidence import Base, Cell, Evidence, Outcomes, metric_of
from .report_cost import DEFAULT, at_equal_cost
from .report_tables import INJECTED, MAIN, Paired, Table, absent, name_of, spread_within
from .statistics import bootstrap, mean, ratio, text_only_scores
from .store import Store

QUANTILES = (0.1, 0.2, 0.3)  # of Figure 11
LEAST = 20  # clips in the top and bottom group together; fewer say nothing


def metrics(evidence: Evidence) -> list[str]:
    """What is known of finished clips besides the verdict: the final score, motion, and the judge's or plug-ins'
    measures."""
    measures = [row["measures"] or {} for row in evidence.rows["base"].values()]
    numbers = {name for each in measures for name, value in each.items() if isinstance(value, (int, float))}
    return ["final_score", "motion", *sorted(numbers)]


def table_s7(evidence: Evidence) -> Table:
    """Every measure of the finished clips, plain and with the paper's method."""
    columns = {"metric": ("measure", "text"), "plain": ("plain", "number"), "efdi": ("paper's plan", "number"),
               "change": ("change", "signed")}  # fmt: skip
    pairs = Paired(evidence, "efdi")
    rows = [
        {"metric": name, "plain": pairs.of(name, base=True), "efdi": pairs.of(name), "change": pairs.change(name)}
        for name in ("good", *metrics(evidence)) if pairs.count
    ]  # fmt: skip
    note = "motion: mean absolute difference of neighbouring frames, 0 to 1; it counts flicker as well."
    return Table("table_s7", "All measures (paper, Table S7)", columns, rows, note, absent(evidence, ("efdi",)))


def motion(evidence: Evidence) -> Table:
    """What injection does to motion (the paper's dynamic degree falls from .542 to .403 on Wan), by setting."""
    columns = {
        "method": ("method", "text"), "injected": ("injected runs", "count"), "plain": ("motion, plain", "number"),
        "motion": ("motion, injected", "number"), "change": ("change", "signed"), "share": ("change in %", "change"),
        "good_change": ("good clips, against plain", "change"),
    }  # fmt: skip
    methods = [m for m in evidence.methods if m.split("@")[0] in ("efdi", "trial_1")]
    rows = []
    for method in methods:
        pairs = Paired(evidence, method, lambda _, row: row["trial"] in INJECTED)
        if not pairs.count:
            continue
        before, after = pairs.values(pairs.base_rows, "motion"), pairs.values(pairs.rows, "motion")
        share = {key: value - 1 for key, value in ratio(after, before, pairs.prompt).items()}
        rows.append({"method": name_of(method), "injected": pairs.count, "plain": pairs.of("motion", True),
                     "motion": pairs.of("motion"), "change": pairs.change("motion"), "share": share,
                     "good_change": pairs.change("good")})  # fmt: skip
    missing = "" if rows else "No injected run in this database."
    return Table("motion", "Motion of injected clips", columns, rows, "", missing)


def diversity(evidence: Evidence) -> Table:
    """How far the clips that a method gives for one prompt lie apart, beside plain ones of the same seeds."""
    columns = {
        "method": ("method", "text"), "prompts": ("prompts", "count"), "apart": ("difference of its clips", "number"),
        "change": ("against plain", "signed"), "same": ("pairs that are one clip", "percent"),
    }  # fmt: skip
    rows = []
    with Store(evidence.path) as store:
        for method in evidence.methods:
            by_prompt: dict[int, list[int]] = {}
            for prompt, seed in evidence.rows[method]:
                if (prompt, seed) in evidence.rows[BASE]:
                    by_prompt.setdefault(prompt, []).append(seed)
            pairs = [(prompt, pair) for prompt, seeds in by_prompt.items() for pair in itertools.combinations(seeds, 2)]
            apart = np.asarray([
                [_apart(store, evidence.rows[name], prompt, pair) for name in (method, BASE)] for prompt, pair in pairs
            ]).reshape(-1, 2)  # fmt: skip
            known = np.isfinite(apart).all(1)
            if not known.any():
                continue
            mine, plain = apart[known].T
            groups = np.asarray([prompt for prompt, _ in pairs])[known]
            rows.append({
                "method": name_of(method), "prompts": len(set(groups)), "apart": mean(mine, groups),
                "change": mean(mine - plain, groups), "same": mean(mine == 0, groups),
            })  # fmt: skip
    note = "Mean absolute difference of the pixels of two seeds' clips, 0 to 1."
    missing = "" if rows else "No method has clips of two seeds in this database: add --method-seeds 2, keep clips."
    return Table("diversity", "Diversity of a prompt's clips", columns, rows, note, missing)


def _apart(store: Store, rows: Mapping, prompt: int, seeds: tuple[int, int]) -> float:
    """NaN where a clip was not kept."""
    clips = [store.clip(rows[prompt, seed]) for seed in seeds]
    if None in clips:
        return math.nan
    first, second = (read_webp(clip).astype(np.float32) for clip in clips)
    return float(np.abs(first - second).mean()) / 255


def repairs(evidence: Evidence) -> Table:
    """The runs that the detector rejected: what each method makes of them (paper, Figures 13, S4 and S5)."""
    columns = {
        "what": ("rejected runs", "text"), "runs": ("runs", "count"), "plain": ("good, plain", "percent"),
        "good": ("good, repaired", "percent"), "change": ("change", "change"),
        "reseeded": ("good with another seed, same runs", "percent"),
        "over_reseeded": ("change against another seed", "change"),
        "score_change": ("change of the final score", "signed"), "spoiled": ("good clips spoiled", "percent"),
    }  # fmt: skip
    rejected = {key for key, row in evidence.rows.get("efdi", {}).items() if row["accepted"] is False}
    kinds = {"paper's plan, all trials": ("efdi", None), "ended in Trial 1": ("efdi", ("1",)),
             "ended in Trial 2": ("efdi", ("2",)), "ended in Trial 2->1": ("efdi", ("2->1",)),
             "another seed instead": ("reseed", None), "regeneration, if it ends below tau": ("regenerate", None),
             "Trial 1 alone": ("trial_1", None), "Trial 2 alone": ("trial_2", None)}  # fmt: skip
    rows = []
    for name, (method, trials) in kinds.items():
        def keep(_: dict, row: dict, trials=trials) -> bool:
            return (row["prompt_index"], row["seed"]) in rejected and (trials is None or row["trial"] in trials)

        pairs, over = Paired(evidence, method, keep), Paired(evidence, method, keep, rival="reseed")
        if not pairs.count:
            continue
        was = pairs.values(pairs.base_rows, "good") == 1
        rows.append({
            "what": name, "runs": pairs.count, "plain": pairs.of("good", True), "good": pairs.of("good"),
            "change": pairs.change("good"), "score_change": pairs.change("final_score"),
            "reseeded": over.of("good", True) if over.count else None,
            "over_reseeded": over.change("good") if over.count else None,
            "spoiled": mean(pairs.values(pairs.rows, "good")[was] == 0, pairs.prompt[was]) if was.any() else None,
        })  # fmt: skip
    note = (
        "Rejected runs are worse than average, so anything drawn anew looks better (regression to the mean): compare "
        "the trials with another seed, not with plain."
    )
    return Table("repairs", "What becomes of rejected runs (paper, Figure 13)", columns, rows, note,
                 absent(evidence, ("efdi",)))  # fmt: skip


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Area under precision over recall: the mean precision at each right item, ties shared evenly."""
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order].astype(float)
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last of each run of equal scores
    hits = right.cumsum()[ends]
    gained = np.diff(hits, prepend=0.0)
    return float((gained * hits / (ends + 1)).sum() / hits[-1]) if hits[-1] else math.nan


def proxies(evidence: Evidence) -> Table:
    """Figure 11: does the final score tell the best from the worst clips by other measures? Also within prompt, where
    both are taken less their prompt's mean, and beside a prediction of the measure from the caption alone."""
    columns = {
        "metric": ("measure", "text"), "q": ("top and bottom", "percent"), "clips": ("clips", "count"),
        "over_all": ("PR-AUC over all", "number"), "within": ("PR-AUC within prompt", "number"),
        "caption": ("PR-AUC of the caption alone", "number"),
    }  # fmt: skip
    base = evidence.base
    rows_of = [row for row in evidence.rows["base"].values() if row["trace"]]
    rows = []
    for metric in metrics(evidence)[1:]:
        values = metric_of(rows_of, metric)
        known = np.isfinite(values) & np.isfinite(base.score)
        if len(np.unique(values[known])) < 3:
            continue
        score, target, prompt = base.score[known], values[known], base.prompt[known]
        guess = text_only_scores([c for c, k in zip(base.captions, known, strict=True) if k], target, prompt)
        for q in (q for q in QUANTILES if 2 * q * known.sum() >= LEAST):
            rows.append({
                "metric": metric, "q": q, "clips": int(known.sum()),
                "over_all": _top_or_bottom(score, target, prompt, q),
                "within": _top_or_bottom(spread_within(score, prompt), spread_within(target, prompt), prompt, q),
                "caption": _top_or_bottom(guess, target, prompt, q),
            })  # fmt: skip
    note = "Top and bottom groups are of equal size, so a coin has 0.5."
    missing = "" if rows else "Too few clips, or no other measures than the final score."
    title = "The final score as a proxy for other measures (paper, Figure 11)"
    return Table("proxies", title, columns, rows, note, missing)


def _top_or_bottom(score: np.ndarray, target: np.ndarray, prompt: np.ndarray, q: float) -> Cell:
    order = np.argsort(target, kind="stable")
    count = max(1, int(q * len(order)))
    chosen = np.concatenate([order[:count], order[-count:]])
    top = np.isin(chosen, order[-count:])
    score, prompt = score[chosen], prompt[chosen]
    return bootstrap(lambda rows: average_precision(score[rows], top[rows]), prompt, draws=400)


def verdict(cell: Cell | None, better: int = 1, zero: float = 0.0) -> str:
    """holds, fails or open, by where the interval lies; better: the sign that the claim asks for."""
    if cell is None or not all(math.isfinite(cell[key]) for key in ("low", "high")):
        return "cannot be said"
    low, high = sorted((better * (cell["low"] - zero), better * (cell["high"] - zero)))
    return "holds" if low > 0 else "does not hold" if high < 0 else "open"


def claims(evidence: Evidence, tables: Sequence[Table]) -> Table:
    """The paper's claims, over all runs as the paper measures them, and within prompt (or against another seed)."""
    by_name = {table.name: table for table in tables}
    base = evidence.base
    dynamic = base.replay(evidence.detector)
    rows = [
        early(base), foretells(base, dynamic), dynamic_better(base, dynamic), *_of_methods(evidence, by_name),
        *_of_the_default(evidence),
    ]  # fmt: skip
    columns = {
        "claim": ("claim", "text"), "paper": ("paper", "text"), "here": ("here", "signed"),
        "holds": ("over all", "text"), "split": ("split", "text"), "split_here": ("there", "signed"),
        "survives": ("after the split", "text"),
    }  # fmt: skip
    note = (
        "The paper's figures are over all prompts, where a score that only knows which prompts are hard looks good "
        "too. holds, does not hold: the 95 % interval lies on one side; open: it holds both."
    )
    return Table("claims", "Which of the paper's claims survive here", columns, rows, note)


def _row(claim: str, paper: str, here: Cell | None, split: str, split_here: Cell | None, better: int = 1) -> dict:
    return {"claim": claim, "paper": paper, "here": here, "holds": verdict(here, better), "split": split,
            "split_here": split_here, "survives": verdict(split_here, better)}  # fmt: skip


def early(base: Base) -> dict[str, Any]:
    """At a fifth of the schedule the score is nearer to the final one than a guess from the caption alone."""
    score = base.traces[:, max(1, round(0.2 * base.steps)) - 1]
    guess = text_only_scores(base.captions, base.score, base.prompt)
    gain = (np.abs(score - base.score) - np.abs(guess - base.score)) / base.range
    inside = np.abs(spread_within(score, base.prompt) - spread_within(base.score, base.prompt))
    flat = np.abs(spread_within(base.score, base.prompt))
    return _row("Early scores predict the final score (step 10 of 50): error against a guess from the caption",
                "error about 0.05 to 0.07 of the range (Figure 10)", base.mean(gain),
                "error within prompt, against knowing the prompt's mean", base.mean((inside - flat) / base.range), -1)


def foretells(base: Base, outcome: Outcomes) -> dict[str, Any]:
    above, within = base.over_all(outcome.predicted), base.within(outcome.predicted)
    return _row("The detector tells failures from good clips (AUC less 0.5)", "separated distributions (Figure 14)",
                _less(above, 0.5), "within prompt", _less(within, 0.5))  # fmt: skip


def dynamic_better(base: Base, outcome: Outcomes) -> dict[str, Any]:
    fixed = base.traces[:, max(1, round(outcome.mean_stop)) - 1]

    def gain(change) -> Cell:
        return base.mean((np.abs(change(outcome.predicted)) - np.abs(change(fixed))) / base.range)

    def centred(values: np.ndarray) -> np.ndarray:
        return spread_within(values, base.prompt) - spread_within(base.score, base.prompt)

    return _row("The dynamic detector's error is lower than a fixed step's at the same mean step",
                "-0.0094 (CogVideoX), -0.0054 (Wan), Table S2", gain(lambda values: values - base.score),
                "error within prompt", gain(centred), -1)  # fmt: skip


def _of_methods(evidence: Evidence, by_name: dict[str, Table]) -> list[dict[str, Any]]:
    """Claims about interventions; the control for them is another seed at the same place."""
    equal = {row["rival"]: row for row in by_name["equal_nfe"].rows}
    quality = {row["method"]: row for row in by_name["table_1"].rows}

    def paired(method: str, rival: str, metric: str, keep=lambda rival, row: True) -> Cell | None:
        """method minus rival on the runs that both have."""
        pairs = Paired(evidence, method, keep, rival)
        return pairs.change(metric) if pairs.count else None

    def rejected(_: dict, row: dict) -> bool:
        return row["accepted"] is False

    seeded = equal.get(MAIN["reseed"], {}).get("change")
    best = equal.get(MAIN["best_of_3"], {}).get("change")
    swept = next((m for m in evidence.methods if m.startswith("efdi@tau=+") and "," not in m), None) or next(
        (m for m in evidence.methods if m.startswith("efdi@tau=")), None)
    moving = next((row for row in by_name["motion"].rows if row["method"] == MAIN["efdi"]), {})
    gentle = next((row for row in by_name["motion"].rows if "injection_" in row["method"]), {})
    return [
        _row("The paper's plan gives more good clips than plain sampling",
             "+0.022, +0.016 of the VBench score (Table 1)", quality.get(MAIN["efdi"], {}).get("good_change"),
             "against another seed at equal evaluations", seeded),
        _row("It repairs what the detector rejected", "CDFs move right (Figure 13)",
             paired("efdi", "base", "good", rejected), "against another seed for the same runs",
             paired("efdi", "reseed", "good", rejected)),
        _row("It costs less time than regeneration", "16.55 against 43.73 %, 20.30 against 51.25 % (Table 1)",
             paired("efdi", "regenerate", "time"), "against stopping and reseeding",
             paired("efdi", "reseed", "time"), -1),
        _row("It is as good as regeneration", "+0.007, -0.010 (Table 1)", paired("efdi", "regenerate", "good"),
             "at equal evaluations", equal.get(MAIN["regenerate"], {}).get("change")),
        _row("It beats best of 3", "+0.013, +0.009 (Table S5)", paired("efdi", "best_of_3", "good"),
             "at equal evaluations", best),
        _row("A higher threshold gives more good clips", "+0.007, +0.002 at tau .26 (Table S6)",
             paired(swept, "efdi", "good") if swept else None, "and costs more time",
             paired(swept, "efdi", "time") if swept else None),
        _row("Injection takes motion away (a risk, Table S7)", "dynamic degree .542 to .403 on Wan",
             moving.get("change"), f"with {gentle['method']}" if gentle else "with a weaker injection",
             gentle.get("change"), -1),
    ]  # fmt: skip


def _of_the_default(evidence: Evidence) -> list[dict[str, Any]]:
    """Ours: the default race against every rival."""
    rivals = [method for method in evidence.methods if method != "base" and method.partition("@")[0] != DEFAULT]
    rows = ((rival, at_equal_cost(evidence, DEFAULT, rival)) for rival in rivals)
    return [
        _row(f"The default race gives more good clips than {name_of(rival)}, at equal evaluations", "not the paper's",
             row["change"], "at equal time", row["change_in_time"])
        for rival, row in rows if row
    ]  # fmt: skip


def _less(cell: Cell, amount: float) -> Cell:
    return {key: value - amount for key, value in cell.items()}
