"""A race in which a person presses Accept now or Reject now."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from tiny_wan import ScriptedScorer, gate, inputs, model

from foresight.panel import runs as panel_runs
from foresight.panel.runs import Refused, RunStore
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.trials.observer import Decision
from foresight.trials.plan import drive
from foresight.trials.race import REJECTED, Candidate, Finish, Look, Outcome, RaceSettings, Rules, Try, race
from foresight.trials.report import run_report
from foresight.trials.summary import report_text

ACCEPT, REJECT = Decision.ACCEPT, Decision.REJECT


@pytest.fixture(scope="module")
def patcher():
    return model()


def planned(settings, *outcomes):
    answers, actions = iter(outcomes), []

    def do(action):
        actions.append(action)
        return next(answers)

    return drive(race(settings), do), actions


def test_what_was_rejected_by_hand_does_not_win():
    winner, _ = planned(RaceSettings(2, "off"), Outcome(REJECTED), Outcome(-0.9), Outcome(-0.9, 0.0))
    assert winner == Candidate(1)
    winner, actions = planned(RaceSettings(2, "off", 0.5), Outcome(REJECTED), Outcome(0.1, 0.2))
    assert winner == Candidate(1) and len(actions) == 2  # not even at the last look
    winner, actions = planned(RaceSettings(2, "off"), Outcome(REJECTED), Outcome(REJECTED), Outcome(0.0, 0.1))
    assert winner == Candidate(0) and actions[-1] == Finish(Candidate(0))  # something is delivered: the user's own run


def test_what_was_accepted_by_hand_is_delivered_whatever_it_scores():
    settings = RaceSettings(3, "off", last_look=0.5)
    winner, actions = planned(settings, Outcome(-0.1), Outcome(-0.5, 0.1, chosen=True))
    assert winner == Candidate(1) and actions == [Try(Candidate(0)), Try(Candidate(1))]


class Person(RunStore):
    """Decides as soon as the page hears of a step of a candidate (by number), or while the look is "scored"."""

    def __init__(self, *presses):
        super().__init__(self.hear, comfy.model_management.InterruptProcessingException)
        self.presses, self.refused = {press[:2]: press[2] for press in presses}, []

    def hear(self, event, data, client):
        if event == "foresight.step":
            self.press(data["step"])

    def press(self, step):
        run = next(iter(self._runs.values()))
        candidate = run.trials[-1].details["candidate"]
        if decision := self.presses.pop((candidate, step), None):
            try:
                run.decide(decision)
            except Refused as refused:
                self.refused.append(str(refused))


class Scorer(ScriptedScorer):
    def __init__(self, person, *scores):
        super().__init__(*scores)
        self.person = person

    def score(self, frames, text):
        if self.person.presses:
            self.person.press("scored")
        return super().score(frames, text)


@pytest.fixture
def raced(patcher, monkeypatch):
    """(report, latent, person) of a race with its look at step 3 of 10."""
    monkeypatch.setattr(panel_runs, "EVENT_EVERY", 0.0)

    def hold(presses, scores, *, floor=0.2, self_refine="off", sampler="euler", steps=10, **changes):
        person = Person(*presses)
        settings = RaceSettings(3, self_refine, changes.pop("last_look", None))
        rules = Rules(settings, (Look(0.3, floor, floor),), **changes)
        own = replace(inputs(patcher, sampler, steps=steps), noise=SeededNoise(7))
        with person.running(None, "", "", None) as run:
            result = run_race(own, gate(scorer=Scorer(person, *scores)), rules, observer=run)
        report = run_report(result.verdict)
        assert report_text(report) and report["nfe"] <= report["nfe_worst_case"]
        return report, result.latent["samples"], person

    return hold


def alone(patcher, seed):
    return monitored_sample(replace(inputs(patcher, steps=10), noise=SeededNoise(seed))).latent["samples"]


@pytest.mark.parametrize("step", [1, 2])
def test_reject_now_puts_the_candidate_aside_and_the_next_seed_is_tried(patcher, raced, step):
    report, latent, _ = raced([(1, step, REJECT)], [0.1, 0.05, 0.3])
    first, second, third = report["candidates"]
    assert (first["by_hand"], first["state"], first["nfe"], first["score"]) == ("rejected", "put aside", step, None)
    assert (second["state"], third["state"]) == ("delivered", "put aside")  # the best of those that were not rejected
    assert torch.equal(latent, alone(patcher, Candidate(1).seed(7)))


def test_reject_now_beats_the_rank_of_its_score(patcher, raced):
    """Pressed while the look is scored, so that the candidate has a score, and the best one."""
    report, latent, _ = raced([(1, "scored", REJECT)], [0.19, 0.05, 0.1])
    assert (row := report["candidates"][0])["by_hand"] == "rejected" and row["score"] == 0.19
    assert report["final_seed"] == Candidate(2).seed(7)
    assert torch.equal(latent, alone(patcher, Candidate(2).seed(7)))


@pytest.mark.parametrize("sampler, self_refine", [("euler", "off"), ("heun", "off"), ("euler", "all"), ("heun", "all")])
def test_where_all_are_rejected_the_users_own_run_is_delivered_within_the_bound(patcher, raced, sampler, self_refine):
    presses = [(1, 1, REJECT), (2, 1, REJECT), (3, 1, REJECT)]
    steps = 25 if self_refine == "all" else 10
    report, latent, _ = raced(presses, [0.1], sampler=sampler, self_refine=self_refine, steps=steps)
    assert report["final_seed"] == 7 and len(report["candidates"]) == 3
    assert not report["accepted"] and "rejected" in report_text(report)
    if (sampler, self_refine) == ("euler", "off"):
        assert torch.equal(latent, alone(patcher, Candidate(0).seed(7)))


def test_a_second_order_sampler_shows_its_price_after_the_first_step_only(raced):
    report, _, _ = raced([(1, 1, REJECT)], [0.1], sampler="heun")
    assert (report["nfe"], report["nfe_plain"], report["nfe_worst_case"]) == (1 + 5 + 5 + 14, 20, 32)


@pytest.mark.parametrize("floor", [0.2, 2.0])
def test_accept_now_finishes_and_delivers_the_candidate(patcher, raced, floor):
    report, latent, _ = raced([(2, 1, ACCEPT)], [0.1, 0.0], floor=floor, last_look=0.9)
    assert [row["state"] for row in report["candidates"]] == ["put aside", "delivered"]
    assert report["accepted"] and report["candidates"][1]["by_hand"] == "accepted"
    assert torch.equal(latent, alone(patcher, Candidate(1).seed(7))) and report["nfe"] == 3 + 10


def test_a_candidate_that_has_passed_can_only_be_stopped(raced):
    report, _, person = raced([(1, 3, REJECT), (1, 4, ACCEPT), (1, 5, REJECT)], [0.3])
    assert len(person.refused) == 3 and "only be stopped" in person.refused[0]
    assert len(report["candidates"]) == 1 and report["nfe"] == 10
