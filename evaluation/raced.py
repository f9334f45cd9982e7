"""The race as a method of a suite: its own plan, driven over finished candidates instead of live ones.

A candidate that goes on equals the plain (or self-refined) clip of its seed to the last bit, so a race over rows that
are there says exactly what a live one does: which candidates it begins, delivers, and what they cost (a test holds the
two together). One set of rows serves every budget, and calibration too.

    race                                    the default: budget 0.25, self_refine later, the preset of scorer and model
    race@budget=0.5,self_refine=all         as in Foresight Sampler
    race@look=6,candidates=4,floor=0.16     a race of these rules; floor_self_refined, last_look too; without a floor
                                            ranks decide
    race@look=5+10,floor=0.12+0.15          two looks
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..scoring.detector import reached
from ..scoring.race_preset import load_race_preset
from ..trials.plan import drive
from ..trials.race import (
    RANKS,
    SELF_REFINE,
    Candidate,
    Costs,
    Finish,
    Look,
    Outcome,
    Purse,
    RaceSettings,
    Rules,
    Try,
    race,
)
from .bench import BASE, LIGHT, Bench, Method, MethodError, Row
from .comfyui import ROOT
from .enhanced import enhanced

RACES = ROOT / "weights" / "demo" / "races"


def _each(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads "5+10": one value for each look."""
    return lambda text: [kind(part) for part in text.split("+")]


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "budget": float, "self_refine": str, "look": _each(int), "candidates": int, "floor": _each(float),
    "floor_self_refined": _each(float), "last_look": float, "preset": Path,
}  # fmt: skip
Finished = Callable[[Candidate], Row]


def raced(name: str, text: str) -> Method:
    """The method of this name, "race@text". MethodError."""
    options = _options(name, text)
    plain, light = Method(BASE, Bench.base), enhanced(LIGHT, "self_refine", "light")

    def run(bench: Bench, seed: int) -> Row:
        used = bench.base(seed)["report"]["settings"]
        rules = rules_of(options, used["scorer"], used["model"], bench.backend.steps)

        def finished(candidate: Candidate) -> Row:
            return bench.row(light if candidate.self_refined else plain, candidate.seed(seed))

        replay = Replay(rules, bench.backend.steps, finished)
        winner = replay.run()
        row = finished(winner)
        of_base = {} if winner.self_refined else {"base_seed": row["seed"], "clip": None}
        plain_row = bench.base(seed)
        return row | of_base | {
            "seed": seed, "method": name, "report": None, "trace": None, "notes": [presets()], "trial": None,
            "rule": "race",
            "stop_step": replay.stop(winner), "predicted_score": replay.score(row, replay.stop(winner)),
            "accepted": not replay.aside,
            "nfe": replay.purse.spent, "nfe_plain": plain_row["nfe_plain"], "seconds": replay.seconds,
            "seconds_plain": plain_row["seconds_plain"], "seconds_inspection": replay.seconds_inspection,
            "inspections": replay.looks,
        }  # fmt: skip

    return Method(name, run, in_process=True)


def presets() -> str:
    """Changes with what races go by. Only their own rows depend on it, and those take no sampling to make again."""
    files = b"".join(path.read_bytes() for path in sorted(RACES.glob("*.json")))
    return f"race presets {hashlib.sha256(files).hexdigest()[:8]}"


def outdated(row: Row) -> bool:
    return row["rule"] == "race" and row["notes"] != [presets()]


def rules_of(options: Mapping[str, Any], scorer: str, model: str, steps: int) -> Rules:
    """What a race goes by: rules that the options state, or those of a preset for this scorer and model, or ranks."""
    self_refine, budget = options.get("self_refine", "later"), options.get("budget", 0.25)
    if "look" in options:
        floors = options.get("floor", [RANKS] * len(options["look"]))
        settings = RaceSettings(options.get("candidates", 3), self_refine, options.get("last_look"))
        looks = zip(options["look"], floors, options.get("floor_self_refined", floors), strict=True)
        return Rules(settings, tuple(Look(look / steps, *least) for look, *least in looks))
    for path in [options["preset"]] if "preset" in options else sorted(RACES.glob("*.json")):
        preset = load_race_preset(path)
        if preset.fits(scorer, model, steps) and (rules := preset.rules(self_refine, budget, path.name)):
            return rules
    return Rules.ranks(budget, self_refine)


@dataclass
class Replay:
    """One race over finished candidates; `finished(candidate)` gives the row of one."""

    rules: Rules
    steps: int
    finished: Finished
    purse: Purse = field(default_factory=lambda: Purse(math.inf))
    seconds: float = 0.0
    seconds_inspection: float = 0.0
    looks: int = 0
    aside: dict[Candidate, Costs] = field(default_factory=dict)

    def __post_init__(self):
        self.stops = [reached(look.share, self.steps) for look in self.rules.looks]

    def run(self) -> Candidate:
        first = self.rules.settings.candidate(0)
        if self.rules.budget is not None:
            whole = self.costs(Candidate(0)).whole
            self.purse.most = max(math.floor(whole * (1 + self.rules.budget) + 1e-9), self.costs(first).whole)
        return drive(race(self.rules.settings), self.do)

    def costs(self, candidate: Candidate) -> Costs:
        row = self.finished(candidate)
        return Costs(self.evaluations(row, self.stops[-1]), row["nfe"])

    def evaluations(self, row: Row, step: int) -> int:
        """Of the first `step` steps."""
        passes = self._passes(row)
        per_step = math.ceil((row["nfe"] - sum(passes.values())) / self.steps)
        return per_step * step + sum(n for at, n in passes.items() if at <= step)

    def do(self, action: Try | Finish) -> Outcome | None:
        candidate = action.candidate
        costs, row = self.costs(candidate), self.finished(candidate)
        if self.purse.spent and not self.purse.affords(action, costs):
            return None
        if isinstance(action, Finish):
            self._pay(self.aside[candidate].rest, row)
            return Outcome(math.nan, row["final_score"])
        stop = self.stop(candidate)
        passed = self.stops.index(stop)
        self.looks += passed + 1
        inspection = (passed + 1) * row["seconds_inspection"] / max(row["inspections"], 1)
        self.seconds, self.seconds_inspection = self.seconds + inspection, self.seconds_inspection + inspection
        score = self.score(row, stop)
        lead = math.nan if score is None else score - self.rules.looks[passed].least(candidate)
        if lead < 0:
            self.aside[candidate] = replace(costs, look=self.evaluations(row, stop))
            self._pay(self.aside[candidate].look, row)
            self.purse.put_aside(self.aside[candidate])
            return Outcome(lead, passed=passed)
        self._pay(costs.whole, row)
        return Outcome(lead, row["final_score"], passed)

    def stop(self, candidate: Candidate) -> int:
        """The step that it was put aside at, or else of the last look."""
        row = self.finished(candidate)
        for stop, look in zip(self.stops, self.rules.looks, strict=True):
            score = self.score(row, stop)
            if score is not None and score < look.least(candidate):
                break
        return stop

    @staticmethod
    def score(row: Row, step: int) -> float | None:
        return next((point[1] for point in row["trace"] if point[0] == step), None)

    def _pay(self, evaluations: int, row: Row) -> None:
        self.purse.pay(evaluations)
        sampling = row["seconds"] - (0 if row["method"] == BASE else row["seconds_inspection"])  # base: sampling alone
        self.seconds += sampling * evaluations / row["nfe"]

    @staticmethod
    def _passes(row: Row) -> dict[int, int]:
        """Extra passes of self-refinement by step (1-based)."""
        for trial in (row["report"] or {}).get("trials", ()):
            if refinement := trial["details"].get("self_refine"):
                return {int(step): passes for step, passes in refinement["passes"].items()}
        return {}


def _options(name: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            options[option] = OPTIONS[option](value)
        except (KeyError, ValueError):
            raise MethodError(
                f"method {name!r}: {part!r} is no option=value; options are {', '.join(OPTIONS)}."
            ) from None
    if options.get("self_refine", "off") not in SELF_REFINE:
        raise MethodError(f"method {name!r}: self_refine is one of {', '.join(SELF_REFINE)}.")
    if set(options) & {"candidates", "floor", "floor_self_refined", "last_look"} and "look" not in options:
        raise MethodError(f"method {name!r}: own rules need a look, the step of the schedule: add look=6.")
    if len({len(options[name]) for name in ("look", "floor", "floor_self_refined") if name in options}) > 1:
        raise MethodError(f"method {name!r}: state as many floors as looks, as look=5+10,floor=0.12+0.15.")
    return options
