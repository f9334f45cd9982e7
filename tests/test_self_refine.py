"""Predict and Perturb: on a flow whose optimum is known, and in ComfyUI."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from gaussians import SHAPE, Mixture, draw, sample, sampling
from tiny_models import FAMILIES, with_mask
from tiny_wan import gate, inputs, model

from foresight.sampling.injection import Anchor, Injection
from foresight.sampling.noise import FixedNoise
from foresight.sampling.run import monitored_sample
from foresight.sampling.self_refine import PRESETS, parse_plan, self_refining
from foresight.sampling.self_refine import SelfRefineSettings as Settings

EULER = comfy.samplers.ksampler("euler")
SHORT = parse_plan("1-3:2", 10)


@pytest.fixture(scope="module")
def patcher():
    return model()


def refining(settings, inner=EULER):
    sampler = self_refining(inner, settings)
    return sampler, sampler.sampler_function


@pytest.mark.parametrize("preset, nfe", [("T2V", 60), ("I2V", 63), ("Cosmos", 54), ("distilled", 13)])
def test_the_published_plans_cost_what_the_authors_code_costs(preset, nfe):
    steps = PRESETS[preset].steps
    settings = PRESETS[preset].settings(tau=0.0)
    sampler, refine = refining(settings)
    guider = Mixture()
    sample(sampler, guider, steps)
    assert len(guider.calls) == refine.result.nfe == nfe == settings.evaluations(steps)


def test_a_plan_is_of_shares_of_the_schedule():
    settings = PRESETS["T2V"].settings()
    assert [step for step in range(40) if settings.passes(step, 40) == 3] == [2, 3, 4, 5]
    assert [step for step in range(40) if settings.passes(step, 40) == 1] == list(range(6, 14))
    assert [step for step in range(80) if settings.passes(step, 80) == 3] == list(range(4, 12))


@pytest.mark.parametrize(
    "plan, said",
    [("2-5", "first-last:passes"), ("5-2:1", "within"), ("2-40:1", "within"), ("2-5:3, 5-6:1", "overlaps"),
     ("x", "'x'")],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(plan, said):
    with pytest.raises(ValueError, match=said):
        parse_plan(plan, 40)


@pytest.mark.parametrize(
    "change, said",
    [({"tau": -1.0}, "tau is -1"), ({"tau": 1.5, "threshold": "quantile"}, "quantile"), ({"norm": 3}, "norm is 3"),
     ({"threshold": "soft"}, "absolute, quantile"), ({"tau": math.nan}, "nan")],
)  # fmt: skip
def test_bad_settings_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        Settings(SHORT, **change)


@pytest.mark.parametrize(
    "settings, evaluations",
    [(Settings(SHORT, tau=1e9), 13), (Settings(SHORT, tau=math.inf), 10), (Settings(()), 10),
     (Settings(parse_plan("1-3:0", 10)), 10), (Settings(SHORT, 1.0, "quantile"), 10)],
)  # fmt: skip
def test_what_refines_nothing_is_the_plain_sampler_bit_for_bit(patcher, settings, evaluations):
    plain = monitored_sample(inputs(patcher)).latent["samples"]
    sampler, refine = refining(settings)
    result = monitored_sample(replace(inputs(patcher), sampler=sampler))
    assert torch.equal(result.latent["samples"], plain)
    assert result.verdict.record.nfe_video == refine.result.nfe == evaluations


@pytest.mark.parametrize("inner", ["dpmpp_2m", "uni_pc", "heun", "dpmpp_2m_sde"])
def test_infinity_and_no_passes_are_every_plain_sampler(patcher, inner):
    plain = monitored_sample(inputs(patcher, inner)).latent["samples"]
    for settings in (Settings(SHORT, tau=math.inf), Settings(())):
        setup = inputs(patcher, inner)
        result = monitored_sample(replace(setup, sampler=self_refining(setup.sampler, settings)))
        assert torch.equal(result.latent["samples"], plain)


@pytest.mark.parametrize(
    "settings", [Settings(SHORT, 0.0), Settings(SHORT, 0.5), Settings(SHORT, 0.4, "quantile")]
)
def test_a_batch_of_two_is_two_single_runs(settings):
    noise = torch.cat([draw(1), draw(2)])
    both = sample(refining(settings)[0], Mixture(), 10, seed=20, noise=noise)
    for item in (0, 1):
        alone = sample(refining(settings)[0], Mixture(), 10, seed=20 + item, noise=noise[item : item + 1])
        assert torch.equal(both[item : item + 1], alone)


def test_an_item_that_is_certain_waits_for_the_other():
    """One item agrees with itself at once (a narrow mode), the other never: as in single runs, each at its own pass."""
    centre = torch.tensor([0.0, 3.0]).view(2, 1, 1, 1, 1)
    spread = torch.tensor([0.01, 0.3]).view(2, 1, 1, 1, 1)
    settings, noise = Settings(SHORT, 0.2), torch.cat([draw(1), draw(2)])
    sampler, refine = refining(settings)
    both = sample(sampler, Mixture(centre, spread), 10, seed=20, noise=noise)
    assert refine.result.passes == {1: 2, 2: 2, 3: 2}
    for item in (0, 1):
        sampler, refine = refining(settings)
        narrow = Mixture(centre[item], spread[item])
        alone = sample(sampler, narrow, 10, seed=20 + item, noise=noise[item : item + 1])
        assert torch.equal(both[item : item + 1], alone)
        assert len(narrow.calls) == (13 if item == 0 else 16), "a certain clip ends its passes early"


def ends(sampler, steps, **mixture):
    return torch.cat([sample(sampler, Mixture(**mixture), steps, seed, shift=1.0) for seed in range(30)])


def test_it_moves_samples_towards_the_modes():
    """Below the level where the two modes part (sigma 0.3 to 0.1 here), passes pull samples into one of them. It is not
    the evaluations: as many plain steps do not do it."""
    settings = Settings(parse_plan("28-35:3", 40), 0.0)

    def distance(sampler, steps):
        return float((ends(sampler, steps, centre=1.0, spread=0.3).abs() - 1).square().mean().sqrt())

    plain, longer, refined = distance(EULER, 40), distance(EULER, 64), distance(refining(settings)[0], 40)
    assert settings.evaluations(40) == 64
    assert plain == pytest.approx(0.3, abs=0.02), "the model itself is right: its samples have the data's spread"
    assert refined < 0.8 * min(plain, longer)


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_the_spread_of_one_gaussian_is_what_theory_says(passes):
    """For N(0, s^2) every part is linear in Gaussian noise, so the variance of the samples has a closed form."""
    spread, steps = 0.5, 40
    settings = Settings(parse_plan(f"20-27:{passes}", steps), 0.0)
    variance, sigmas = 1.0, torch.linspace(1, 0, steps + 1).tolist()
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        signal = 1 - sigma
        gain = signal * spread**2 / ((signal * spread) ** 2 + sigma**2)  # x0 = gain x
        for _ in range(settings.passes(step, steps)):
            variance = (signal * gain) ** 2 * variance + sigma**2
        variance *= (1 + (1 - gain) * (following - sigma) / sigma) ** 2
    samples = ends(refining(settings)[0], steps, centre=0.0, spread=spread)
    assert float(samples.var()) == pytest.approx(variance, rel=0.08)
    assert passes == 0 or variance < 0.7 * spread**2


def test_certain_places_are_left_as_they_are():
    """Half of the places have one narrow mode, so two predictions always agree there; the others have two far ones."""
    centre = torch.zeros(1, 1, 1, 1, 4)
    centre[..., 2:] = 3.0
    spread = torch.full((1, 1, 1, 1, 4), 0.01)
    sampler, refine = refining(Settings(parse_plan("2-5:3, 6-13:1", 40), 0.2))
    ours, plain = sample(sampler, Mixture(centre, spread)), sample(EULER, Mixture(centre, spread))
    assert torch.equal(ours[..., :2], plain[..., :2])
    assert not torch.allclose(ours[..., 2:], plain[..., 2:], atol=0.1)
    refined = refine.result.places
    assert refined.shape == (1, *SHAPE[1:])
    assert refined[..., :2].max() == 0 and 0 < refined[..., 2:].mean() <= 1
    assert all(share >= 0.5 for share in refine.result.certain.values())
    assert min(refine.result.certain.values()) < 0.6


def test_the_quantile_is_a_share_of_the_places_whatever_the_scale():
    for scale in (1.0, 50.0):
        sampler, refine = refining(Settings(parse_plan("3-3:1", 10), 0.5, "quantile"))
        sample(sampler, Mixture(scale, 0.3 * scale), 10)
        assert refine.result.certain[3] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", [comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION])
def test_in_a_ve_space_fresh_noise_is_at_the_steps_own_level(kind):
    guider = Mixture(2.0, 0.1, sampling(kind, comfy.model_sampling.ModelSamplingDiscrete))
    seen = []

    def sample_euler(model, x, sigmas, **rest):
        seen.append((float(sigmas[0]), x))
        return EULER.sampler_function(model, x, sigmas, **rest)

    sample(refining(Settings(parse_plan("2-2:1", 10), 0.0), comfy.samplers.KSAMPLER(sample_euler))[0], guider, 10)
    (first_level, first), (level, second) = seen[1:3]
    x0 = Mixture(2.0, 0.1, guider.model_sampling)(first, torch.tensor([first_level]))
    assert level == first_level
    assert float((second - x0).std()) == pytest.approx(level, rel=0.25)
    assert abs(float(((second - x0) * (first - x0)).mean())) < 0.3 * level**2, "fresh, not the old noise again"


def test_a_mask_keeps_what_is_known_and_does_not_count_it():
    known, mask = draw(9), torch.ones(1, *SHAPE)
    mask[..., 1:] = 0
    sampler, refine = refining(Settings(SHORT, 0.0))
    made = sample(sampler, Mixture(), 10, mask=mask, latent=known)
    torch.testing.assert_close(made[..., 1:], known[..., 1:], rtol=1e-5, atol=1e-5)
    assert set(refine.result.certain.values()) == {0.0}, "what the mask keeps is no certain place"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_refined(name):
    setup = FAMILIES[name].inputs("euler")
    for case in (setup, with_mask(setup)):
        result = monitored_sample(replace(case, sampler=self_refining(case.sampler, Settings(SHORT, 0.0))))
        assert torch.isfinite(result.latent["samples"]).all()
        assert result.verdict.record.nfe_video == 16 and result.verdict.record.steps == 10


@pytest.mark.parametrize("inner", ["euler_ancestral", "lcm", "dpmpp_2m", "uni_pc", "heun", "euler_cfg_pp"])
def test_other_samplers_take_their_own_steps_where_nothing_is_refined(patcher, inner):
    setup = inputs(patcher, inner)
    sampler = self_refining(setup.sampler, Settings(parse_plan("1-2:1", 10), 0.0))
    result = monitored_sample(replace(setup, sampler=sampler), gate(0.3), keep_steps=True)
    assert torch.isfinite(result.latent["samples"]).all()
    assert result.verdict.record.steps == len(result.steps_x0["samples"]) == 10
    rest = 2 * 7 - 1 if inner == "heun" else 7  # heun looks ahead, save before the last step
    first = 1 + (inner == "heun")
    assert result.verdict.record.nfe_video == first + 2 * 2 + rest, "a refined step is one evaluation a pass"


def test_audio_and_video_are_refined_apart():
    """Packed as ComfyUI packs them: the video is certain everywhere, the audio nowhere."""
    shapes = [(1, 2, 3, 4, 4), (1, 1, 8)]
    centre = torch.cat([torch.zeros(1, 1, 96), torch.full((1, 1, 8), 3.0)], -1)

    def guider():
        made = Mixture(centre, 0.01)
        made.latent_shapes = shapes
        return made

    noise = torch.randn(1, 1, 104, generator=torch.Generator().manual_seed(1))
    sampler, refine = refining(Settings(SHORT, 0.2))
    ours, plain = sample(sampler, guider(), 10, noise=noise), sample(EULER, guider(), 10, noise=noise)
    assert torch.equal(ours[..., :96], plain[..., :96]) and not torch.allclose(ours[..., 96:], plain[..., 96:])
    assert refine.result.places.shape == (1, 3, 4, 4) and refine.result.places.max() == 0


def test_a_cancel_is_heard_within_one_evaluation():
    guider = Mixture()

    def cancel():
        if len(guider.calls) == 3:  # a pass within step 2, of which no callback tells
            comfy.model_management.interrupt_current_processing()

    guider.on_call = cancel
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(refining(Settings(SHORT, 0.0))[0], guider, 10)
    assert len(guider.calls) == 3


def test_the_same_seed_gives_the_same_clip_and_another_seed_another():
    noise, settings = draw(1), Settings(SHORT, 0.0)
    state = torch.get_rng_state()
    one, same, other = (sample(refining(settings)[0], Mixture(), 10, seed, noise) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_the_schedules_steps_and_shows_the_blended_prediction(patcher):
    seen = []
    sampler, _ = refining(Settings(parse_plan("9-9:2", 10), 0.0))
    made = sample(sampler, Mixture(), 10, callback=lambda step, x0, x, total: seen.append((step, total, x0)))
    assert [(step, total) for step, total, _ in seen] == [(step, 10) for step in range(10)]
    torch.testing.assert_close(seen[-1][2], made)


def test_an_injected_run_is_refined_at_the_same_levels(patcher):
    sampler, refine = refining(Settings(parse_plan("4-5:2", 10), 0.0))
    anchor = Anchor(torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(5)))
    result = monitored_sample(replace(inputs(patcher), sampler=sampler), injection=Injection(anchor))
    assert refine.result.passes == {4: 2, 5: 2}
    assert result.verdict.record.nfe_video == 9 + 4


def test_a_sampler_does_not_keep_the_model_it_has_sampled():
    sampler, guider = refining(Settings(SHORT, 0.0))[0], Mixture()
    known = weakref.ref(guider)
    sample(sampler, guider, 10)
    guider.inner_model = guider.model_patcher = guider.on_call = None  # the stand-in's own circle
    del guider
    gc.collect()
    assert known() is None


def test_pure_noise_is_not_refined():
    sampler, refine = refining(Settings(parse_plan("0-1:2", 10), 0.0))
    sample(sampler, Mixture(), 10)
    assert refine.result.passes == {1: 2}, "at sigma 1 fresh noise would leave nothing of the prediction"


def test_what_cannot_be_refined_is_refused(patcher):
    with pytest.raises(ValueError, match="Self-Refine has to enter the sampler in mid-run"):
        self_refining(comfy.samplers.Sampler(), Settings(SHORT))
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(patcher, 0.5, 0.1, 0.9, False).args[0]
    with pytest.raises(ValueError, match="EasyCache"):
        monitored_sample(replace(inputs(cached), sampler=refining(Settings(SHORT))[0]))


def test_a_monitored_batch_matches_single_runs_of_a_real_network(patcher):
    settings = Settings(SHORT, 0.0)
    setup = inputs(patcher, batch=2)
    noise = setup.noise.generate_noise(setup.latent)
    both = monitored_sample(replace(setup, sampler=refining(settings)[0])).latent["samples"]
    for item in (0, 1):
        single = replace(inputs(patcher), noise=FixedNoise(noise[item : item + 1], 3 + item))
        alone = monitored_sample(replace(single, sampler=refining(settings)[0])).latent["samples"]
        torch.testing.assert_close(both[item : item + 1], alone, rtol=1e-3, atol=1e-3)
