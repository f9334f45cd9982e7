"""Two experts under one guider: Wan 2.2 14B's hand-over, and the whole method across it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_extras.nodes_custom_sampler import DisableNoise, SamplerCustomAdvanced
from tiny_wan import LATENT, Rewriter, conditioning, gate, inputs, model

from foresight.nodes.experts import TwoExpertGuiderNode
from foresight.nodes.hierarchy import ForesightSampler
from foresight.sampling.experts import TwoExpertGuider
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch

STEPS = 10


@pytest.fixture(scope="module")
def high():
    return model()


@pytest.fixture(scope="module")
def low():
    return model(seed=1)


def experts(high, low, cfg=4.0, low_cfg=None, prompt=1, **settings):
    guider = TwoExpertGuider(high, low, **settings)
    guider.set_conds(conditioning(prompt), conditioning(2))
    guider.set_cfg(cfg, low_cfg)
    return guider


def core(setup):
    return SamplerCustomAdvanced.execute(setup.noise, setup.guider, setup.sampler, setup.sigmas, setup.latent).result


def seen_sigmas(patcher):
    """A clone that notes the sigma of each of its calls."""
    patcher, sigmas = patcher.clone(), []
    patcher.set_model_sampler_post_cfg_function(lambda args: sigmas.append(float(args["sigma"][0])) or args["denoised"])
    return patcher, sigmas


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "res_multistep", "dpmpp_2m_sde", "euler_cfg_pp", "lcm"]
)
def test_equal_experts_are_the_plain_model_bit_for_bit(high, sampler, cfg):
    setup = inputs(high, sampler, STEPS, cfg)
    same = replace(setup, guider=experts(high, model(), cfg))
    (latent, x0), (expected, expected_x0) = core(same), core(setup)
    assert torch.equal(latent["samples"], expected["samples"])
    assert torch.equal(x0["samples"], expected_x0["samples"])


def test_the_hand_over_is_the_two_sampler_graphs(high, low):
    setup = inputs(high, "euler", STEPS)
    at = next(step for step, sigma in enumerate(setup.sigmas) if sigma < 0.875)
    assert 0 < at < STEPS
    first, _ = core(replace(setup, sigmas=setup.sigmas[: at + 1]))
    rest = inputs(low, "euler", STEPS)
    (noise,) = DisableNoise.execute().result
    second, _ = core(replace(rest, noise=noise, sigmas=setup.sigmas[at:], latent=first))
    one, _ = core(replace(setup, guider=experts(high, low)))
    torch.testing.assert_close(one["samples"], second["samples"], rtol=0, atol=1e-4)
    (by_step, _) = core(replace(setup, guider=experts(high, low, boundary=0.0, switch_step=at)))
    assert torch.equal(by_step["samples"], one["samples"])


def test_each_expert_gets_its_noise_levels_its_scale_and_its_own_patches(high, low):
    (high, above), (low, below) = seen_sigmas(high), seen_sigmas(low)
    setup = inputs(high, "euler", STEPS)
    core(replace(setup, guider=experts(high, low)))
    assert above + below == [float(sigma) for sigma in setup.sigmas[:-1]]
    assert min(above) >= 0.875 > max(below)
    at_one, _ = core(replace(setup, guider=experts(high, low, 4.0, 1.0)))
    at_four, _ = core(replace(setup, guider=experts(high, low, 4.0)))
    assert not torch.equal(at_one["samples"], at_four["samples"])


def test_the_low_noise_weights_are_loaded_only_when_they_are_needed(high):
    low, loads = model(seed=1), []
    low.add_callback(CallbacksMP.ON_LOAD, lambda *_: loads.append(1))
    setup = inputs(high, "euler", 50)
    stopped = monitored_sample(replace(setup, guider=experts(high, low)), gate(0.1))
    assert not stopped.verdict.accepted and not loads
    assert monitored_sample(replace(setup, guider=experts(high, low)), gate(0.3)).verdict.accepted
    assert loads


def test_a_passing_run_is_untouched_and_a_rejected_one_goes_through_the_trials(high, low):
    setup = replace(inputs(high, "euler", 50), guider=experts(high, low))
    plain, _ = core(setup)
    passed = monitored_sample(setup, gate(0.3))
    assert torch.equal(passed.latent["samples"], plain["samples"])

    def reguide(prompt, negative):
        return experts(high, low, prompt=len(prompt))

    result = run_hierarchy(
        setup, gate(0.1), reguide, negative="", reworder=Rewriter(), injection=InjectionSettings()
    )
    assert [(record.trial, record.kind) for record in result.verdict.history] == [
        ("0", "sample"), ("1", "probe"), ("2", "refine"), ("2", "sample"), ("2->1", "probe"), ("2->1", "inject")
    ]  # fmt: skip
    assert result.verdict.record.nfe_video == 49
    assert torch.isfinite(result.latent["samples"]).all()


def test_both_experts_can_be_watched(high, low):
    watches = Watch(gate(0.1)), Watch(gate(0.3))
    guider = experts(*(watch.patch(patcher) for watch, patcher in zip(watches, (high, low), strict=True)))
    setup = inputs(high, "euler", STEPS)
    assert torch.equal(core(replace(setup, guider=guider))[0]["samples"],
                       core(replace(setup, guider=experts(high, low)))[0]["samples"])
    assert [watch.verdict.accepted for watch in watches] == [False, True]
    assert sum(watch.verdict.record.nfe_video for watch in watches) == STEPS


def test_high_noise_only_in_a_two_sampler_graph(high):
    setup = inputs(high, "euler", 50)
    first = replace(setup, sigmas=setup.sigmas[:21], schedule_steps=50)
    stopped = monitored_sample(first, gate(0.1)).verdict
    assert stopped.record.best.stop_step == 11 and stopped.settings["video_window"] == [8, 14]
    passed = monitored_sample(first, gate(0.3))
    assert passed.verdict.accepted and torch.equal(passed.latent["samples"], core(first)[0]["samples"])
    with pytest.raises(ValueError, match="schedule_steps is 10, but the sigmas alone have 20"):
        replace(first, schedule_steps=10)


def test_the_nodes_build_it(high, low):
    setup = inputs(high, "euler", STEPS)
    positive, negative = conditioning(1), conditioning(2)
    guider = TwoExpertGuiderNode.execute(high, low, positive, negative, 4.0, low_noise_cfg=3.0).args[0]
    expected, _ = core(replace(setup, guider=experts(high, low, 4.0, 3.0)))
    assert torch.equal(core(replace(setup, guider=guider))[0]["samples"], expected["samples"])

    class Clip:
        def tokenize(self, text):
            return 1 if text else 2

        def encode_from_tokens_scheduled(self, seed):
            return conditioning(seed)

    judged = gate(0.9)
    widgets = {widget.id: widget.default for widget in ForesightSampler.define_schema().inputs
               if getattr(widget, "default", None) is not None}
    made = ForesightSampler.execute(**widgets | {
        "model": high, "low_noise_model": low, "clip": Clip(), "prompt": "a red circle", "negative": "", "seed": 3,
        "steps": STEPS, "cfg": 4.0, "low_noise_cfg": 3.0, "sampler_name": "euler", "scheduler": "simple",
        "latent_image": {"samples": torch.zeros(1, *LATENT)}, "scorer": judged.scorer, "l2r": judged.l2r,
    })  # fmt: skip
    assert torch.equal(made.args[0]["samples"], expected["samples"])
