"""Latent search: its settings, its costs, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from gaussians import SHAPE, Mixture, draw, sample
from searches import Mean, searching
from tiny_wan import inputs, model

from foresight.sampling.candidates import CandidateEngine
from foresight.sampling.noise import mixed_noise
from foresight.sampling.run import monitored_sample
from foresight.sampling.search_rules import SearchSettings, parse_schedule


@pytest.fixture(scope="module")
def patcher():
    return model()


def test_beta_is_the_share_of_new_noise():
    noise = torch.randn(1, 4, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    for beta, correlation in ((0.1, 0.995), (0.6, 0.8), (1.0, 0.0)):
        mixed = mixed_noise(noise, 5, beta)
        assert float(mixed.std()) == pytest.approx(1, abs=0.02)
        assert float((mixed * noise).mean()) == pytest.approx(correlation, abs=0.02)


def test_the_published_schedule():
    assert SearchSettings().checks(50) == [11, 16, 21] and SearchSettings().checks(20) == [4, 6, 8]
    assert SearchSettings(schedule_steps=50).checks(18) == [11, 16], "what lies after this part is left out"
    assert SearchSettings(method="best of N").checks(30) == [30]
    with pytest.raises(ValueError, match="score earlier"):
        SearchSettings(schedule_steps=50).checks(5)


def test_costs_are_counted_without_the_model():
    guider = Mixture()
    t = torch.linspace(1, 0, 6)
    heun, extra_args = comfy.samplers.ksampler("heun"), {"model_options": {}, "seed": 0}
    engine = CandidateEngine(heun, guider, t, extra_args, torch.zeros(1, *SHAPE), None)
    assert engine.costs(draw(1)) == [0, 1, 3, 5, 7, 9] and not guider.calls


@pytest.mark.parametrize(
    "change, said",
    [({"candidates": 0}, "candidates is 0"), ({"beta": 1.5}, "beta is 1.5"), ({"temperature": 0.0}, "above 0"),
     ({"method": "greedy"}, "resampling, beam"), ({"scale": "log"}, "spread, raw"), ({"budget": -1}, "budget -1")],
)  # fmt: skip
def test_bad_settings_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        SearchSettings(**change)


@pytest.mark.parametrize("text", ["", "ten", "10-20", "50", "-1"])
def test_bad_schedules_are_named(text):
    with pytest.raises(ValueError, match="schedule is"):
        parse_schedule(text, 50)


def test_what_cannot_be_searched_is_refused(patcher):
    with pytest.raises(ValueError, match="batch of 2"):
        monitored_sample(replace(inputs(patcher, batch=2), sampler=searching(Mean())))
    with pytest.raises(ValueError, match="no noise to vary"):
        sample(searching(Mean()), Mixture(), 10, noise=torch.zeros(1, *SHAPE))
    with pytest.raises(ValueError, match="dpm_adaptive"):
        searching(Mean(), comfy.samplers.ksampler("dpm_adaptive"))
    with pytest.raises(ValueError, match="within another"):
        searching(Mean(), searching(Mean()))
