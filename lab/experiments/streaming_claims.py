"""The claims of Diagonal Distillation, and of those who gate streams, held against intervals: holds, does not hold, or
open. Nothing is judged by hand: each claim names a difference, and between which bounds it would have to lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...evaluation import statistics

HOLDS, NOT, OPEN = "holds", "does not hold", "open"
SAME = 0.05  # share of right clips that counts as none
LEAST = 30  # prompts: a bootstrap of fewer says little, and of equal ones nothing
KEPT = 0.9  # share of the right clips that fewer forwards have to keep
RIGHT, LAST, MOTION, DRIFT, SHARE = "right", "last", "motion", "drift", "share"
HISTORY = "later chunks are nearly determined by those before them, which helps whatever spares steps late"
SHORT = "7 latents, of which one may tell all: a scene does not change"
PLAIN = "flat colours, which a small network hardly oversaturates"


@dataclass(frozen=True)
class Claim:
    """text and paper: what is said, and its figures there. The difference of `measure` between arm and rival (SHARE:
    their ratio) has to lie between low and high. flatters: what of this world speaks for it, or hides it."""

    name: str
    text: str
    paper: str
    arm: str
    rival: str
    measure: str = RIGHT
    low: float = 0.0
    high: float = np.inf
    flatters: str = ""

    def verdict(self, cell: Mapping[str, float] | None) -> str:
        """cell: value, low and high of the difference, and of how many prompts; None: not run."""
        if cell is None or cell["prompts"] < LEAST or not np.isfinite([cell["low"], cell["high"]]).all():
            return OPEN
        if cell["low"] > self.low and cell["high"] < self.high:
            return HOLDS
        return NOT if cell["high"] < self.low or cell["low"] > self.high else OPEN


OWN, FULL, SELF = "students: diagonal, 4322222", "ablation: ablation_full, 4322222", "students: self_forcing, 4"
BETTER: dict[str, Any] = {"low": 0.0, "high": np.inf}
WORSE: dict[str, Any] = {"low": -np.inf, "high": 0.0}
EQUAL: dict[str, Any] = {"low": -SAME, "high": SAME}

CLAIMS = (
    Claim("kept", f"With half the forwards the student keeps {KEPT:.0%} of the four-step student's right clips",
          "totals 84.48 and 84.31 (Table 1)", OWN, SELF, SHARE, KEPT, flatters=HISTORY),
    Claim("trained for it", "At the same few steps the student that was trained for them is better",
          "94.9/63.4/28.9 and 93.5/62.1/27.5 (Table 5)", OWN, "students: self_forcing, 4322222", **BETTER),
    Claim("four steps everywhere", f"Four steps everywhere are as good as 4322222 (within {100 * SAME:.0f} points)",
          "95.1/63.2/28.6 and 94.9/63.4/28.9 (Table 5)", "schedules: diagonal, 4444444", OWN, **EQUAL,
          flatters=HISTORY),
    Claim("second chunk", "4222222 is worse than 4322222", "93.4/62.3/27.8 and 94.9/63.4/28.9 (Table 3)",
          "schedules: diagonal, 4222222", OWN, **WORSE),
    Claim("rising", "3333533, steps late, is worse, though it takes six forwards more",
          "93.5/60.0/27.7 and 94.9/63.4/28.9 (Table 6)", "schedules: diagonal, 3333533", OWN, **WORSE,
          flatters=HISTORY),
    Claim("rising, the prompt changes", "The same where the prompt changes half way", "not there",
          "turns: diagonal, 3333533", "turns: diagonal, 4322222", **WORSE),
    Claim("zigzag", "3233343 is worse, though it takes four forwards more", "93.6/60.9/27.9 (Table 6)",
          "schedules: diagonal, 3233343", OWN, **WORSE, flatters=HISTORY),
    Claim("noisy history", "A history at noise .1 is better than a clean one, on the student of the last step's",
          "best at 100 of 0..1000 (Figure 5a)", "history: diagonal, level 0.1", "history: diagonal, level 0", **BETTER),
    Claim("much noise", "A history at noise .6 is worse than at .1", "falls towards 1000 (Figure 5a)",
          "history: diagonal, level 0.6", "history: diagonal, level 0.1", **WORSE),
    Claim("noise trained for", "Trained with a history at .1, the student is better than trained with a clean one",
          "Figure 5a", "ablation: ablation_noisy, 4322222", "ablation: ablation_clean, 4322222", **BETTER),
    Claim("forcing", "Without diagonal forcing (a clean history, trained for it) it is worse",
          "83.58 and 84.48 (Table 2)", "ablation: ablation_clean, 4322222", FULL, **WORSE, flatters=SHORT),
    Claim("flow", "Without the flow loss it is worse", "84.18 and 84.48 (Table 2)",
          "ablation: ablation_no_flow, 4322222", FULL, **WORSE),
    Claim("flow, motion", "Without the flow loss it moves less", "Figure 6",
          "ablation: ablation_no_flow, 4322222", FULL, MOTION, **WORSE,
          flatters="the world has one speed, which a prompt states"),
    Claim("regression", "Without the regressions, and the flow loss, it is worse",
          "trainings are prone to collapse (appendix G)", "ablation: ablation_matching, 4322222", FULL, **WORSE),
    Claim("denoising", f"Without diagonal denoising it is the same (within {100 * SAME:.0f} points)",
          "84.46 and 84.48 (Table 2)", "ablation: ablation_four_steps, 4444444", FULL, **EQUAL, flatters=HISTORY),
    Claim("F, latents", "Motion as raw latents is worse than by the head",
          "92.5/60.8/27.8 and 94.9/63.4/28.9 (Table 9)",
          "ablation: ablation_latent, 4322222", FULL, **WORSE),
    Claim("F, differences", "Motion as plain differences is worse than by the head",
          "93.8/61.5/28.2 and 94.9/63.4/28.9 (Table 9)", "ablation: ablation_difference, 4322222", FULL, **WORSE),
    Claim("window of one", "A window of one chunk is worse than one of four", "80.9 and 84.3 (Table 4)",
          "window: diagonal, window 1, sink 0", "window: diagonal, window 4, sink 0", **WORSE),
    Claim("window of four", f"More than four chunks bring nothing (within {100 * SAME:.0f} points)",
          "84.3, and 84.2 to 84.5 (Table 4)", "window: diagonal, window 7, sink 0",
          "window: diagonal, window 4, sink 0", **EQUAL, flatters=SHORT),
    Claim("drift", "In long rollouts its saturation moves less than the four-step student's", "Figure 7",
          "long: diagonal, 55 latents", "long: self_forcing, 55 latents", DRIFT, **WORSE, flatters=PLAIN),
    Claim("long, right", "Its last segment is right more often than the four-step student's", "Figure 8",
          "long: diagonal, 55 latents", "long: self_forcing, 55 latents", LAST, **BETTER),
    Claim("self-forcing, drift", "Training on own rollouts drifts less than teacher forcing", "arXiv 2506.08009",
          "long: self_forcing, 55 latents", "long: causal, 55 latents", DRIFT, **WORSE, flatters=PLAIN),
    Claim("backtracking", "Taking several chunks back beats best of N at equal forwards", "22.7 and .7 % (2606.13861)",
          "gate: self_forcing, up to 3 chunks taken back, 2", "gate: self_forcing, best of 3 by chunk, 2", **BETTER),
    Claim("backtracking further", "Taking several chunks back beats drawing one again", "2606.13861",
          "gate: self_forcing, up to 3 chunks taken back, 2", "gate: self_forcing, one chunk drawn again, 2", **BETTER),
    Claim("path", f"Search over path is no better than best of N (within {100 * SAME:.0f} points)",
          "Tag2Text 60.47 and 60.68 (AutoRefiner, Table 2)", "gate: self_forcing, search over path of 3, 2",
          "gate: self_forcing, best of 3 by chunk, 2", **EQUAL),
    Claim("gate", "Taking several chunks back is better than no gate", "2606.13861",
          "gate: self_forcing, up to 3 chunks taken back, 2", "gate: self_forcing, no gate", **BETTER),
)  # fmt: skip


def _values(result: Mapping[str, Any], measure: str) -> np.ndarray:
    """By prompt."""
    right = np.asarray(result["right"], float)
    if measure in (RIGHT, SHARE):
        return right.min(1)
    if measure == MOTION:
        return np.ma.masked_invalid(np.asarray(result["motion"], float)).mean(1).filled(np.nan)
    if measure == DRIFT:
        saturated = np.asarray(result["saturation"], float)
        return np.abs(saturated[:, -1] - saturated[:, 0])
    return right[:, -1]


def comparisons(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By claim whose arms were run, the difference of arm and rival on the same prompts, with its interval."""
    found = {}
    for claim in CLAIMS:
        if claim.arm in results and claim.rival in results:
            own, other = (_values(results[name], claim.measure) for name in (claim.arm, claim.rival))
            both = min(len(own), len(other))
            own, other = own[:both], other[:both]
            if claim.measure == SHARE:
                cell = statistics.ratio(own, other, range(both))
            else:
                cell = statistics.mean(own - other, range(both))
            found[claim.name] = {**cell, "prompts": both}
    return found


def verdicts(document: Mapping[str, Any], claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """A row for each claim, from the document's comparisons."""
    rows = []
    for claim in claims:
        cell = document["comparisons"].get(claim.name)
        rows.append({"claim": claim.text, "paper": claim.paper, "measure": claim.measure, "here": cell,
                     "verdict": claim.verdict(cell), "flatters": claim.flatters})  # fmt: skip
    return rows
