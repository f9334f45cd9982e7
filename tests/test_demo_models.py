"""The demo family's plain-torch Wan networks equal ComfyUI's own, from state dict to result."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from foresight.demo.flow import sample, schedule
from foresight.demo.text import encode_text
from foresight.demo.wan_dit import Attention, WanTransformer, load_transformer, rope_angles
from foresight.demo.wan_vae import WanVAE, load_vae, to_model_space, to_vae_space
from foresight.demo.world import Scene, Thing, render
from foresight.l2r.learner import Learner
from foresight.lab.training.common import TRANSFORMER, VAE, to_network
from foresight.lab.training.dit import look_at
from foresight.lab.training.muon import Muon, orthogonalise
from foresight.lab.training.vae import initialise, reconstruction_loss


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.15) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator) * scale


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    vae = WanVAE(4).eval()
    randomise(vae)
    return vae


@pytest.fixture(scope="module")
def transformer() -> WanTransformer:
    model = WanTransformer(dim=256, layers=2, ffn_dim=64, text_dim=48).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("frames", [1, 5, 17])
@torch.no_grad()
def test_whole_clip_vae_equals_comfyuis_chunked_one(comfyui, vae, frames):
    from comfy.ldm.wan.vae import WanVAE as Chunked

    theirs = Chunked(dim=4, z_dim=16, temperal_downsample=[False, True, True]).eval()
    theirs.load_state_dict(vae.state_dict())
    x = torch.rand(2, 3, frames, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent = theirs.encode(x)
    assert latent.std() > 0.01
    torch.testing.assert_close(vae.encode(x), latent, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latent), theirs.decode(latent), atol=1e-5, rtol=0)


@torch.no_grad()
def test_vae_is_causal(vae):
    x = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    changed = x.clone()
    changed[:, :, 5:] = 0
    latent, other = vae.encode(x), vae.encode(changed)
    torch.testing.assert_close(latent[:, :, :2], other[:, :, :2])
    assert (latent[:, :, 2] - other[:, :, 2]).abs().max() > 1e-4


def test_vae_names_a_wrong_frame_count(vae):
    with pytest.raises(ValueError, match="4n.1 frames, got 4"):
        vae.encode(torch.zeros(1, 3, 4, 16, 16))


@torch.no_grad()
def test_whitened_vae_is_unit_normal_in_comfyuis_latent_format(comfyui, vae, tmp_path):
    from comfy.latent_formats import Wan21

    x = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = vae.encode(x)
    out = vae.decode(before)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    whitened = load_vae(tmp_path / "vae.safetensors")
    whitened.whiten_latents(before)
    latent = whitened.encode(x)
    model_space = Wan21().process_in(latent)
    torch.testing.assert_close(model_space.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(model_space.movedim(1, -1).flatten(0, -2).T), torch.eye(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(to_model_space(latent), model_space)
    torch.testing.assert_close(to_vae_space(model_space), Wan21().process_out(model_space))
    torch.testing.assert_close(whitened.decode(latent), out, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_inflated_vae_starts_as_its_image_network():
    vae = WanVAE(4)
    randomise(vae, scale=0.3)
    initialise(vae)
    still = (torch.rand(1, 3, 1, 16, 16) * 2 - 1).expand(-1, -1, 5, -1, -1)
    latent = vae.encode(still)
    torch.testing.assert_close(latent[:, :, 1], vae.encode(still[:, :, :1])[:, :, 0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("offset", [(0, 0, 1), (-1, 0, 0), (0, -1, 0), (-1, 0, 1)])
def test_attention_starts_by_looking_at_a_neighbour(offset):
    class OneHot(torch.nn.Module):
        def forward(self, tokens):
            return torch.eye(27, 128)[None]

    attention = Attention(128)
    look_at(attention, offset)
    attention.v, attention.o = OneHot(), torch.nn.Identity()  # what comes out is how much of each token was seen
    tokens = torch.randn(1, 27, 128, generator=torch.Generator().manual_seed(0))
    angles = rope_angles((3, 3, 3))
    seen = attention(tokens, tokens, (angles.cos(), angles.sin()))[0, 13, :27].view(3, 3, 3)
    neighbour = tuple(1 + step for step in offset)
    assert seen[neighbour] == seen.max() > 0.35


def test_reconstruction_loss_looks_at_the_object():
    target = torch.full((1, 3, 1, 8, 8), -1.0)
    target[..., :2, :2] = 1
    on_object, on_background = target.clone(), target.clone()
    on_object[..., :2, :2] = 0
    on_background[..., 4:6, 4:6] = 0
    assert reconstruction_loss(on_object, target) > 3 * reconstruction_loss(on_background, target)


@pytest.mark.parametrize("frames", [1, 5])
@torch.no_grad()
def test_transformer_equals_comfyuis(comfyui, transformer, frames):
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    theirs = WanModel(dim=256, ffn_dim=64, num_layers=2, num_heads=2, text_dim=48, dtype=torch.float32,
                      operations=comfy.ops.disable_weight_init).eval()
    theirs.load_state_dict(transformer.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, frames, 8, 4, generator=generator)
    timestep, context = torch.tensor([999.0, 37.5]), torch.randn(2, 7, 48, generator=generator)
    expected = theirs(x, timestep, context)
    assert expected.std() > 0.1
    torch.testing.assert_close(transformer(x, timestep, context), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_transformer_checkpoint_tells_its_size(transformer, tmp_path):
    save_file(transformer.state_dict(), tmp_path / "model.safetensors")
    loaded = load_transformer(tmp_path / "model.safetensors")
    x, timestep, context = torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 48)
    torch.testing.assert_close(loaded(x, timestep, context), transformer(x, timestep, context))


def test_transformer_refuses_other_widths():
    with pytest.raises(ValueError, match="multiple of 128, got 192"):
        WanTransformer(dim=192)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_lowers_a_loss_and_average_follows():
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(8, 8, bias=False)
    layer.weight.data = torch.zeros(8, 8)
    x, target = torch.randn(64, 8, generator=generator), torch.randn(8, 8, generator=generator)
    learner = Learner(layer, Muon([layer.weight], lr=0.1), decay=0.9)
    losses = []
    for k in range(150):
        loss = (layer(x) - x @ target).square().mean()
        losses.append(loss.item())
        learner.step(loss, 1 - k / 150)
    assert losses[-1] < 0.05 * losses[0]
    assert (learner.result.weight - layer.weight).abs().max() < 0.2


@pytest.fixture(scope="module")
def demo_clip() -> torch.Tensor:
    """A rendered clip [17, 64, 64, 3] in 0..1."""
    return render(Scene((Thing("square", "red", None, "right"),), None, "white")).float() / 255


@torch.no_grad()
def test_shipped_vae_through_comfyuis_loader(comfyui, demo_clip):
    import comfy.sd
    import comfy.utils

    theirs = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    ours = load_vae(VAE)
    latent = theirs.encode(demo_clip)
    torch.testing.assert_close(latent, ours.encode(to_network(demo_clip[None] * 255)), atol=0.05, rtol=0.01)
    decoded = theirs.decode(latent)[0]
    expected = ours.decode(latent)[0].movedim(0, -1).add(1).div(2).clamp(0, 1)
    torch.testing.assert_close(decoded, expected, atol=0.02, rtol=0)
    assert -10 * (decoded - demo_clip).square().mean().log10() > 26


@torch.no_grad()
def test_shipped_transformer_through_comfyuis_loader(comfyui):
    import comfy.model_management
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(TRANSFORMER))
    comfy.model_management.load_models_gpu([patcher])
    model = patcher.model
    ours = load_transformer(TRANSFORMER)
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(1, 16, 5, 8, 8, generator=generator), torch.tensor([0.6])
    context = encode_text("a red square moves right on a white background")[None]
    x0 = model.apply_model(x, sigma, c_crossattn=context)
    torch.testing.assert_close(x0, x - 0.6 * ours(x, sigma * 1000, context), atol=0.02, rtol=0.01)


@torch.no_grad()
def test_sampling_follows_the_flow_to_the_only_target():
    target = torch.full((2, 16, 1, 4, 4), 0.5)

    def to_target(x, timestep, context):
        return (x - target.repeat(2, 1, 1, 1, 1)) / (timestep / 1000).view(-1, 1, 1, 1, 1)

    seen = []
    out = sample(to_target, torch.zeros(2, 3, 8), torch.randn(2, 16, 1, 4, 4), steps=4, shift=0.4,
                 callback=lambda step, sigma, x0: seen.append((step, sigma)))
    torch.testing.assert_close(out, target)
    assert [step for step, _ in seen] == [1, 2, 3, 4] and seen[0][1] == pytest.approx(1)
    assert seen[1][1] == pytest.approx(0.4 * 0.75 / (1 - 0.6 * 0.75))


@torch.no_grad()
def test_ancestral_steps_are_comfyuis(comfyui):
    from comfy.k_diffusion.sampling import sample_euler_ancestral_RF

    def velocity(x, timestep, context):
        return 0.7 * x + timestep.view(-1, 1, 1, 1, 1) / 1000

    noise, sigmas = torch.randn(1, 16, 2, 4, 4), schedule(8, 1.0)
    def denoised(x, sigma):
        return x - sigma * velocity(x, sigma * 1000, None)

    denoised.inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: None))  # 0.33
    generator = torch.Generator().manual_seed(5)  # versions seed their own one differently
    theirs = sample_euler_ancestral_RF(
        denoised, noise, sigmas, disable=True, noise_sampler=lambda *_: torch.randn(noise.shape, generator=generator)
    )
    ours = sample(velocity, torch.zeros(1, 3, 8), noise, cfg=1.0, sigmas=sigmas, seed=5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
