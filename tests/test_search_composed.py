"""Latent search with everything else: model families, self-refinement, the monitor, Watch, the trials, the audition."""

from __future__ import annotations

import json
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from panel_page import Page
from searches import Mean, Told, candidate, searching
from tiny_models import FAMILIES, with_mask
from tiny_wan import Conditioned, Rewriter, gate, inputs, model

from foresight.sampling.audition import hold_audition
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.noise import SeededNoise
from foresight.sampling.run import monitored_sample
from foresight.sampling.search import SearchSampler
from foresight.sampling.search_rules import SearchSettings
from foresight.sampling.self_refine import SelfRefineSettings, parse_plan, self_refining
from foresight.sampling.watch import Watch
from foresight.scoring.reward import AlignmentReward
from foresight.trials.observer import Decision, Observer
from foresight.trials.report import run_report


@pytest.fixture(scope="module")
def patcher():
    return model()


def test_a_watched_model_tells_of_the_finished_candidate_and_counts_all(patcher):
    watch = Watch(gate(0.3))
    setup = inputs(watch.patch(patcher))
    for at_once in (1, 4):
        search = searching(Mean(), at_once=at_once)
        SamplerCustomAdvanced.execute(setup.noise, setup.guider, search, setup.sigmas, setup.latent)
        assert watch.verdict.record.nfe_video == search.result["nfe"] and watch.verdict.record.steps == 10


def test_in_a_graph_with_a_sampler_for_each_expert_the_first_searches_and_hands_over_one(patcher):
    setup = inputs(patcher)
    search = searching(Mean(), schedule=(0.2, 0.4, 0.9), schedule_steps=10)
    first = replace(setup, sigmas=setup.sigmas[:6], schedule_steps=10)
    found = monitored_sample(replace(first, sampler=search))
    assert list(search.result["population"]) in (["0", "2", "4"], ["0", "2"])
    alone = monitored_sample(candidate(first, search, search.result["winner"]))
    assert found.latent["samples"].shape[0] == 1
    assert torch.equal(found.latent["samples"], alone.latent["samples"])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_searched(name):
    setup = FAMILIES[name].inputs("euler", steps=6)
    for case in (setup, with_mask(setup)):
        for at_once in (1, 3):
            search = SearchSampler(
                case.sampler, Mean(), SearchSettings(3, schedule=(0.34, 0.67), beta=1.0, at_once=at_once)
            )
            found = monitored_sample(replace(case, sampler=search)).latent["samples"]
            alone = monitored_sample(candidate(case, search, search.result["winner"])).latent["samples"]
            torch.testing.assert_close(found, alone, rtol=2e-3, atol=2e-3)


def test_self_refinement_is_searched_and_counted_in_the_same_budget(patcher):
    setup = inputs(patcher)
    refine = self_refining(setup.sampler, SelfRefineSettings(parse_plan("1-2:2", 10), 0.0))
    search = searching(Mean(), refine, budget=25, candidates=5)
    found = monitored_sample(replace(setup, sampler=search))
    assert search.result["nfe_plain"] == 14
    assert found.verdict.record.nfe_video == search.result["nfe"] <= 25
    alone = monitored_sample(candidate(setup, search, search.result["winner"]))
    assert torch.equal(found.latent["samples"], alone.latent["samples"])


def test_the_monitor_judges_the_winner(patcher):
    setup = inputs(patcher, steps=20)
    search = searching(Mean(), schedule=(0.1, 0.2))
    watched = gate(0.1)
    result = monitored_sample(replace(setup, sampler=search), watched)
    alone = monitored_sample(candidate(setup, search, search.result["winner"]), gate(0.1))
    assert not result.verdict.accepted and result.verdict.record.steps == alone.verdict.record.steps
    assert torch.equal(result.latent["samples"], alone.latent["samples"])


def test_the_inspectors_score_is_a_reward(patcher):
    watched = gate(0.1, 0.3, 0.2, 0.25)
    search = searching(AlignmentReward(watched), method="beam", schedule=(0.3,))
    monitored_sample(replace(inputs(patcher), sampler=search))
    assert search.result["winner"] == 1 and watched.scorer.calls == 4
    assert search.result["reward"] == "alignment (scripted)"


@pytest.mark.parametrize("method", ["search", "refine", "both"])
def test_the_trials_run_with_either_and_stay_within_the_stated_worst_case(patcher, method):
    setup = inputs(patcher)
    sampler, plain = setup.sampler, 10
    if method != "search":
        sampler = self_refining(sampler, SelfRefineSettings(parse_plan("1-2:2", 10), 0.0))
    if method != "refine":
        sampler = searching(Mean(), sampler, candidates=3, budget=24)
    guiders = Conditioned(patcher)
    result = run_hierarchy(
        replace(setup, sampler=sampler), gate(0.1), guiders, negative="", reworder=Rewriter(),
        injection=InjectionSettings(),
    )  # fmt: skip
    records = result.verdict.history
    assert [record.kind for record in records] == ["sample", "probe", "refine", "sample", "probe", "inject"]
    report = run_report(result.verdict)
    assert report["nfe_plain"] == plain and report["nfe"] <= report["nfe_worst_case"]
    for record in (records[0], records[3], records[5]):
        assert record.nfe_video <= record.details["nfe_most"] <= 24
    for record in (records[1], records[4]):
        assert record.nfe_single_frame <= records[0].details["nfe_candidate_most"], "a probe is one candidate"
    if method != "refine":
        assert records[5].details["search"]["population"]["0"] == [0, 1, 2]
    json.dumps(report, allow_nan=False)


def test_an_audition_hears_one_candidate_refined_as_in_the_whole_run(patcher):
    setup = inputs(patcher)
    refine = self_refining(setup.sampler, SelfRefineSettings(parse_plan("1-2:2", 10), 0.0))
    for sampler in (refine, searching(Told([0.0, 0.0, 0.0, 0.0]), refine, method="beam")):
        scorer = gate(0.1, 0.3)
        found = hold_audition(
            lambda seed, sampler=sampler: replace(setup, sampler=sampler, noise=SeededNoise(seed)), scorer, (5, 6),
            keep=1, fraction=0.3,
        )  # fmt: skip
        assert found.chosen == (6,)
        # A self-refined clip goes on from where it was put aside, a search begins with candidates of its own.
        heard, rest = 2 * (3 + 4), 14 - (3 + 4) if sampler is refine else 4 * 4 + 2 * 4 + 6
        assert found.report["nfe"] == heard + rest


def test_a_passing_run_under_the_gate_is_the_same_clip(patcher):
    """Promise 1 for the enhanced samplers: watching changes nothing."""
    setup = inputs(patcher)
    refine = self_refining(setup.sampler, SelfRefineSettings(parse_plan("1-2:2", 10), 0.2))
    for sampler in (refine, searching(Mean()), searching(Mean(), refine)):
        core = SamplerCustomAdvanced.execute(setup.noise, setup.guider, sampler, setup.sigmas, setup.latent).result[0]
        watched = monitored_sample(replace(setup, sampler=sampler), gate(0.3))
        assert watched.verdict.accepted and torch.equal(watched.latent["samples"], core["samples"])


@pytest.mark.parametrize("monitored", [True, False])
def test_a_search_shows_its_candidates_while_it_searches(patcher, monitored):
    """Under the monitor they belong to its run; else the search has one of its own, which ends with the winner."""
    page = Page()
    reward = AlignmentReward(gate(0.125, 0.5, 0.25))
    sampler = SearchSampler(
        inputs(patcher).sampler, reward, SearchSettings(3, "beam", (0.4,)), running=page.running, look=reward.gate.look
    )
    given = replace(inputs(patcher), sampler=sampler)
    if monitored:
        with page.running() as run:
            monitored_sample(given, gate(0.9), observer=run)
    else:
        noise = given.noise.generate_noise(given.latent)
        given.guider.sample(noise, given.latent["samples"], sampler, given.sigmas, seed=3)
        run = next(iter(page.store._runs.values()))
    trials = page.store.state(run.id)["trials"]
    searched = {trial["trial"]: trial for trial in trials if trial["kind"] == "search"}
    assert [searched[f"candidate {i}"]["trace"] for i in range(3)] == [[[4, 0.125]], [[4, 0.5]], [[4, 0.25]]]
    assert all(trial["pictures"] == [4] and trial["verdict"]["nfe"] == 4 for trial in searched.values())
    assert [searched[f"candidate {i}"]["verdict"]["accepted"] for i in range(3)] == [False, True, False]
    pictured = [i for i, (event, data, _) in enumerate(page.events) if event == "foresight.step" and data["pictured"]]
    begun = [i for i, (event, data, _) in enumerate(page.events) if event == "foresight.trial"]
    assert pictured[0] < begun[-1], "the first is seen before the last is begun"
    last = trials[0] if monitored else trials[-1]
    assert (last["kind"], last["step"], 10 in last["pictures"]) == ("sample" if monitored else "finish", 10, True)
    assert set(sampler.previews) == {0, 1, 2} and sampler.previews[1].dtype == torch.uint8


def test_stop_is_heard_during_a_search(patcher):
    class Stopping(Observer):
        def take(self):
            return Decision.STOP

    reward = AlignmentReward(gate(0.1))
    sampler = SearchSampler(inputs(patcher).sampler, reward, SearchSettings(3, "beam", (0.4,)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        monitored_sample(replace(inputs(patcher), sampler=sampler), gate(0.9), observer=Stopping())
    assert reward.gate.scorer.calls == 0
