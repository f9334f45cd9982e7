"""Latent search: its survivors, its cost, and that the winner is a clip that its own noise and seed give alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from gaussians import SHAPE, Mixture, draw, sample
from searches import EULER, Mean, Told, candidate, searching
from tiny_wan import inputs, model

from foresight.sampling.compat import CAUSAL_WAN
from foresight.sampling.noise import mixed_noise
from foresight.sampling.run import monitored_sample
from foresight.sampling.search import SearchSampler
from foresight.sampling.search_rules import METHODS, SearchSettings, resampled, survival_weights
from foresight.sampling.segments import adds_noise
from foresight.sampling.self_refine import PRESETS, self_refining


@pytest.fixture(scope="module")
def patcher():
    return model()


def test_resampling_follows_the_stated_probabilities():
    weights = survival_weights(torch.tensor([0.0, 1.0, 2.0, 3.0]), 1.0, "raw")
    torch.testing.assert_close(weights, torch.softmax(torch.arange(4.0).double(), 0))
    draws = 4000
    survived = torch.zeros(4)
    for seed in range(draws):
        kept = resampled(weights, torch.Generator().manual_seed(seed))
        assert kept == sorted(set(kept)) and 1 <= len(kept) <= 4
        survived[kept] += 1
    expected = 1 - (1 - weights) ** 4
    torch.testing.assert_close(survived.double() / draws, expected, rtol=0, atol=0.03)


def test_in_a_search_survivors_have_those_probabilities_too():
    """Over seeds, with rewards that stay the same: what is left after the first check."""
    survived, runs = torch.zeros(4), 150
    for seed in range(runs):
        sampler = searching(Told([0.0, 1.0, 2.0, 3.0]), scale="raw")
        sample(sampler, Mixture(), 5, seed)
        survived[sampler.result["population"]["1"]] += 1
    expected = 1 - (1 - torch.softmax(torch.arange(4.0), 0)) ** 4
    torch.testing.assert_close(survived / runs, expected, rtol=0, atol=0.12)


def test_spread_makes_scales_equal_and_temperature_trusts_less():
    rewards = torch.tensor([0.20, 0.21, 0.26])
    one, other = survival_weights(rewards, 1.0), survival_weights(rewards * 100 + 7, 1.0)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert survival_weights(rewards, 0.5).max() > one.max() > survival_weights(rewards, 5.0).max() > 1 / 3
    torch.testing.assert_close(survival_weights(torch.ones(4), 1.0), torch.full((4,), 0.25).double())


# Those of CFG++ need guidance, which the mixture has not; they are named as their siblings.
WITHOUT_GUIDANCE = [name for name in comfy.samplers.SAMPLER_NAMES if "cfg_pp" not in name]


@pytest.mark.parametrize("name", [*WITHOUT_GUIDANCE, *(["ar_video"] if CAUSAL_WAN else [])])
def test_it_is_known_which_samplers_add_noise(name):
    """Those whose clip is another with another seed, and the same noise to begin with."""
    sampler = comfy.samplers.sampler_object(name)
    assert adds_noise(self_refining(sampler, PRESETS["T2V"].settings())) == adds_noise(sampler)
    if name == "ar_video":
        assert adds_noise(sampler)
        return
    one, other = (sample(sampler, Mixture(), 4, seed, noise=draw(1)) for seed in (3, 4))
    assert adds_noise(sampler) == (not torch.equal(one, other))


@pytest.mark.parametrize("name, steps, warned", [
    ("lcm", 4, True), ("lcm", 8, True), ("lcm", 9, False), ("euler", 4, False),
])  # fmt: skip
def test_few_steps_that_add_noise_are_warned_of(name, steps, warned):
    sampler = searching(Told([0.0, 1.0, 2.0, 3.0]), comfy.samplers.sampler_object(name))
    sample(sampler, Mixture(), steps)
    assert any("dilutes" in note for note in sampler.result["notes"]) == warned


def test_weights_accumulate_and_the_highest_sum_wins():
    first = [0.0, 0.0, 9.0, 8.5]
    for seed in range(20):
        sampler = searching(Told(first, [0.1, 0.0, 0.0, 0.0]), scale="raw", temperature=3.0)
        sample(sampler, Mixture(), 10, seed)
        population = sampler.result["population"]
        told = {each["candidate"]: each for each in sampler.result["candidates"]}
        population = {"4": population["2"], **population}  # where one is left at the first check, there is no second
        assert population["0"] == [0, 1, 2, 3] and len(population["4"]) == 1
        assert set(population["4"]) <= set(population["2"])
        for each in told.values():
            weight = float(torch.softmax(torch.tensor(first) / 3, 0)[each["candidate"]])
            if each["dropped_at"] == 2:
                assert each["weight"] == pytest.approx(weight, abs=1e-5) and each["rewards"].keys() == {"2"}
            elif len(population["2"]) > 1:
                assert each["weight"] > weight and each["rewards"].keys() == {"2", "4"}
        (winner,) = population["4"]
        assert sampler.result["winner"] == winner and told[winner]["dropped_at"] is None

@pytest.mark.parametrize("method", METHODS)
def test_the_population_never_grows(method):
    for seed in range(10):
        sampler = searching(Mean(), method=method, candidates=6, schedule=(0.2, 0.4, 0.6))
        sample(sampler, Mixture(), 10, seed)
        sizes = [set(left) for left in sampler.result["population"].values()]
        assert all(later <= earlier for earlier, later in zip(sizes, sizes[1:], strict=False))
        assert len(sizes[-1]) == 1


def test_beam_keeps_the_better_half_and_best_of_n_the_best_of_the_finished():
    beam = searching(Told([1.0, 3.0, 2.0, 0.0], [0.0, 1.0]), method="beam")
    sample(beam, Mixture(), 10)
    assert beam.result["population"] == {"0": [0, 1, 2, 3], "2": [1, 2], "4": [2]}
    best = searching(Mean(), method="best of N")
    guider = Mixture()
    found = sample(best, guider, 10)
    ends = [sample(EULER, Mixture(), 10, 3 + i, mixed_noise(draw(3), 3 + i, 1.0) if i else draw(3)) for i in range(4)]
    assert torch.equal(found, max(ends, key=lambda end: float(end.mean())))
    assert len(guider.calls) == best.result["nfe"] == 40 == best.result["nfe_most"]


def test_it_finds_clips_that_the_reward_likes():
    """On the mixture the reward is the mean; the search's clips have a higher one than the plain clips of as many
    evaluations, and beta 0.1 stays nearer to the plain clip than seeds of its own."""
    def clips(**settings):
        return torch.cat([sample(searching(Mean(), **settings), Mixture(), 10, seed) for seed in range(20)])

    plain = torch.cat([sample(EULER, Mixture(), 25, seed) for seed in range(20)])
    near, far = clips(beta=0.1, temperature=0.2), clips(temperature=0.2)
    assert far.mean() > near.mean() > plain.mean()


SAMPLERS = [
    "euler", "euler_ancestral", "heun", "heunpp2", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "res_multistep",
    "lcm", "dpmpp_sde", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "er_sde", "deis", "ipndm", "lms",
    "ddim", "gradient_estimation", "sa_solver", "seeds_2",
]  # fmt: skip


@pytest.mark.parametrize(
    "inner, at_once", [*((name, 1) for name in SAMPLERS), *((name, 3) for name in ("heun", "uni_pc", "euler_cfg_pp"))]
)
def test_the_winner_alone_is_the_same_clip_bit_for_bit(patcher, inner, at_once):
    """Whichever sampler, with its history and its own noise: as if there had been no search."""
    setup = inputs(patcher, inner, steps=6)
    search = SearchSampler(
        setup.sampler, Mean(), SearchSettings(3, schedule=(0.34, 0.67), beta=0.7, at_once=at_once)
    )  # fmt: skip
    found = monitored_sample(replace(setup, sampler=search))
    alone = monitored_sample(candidate(setup, search, search.result["winner"]))
    if at_once == 1:
        assert torch.equal(found.latent["samples"], alone.latent["samples"])
    else:  # one call for three rounds otherwise than three calls
        torch.testing.assert_close(found.latent["samples"], alone.latent["samples"], rtol=2e-3, atol=2e-3)
    assert found.verdict.record.nfe_video == search.result["nfe"] <= search.result["nfe_most"]
    assert alone.verdict.record.nfe_video == search.result["nfe_plain"]
    assert found.verdict.record.steps == 6


def test_with_seeds_of_their_own_a_candidate_is_comfyuis_clip_of_that_seed(patcher):
    setup = replace(inputs(patcher, "euler_ancestral"), noise=Noise_RandomNoise(11))
    search = searching(Told([0.0, 9.0, 0.0, 0.0]), method="beam", schedule=(0.3,))
    search = search.around(setup.sampler)
    found = monitored_sample(replace(setup, sampler=search)).latent["samples"]
    assert search.result["winner_seed"] == 12
    core = SamplerCustomAdvanced.execute(Noise_RandomNoise(12), setup.guider, setup.sampler, setup.sigmas, setup.latent)
    assert torch.equal(found, core.result[0]["samples"])


@pytest.mark.parametrize("inner", ["euler", "dpmpp_2m_sde", "heun"])
@pytest.mark.parametrize("failing", [[[math.nan] * 4], [RuntimeError("no kernel")], [torch.OutOfMemoryError("full")]])
def test_where_all_rewards_fail_the_plain_clip_goes_on(patcher, inner, failing):
    setup = inputs(patcher, inner)
    search = searching(Told(*failing)).around(setup.sampler)
    found = monitored_sample(replace(setup, sampler=search))
    assert torch.equal(found.latent["samples"], monitored_sample(setup).latent["samples"])
    assert search.result["winner"] == 0
    json.dumps(search.result, allow_nan=False)
    assert isinstance(failing[0], list) or str(failing[0]) in search.result["notes"][0]


def test_where_rewards_fail_later_the_one_that_was_ahead_goes_on():
    search = searching(Told([0.0, 0.0, 3.0, 3.1], RuntimeError("gone")), method="beam")
    sample(search, Mixture(), 10)
    assert search.result["winner"] == 3 and "gone" in search.result["notes"][0]


def test_one_that_cannot_be_judged_drops_out_and_the_rest_go_on():
    search = searching(Told([1.0, math.nan, 2.0, math.inf], [1.0, 1.0]))
    sample(search, Mixture(), 10)
    assert set(search.result["population"]["2"]) <= {0, 2}
    told = search.result["candidates"][1]
    assert told["dropped_at"] == 2 and told["why"] == "no reward" and told["rewards"] == {"2": None}


def test_a_candidate_that_overflows_is_not_shown_to_the_reward():
    class Broken(Mixture):
        def __call__(self, x, sigma, **rest):
            broken = len(self.calls) == 2  # the second candidate's first evaluation
            return super().__call__(x, sigma, **rest) * (math.nan if broken else 1)

    reward = Told([1.0, 1.0, 1.0])
    search = searching(reward)
    made = sample(search, Broken(), 10)
    assert torch.isfinite(made).all() and len(reward.seen[0][0]) == 3
    assert search.result["candidates"][1]["why"] == "no reward" and "not finite" in search.result["notes"][0]


@pytest.mark.parametrize("inner", ["euler", "heun", "heunpp2", "dpm_2", "dpmpp_sde", "res_multistep"])
@pytest.mark.parametrize("extra", [0, 1, 7, 20])
@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_never_exceeded(inner, extra, method):
    sampler = comfy.samplers.ksampler(inner)
    alone = Mixture()
    sample(sampler, alone, 10)
    budget = len(alone.calls) + extra
    for seed in range(3):
        guider = Mixture()
        search = searching(Mean(), sampler, budget=budget, method=method)
        sample(search, guider, 10, seed)
        assert len(guider.calls) == search.result["nfe"] <= search.result["nfe_most"] <= budget
    if extra == 0:
        assert search.result["winner"] == 0, "nothing is left to search with: the plain clip"
        assert search.result["candidates"][3]["why"] == "budget"


def test_a_budget_below_one_clip_is_refused_before_anything_is_sampled():
    guider = Mixture()
    with pytest.raises(ValueError, match="budget is 9, but one clip alone takes 10"):
        sample(searching(Mean(), budget=9), guider, 10)
    assert not guider.calls


def test_the_count_is_of_candidates_also_where_several_are_evaluated_at_once(patcher):
    setup = inputs(patcher)
    for at_once in (1, 2, 4):
        search = searching(Told([1.0, 1.0, 1.0, 1.0]), at_once=at_once)
        record = monitored_sample(replace(setup, sampler=search)).verdict.record
        assert record.nfe_video == search.result["nfe"] >= 10 + 3 * 2


def test_candidates_at_once_share_model_calls():
    one, many = Mixture(), Mixture()
    a, b = searching(Mean()), searching(Mean(), at_once=4)
    assert torch.equal(sample(a, one, 10), sample(b, many, 10))
    assert a.result == b.result and sum(rows for _, rows in many.calls) == len(one.calls)
    assert [rows for _, rows in many.calls][:2] == [4, 4]


def test_without_memory_for_several_they_are_evaluated_one_by_one():
    tried = []

    class Small(Mixture):
        def __call__(self, x, sigma, **rest):
            if len(x) > 1:
                tried.append(len(x))
                raise torch.OutOfMemoryError("full")
            return super().__call__(x, sigma, **rest)

    assert torch.equal(sample(searching(Mean(), at_once=4), Small(), 10), sample(searching(Mean()), Mixture(), 10))
    assert tried == [4], "once is enough to know"


def test_what_comfyui_is_shown_is_the_winners_whole_run():
    seen = []
    search = searching(Mean())
    sample(search, Mixture(), 10, callback=lambda step, x0, x, total: seen.append((step, total, x0.clone())))
    assert [(step, total) for step, total, _ in seen] == [(step, 10) for step in range(10)]
    alone, winner = [], search.result["winner"]
    noise = mixed_noise(draw(3), 3 + winner, 1.0) if winner else draw(3)
    sample(EULER, Mixture(), 10, 3 + winner, noise, callback=lambda step, x0, x, total: alone.append(x0.clone()))
    assert all(torch.equal(x0, other) for (*_, x0), other in zip(seen, alone, strict=True))


def test_one_candidate_is_the_plain_sampler(patcher):
    for inner in ("euler", "uni_pc", "dpmpp_2m_sde"):
        setup = inputs(patcher, inner)
        search = searching(Mean(), candidates=1).around(setup.sampler)
        assert torch.equal(
            monitored_sample(replace(setup, sampler=search)).latent["samples"],
            monitored_sample(setup).latent["samples"],
        )


def test_rewards_see_the_x0_predictions_of_their_step():
    reward, seen = Told([1.0, 1.0, 1.0, 1.0]), []
    sample(searching(reward), Mixture(), 10)
    sample(EULER, Mixture(), 10, callback=lambda step, x0, *_: seen.append(x0.clone()))
    x0, sigma, step = reward.seen[0]
    assert x0.shape == (4, *SHAPE) and step == 2
    assert torch.equal(x0[:1], seen[1])
    t = 0.9
    assert sigma == pytest.approx(5 * t / (1 + 4 * t))


def test_a_cancel_is_heard_within_one_evaluation():
    guider = Mixture()
    guider.on_call = lambda: len(guider.calls) == 5 and comfy.model_management.interrupt_current_processing()
    search = searching(Mean())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(search, guider, 10)
    assert len(guider.calls) == 5 == search.result["nfe"]


def test_a_cancel_during_scoring_gets_out(patcher):
    cancelled = comfy.model_management.InterruptProcessingException()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(searching(Told(cancelled)), Mixture(), 10)


def test_the_same_seed_finds_the_same_clip():
    state = torch.get_rng_state()
    one, other = searching(Mean()), searching(Mean())
    assert torch.equal(sample(one, Mixture(), 10, 4), sample(other, Mixture(), 10, 4)) and one.result == other.result
    assert torch.equal(torch.get_rng_state(), state)
    winners = set()
    for seed in range(12):
        sample(one, Mixture(), 10, seed)
        winners.add(one.result["winner"])
    assert len(winners) > 1
