"""The race, live: seeds in turn, each under its floor; trials/race.py decides, and says why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers

from ..scoring.detector import reached
from ..scoring.inspector import Gate
from ..trials.observer import SILENT, Observer
from ..trials.plan import drive
from ..trials.race import (
    RANKS,
    REJECTED,
    Candidate,
    Costs,
    Finish,
    Look,
    Outcome,
    Purse,
    Rules,
    Try,
    most_evaluations,
    race,
)
from ..trials.verdict import TrialRecord, Verdict
from .contender import Contender
from .enhanced import self_refinement
from .guard import harmless
from .inputs import Inputs, Latent, parts_of
from .noise import SeededNoise
from .noise_space import NoiseSpace, from_pictures
from .records import gate_settings, model_family, partial_schedule
from .search import SearchSampler
from .segments import own_steps
from .self_refine import PRESETS, SelfRefineSettings, caches, extra_passes, remembers, self_refining

LIGHT = PRESETS["light"].settings()
PLAIN, REFINED = Candidate(0), Candidate(0, self_refined=True)
PICTURED = 6  # put-aside candidates whose previews are kept: as many as a report's picture shows
BY_HAND = {"user_accept": "accepted", "user_reject": "rejected"}  # rule of the inspector -> what a person did


@dataclass(frozen=True)
class RaceResult:
    """latent: the delivered clip, x0: its last x0 prediction; preview: of its look, [F, sH, sW, 3] in 0..1 or None;
    verdict: with all history."""

    latent: Latent
    x0: Latent
    preview: Any
    verdict: Verdict


def run_race(inputs: Inputs, gate: Gate, rules: Rules, *, observer: Observer = SILENT) -> RaceResult:
    """Candidate 0 is the run of `inputs` itself, to the last bit; the others have the noise of RandomNoise with the
    seeds of trials.race.Candidate. ValueError for a sampler that cannot be raced."""
    live = _Race(inputs, gate, rules, observer)
    winner = drive(race(live.rules.settings), live.do)
    return live.result(winner)


@dataclass
class _Race:
    """One race: its contenders, what they cost, and what the report will say of them."""

    inputs: Inputs
    gate: Gate
    rules: Rules
    observer: Observer
    purse: Purse | None = None  # known once the first candidate has shown what a step costs
    per_step: int = 1
    contenders: dict[Candidate, Contender] = field(default_factory=dict)
    aside: list[tuple[Outcome, Contender]] = field(default_factory=list)  # best first
    rows: dict[Candidate, dict[str, Any]] = field(default_factory=dict)
    history: list[TrialRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        inputs, rules = self.inputs, self.rules
        if isinstance(inputs.sampler, SearchSampler):
            raise ValueError(
                "a race cannot hold a latent search, which is a race of its own: connect the SAMPLER that the search "
                'takes, or choose the plan "paper".'
            )
        self.steps = tuple(reached(look.share, inputs.whole) for look in rules.looks)
        self.stop = self.steps[-1]
        self.resumes = not remembers(inputs.guider.model_patcher.model_options)
        self.own = self_refinement(inputs.sampler)
        if self.own:  # the user's sampler refines every candidate itself
            self.rules = rules = replace(rules, settings=replace(rules.settings, self_refine="all"))
        elif rules.settings.self_refine != "off" and (reason := self._unrefined()):
            self.notes.append(f"no candidate is self-refined: {reason}")
            self.rules = rules = replace(rules, settings=replace(rules.settings, self_refine="off"))
        refining = self.own.settings if self.own else LIGHT if rules.settings.self_refine != "off" else None
        self.extra = self._extra_passes(refining) if refining else []
        if reason := self._alone():
            self.notes.append(f"no second candidate can be tried: {reason}")
            passing = tuple(replace(look, floor=-RANKS, floor_self_refined=-RANKS) for look in rules.looks)
            self.rules = replace(rules, settings=replace(rules.settings, candidates=1), looks=passing)

    def _unrefined(self) -> str | None:
        if not self.resumes or not isinstance(self.inputs.sampler, comfy.samplers.KSAMPLER):
            return "the model has a cache, or the sampler is none of core's"
        try:
            refines = any(self._extra_passes(LIGHT))
        except ValueError:
            return "noise cannot be added the way this model does"
        return None if refines else f"{self.inputs.whole} steps are too few for it"

    def _extra_passes(self, settings: SelfRefineSettings) -> list[int]:
        space = NoiseSpace.of(self.inputs.guider.model_patcher.get_model_object("model_sampling"))
        return extra_passes(settings, space, self.inputs.sigmas, self.inputs.whole)

    def _alone(self) -> str | None:
        if own_steps(self.inputs.sampler):
            return "the sampler chooses its own steps, so none can be looked at"
        if self.stop >= self.inputs.steps:
            return f"the look at step {self.stop} is not before the last of {self.inputs.steps} steps"
        options = self.inputs.guider.model_patcher.model_options
        if self.steps[0] == 1 and remembers(options) and not caches(options):
            return "a node in the model's path keeps something from step to step, and would not forget it after one"
        costs, budget = self._costs(PLAIN), self.rules.budget
        if budget is not None and costs.look + costs.rest > costs.whole * (1 + budget) + 1e-9:
            return f"the model remembers what it was asked, and the budget of {budget:.0%} is too small to begin anew"
        noise = self.inputs.noise.generate_noise(dict(self.inputs.latent))
        sampling = self.inputs.guider.model_patcher.get_model_object("model_sampling")
        if from_pictures(sampling) or not any(part.any() for part in parts_of(noise)):
            return "no noise is added here, so every seed gives the same clip"
        return None

    def do(self, action: Try | Finish) -> Outcome | None:
        """Carries out an action of the plan; None where the purse does not allow it."""
        candidate, trying = action.candidate, isinstance(action, Try)
        optional = self.aside if trying else self.finished  # something is delivered without it
        if optional and not self.purse.affords(action, self._actual_costs(candidate)):
            if candidate.number == 1 and trying and self.rules.budget is not None:
                self.notes.append(f"the budget of {self.rules.budget:.0%} allows no second candidate")
            return None
        if candidate not in self.contenders:
            self.contenders[candidate] = self._contender(candidate)
        contender = self.contenders[candidate]
        with harmless("it could not be sampled") as failure:
            record = contender.begin("candidate", self._settings()) if trying else contender.finish(self._bounds())
        if failure.error:
            if not optional:
                raise failure.error
            self._failed(contender, failure.message)
            return None
        self.resumes = self.resumes and contender.resumes
        self._learn(candidate, record, trying)
        self.purse.pay(record.nfe_video)
        self.history.append(record)
        score, rule, step = (best.predicted_score, best.rule, best.stop_step) if (best := record.best) else (None,) * 3
        row = self.rows.setdefault(candidate, contender.details | {
            "look_step": step or self.stop, "score": score, "by_hand": BY_HAND.get(rule), "nfe": 0,
        })  # fmt: skip
        row["nfe"] += record.nfe_video
        row["state"] = "put aside" if contender.latent is None else "finished"
        row["final_score"] = contender.final
        if trying:
            row["floor"] = self._floor(candidate, row["look_step"])
        outcome = self._outcome(candidate, score, row)
        if contender.latent is None:
            self.purse.put_aside(self._actual_costs(candidate))
            self._put_aside(contender, outcome)
        return outcome

    def _outcome(self, candidate: Candidate, score: float | None, row: dict[str, Any]) -> Outcome:
        passed = self._passed(row["look_step"])
        lead = math.nan if score is None else score - self._look(row["look_step"]).least(candidate)
        if row["by_hand"] == "rejected":
            passed, lead = 0, REJECTED
        contender = self.contenders[candidate]
        final = None if contender.latent is None else contender.final
        return Outcome(lead, final, passed, row["by_hand"] == "accepted")

    def _passed(self, step: int) -> int:
        """Looks before `step`."""
        return sum(at < step for at in self.steps)

    def _look(self, step: int) -> Look:
        """At `step`, or the next one, or else the last."""
        return self.rules.looks[min(self._passed(step), len(self.steps) - 1)]

    def _floor(self, candidate: Candidate, step: int) -> float | None:
        """Of the look at `step`; None where ranks alone decide."""
        floor = self._look(step).least(candidate)
        return floor if abs(floor) < RANKS else None

    @property
    def finished(self) -> bool:
        return any(contender.latent is not None for contender in self.contenders.values())

    def _failed(self, contender: Contender, message: str) -> None:
        """The model or the sampler failed; what has been put aside is finished instead."""
        contender.calls.clear()
        record = TrialRecord(
            contender.trial, "candidate", accepted=False, nfe_video=contender.evaluations, message=message,
            details=contender.details,
        )  # fmt: skip
        self.purse.pay(record.nfe_video)
        self.history.append(record)
        self.observer.conclude(record)

    def _put_aside(self, contender: Contender, outcome: Outcome) -> None:
        """Only the best can still win, with a last look the best two: the others' states are let go."""
        self.aside.append((outcome, contender))
        self.aside.sort(key=lambda pair: (pair[0].passed, pair[0].lead), reverse=True)
        for _, loser in self.aside[1 if self.rules.settings.last_look is None else 2 :]:
            loser.calls.clear()
        unseen = [loser.trial for _, loser in self.aside[PICTURED:]]
        self.history = [replace(each, preview=None) if each.trial in unseen else each for each in self.history]

    def _contender(self, candidate: Candidate) -> Contender:
        inputs = self.inputs
        if candidate.number:
            inputs = replace(inputs, noise=SeededNoise(candidate.seed(inputs.noise.seed)))
        if candidate.self_refined and not self.own:
            inputs = replace(inputs, sampler=self_refining(inputs.sampler, replace(LIGHT, schedule_steps=inputs.whole)))
        details = {
            "candidate": candidate.number + 1, "seed": inputs.noise.seed, "self_refined": candidate.self_refined,
            "floor": self._floor(candidate, self.stop),
        }  # fmt: skip
        floors = {step: look.least(candidate) for step, look in zip(self.steps, self.rules.looks, strict=True)}
        gate = self.gate.looks(floors, inputs.whole)
        name = f"candidate {candidate.number + 1}"
        return Contender(name, inputs, gate, self.observer, self.resumes, details)

    def _costs(self, candidate: Candidate) -> Costs:
        steps = self.inputs.steps
        look = self.per_step * self.stop + self._passes(candidate, self.stop)
        return Costs(look, self.per_step * steps + self._passes(candidate, steps), self.resumes)

    def _actual_costs(self, candidate: Candidate) -> Costs:
        """With what the look has taken, once it is over: a person may have cut it short."""
        costs, row = self._costs(candidate), self.rows.get(candidate)
        return replace(costs, look=row["nfe"]) if row else costs

    def _passes(self, candidate: Candidate, steps: int) -> int:
        """Of self-refinement in the first `steps` steps, at most."""
        return sum(self.extra[:steps]) if self.own or candidate.self_refined else 0

    def _learn(self, candidate: Candidate, record: TrialRecord, trying: bool) -> None:
        """Opens the purse after the first candidate, which shows how many evaluations the sampler takes for a step;
        where that shows in later steps only (Heun's first look is half a step), the purse grows in proportion."""
        steps = self.inputs.steps
        evaluations, last = record.nfe_video, record.steps
        if self.contenders[candidate].latent is not None:  # all of them were done, whichever the sampler has shown
            last = steps
            if not trying and record.steps < steps:
                evaluations += self.rows[candidate]["nfe"]
        per_step = math.ceil((evaluations - self._passes(candidate, last)) / max(last, 1))
        if self.purse is None or per_step > self.per_step:
            self.per_step = max(self.per_step, per_step)
            plain, self_refined = self._costs(PLAIN), self._costs(REFINED)
            most = most_evaluations(self.rules.settings, plain, self_refined)
            if self.rules.budget is not None:
                most = min(most, math.floor(plain.whole * (1 + self.rules.budget) + 1e-9))
            self.purse = self.purse or Purse(0)
            self.purse.most = max(most, self._costs(self.rules.settings.candidate(0)).whole, record.nfe_video)
            for each in self.rows:
                self.purse.put_aside(self._actual_costs(each))

    def _settings(self) -> dict[str, Any]:
        rules = self.rules
        return gate_settings(self.gate, self.inputs.whole) | {
            "model": model_family(self.inputs.guider.model_patcher), "steps": self.inputs.steps,
            "seed": self.inputs.noise.seed, "plan": "race", "look_step": self.stop,
            "looks": [
                {"step": step, "floor": self._floor(PLAIN, step), "floor_self_refined": self._floor(REFINED, step)}
                for step in self.steps
            ],
            "self_refine": rules.settings.self_refine, "last_look": rules.settings.last_look, "budget": rules.budget,
            "race_preset": rules.preset, **self._bounds(),
        }  # fmt: skip

    def _bounds(self) -> dict[str, int]:
        """What the race may take and a plain clip takes, once that is known."""
        if self.purse is None:
            return {}
        return {"worst_case": self.purse.most, "nfe_plain": self.per_step * self.inputs.steps}

    def result(self, winner: Candidate) -> RaceResult:
        contender, row = self.contenders[winner], self.rows[winner]
        row["state"] = "delivered"
        settings = self._settings() | {
            "final_seed": row["seed"], "final_score": contender.final, "raced": list(self.rows.values()),
        }  # fmt: skip
        first, *rest = self.history
        partial = partial_schedule(self.inputs.guider.model_patcher, self.inputs.sigmas)
        first = replace(first, message="; ".join(filter(None, (first.message, *self.notes, partial))) or None)
        verdict = Verdict((first, *rest), settings, self.observer.id)
        look = next(record for record in self.history if record.trial == contender.trial)
        return RaceResult(contender.latent, contender.x0, look.preview, verdict)
