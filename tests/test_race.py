"""The race: what it tries, delivers and may spend, and that its candidates are the plain clips of their seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES
from tiny_wan import ScriptedScorer, gate, inputs, model

from foresight.sampling import candidates
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import LIGHT, run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.self_refine import self_refining
from foresight.trials.plan import drive
from foresight.trials.race import (
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
    most_evaluations,
    race,
)
from foresight.trials.report import run_report, to_json
from foresight.trials.summary import report_text

PLAIN, LIGHTLY = Costs(6, 50), Costs(10, 55)


def raced(race_settings, leads, finals=None, most=math.inf, early=()):
    """Drives a race over scripted looks: (winner, actions, spent). A lead of 0 or more passes. early: numbers of those
    that are put aside at a look before the last, after 2 evaluations."""
    purse, actions, aside = Purse(most), [], {}

    def do(action):
        candidate = action.candidate
        costs = aside.get(candidate) or (LIGHTLY if candidate.self_refined else PLAIN)
        if actions and not purse.affords(action, costs):
            return None
        actions.append(action)
        final = (finals or leads)[candidate.number]
        if isinstance(action, Finish):
            purse.pay(aside[candidate].rest)
            return Outcome(leads[candidate.number], final)
        if leads[candidate.number] < 0:
            spent = replace(costs, look=2) if candidate.number in early else costs
            aside[candidate] = spent
            purse.pay(spent.look)
            purse.put_aside(spent)
            return Outcome(leads[candidate.number], passed=int(candidate.number not in early))
        purse.pay(costs.look)
        purse.pay(costs.rest)
        return Outcome(leads[candidate.number], final)

    return drive(race(race_settings), do), actions, purse.spent


def test_the_first_that_passes_is_delivered_and_nothing_else_is_tried():
    winner, actions, spent = raced(RaceSettings(4, "off"), [-0.1, 0.0, 0.2, 0.3])
    assert winner == Candidate(1) and actions == [Try(Candidate(0)), Try(Candidate(1))] and spent == 6 + 50


def test_without_one_that_passes_the_best_put_aside_is_finished():
    winner, actions, spent = raced(RaceSettings(3, "later"), [-0.3, -0.1, -0.2])
    assert winner == Candidate(1, True) and actions[-1] == Finish(winner)
    assert spent == 6 + 10 + 10 + 45


def test_who_has_passed_more_looks_is_finished_before_who_was_nearer_to_a_floor():
    winner, actions, spent = raced(RaceSettings(3, "off"), [-0.3, -0.1, -0.4], early={1})
    assert winner == Candidate(0) and actions[-1] == Finish(winner) and spent == 6 + 2 + 6 + 44
    assert raced(RaceSettings(3, "off"), [-0.3, -0.1, -0.4], early={0, 1, 2})[0] == Candidate(1)


def test_a_candidate_that_cannot_be_scored_passes():
    winner, actions, _ = raced(RaceSettings(3, "off"), [math.nan, 0.5, 0.5])
    assert winner == Candidate(0) and len(actions) == 1


def test_a_finished_clip_below_the_last_look_gets_a_second_chance():
    two = RaceSettings(3, "off", last_look=0.5)
    winner, actions, _ = raced(two, [-0.1, 0.1, 0.0], finals=[0.7, 0.2, 0.0])
    assert winner == Candidate(0) and actions[-1] == Finish(Candidate(0))
    worse, _, _ = raced(two, [-0.1, 0.1, 0.0], finals=[0.1, 0.2, 0.0])
    assert worse == Candidate(1)  # the better of the two, though both are below
    good, actions, _ = raced(two, [-0.1, 0.1, 0.0], finals=[0.7, 0.5, 0.0])
    assert good == Candidate(1) and len(actions) == 2


def test_runs_of_neighbouring_seeds_share_no_candidate():
    """Seeds are queued one after another; with a shared candidate two runs would deliver one clip."""
    seeds = [Candidate(number).seed(first) for first in range(7, 1007) for number in range(8)]
    assert len(set(seeds)) == len(seeds) and Candidate(0).seed(7) == 7
    assert 0 <= Candidate(5).seed(2**64 - 1) < 2**64


def test_which_candidates_are_self_refined():
    for mode, flags in zip(SELF_REFINE, ([False] * 3, [False, True, True], [True] * 3), strict=True):
        assert [RaceSettings(3, mode).candidate(n).self_refined for n in range(3)] == flags
    with pytest.raises(ValueError, match="self_refine is 'some'"):
        RaceSettings(3, "some")
    with pytest.raises(ValueError, match="candidates is 0"):
        RaceSettings(0)


@given(
    st.integers(1, 8), st.sampled_from(SELF_REFINE), st.none() | st.floats(-1, 1),
    st.lists(st.floats(-1, 1), min_size=8), st.integers(50, 400), st.sets(st.integers(0, 7)),
)
def test_no_race_spends_more_than_its_purse_or_its_stated_bound(count, mode, last, leads, most, early):
    race_settings = RaceSettings(count, mode, last)
    first = LIGHTLY if race_settings.candidate(0).self_refined else PLAIN
    most = max(most, first.whole)
    winner, _, spent = raced(race_settings, leads, most=most, early=early)
    assert winner.number < count and spent <= most
    _, _, unbound = raced(race_settings, leads, early=early)
    assert unbound <= most_evaluations(race_settings, PLAIN, LIGHTLY)


def test_the_stated_bound_is_every_look_and_what_can_be_finished():
    """The dearest, and with a last look the next one too: here candidates 1 and 2, which are self-refined."""
    looks, rest, dear = 6 + 3 * 10, 50 - 6, 55 - 10
    assert most_evaluations(RaceSettings(4, "later"), PLAIN, LIGHTLY) == looks + dear
    assert most_evaluations(RaceSettings(4, "later", 0.2), PLAIN, LIGHTLY) == looks + 2 * dear
    assert most_evaluations(RaceSettings(2, "later", 0.2), PLAIN, LIGHTLY) == 6 + 10 + dear + rest
    assert most_evaluations(RaceSettings(1, "off", 0.2), PLAIN, LIGHTLY) == 50
    spent = raced(RaceSettings(4, "later", 0.2), [-0.9, -0.1, -0.2, -0.3], [0.1] * 4)[2]
    assert spent == looks + 2 * dear, "and no more"


# Live, on a real (tiny) Wan in ComfyUI.


@pytest.fixture(scope="module")
def patcher():
    return model()


def start(patcher, sampler="euler", steps=10, **changes):
    return replace(inputs(patcher, sampler, steps=steps), noise=SeededNoise(7), **changes)


def rules(candidates=3, self_refine="off", floor=0.2, look=0.3, **changes):
    settings = RaceSettings(candidates, self_refine, changes.pop("last_look", None))
    return Rules(settings, (Look(look, floor, floor),), **changes)


def report_of(result):
    report = run_report(result.verdict)
    assert to_json(report) and report_text(report)
    return report


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_a_candidate_is_held_against_the_floor_of_each_look_and_still_goes_on_exactly(patcher, sampler):
    """Two looks, at steps 3 and 5 of 10: below the first, below the second, and one that passes both."""
    own, two = start(patcher, sampler), (Look(0.3, 0.1, 0.1), Look(0.5, 0.2, 0.2))
    passing = run_race(own, gate(0.05, 0.15, 0.19, 0.1, 0.2), Rules(RaceSettings(4, "off"), two))
    report = report_of(passing)
    assert [(row["look_step"], row["score"], row["floor"]) for row in report["candidates"]] == [
        (3, 0.05, 0.1), (5, 0.19, 0.2), (5, 0.2, 0.2)]  # fmt: skip
    alone = monitored_sample(replace(own, noise=SeededNoise(Candidate(2).seed(7))))
    assert torch.equal(passing.latent["samples"], alone.latent["samples"])
    assert report["final_seed"] == Candidate(2).seed(7)
    none = run_race(own, gate(0.09, 0.12, 0.13, 0.08), Rules(RaceSettings(3, "off"), two))
    assert report_of(none)["final_seed"] == Candidate(1).seed(7)  # further from its floor, but it had passed a look
    alone = monitored_sample(replace(own, noise=SeededNoise(Candidate(1).seed(7))))
    assert torch.equal(none.latent["samples"], alone.latent["samples"])
    assert report_of(none)["nfe"] <= report_of(none)["nfe_worst_case"]


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "uni_pc_bh2", "dpmpp_sde", "heun", "lcm"])
def test_a_passing_run_is_untouched_and_a_put_aside_one_goes_on_exactly(patcher, sampler):
    own = start(patcher, sampler)
    plain = monitored_sample(own).latent["samples"]
    passed = run_race(own, gate(0.3), rules())
    assert torch.equal(passed.latent["samples"], plain)
    best_again = run_race(own, gate(0.15, 0.1, 0.05, 0.0), rules())
    assert torch.equal(best_again.latent["samples"], plain)
    other = run_race(own, gate(0.1, 0.15, 0.05, 0.0), rules())
    alone = monitored_sample(replace(own, noise=SeededNoise(Candidate(1).seed(7))))
    assert torch.equal(other.latent["samples"], alone.latent["samples"])
    assert report_of(other)["final_seed"] == Candidate(1).seed(7)


def test_self_refined_candidates_are_the_self_refined_clips_of_their_seeds(patcher):
    own = start(patcher, "euler_ancestral", steps=25)
    result = run_race(own, gate(0.1, 0.3), rules(self_refine="later"))
    refined = self_refining(own.sampler, replace(LIGHT, schedule_steps=25))
    alone = monitored_sample(replace(own, noise=SeededNoise(Candidate(1).seed(7)), sampler=refined))
    assert torch.equal(result.latent["samples"], alone.latent["samples"])
    report = report_of(result)
    assert [row["self_refined"] for row in report["candidates"]] == [False, True]
    assert report["candidates"][1]["nfe"] == alone.verdict.record.nfe_video == 25 + 2


def test_with_a_self_refining_sampler_every_candidate_is_self_refined_by_it(patcher):
    own = start(patcher, "euler_ancestral", steps=25)
    own = replace(own, sampler=self_refining(own.sampler, replace(LIGHT, schedule_steps=25)))
    result = run_race(own, gate(0.3), rules(self_refine="later"))
    (row,) = report_of(result)["candidates"]
    assert row["self_refined"] and row["nfe"] == 25 + 2
    assert torch.equal(result.latent["samples"], monitored_sample(own).latent["samples"])


def test_the_report_says_what_was_tried_and_what_it_cost(patcher):
    result = run_race(start(patcher), gate(0.1, 0.05, 0.15, 0.4), rules())
    report = report_of(result)
    assert [row["state"] for row in report["candidates"]] == ["put aside", "put aside", "delivered"]
    assert [row["score"] for row in report["candidates"]] == [0.1, 0.05, 0.15]
    assert (report["nfe"], report["nfe_plain"], report["nfe_worst_case"]) == (3 + 3 + 10, 10, 16)
    assert report["final_score"] == 0.4 and report["final_seed"] == Candidate(2).seed(7) and report["seed"] == 7
    assert not report["accepted"] and "still below" in report_text(report)
    assert "Passed" in report_text(report_of(run_race(start(patcher), gate(0.3), rules())))


def test_ranks_alone_spend_what_the_budget_allows(patcher):
    ranks = Rules(RaceSettings(64, "off"), (Look(0.3),), budget=0.6)
    scorer = ScriptedScorer(0.1, 0.2, 0.15, 0.3)
    report = report_of(run_race(start(patcher), gate(scorer=scorer), ranks))
    assert len(report["candidates"]) == 3 and report["final_seed"] == Candidate(1).seed(7)
    assert report["nfe"] == report["nfe_worst_case"] == 16 == 10 * 1.6
    narrow = Rules(RaceSettings(9, "all"), (Look(0.3),), budget=0.01)
    dearer = report_of(run_race(start(patcher, steps=25), gate(0.1), narrow))
    assert len(dearer["candidates"]) == 1 and dearer["nfe"] == dearer["nfe_worst_case"] == 27
    lonely = report_of(run_race(start(patcher), gate(0.1), replace(ranks, budget=0.2)))
    assert len(lonely["candidates"]) == 1 and lonely["nfe"] == 10


def test_second_order_samplers_are_counted_by_evaluations(patcher):
    report = report_of(run_race(start(patcher, "heun"), gate(0.1, 0.05, 0.15), rules()))
    assert report["nfe"] <= report["nfe_worst_case"] and report["nfe_plain"] == 20


@pytest.mark.parametrize("failure", [RuntimeError("busy"), torch.OutOfMemoryError("full"), math.nan])
def test_what_breaks_a_look_leaves_the_plain_clip(patcher, failure):
    own = start(patcher)
    result = run_race(own, gate(failure), rules())
    assert torch.equal(result.latent["samples"], monitored_sample(own).latent["samples"])
    assert len(report_of(result)["candidates"]) == 1


def test_no_memory_to_put_a_candidate_aside_lets_it_go_on(patcher, monkeypatch):
    def full(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(candidates.Call, "on_cpu", full)
    own = start(patcher)
    result = run_race(own, gate(0.1), rules())
    assert torch.equal(result.latent["samples"], monitored_sample(own).latent["samples"])
    assert "no memory" in report_of(result)["notes"][0]


def test_an_interrupt_between_candidates_ends_the_run(patcher):
    scorer = ScriptedScorer(0.1, comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_race(start(patcher), gate(scorer=scorer), rules())


def test_what_cannot_be_raced_is_sampled_plainly_and_said(patcher):
    late = run_race(start(patcher), gate(0.1), rules(look=1.0))
    assert "no second candidate can be tried: the look at step 10" in report_of(late)["notes"][0]
    unbound = run_race(start(patcher, "dpm_fast"), gate(0.1), rules())
    assert "chooses its own steps" in report_of(unbound)["notes"][0]


def test_only_the_best_states_are_kept(patcher, monkeypatch):
    """Memory is bounded: however many are put aside, one can still win."""
    from foresight.sampling import race as live

    kept = []
    put_aside = live._Race._put_aside

    def watch(self, *arguments):
        put_aside(self, *arguments)
        kept.append(sum(bool(contender.calls) for contender in self.contenders.values()))

    monkeypatch.setattr(live._Race, "_put_aside", watch)
    run_race(start(patcher), gate(0.1, 0.15, 0.12, 0.05, 0.4), rules(candidates=4))
    assert kept == [1, 1, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_raced(family):
    own = replace(FAMILIES[family].inputs(), noise=SeededNoise(7))
    plain = monitored_sample(own).latent["samples"]
    assert torch.equal(run_race(own, gate(0.3), rules()).latent["samples"], plain)
    assert torch.equal(run_race(own, gate(0.15, 0.1, 0.05, 0.3), rules()).latent["samples"], plain)


def test_a_batch_passes_with_its_best_item(patcher):
    own = start(patcher)
    own = replace(own, latent={"samples": own.latent["samples"].repeat(2, 1, 1, 1, 1)})
    result = run_race(own, gate(0.1, 0.3), rules())
    assert result.latent["samples"].shape[0] == 2 and len(report_of(result)["candidates"]) == 1


def test_a_look_at_the_first_step_keeps_its_bound_with_a_second_order_sampler(patcher):
    result = run_race(start(patcher, "heun"), gate(0.1), rules(look=0.1))
    report = report_of(result)
    assert report["nfe"] <= report["nfe_worst_case"] and report["nfe_plain"] == 20
