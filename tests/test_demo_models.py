"""The demo family's plain-torch Wan networks equal ComfyUI's own, from state dict to result."""

import pytest
import torch
from safetensors.torch import save_file

from foresight.demo.train_common import Average, Muon, orthogonalise
from foresight.demo.train_vae import initialise, reconstruction_loss
from foresight.demo.wan_dit import WanTransformer, load_transformer
from foresight.demo.wan_vae import WanVAE, load_vae, to_model_space, to_vae_space


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
def test_folded_vae_is_unit_normal_in_comfyuis_latent_format(comfyui, vae, tmp_path):
    from comfy.latent_formats import Wan21

    x = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = vae.encode(x)
    out = vae.decode(before)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    folded = load_vae(tmp_path / "vae.safetensors")
    folded.fold_latent_scale(before.mean((0, 2, 3, 4)), before.std((0, 2, 3, 4)))
    latent = folded.encode(x)
    model_space = Wan21().process_in(latent)
    torch.testing.assert_close(model_space.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(model_space.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(to_model_space(latent), model_space)
    torch.testing.assert_close(to_vae_space(model_space), Wan21().process_out(model_space))
    torch.testing.assert_close(folded.decode(latent), out, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_inflated_vae_starts_as_its_image_network():
    vae = WanVAE(4)
    randomise(vae, scale=0.3)
    initialise(vae)
    still = (torch.rand(1, 3, 1, 16, 16) * 2 - 1).expand(-1, -1, 5, -1, -1)
    latent = vae.encode(still)
    torch.testing.assert_close(latent[:, :, 1], vae.encode(still[:, :, :1])[:, :, 0], atol=1e-4, rtol=1e-3)


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
    optimiser, average = Muon([layer.weight], lr=0.1), Average(layer, 0.9)
    losses = []
    for k in range(300):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - k / 300)
        loss = (layer(x) - x @ target).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update(layer)
    assert losses[-1] < 0.05 * losses[0]
    assert (average.model.weight - layer.weight).abs().max() < 0.2
