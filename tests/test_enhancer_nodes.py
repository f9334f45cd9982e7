"""The nodes of self-refinement and latent search: what their widgets mean, and what they tell afterwards."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_execution.graph import ExecutionBlocker
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from tiny_wan import gate, inputs, model

from foresight.nodes.enhancers import CandidateNoise, EnhancerReport, LatentSearchSampler, SelfRefineSampler
from foresight.sampling.self_refine import PRESETS

SEARCH = {"candidates": 4, "method": "beam", "schedule": "1", "schedule_of": 8, "beta": 0.5, "budget": 0}
REFINE = {"preset": "distilled", "plan": "", "plan_steps": 40, "tau": -1.0}


@pytest.fixture(scope="module")
def patcher():
    return model()


def sampled(patcher, sampler, noise=None):
    given = inputs(patcher, steps=8)
    noise = noise or Noise_RandomNoise(5)
    return SamplerCustomAdvanced.execute(noise, given.guider, sampler, given.sigmas, given.latent).result[0]


def told(sampler, latent):
    node = EnhancerReport.execute(sampler, latent)
    given, mask, nfe, report = node.result
    assert given is latent and json.loads(report)["nfe"] == nfe
    return mask, nfe, json.loads(report), node.ui["text"][0]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_settings(patcher, preset):
    settings = SelfRefineSampler.execute(inputs(patcher).sampler, **{**REFINE, "preset": preset}).result[0]
    assert settings.sampler_function.settings == PRESETS[preset].settings()


def test_a_plan_of_ones_own(patcher):
    own = {"preset": "custom", "plan": "1-2:2", "plan_steps": 4, "tau": 0.3}
    settings = SelfRefineSampler.execute(inputs(patcher).sampler, **own).result[0].sampler_function.settings
    assert settings.evaluations(8) == 16 and settings.tau == 0.3
    with pytest.raises(ValueError, match="enter a share"):
        SelfRefineSampler.execute(inputs(patcher).sampler, **REFINE, threshold="quantile")
    with pytest.raises(ValueError, match="preset is 'best'"):
        SelfRefineSampler.execute(inputs(patcher).sampler, **{**REFINE, "preset": "best"})


def test_the_report_tells_where_a_clip_was_refined(patcher):
    sampler = SelfRefineSampler.execute(inputs(patcher).sampler, **{**REFINE, "tau": 0.0}).result[0]
    mask, nfe, report, text = told(sampler, sampled(patcher, sampler))
    assert nfe == 13 and mask.shape == (3, 32, 32, 3) and mask.min() == mask.max() == 1
    assert report["self_refine"]["passes"] == {str(step): 1 for step in range(2, 7)} and report["search"] is None
    assert "5 extra passes in 5 steps" in text
    mask, nfe, *_ = told(sampler, sampled(patcher, sampler))
    assert nfe == 13, "of the latest run only"


def test_the_reports_candidate_can_be_sampled_alone(patcher):
    given = inputs(patcher)
    sampler = LatentSearchSampler.execute(given.sampler, gate=gate(0.1, 0.2, 0.4, 0.3), **SEARCH).result[0]
    latent = sampled(patcher, sampler)
    mask, nfe, report, text = told(sampler, latent)
    assert isinstance(mask, ExecutionBlocker) and nfe == 4 * 2 + 6
    assert report["search"]["winner"] == 2 and "finished: candidate 2, seed 7" in text
    noise = CandidateNoise.execute(Noise_RandomNoise(5), 2, 0.5).result[0]
    assert noise.seed == 7
    assert torch.equal(sampled(patcher, given.sampler, noise)["samples"], latent["samples"])


def test_candidate_0_is_the_noise_itself():
    noise = Noise_RandomNoise(5)
    assert CandidateNoise.execute(noise, 0, 0.5).result[0] is noise


def test_audio_and_video_noise_are_mixed_as_the_search_mixes_them():
    import comfy.nested_tensor
    import comfy.utils

    from foresight.sampling.noise import mixed_noise

    latent = {"samples": comfy.nested_tensor.NestedTensor([torch.zeros(1, 2, 3, 5, 5), torch.zeros(1, 1, 7)])}
    base = Noise_RandomNoise(5)
    alone = CandidateNoise.execute(base, 3, 0.4).result[0].generate_noise(latent)
    packed, shapes = comfy.utils.pack_latents(base.generate_noise(latent).unbind())
    assert torch.equal(comfy.utils.pack_latents(alone.unbind())[0], mixed_noise(packed, 8, 0.4, shapes))
    own = CandidateNoise.execute(base, 3, 1.0).result[0].generate_noise(latent).unbind()
    plain = Noise_RandomNoise(8).generate_noise(latent).unbind()
    assert all(torch.equal(one, other) for one, other in zip(own, plain, strict=True))


def test_both_together_give_one_report(patcher):
    refine = SelfRefineSampler.execute(inputs(patcher).sampler, **{**REFINE, "tau": 0.0}).result[0]
    sampler = LatentSearchSampler.execute(refine, gate=gate(0.2, 0.3), **{**SEARCH, "candidates": 2}).result[0]
    mask, nfe, report, _ = told(sampler, sampled(patcher, sampler))
    assert report["self_refine"]["nfe"] == report["search"]["nfe_plain"] == 13
    assert nfe == report["search"]["nfe"] == 13 + 3 and mask.shape == (3, 32, 32, 3)


def test_a_clip_of_a_sampler_that_is_bypassed_or_unused_goes_on(patcher):
    sampler, latent = inputs(patcher).sampler, {"samples": torch.zeros(1)}
    for each in (sampler, SelfRefineSampler.execute(sampler, **REFINE).result[0]):
        node = EnhancerReport.execute(each, latent)
        assert node.result[0] is latent and all(output.message is None for output in node.result[1:])
        assert "Nothing to tell: connect the SAMPLER" in node.ui["text"][0]


def test_scores_that_are_no_numbers_are_valid_json(patcher):
    sampler = LatentSearchSampler.execute(inputs(patcher).sampler, gate=gate(0.3), **SEARCH).result[0]
    sampled(patcher, sampler)
    sampler.result["rewards"] = [float("nan"), 0.3]
    report = EnhancerReport.execute(sampler, {}).result[3]
    assert json.loads(report, parse_constant=pytest.fail)["search"]["rewards"] == [None, 0.3]


def test_what_cannot_be_chosen_is_said(patcher):
    sampler = inputs(patcher).sampler
    with pytest.raises(ValueError, match="connect a gate or a reward"):
        LatentSearchSampler.execute(sampler, **SEARCH)
