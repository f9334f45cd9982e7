"""Linear previews of every latent format that ComfyUI has a map for: its own picture, enlarged."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import comfy.latent_formats
import pytest
import torch
from latent_preview import Latent2RGBPreviewer

from foresight.nodes.loaders import LINEAR, load_converter


def formats():
    for name, kind in inspect.getmembers(comfy.latent_formats, inspect.isclass):
        if name != "LatentFormat" and issubclass(kind, comfy.latent_formats.LatentFormat):
            try:
                made = kind()
            except TypeError:  # a base that only others fill in
                continue
            if made.latent_rgb_factors is not None:
                yield pytest.param(made, id=name)


@pytest.mark.parametrize("latent_format", list(formats()))
def test_a_linear_preview_is_comfyuis_own_picture(latent_format):
    model = SimpleNamespace(get_model_object=lambda name: latent_format)
    converter = load_converter(LINEAR, model)
    latent = torch.randn(1, converter.channels, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    scale = converter.scale
    assert converter(latent, [1]).shape == (1, 1, 4 * scale, 6 * scale, 3)
    reshape = latent_format.latent_rgb_factors_reshape
    core = Latent2RGBPreviewer(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias, reshape)
    picture = core.decode_latent_to_preview(latent[:, :, 1])
    converter.scale = picture.width // 6  # one pixel for each place, as core shows it
    ours = (converter(latent)[0, 1] * 255).to(torch.uint8)
    theirs = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_flux_2s_folded_latents_are_seen_at_their_own_size():
    model = SimpleNamespace(get_model_object=lambda name: comfy.latent_formats.Flux2())
    converter = load_converter(LINEAR, model)
    assert (converter.channels, converter.scale) == (128, 16)
    with pytest.raises(ValueError, match="reads latents of 128 channels"):
        converter(torch.zeros(1, 32, 1, 4, 4))
