"""Clips that start from an image: inspected as any other; Trial 1 is left out, Trial 2 comes next."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES
from tiny_wan import Rewriter, gate

from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.probe import single_frame_probe
from foresight.sampling.run import monitored_sample

T2V, I2V = "Wan 2.2 5B T2V", ["Wan 2.1 I2V", "Wan 2.2 14B I2V, two experts", "Wan 2.2 5B I2V"]


def run_of(name):
    """A run of 50 steps, and how to guide it with another prompt."""
    family = FAMILIES[name]
    return family.inputs(steps=50), lambda prompt, negative: family.guide(family.patchers(), prompt=len(prompt))


@pytest.mark.parametrize("name", I2V)
def test_a_rejected_clip_goes_to_trial_2_without_a_probe(name):
    run, reguide = run_of(name)
    result = run_hierarchy(
        run, gate(0.1), reguide, negative="", reworder=Rewriter(),
        injection=InjectionSettings(),
    )
    history = result.verdict.history
    assert [(record.trial, record.kind) for record in history] == [
        ("0", "sample"), ("1", "probe"), ("2", "refine"), ("2", "sample"), ("2->1", "probe"), ("2", "plain")
    ]  # fmt: skip
    assert history[1].nfe_single_frame == 0 and "Trial 1 is left out" in history[1].message
    assert torch.isfinite(result.latent["samples"]).all()


def test_without_an_image_the_probe_runs():
    run, _ = run_of(T2V)
    rejected = monitored_sample(run, gate(0.1)).verdict
    anchor, probed = single_frame_probe(run, gate(0.3), rejected)
    assert anchor.latent.shape == (1, 48, 1, 4, 4) and probed.accepted


def test_a_probe_that_the_model_refuses_costs_the_trial_and_not_the_run():
    run, reguide = run_of(T2V)
    run.guider.model_patcher = run.guider.model_patcher.clone()

    def refuse(executor, noise, *rest, **kwargs):
        if noise.shape[2] == 1:
            raise RuntimeError("the control video has 3 frames")
        return executor(noise, *rest, **kwargs)

    run.guider.model_patcher.add_wrapper_with_key("outer_sample", "test", refuse)
    result = run_hierarchy(
        run, gate(0.1), reguide, negative="", reworder=None,
        injection=InjectionSettings(),
    )
    assert [record.kind for record in result.verdict.history] == ["sample", "probe", "plain"]
    assert "the control video has 3 frames" in result.verdict.history[1].message
