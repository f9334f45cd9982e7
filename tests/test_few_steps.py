"""Distilled schedules: four and eight steps at CFG 1, two experts with a LoRA each, sigmas by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import comfy.samplers
import comfy.sd
import pytest
import tiny_wan
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from tiny_wan import gate

from foresight.sampling.audition import budget, hold_audition
from foresight.sampling.experts import TwoExpertGuider
from foresight.sampling.inputs import Inputs
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.scoring.detector import reached
from foresight.trials.race import Candidate, Rules
from foresight.trials.report import run_report

SEED = 7
SAMPLERS = ["euler", "lcm", "dpmpp_sde", "res_multistep", "res_multistep_ancestral"]
SCHEDULES = {
    "4 steps": 4, "8 steps": 8, "4 by hand": [1.0, 0.9375, 0.8333, 0.625, 0.0],
    # LTX-2's distilled schedule; half of it is next to pure noise.
    "8 by hand": [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0],
}  # fmt: skip


def with_lora(patcher, seed: int):
    """As LoraLoaderModelOnly leaves it."""
    generator, key = torch.Generator().manual_seed(seed), "diffusion_model.blocks.0.self_attn.q"
    lora = {
        f"{key}.lora_down.weight": torch.randn(4, 128, generator=generator),
        f"{key}.lora_up.weight": torch.randn(128, 4, generator=generator),
    }
    return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0)[0]


@cache
def expert(seed: int, lora: bool):
    patcher = ModelSamplingSD3().patch(tiny_wan.model(seed=seed), 5.0)[0]
    return with_lora(patcher, seed) if lora else patcher


def setup(schedule: str, sampler: str, models: int = 1, seed: int = SEED) -> Inputs:
    patchers = [expert(number, models > 1) for number in range(models)]
    guider = TwoExpertGuider(*patchers) if models > 1 else comfy.samplers.CFGGuider(*patchers)
    guider.set_conds(tiny_wan.conditioning(1), tiny_wan.conditioning(2))
    guider.set_cfg(1.0)
    sigmas = SCHEDULES[schedule]
    if isinstance(sigmas, int):
        sampling = patchers[0].get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", sigmas)
    latent = {"samples": torch.zeros(1, *tiny_wan.LATENT)}
    return Inputs(SeededNoise(seed), guider, comfy.samplers.sampler_object(sampler), torch.as_tensor(sigmas), latent)


def core(given: Inputs) -> dict:
    return SamplerCustomAdvanced.execute(given.noise, given.guider, given.sampler, given.sigmas, given.latent).args[0]


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_race_tries_another_seed_after_one_step_within_its_budget(schedule, sampler, models):
    """By the drop-ins' own defaults, where nothing is fitted: a quarter more than a plain clip, self-refined later."""
    given = setup(schedule, sampler, models)
    result = run_race(given, gate(0.1, 0.3, 0.2), Rules.ranks(0.25, "later"))
    report, settings = run_report(result.verdict), result.verdict.settings
    states = [row["state"] for row in report["candidates"]]
    assert states[:2] == ["put aside", "delivered"] and set(states[2:]) <= {"put aside"}
    assert {row["look_step"] for row in report["candidates"]} == {1}
    expected = core(setup(schedule, sampler, models, Candidate(1).seed(SEED)))
    assert torch.equal(result.latent["samples"], expected["samples"])
    plain = monitored_sample(given).verdict.record.nfe_video
    assert report["nfe"] <= math.floor(1.25 * plain) and report["nfe"] <= settings["worst_case"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_note_says_that_nothing_is_refined_in_few_steps(schedule):
    """The plan's only step would be the first, at pure noise: no evaluation is set aside for it."""
    result = run_race(setup(schedule, "euler"), gate(0.1, 0.3), Rules.ranks(0.25, "later"))
    assert "steps are too few for it" in run_report(result.verdict)["notes"][0]
    assert not any(row["self_refined"] for row in run_report(result.verdict)["candidates"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_monitor_passes_or_stops_in_the_first_third(schedule, sampler):
    given = setup(schedule, sampler)
    passed = monitored_sample(given, gate(0.3))
    assert torch.equal(passed.latent["samples"], core(given)["samples"]) and passed.verdict.record.message is None
    stopped = monitored_sample(given, gate(0.1)).verdict.record
    assert not stopped.accepted and stopped.steps == reached(0.28, given.steps)


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_audition_hears_every_seed_once(schedule, models):
    seeds = (3, 4, 5)
    scored, share = gate(0.1, 0.3, 0.2), 0.2
    found = hold_audition(lambda seed: setup(schedule, "lcm", models, seed), scored, seeds, keep=1, fraction=share)
    assert found.chosen == (4,) and found.report["nfe"] == budget(3, 1, share, setup(schedule, "lcm", models))
    assert torch.equal(found.latent["samples"], core(setup(schedule, "lcm", models, 4))["samples"])


def test_one_expert_after_the_other_races_in_the_first():
    """Two sampler nodes, as the published graphs have it: the first does two of four steps and knows of all."""
    whole = setup("4 steps", "euler")
    part = replace(whole, sigmas=whole.sigmas[:3], schedule_steps=4)
    result = run_race(part, gate(0.1, 0.3), Rules.ranks(0.5, "later"))
    other = setup("4 steps", "euler", seed=Candidate(1).seed(SEED))
    assert torch.equal(result.latent["samples"], core(replace(other, sigmas=part.sigmas))["samples"])


def test_one_step_is_sampled_plainly():
    whole = setup("4 steps", "lcm")
    one = replace(whole, sigmas=torch.tensor([1.0, 0.0]))
    result = run_race(one, gate(0.1), Rules.ranks(0.25, "later"))
    assert torch.equal(result.latent["samples"], core(one)["samples"])
    assert "not before the last of 1 steps" in " ".join(run_report(result.verdict)["notes"])
