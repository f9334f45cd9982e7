"""CogVideoX's VP space: ComfyUI's samplers behind VPSampler take the steps of diffusers' schedulers."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDIMScheduler
from gaussians import Guided

from foresight.sampling.compat import RAW_INPUT
from foresight.sampling.noise_space import NoiseSpace
from foresight.sampling.vp import VPSampler, fitting, require_fitting, trailing_sigmas, vp_sampler

STEPS = 50
SHAPE = (2, 16, 3, 4, 4)


class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """CogVideoX's schedule; 0.3.75 has no V_PREDICTION_DDPM, whose noise scaling is EPS's."""

    def __init__(self):
        config = {"linear_start": 0.00085, "linear_end": 0.012, "beta_schedule": "linear", "zsnr": True}
        super().__init__(SimpleNamespace(sampling_settings=config))


class Guider(Guided):
    """A v-prediction model in x_t, as ComfyUI calls it: x0 out."""

    model_patcher = SimpleNamespace(model=None, get_model_object=lambda name: Sampling())

    def __init__(self, sampling):
        self.inner_model, self.model_options = SimpleNamespace(model_sampling=sampling), {}

    def predict_noise(self, x, sigma, model_options=None, seed=None):
        level = sigma.view(-1, 1, 1, 1, 1)
        signal, noise = (1 + level**2).rsqrt(), level * (1 + level**2).rsqrt()
        return signal * x - noise * velocity(x, self.inner_model.model_sampling.timestep(sigma).view(-1, 1, 1, 1, 1))


def velocity(x, timestep):
    return torch.tanh(0.7 * x.roll(1, -1) + timestep / 1000)


def draw(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def schedule(cls, **options):
    scheduler = cls(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                    timestep_spacing="trailing", clip_sample=False, rescale_betas_zero_snr=True, **options)
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod[-1] = 4.8973451890853435e-08  # ComfyUI's stand-in for a signal of zero
    return scheduler


def ours(sampler, sigmas, **options):
    sampling = Sampling()
    sampler = VPSampler(sampler.sampler_function, {**sampler.extra_options, **options}, sampler.inpaint_options)
    zeros = torch.zeros(SHAPE)
    return sampler.sample(Guider(sampling), sigmas, {"seed": 0}, None, draw(1), zeros, None, True)


def test_trailing_sigmas_are_diffusers():
    scheduler = schedule(CogVideoXDDIMScheduler, snr_shift_scale=1.0)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    expected = ((1 - alphas) / alphas).sqrt().float()
    sigmas = trailing_sigmas(Sampling().sigmas, STEPS)
    torch.testing.assert_close(sigmas[:-1], expected, rtol=1e-3, atol=1e-5)
    assert sigmas[-1] == 0 and len(sigmas) == STEPS + 1


@pytest.mark.parametrize("steps", [0, 1001])
def test_trailing_sigmas_need_as_many_timesteps(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}.*1 to 1000"):
        trailing_sigmas(Sampling().sigmas, steps)


def test_euler_is_ddim():
    scheduler = schedule(CogVideoXDDIMScheduler, snr_shift_scale=1.0)
    x = draw(1)
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, timestep), timestep, x).prev_sample
    result = ours(vp_sampler("ddim"), trailing_sigmas(Sampling().sigmas, STEPS))
    torch.testing.assert_close(result, x, rtol=0, atol=2e-3)


def test_euler_ancestral_is_ddim_with_eta():
    scheduler = schedule(DDIMScheduler, set_alpha_to_one=True)
    x, noise = draw(1), torch.Generator().manual_seed(5)
    for timestep in scheduler.timesteps:
        fresh = torch.randn(SHAPE, generator=noise)
        x = scheduler.step(velocity(x, timestep), timestep, x, eta=0.6, variance_noise=fresh).prev_sample
    noise = torch.Generator().manual_seed(5)
    result = ours(vp_sampler("ddim", 0.6), trailing_sigmas(Sampling().sigmas, STEPS),
                  noise_sampler=lambda *_: torch.randn(SHAPE, generator=noise))
    torch.testing.assert_close(result, x, rtol=0, atol=2e-3)


def test_dpm_is_cogvideox_dpm():
    scheduler = schedule(CogVideoXDPMScheduler, snr_shift_scale=1.0)
    x, old, noise = draw(1), None, torch.Generator().manual_seed(5)
    for before, timestep in zip([None, *scheduler.timesteps[:-1]], scheduler.timesteps, strict=True):
        x, old = scheduler.step(velocity(x, timestep), old, timestep, before, x, generator=noise, return_dict=False)
    noise, first = torch.Generator().manual_seed(5), True

    def fresh(*_):
        nonlocal first
        if not first:
            torch.randn(SHAPE, generator=noise)  # diffusers draws twice from the second step on and uses the last
        first = False
        return torch.randn(SHAPE, generator=noise)

    result = ours(vp_sampler("dpm"), trailing_sigmas(Sampling().sigmas, STEPS), noise_sampler=fresh)
    torch.testing.assert_close(result, x, rtol=0, atol=2e-3)


def test_renoising_is_diffusers_add_noise():
    scheduler, sampling = schedule(CogVideoXDDIMScheduler, snr_shift_scale=1.0), Sampling()
    for timestep in (0, 300, 700, 990):
        sigma = sampling.sigmas[timestep]
        x = NoiseSpace.of(sampling).renoise(draw(2), draw(3), sigma) * (1 + sigma**2).rsqrt()
        expected = scheduler.add_noise(draw(2), draw(3), torch.tensor([timestep]))
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_other_models_keep_their_sampler():
    euler = comfy.samplers.ksampler("euler")
    assert fitting(euler, Sampling()) is euler
    require_fitting(euler, Sampling())


@pytest.mark.skipif(not RAW_INPUT, reason="no native CogVideoX here")
def test_raw_input_models_need_a_vp_sampler():
    raw = type("Raw", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION_DDPM), {})()
    euler = comfy.samplers.ksampler("euler")
    made = fitting(euler, raw)
    assert type(made) is VPSampler and made.sampler_function is euler.sampler_function
    assert fitting(made, raw) is made
    require_fitting(made, raw)
    with pytest.raises(ValueError, match="native CogVideoX.*CogVideoX Sampler"):
        require_fitting(euler, raw)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'heun'.*ddim, dpm"):
        vp_sampler("heun")
