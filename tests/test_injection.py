"""Noise spaces, segments and Algorithm 1."""

from __future__ import annotations

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from tiny_wan import LATENT, inputs, model

from foresight.sampling.injection import Anchor, Injection, InjectionSettings
from foresight.sampling.noise_space import NoiseSpace
from foresight.sampling.run import monitored_sample
from foresight.sampling.segments import Segments

KINDS = {
    "flow": (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST),
    "eps": (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS),
    "v": (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION),
    "edm": (comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM),
    "cosmos": (comfy.model_sampling.ModelSamplingCosmosRFlow, comfy.model_sampling.COSMOS_RFLOW),
}


@pytest.fixture(scope="module")
def patcher():
    return model()


def model_sampling(kind):
    schedule, parameterization = KINDS[kind]
    return type("ModelSampling", (schedule, parameterization), {})()


def draw(seed, *shape):
    return torch.randn(*(shape or (2, *LATENT)), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_renoise_is_cores_noise_scaling(kind):
    sampling = model_sampling(kind)
    space = NoiseSpace.of(sampling)
    x0, eps = draw(1), draw(2)
    for share in (0.1, 0.5, 0.9):
        sigma = torch.tensor(float(sampling.percent_to_sigma(share)))
        x = space.renoise(x0, eps, sigma)
        torch.testing.assert_close(x, sampling.noise_scaling(sigma, eps.clone(), x0), rtol=1e-6, atol=1e-6)


def test_a_model_that_mixes_noise_otherwise_is_refused_by_name():
    class Odd(comfy.model_sampling.ModelSamplingDiscrete):
        pass

    with pytest.raises(ValueError, match="cannot add noise.*Sample it without them"):
        NoiseSpace.of(Odd())


def algorithm_1(patcher, anchor, steps, k_injection=2):
    """The paper's Algorithm 1, line by line, with a plain Euler scheduler; k counts from 1 as it does there."""
    setup = inputs(patcher, steps=steps)
    captured = {}

    class Loop(comfy.samplers.Sampler):
        def sample(self, model, sigmas, extra_args, callback, noise, latent_image, *_):
            def t2v(z, k):
                return model(z, sigmas[k - 1] * torch.ones(z.shape[0]), **extra_args)

            def add_noise(image, k):
                return (1 - sigmas[k - 1]) * image + sigmas[k - 1] * eps

            z_img = anchor.expand(noise.shape)
            eps = noise
            z = add_noise(z_img, 2)
            mask = torch.linspace(1, 0, noise.shape[2]).view(1, 1, -1, 1, 1)
            for k in range(2, steps + 1):
                if k <= k_injection + 1:
                    z_hat = add_noise(z_img, k)
                    z = mask * z_hat + (1 - mask) * z
                z = z + (z - t2v(z, k)) / sigmas[k - 1] * (sigmas[k] - sigmas[k - 1])
            captured["z"] = z
            return z

    noise = setup.noise.generate_noise(setup.latent)
    return setup.guider.sample(noise, setup.latent["samples"], Loop(), setup.sigmas, seed=3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_default_injection_is_algorithm_1(patcher, k):
    anchor = draw(5, 1, 16, 1, 4, 4)
    result = monitored_sample(inputs(patcher), injection=Injection(Anchor(anchor), InjectionSettings(steps=k)))
    torch.testing.assert_close(result.latent["samples"], algorithm_1(patcher, anchor, 10, k), rtol=1e-4, atol=1e-4)
    assert result.verdict.record.nfe_video == 9, "Algorithm 1 starts at the second step"


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_strength_0_is_the_plain_run(patcher, sampler):
    plain = monitored_sample(inputs(patcher, sampler)).latent["samples"]
    settings = InjectionSettings(start=4, steps=3, strength=0.0)
    injection = Injection(Anchor(draw(5, 1, 16, 1, 4, 4)), settings)
    injected = monitored_sample(inputs(patcher, sampler), injection=injection)
    assert torch.equal(injected.latent["samples"], plain)


@pytest.mark.parametrize(
    "change", [{"start": 4}, {"noise": "fresh"}, {"mask": "constant"}, {"mask": "first frame"}, {"strength": 0.5}]
)
def test_each_setting_changes_the_clip(patcher, change):
    anchor = Anchor(draw(5, 1, 16, 1, 4, 4))
    default = monitored_sample(inputs(patcher), injection=Injection(anchor)).latent["samples"]
    changed = monitored_sample(inputs(patcher), injection=Injection(anchor, InjectionSettings(**change)))
    assert not torch.allclose(changed.latent["samples"], default)


def test_the_mask_falls_linearly_from_the_first_frame_to_the_last():
    assert InjectionSettings().weights(5).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert InjectionSettings().weights(1).tolist() == [1.0]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral", "dpmpp_2m_sde"])
def test_injection_works_with_multistep_and_stochastic_samplers(patcher, sampler):
    setup = inputs(patcher, sampler)
    steps = []
    result = monitored_sample(setup, injection=Injection(Anchor(draw(5, 1, 16, 1, 4, 4))), keep_steps=True)
    steps = result.steps_x0["samples"]
    assert torch.isfinite(result.latent["samples"]).all()
    assert result.verdict.record.steps == len(steps) == 9


def test_segments_keep_counting_and_give_each_part_noise_of_its_own():
    seen, seeds = [], []

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seeds.append(extra_args["seed"])
        for i in range(len(sigmas) - 1):
            callback({"i": i, "x": x, "denoised": x})
        return x + 1

    sigmas = torch.linspace(1, 0, 6)
    record = lambda info: seen.append(info["i"])  # noqa: E731
    segments = Segments(comfy.samplers.KSAMPLER(function), None, sigmas, {"seed": 7}, record, True)
    assert segments.advance(segments.advance(torch.zeros(1), 0, 2), 2, 5) == 2
    assert seen == [0, 1, 2, 3, 4] and len(set(seeds)) == 2
    assert segments.advance(torch.zeros(1), 3, 3) == 0


@pytest.mark.parametrize(
    "change, said",
    [({"start": 0}, "count from 1"), ({"steps": 0}, "count from 1"), ({"noise": "pink"}, "initial, fresh"),
     ({"mask": "square"}, "linear, constant"), ({"strength": 1.5}, "between 0")],
)  # fmt: skip
def test_bad_settings_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        InjectionSettings(**change)


def test_bad_anchors_schedules_and_samplers_are_named(patcher):
    good = Anchor(draw(5, 1, 16, 1, 4, 4))
    with pytest.raises(ValueError, match="probe with the same latent and model"):
        monitored_sample(inputs(patcher), injection=Injection(Anchor(draw(5, 1, 16, 1, 8, 8))))
    with pytest.raises(ValueError, match="start earlier"):
        monitored_sample(inputs(patcher, steps=3), injection=Injection(good, InjectionSettings(start=4)))
    setup = inputs(patcher)
    other = type(setup)(setup.noise, setup.guider, comfy.samplers.Sampler(), setup.sigmas, setup.latent)
    with pytest.raises(ValueError, match="KSamplerSelect"):
        monitored_sample(other, injection=Injection(good))
