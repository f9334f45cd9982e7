"""The whole method on a CogVideoX of the real architecture (tiny, random), in ComfyUI versions that have it."""

from __future__ import annotations

import comfy.samplers
import comfy.sd
import pytest
import torch
from tiny_wan import Conditioned, ScriptedScorer, conditioning, gate

from foresight.evaluation.convert import converted
from foresight.nodes.cogvideox import CogVideoXSampler
from foresight.nodes.hierarchy import ForesightSampler
from foresight.refiner.base import Rewording
from foresight.sampling.compat import RAW_INPUT
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import Anchor, Injection, InjectionSettings
from foresight.sampling.inputs import Inputs
from foresight.sampling.run import monitored_sample
from foresight.sampling.vp import VPSampler

if not RAW_INPUT:
    pytest.skip("this ComfyUI has no native CogVideoX (it came after 0.3.75)", allow_module_level=True)

from tiny_cogvideox import LATENT, inputs, model


@pytest.fixture(scope="module")
def patcher():
    return model()


def vp(sigma):
    return (1 + sigma**2).rsqrt(), sigma * (1 + sigma**2).rsqrt()


class Ddim(comfy.samplers.Sampler):
    """DDIM written out in x_t, which is what the model takes; `before_step(k, z)` may change z, k from 0."""

    def __init__(self, first=0, before_step=lambda k, z: z):
        self.first, self.before_step = first, before_step

    def sample(self, model, sigmas, extra_args, callback, noise, *_):
        z = noise
        for k in range(self.first, len(sigmas) - 1):
            z = self.before_step(k, z)
            x0 = model(z, sigmas[k].expand(len(z)), **extra_args)
            (signal, share), (signal_next, share_next) = vp(sigmas[k]), vp(sigmas[k + 1])
            z = signal_next * x0 + share_next * (z - signal * x0) / share
        return z


def run(setup: Inputs, sampler):
    noise = setup.noise.generate_noise(setup.latent)
    return setup.guider.sample(noise, setup.latent["samples"], sampler, setup.sigmas, seed=3)


def test_the_node_gives_a_sampler_and_a_schedule_that_fit(patcher):
    sampler, sigmas = CogVideoXSampler.execute(patcher, "ddim", 8, 0.0, 1.0).args
    assert type(sampler) is VPSampler and len(sigmas) == 9 and sigmas[0] > 4000
    _, half = CogVideoXSampler.execute(patcher, "dpm", 8, 0.0, 0.5).args
    assert len(half) == 9 and half[0] < 10
    setup = inputs(patcher)
    result = run(setup, sampler)
    assert torch.isfinite(result).all()


def test_sampling_is_ddim_in_the_models_own_space(patcher):
    setup = inputs(patcher)
    torch.testing.assert_close(run(setup, setup.sampler), run(setup, Ddim()), rtol=0, atol=2e-3)


def test_a_denoise_beyond_the_models_timesteps_is_named(patcher):
    with pytest.raises(ValueError, match="50 steps at denoise 0.01 need 5000 timesteps.*1000"):
        CogVideoXSampler.execute(patcher, "ddim", 50, 0.0, 0.01)


def test_foresight_sampler_fits_the_sampler_by_itself(patcher):
    class Clip:
        def tokenize(self, text):
            return 1 if text else 2

        def encode_from_tokens_scheduled(self, seed):
            return conditioning(seed)

    judged = gate()
    settings = {name: widget.default for widget in ForesightSampler.define_schema().inputs
                if (name := widget.id) and getattr(widget, "default", None) is not None}
    settings |= {
        "model": patcher, "clip": Clip(), "prompt": "a red circle", "negative": "", "seed": 3, "steps": 10, "cfg": 4.0,
        "sampler_name": "euler", "scheduler": "simple", "latent_image": {"samples": torch.zeros(1, *LATENT)},
        "scorer": ScriptedScorer(0.9), "l2r": judged.l2r,
    }  # fmt: skip
    setup = inputs(patcher)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 10)
    setup = Inputs(setup.noise, setup.guider, setup.sampler, sigmas, setup.latent)
    assert torch.equal(ForesightSampler.execute(**settings).args[0]["samples"], run(setup, setup.sampler))


def test_comfyuis_own_sampler_is_refused(patcher):
    setup = inputs(patcher)
    wrong = Inputs(setup.noise, setup.guider, comfy.samplers.ksampler("euler"), setup.sigmas, setup.latent)
    with pytest.raises(ValueError, match="native CogVideoX.*CogVideoX Sampler"):
        monitored_sample(wrong)


def test_a_passing_run_is_untouched_and_a_failing_one_stops(patcher):
    setup = inputs(patcher, "dpm")
    plain = run(setup, setup.sampler)
    passed = monitored_sample(setup, gate(0.9))
    assert torch.equal(passed.latent["samples"], plain)
    stopped = monitored_sample(setup, gate(0.01))
    assert not stopped.verdict.accepted and stopped.verdict.record.steps == 3  # of 10: the paper's 14 of 50


def test_injection_is_algorithm_1_in_vp_space(patcher):
    anchor = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    setup = inputs(patcher)
    eps = setup.noise.generate_noise(setup.latent)
    mask = torch.linspace(1, 0, LATENT[1]).view(1, 1, -1, 1, 1)

    def blend(k, z):
        signal, share = vp(setup.sigmas[k])
        noised = signal * anchor + share * eps
        return noised if k == 1 else torch.lerp(z, noised, mask) if k == 2 else z

    injected = monitored_sample(setup, injection=Injection(Anchor(anchor), InjectionSettings()))
    torch.testing.assert_close(injected.latent["samples"], run(setup, Ddim(1, blend)), rtol=0, atol=2e-3)


def test_all_trials_run(patcher):
    class Rewriter:
        name = "rewriter"

        def reword(self, request):
            return Rewording(f"clearly {request.prompt}", request.negative, "", ())

    result = run_hierarchy(
        inputs(patcher), gate(0.01), Conditioned(patcher), negative="", reworder=Rewriter(),
        injection=InjectionSettings(),
    )
    kinds = [record.kind for record in result.verdict.history]
    assert kinds == ["sample", "probe", "refine", "sample", "probe", "inject"]
    assert result.latent["samples"].shape == (1, *LATENT) and torch.isfinite(result.latent["samples"]).all()


def test_a_released_transformer_gives_the_same_after_conversion():
    """Against diffusers' own model, which defines what the released weights mean."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = CogVideoXTransformer3DModel(
            num_attention_heads=2, num_layers=2, time_embed_dim=64, text_embed_dim=4096,
            use_rotary_positional_embeddings=True,
        )
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.06)
    ours = comfy.sd.load_diffusion_model_state_dict(converted(theirs.state_dict())).model.diffusion_model.float()
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, *LATENT, generator=generator), torch.randn(1, 12, 4096, generator=generator)
    timestep = torch.tensor([500.0])
    side = LATENT[-1] // 2
    crops = get_resize_crop_region_for_grid((side, side), 45, 30)
    rotary = get_3d_rotary_pos_embed(64, crops, (side, side), LATENT[1])
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2), text, timestep, image_rotary_emb=rotary).sample.transpose(1, 2)
        found = ours(x, timestep, text)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_another_file_is_named():
    with pytest.raises(ValueError, match="no transformer of CogVideoX"):
        converted({"blocks.0.q.weight": torch.zeros(1)})
