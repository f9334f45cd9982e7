"""Fits the race to logged candidates: `python -m foresight.evaluation calibrate DATABASE --objective yield --out FILE`.

The database holds, for each prompt, several seeds sampled plainly and (for races with self-refinement) self-refined:

    python -m foresight.evaluation run --suite demo_validation --prompts 120 --seeds 6 --method-seeds 6 \\
        --method self_refine@light --no-clips --out out/validation

Every rule (one or two looks, floors, number of candidates) is tried by the plan's own code on the candidates that are
there, each seed being the first in turn; for each budget the one is kept that gives most good clips within it on
average. What is printed was measured on prompts that the choice had not seen. Without a judge a clip is good where its
final score reaches tau: the scorer then grades itself, and only a person can say whether its clips are better.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..scoring.detector import reached
from ..scoring.race_preset import FittedRace, RacePreset, save_race_preset
from ..trials.race import RANKS, SELF_REFINE, Candidate, Look, RaceSettings, Rules, most_evaluations
from .bench import BASE, LIGHT, Row
from .evidence import Evidence
from .raced import Replay
from .results import percent
from .statistics import ratio

BUDGETS = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0)
LOOKS = (0.08, 0.1, 0.12, 0.16, 0.2)  # shares of the schedule
QUANTILES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # of the scores at the look: what is tried as floors
# Two looks, the first of which drops what is plainly bad: on validation prompts they are ahead of one at small budgets.
PAIRS = ((0.1, 0.16), (0.1, 0.2), (0.12, 0.2))
QUANTILES_OF_PAIRS = tuple(itertools.product((0.15, 0.3, 0.45), (0.3, 0.45, 0.6, 0.75)))


@dataclass(frozen=True)
class Trial:
    """One rule on all prompts: [P] arrays of mean evaluations beyond a plain clip, as a share, and of good clips."""

    rules: Rules
    extra: np.ndarray
    good: np.ndarray

    def within(self, budget: float, prompts: np.ndarray) -> float:
        """Good clips among these prompts, -1 where it takes more than the budget there."""
        return float(self.good[prompts].mean()) if self.extra[prompts].mean() <= budget else -1.0


@dataclass(frozen=True)
class Log:
    """The candidates of each prompt: method -> seed -> row. steps: of the schedule."""

    prompts: dict[int, dict[str, dict[int, Row]]]
    steps: int
    good: Any

    @classmethod
    def of(cls, evidence: Evidence) -> Log:
        """ValueError where there are too few candidates to race."""
        prompts: dict[int, dict[str, dict[int, Row]]] = {}
        for method in (BASE, LIGHT):
            for (index, seed), row in evidence.rows.get(method, {}).items():
                if row["trace"]:
                    prompts.setdefault(index, {}).setdefault(method, {})[seed] = row
        prompts = {index: rows for index, rows in prompts.items() if len(rows.get(BASE, ())) > 1}
        if len(prompts) < 10:
            raise ValueError(
                f"{evidence.path} has {len(prompts)} prompts with two seeds or more, and a race is fitted to 10 "
                "at least: run more prompts, with --seeds 4 or more."
            )
        return cls(prompts, evidence.steps, evidence.good)

    @property
    def modes(self) -> tuple[str, ...]:
        """Of self-refinement: those whose candidates are there."""
        refined = all(set(rows.get(LIGHT, ())) >= set(rows[BASE]) for rows in self.prompts.values())
        return SELF_REFINE if refined else SELF_REFINE[:1]

    def scores(self, method: str, step: int) -> list[float]:
        return [
            point[1] for rows in self.prompts.values() for row in rows.get(method, {}).values()
            for point in row["trace"] if point[0] == step and point[1] is not None
        ]  # fmt: skip

    def race(self, rules: Rules) -> Trial:
        extra, good = [], []
        for rows in self.prompts.values():
            seeds = sorted(rows[BASE])
            spent, right = [], []
            for start in range(len(seeds)):

                def finished(candidate: Candidate, start=start, rows=rows, seeds=seeds) -> Row:
                    seed = seeds[(start + candidate.number) % len(seeds)]
                    return rows[LIGHT if candidate.self_refined else BASE][seed]

                replay = Replay(rules, self.steps, finished)
                winner = finished(replay.run())
                spent.append(replay.purse.spent / winner["nfe_plain"] - 1)
                right.append(self.good(winner))
            extra.append(np.mean(spent))
            good.append(np.mean(right))
        return Trial(rules, np.asarray(extra), np.asarray(good))

    def most(self, rules: Rules) -> float:
        """What a race of these rules can take at most beyond a plain clip, as a share."""
        dearest = {
            method: max(rows, key=lambda row: row["nfe"]) for method in (BASE, LIGHT)
            if (rows := [row for prompt in self.prompts.values() for row in prompt.get(method, {}).values()])
        }  # fmt: skip
        replay = Replay(rules, self.steps, lambda candidate: dearest[LIGHT if candidate.self_refined else BASE])
        plain = replay.costs(Candidate(0))
        refined = replay.costs(Candidate(0, True)) if LIGHT in dearest else plain
        return most_evaluations(rules.settings, plain, refined) / plain.whole - 1


def all_rules(log: Log, mode: str) -> Iterator[Rules]:
    """Floors from the scores that are there, and ranks alone."""
    most = min(len(rows[BASE]) for rows in log.prompts.values())
    places = [((share,), [(quantile,) for quantile in QUANTILES]) for share in LOOKS]
    for shares, quantiles in [*places, *((shares, QUANTILES_OF_PAIRS) for shares in PAIRS)]:
        floors = [
            [tuple(round(float(np.quantile(log.scores(method, reached(share, log.steps)), q)), 4)
                   for share, q in zip(shares, each, strict=True)) for each in quantiles]
            for method in ((BASE,) if mode == "off" else (BASE, LIGHT))
        ]  # fmt: skip
        plain_and_refined = itertools.product(*floors) if mode == "later" else ((each, each) for each in floors[-1])
        rules = [tuple(map(Look, shares, *each)) for each in plain_and_refined]
        if len(shares) == 1:
            rules.append((Look(*shares),))
        for count, looks in itertools.product(range(2, most + 1), rules):
            yield Rules(RaceSettings(count, mode), looks)


def choose(trials: Sequence[Trial], budget: float, prompts: np.ndarray) -> Trial | None:
    best = max(trials, key=lambda trial: trial.within(budget, prompts))
    return best if best.within(budget, prompts) >= 0 else None


def fit(log: Log, mode: str, folds: int) -> tuple[list[FittedRace], list[dict[str, Any]]]:
    """The races of a mode by budget, and what the same choice reaches on prompts that it has not seen."""
    trials = [log.race(rules) for rules in all_rules(log, mode)]
    indices = np.asarray(sorted(log.prompts))
    everything, fold = np.ones(len(indices), bool), np.arange(len(indices)) % folds
    races, rows = [], []
    for budget in BUDGETS:
        trial = choose(trials, budget, everything)
        if trial is None:
            continue
        extra, good = np.full(len(indices), np.nan), np.full(len(indices), np.nan)
        for part in range(folds):
            if held_out := choose(trials, budget, fold != part):
                extra[fold == part], good[fold == part] = held_out.extra[fold == part], held_out.good[fold == part]
        known = np.isfinite(good)
        rules, one = trial.rules, np.ones(known.sum())
        race = FittedRace(
            budget=round(float(trial.extra.mean()), 4), most=round(log.most(rules), 4),
            candidates=rules.settings.candidates, looks=rules.looks,
        )  # fmt: skip
        if not races or race.budget > races[-1].budget:
            races.append(race)
        rows.append({
            "self_refine": mode, "budget": budget, "race": asdict(race),
            "good": ratio(good[known], one, indices[known]), "extra": ratio(extra[known], one, indices[known]),
        })  # fmt: skip
    return races, rows


def table(rows: Sequence[dict[str, Any]], plain: dict[str, float]) -> list[str]:
    return [
        "| self_refine | budget | good clips | evaluations beyond plain | looks | candidates | floors |",
        "|---|---|---|---|---|---|---|",
        f"| plain | 0 | {percent(plain)} | 0 | - | - | - |",
        *(f"| {row['self_refine']} | {row['budget']:.0%} | {percent(row['good'])} | {percent(row['extra'])} | "
          f"{_each(_share, row)} | {row['race']['candidates']} | {_each(_floors, row)} |" for row in rows),
    ]  # fmt: skip


def _each(write: Callable[[dict[str, float]], str], row: dict[str, Any]) -> str:
    return "; ".join(map(write, row["race"]["looks"]))


def _share(look: dict[str, float]) -> str:
    return f"{look['share']:g}"


def _floors(look: dict[str, float]) -> str:
    """Of plain and of self-refined candidates."""
    floors = look["floor"], look["floor_self_refined"]
    return ", ".join("ranks" if floor == RANKS else f"{floor:.3f}" for floor in floors)


def calibrate_race(evidence: Evidence, out: Path, folds: int) -> None:
    """Writes the preset, and prints what it reaches on held-out prompts. ValueError."""
    log = Log.of(evidence)
    used = next(iter(evidence.rows[BASE].values()))["report"]["settings"]
    races, rows = {}, []
    for mode in log.modes:
        races[mode], tried = fit(log, mode, folds)
        rows += tried
    indices = sorted(log.prompts)
    plain = np.asarray([np.mean([log.good(row) for row in log.prompts[index][BASE].values()]) for index in indices])
    of_plain = ratio(plain, np.ones(len(plain)), indices)
    judge = "the judge" if evidence.base.judged else f"a final score of {evidence.tau:g} (the scorer's own)"
    about = {
        "date": datetime.date.today().isoformat(), "prompts": len(indices), "plain": of_plain, "held_out": rows,
        "good_by": evidence.settings.get("good_by", judge),
        "made_with": {key: evidence.settings.get(key) for key in
                      ("suite", "model", "sampler", "scheduler", "steps", "cfg", "shift", "seeds")},
    }  # fmt: skip
    save_race_preset(RacePreset(used["scorer"], used["model"], evidence.steps, races, about), out)
    print("\n".join(table(rows, of_plain)))
    print(f"\nGood by {about['good_by']}; each line was measured on prompts that its choice had not seen.")
    print(f"{out}: put it into models/foresight_races, where Foresight Sampler finds it by scorer and model.")
