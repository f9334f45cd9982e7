"""Fits the detector to logged runs, and writes a preset that the node Dynamic Failure Gate can pick.

    python -m foresight.evaluation calibrate out/evidence.sqlite --out preset.json

It replays the detector on the traces of the base runs (which are inspected at every step) with many settings, and keeps
the best: `--objective caught` catches most failures while no more than `--false-reject` of the good clips are rejected,
`--objective error` has the least error of the predicted score at a mean stop no later than the default rules'. What is
printed was measured on prompts that the fit had not seen. `--mode conformal` fits floors with a bound on false
rejections (evaluation/conformal.py) instead of the paper's rules. `--objective yield` fits the race instead
(evaluation/calibrate_race.py): look, floors and candidates for most good clips at each budget.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..scoring.detector import DetectorSettings
from ..scoring.preset import DetectorPreset, save_preset
from ..trials.report import safe
from .calibrate_race import calibrate_race
from .conformal import Floors, conformal_floors
from .evidence import Base, Evidence, Outcomes, load
from .results import command_parser, number, percent
from .statistics import mean
from .store import StoreError

# What is tried. Windows as shares of the schedule: the paper's, sooner, shorter, later, longer.
WINDOWS = ((0.16, 0.28), (0.10, 0.20), (0.16, 0.20), (0.16, 0.40), (0.28, 0.40))
PATIENCE = (2, 3)
SCALES = (0.5, 1.0, 2.0)  # of all margins, against the scorer's own
TAU_QUANTILES = tuple(np.linspace(0.05, 0.75, 11))  # of the scores at the end of the paper's window
CLOSE = 0.25  # steps by which a mean stop may be later and still count as equal
EARLIER = 1.0  # and by which it may be earlier where detectors are compared
YIELD = "yield"
OBJECTIVES, MODES = ("caught", "error", YIELD), ("rules", "conformal")

FIELDS = ("accepted", "predicted", "step")  # of Outcomes


def candidates(base: Base, own: DetectorSettings, objective: str) -> list[DetectorSettings]:
    """All settings that are tried; the first is `own`. The error at the stop hardly depends on tau, so with that
    objective tau stays the scorer's."""
    taus = [own.tau]
    if objective == "caught":
        at_end = base.traces[:, own.window(base.steps)[1] - 1]
        taus += sorted(set(np.nanquantile(at_end, TAU_QUANTILES).round(4).clip(-1, 1).tolist()))
    settings = [
        replace(own, tau=tau, start=start, end=end, patience=patience, scale=own.scale * scale)
        for tau, (start, end), patience, scale in itertools.product(taus, WINDOWS, PATIENCE, SCALES)
    ]
    return [own, *(each for each in settings if each != own)]


class Fit:
    """The outcomes of all candidates on all runs: [C, R] arrays, computed once, from which any fold is chosen."""

    def __init__(self, base: Base, settings: Sequence[DetectorSettings], latest: float):
        """latest: the mean stop that a candidate may not exceed."""
        self.base, self.settings, self.latest = base, settings, latest
        self.outcomes = [base.replay(each) for each in settings]
        self.accepted, self.predicted, self.step = (
            np.stack([getattr(outcome, name) for outcome in self.outcomes]) for name in FIELDS
        )

    def choose(self, objective: str, rate: float, among: np.ndarray, earliest: float = 0.0) -> int:
        """The best candidate on the runs `among` (bool [R]) whose mean stop is no sooner than `earliest`. Ties go to
        the earlier stop."""
        failed = self.base.failed & among
        good, stop = ~self.base.failed & among, self.step[:, among].mean(1)
        soon = (stop <= self.latest + CLOSE) & (stop >= earliest)
        if objective == "error":
            error = np.abs(self.predicted - self.base.score)[:, among]
            cost = np.nanmean(error, axis=1)
        else:
            wrongly, caught = 1 - self.accepted[:, good].mean(1), 1 - self.accepted[:, failed].mean(1)
            soon &= wrongly <= rate
            cost = -caught if soon.any() else wrongly
        allowed = soon if soon.any() else np.ones_like(soon)
        return int(np.lexsort((stop, np.where(allowed, cost, np.inf)))[0])


def folds_of(base: Base, count: int) -> np.ndarray:
    """The fold of each run; a prompt's runs are never parted. ValueError: too few prompts, or one outcome only."""
    prompts = np.unique(base.prompt)
    if len(prompts) < 2 * count:
        raise ValueError(
            f"{len(prompts)} prompts are too few to fit on {count - 1} parts of {count} and try on the last: log at "
            f"least {2 * count} prompts (50 to 200 are better), or take fewer --folds."
        )
    if base.failed.all() or not base.failed.any():
        raise ValueError(
            f"all {len(base)} base runs {'failed' if base.failed.any() else 'are good'}: a detector can be fitted only "
            "where both happen. Use harder or easier prompts."
        )
    place = {prompt: index % count for index, prompt in enumerate(np.random.default_rng(0).permutation(prompts))}
    return np.asarray([place[prompt] for prompt in base.prompt])


def fit_floors(
    base: Base, own: DetectorSettings, rate: float, among: np.ndarray, end: int
) -> tuple[DetectorSettings, Floors]:
    """Floors from the good runs `among`, for the window from its own first step to `end`. The window must not be
    chosen by looking at how these runs came off, or the bound would be lost."""
    first, good = own.window(base.steps)[0], among & ~base.failed
    floors = conformal_floors(base.traces[good, first - 1 : end], base.prompt[good], rate)
    return replace(own, end=end / base.steps, floors=floors.floors), floors


def fit_tau(base: Base, step: int, rate: float, among: np.ndarray) -> float:
    """The threshold of a single look that rejects no more than `rate` of the good runs `among`."""
    return float(np.nanquantile(base.traces[among & ~base.failed, step - 1], rate, method="lower"))


def all_candidates(evidence: Evidence, objective: str) -> Fit:
    """Takes a few tenths of a second for each run."""
    base, own = evidence.base, evidence.detector
    return Fit(base, candidates(base, own, objective), base.replay(own).mean_stop)


def compare(
    evidence: Evidence, fit: Fit, rate: float = 0.1, folds: int = 5, objective: str = "caught"
) -> dict[str, Any]:
    """Detectors at nearly equal mean stop step, whatever was fitted being tried on other prompts. (Floors reject as
    soon as they are undercut, so where much fails their mean stop comes sooner; none may come later.)

    name -> mean_stop, error, auc_over_all, auc_within, over_text_only, caught, good_rejected, and caught_more,
    good_rejected_more (against the rule-based detector, paired).
    """
    base, own = evidence.base, evidence.detector
    fold = folds_of(base, folds)
    default = base.replay(own)
    latest = default.mean_stop
    at = max(1, round(latest))
    end = max(own.window(base.steps)[0], math.ceil(latest))  # what passes is passed there, what fails stops sooner
    outcomes = {
        "rule-based (default)": default,
        "rule-based, calibrated": parts(base, fold, lambda among: fit.outcomes[
            fit.choose(objective, rate, among, latest - EARLIER)]),
        f"conformal, at most {100 * rate:g} %": parts(base, fold, lambda among: base.replay(
            fit_floors(base, own, rate, among, end)[0])),
        f"fixed step {at}": base.fixed(at, own.tau),
        f"fixed step {at}, calibrated tau": parts(base, fold, lambda among: base.fixed(
            at, fit_tau(base, at, rate, among))),
    }  # fmt: skip
    return {name: described(base, outcome, default) for name, outcome in outcomes.items()}


def parts(base: Base, folds: np.ndarray, fit: Callable[[np.ndarray], Outcomes]) -> Outcomes:
    """Each fold's runs by the detector that was fitted on the others."""
    joined = Outcomes(np.zeros(len(base), bool), np.zeros(len(base)), np.zeros(len(base), int))
    for fold in np.unique(folds):
        here, outcome = folds == fold, fit(folds != fold)
        for name in FIELDS:
            getattr(joined, name)[here] = getattr(outcome, name)[here]
    return joined


def described(base: Base, outcome: Outcomes, rival: Outcomes) -> dict[str, Any]:
    rejected, good = outcome.rejected, ~base.failed

    def more(among: np.ndarray) -> dict[str, float]:
        return mean(rejected.astype(float) - rival.rejected, base.prompt, among)

    return {
        "mean_stop": outcome.mean_stop, "error": base.error(outcome.predicted),
        "auc_over_all": base.over_all(outcome.predicted), "auc_within": base.within(outcome.predicted),
        "over_text_only": base.over_text_only(outcome.predicted),
        "caught": base.share(rejected, base.failed), "good_rejected": base.share(rejected, good),
        "caught_more": more(base.failed), "good_rejected_more": more(good),
    }  # fmt: skip


def table(rows: dict[str, Any]) -> list[str]:
    """The comparison as a Markdown table."""
    return [
        "| detector | mean stop step | error of the score | AUC over all | AUC within prompt | failures caught | good "
        "clips rejected | caught more than rule-based |", "|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {row['mean_stop']:.1f} | {number(row['error'])} | {number(row['auc_over_all'])} | "
          f"{number(row['auc_within'])} | {percent(row['caught'])} | {percent(row['good_rejected'])} | "
          f"{percent(row['caught_more'], signed=True)} |" for name, row in rows.items()),
    ]  # fmt: skip


def fitted(evidence: Evidence, fit: Fit, mode: str, objective: str, rate: float) -> tuple[DetectorSettings, dict]:
    """The settings fitted to all runs, and what is to be said of them."""
    base, own, everything = evidence.base, evidence.detector, np.ones(len(evidence.base), bool)
    if mode == "conformal":
        settings, floors = fit_floors(base, own, rate, everything, own.window(base.steps)[1])
        return settings, {"bound_on_false_rejections": floors.bound, "prompts_of_the_bound": floors.prompts}
    return fit.settings[fit.choose(objective, rate, everything)], {"objective": objective}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("calibrate", __doc__)
    parser.add_argument("database", type=Path, help="the database of `run`, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="the preset, a .json file")
    parser.add_argument("--mode", choices=MODES, default=MODES[0])
    parser.add_argument("--objective", choices=OBJECTIVES, default=OBJECTIVES[0], help="yield: fits the race")
    parser.add_argument("--false-reject", type=float, default=0.1, help="share of good clips to reject at most")
    parser.add_argument("--folds", type=int, default=5, help="parts of the prompts for cross-validation (5)")
    parser.add_argument("--settings", help="fingerprint of the runs' settings, where the database holds several")
    a = parser.parse_args(argv)
    try:
        evidence = load(a.database, a.settings)
        if a.objective == YIELD:
            return calibrate_race(evidence, a.out, max(2, a.folds))
        scorer = evidence.settings.get("scorer")
        if not scorer:
            raise ValueError(f"{a.database} does not say which scorer its runs had: run the command again.")
        folds_of(evidence.base, max(2, a.folds))  # what is too little is told before the work is done
        fit = all_candidates(evidence, a.objective)
        rows = compare(evidence, fit, a.false_reject, max(2, a.folds), a.objective)
        settings, remarks = fitted(evidence, fit, a.mode, a.objective, a.false_reject)
    except (StoreError, ValueError) as error:
        raise SystemExit(f"calibrate: {error}") from None
    name = next(n for n in rows if n.startswith("conformal" if a.mode == "conformal" else "rule-based, calibrated"))
    shown = ("mean_stop", "caught", "good_rejected", "auc_within", "error")
    about = remarks | {
        "mode": a.mode, "false_reject": a.false_reject, "date": datetime.date.today().isoformat(),
        "runs": len(evidence.base), "prompts": len(np.unique(evidence.base.prompt)),
        "failures_by": "the judge" if evidence.base.judged else f"final score below {evidence.tau:g}",
        "held_out": safe({key: rows[name][key] for key in shown}),
        "made_with": {key: evidence.settings.get(key) for key in
                      ("suite", "model", "sampler", "scheduler", "steps", "cfg", "shift")},
    }  # fmt: skip
    save_preset(DetectorPreset(scorer, evidence.steps, settings, about), a.out)
    print("\n".join(table(rows)))
    first, last = settings.window(evidence.steps)
    print(f"\n{a.out}: {a.mode}, tau {settings.tau:g}, steps {first} to {last} of {evidence.steps}, for {scorer}")
    print("Put it into models/foresight_presets and choose it in Dynamic Failure Gate.")


if __name__ == "__main__":
    main()
