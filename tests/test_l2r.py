"""The latent-to-RGB converters: their layouts, causality, chunks and files."""

import importlib
import json
import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from foresight.l2r import decode as decode_module
from foresight.l2r.checkpoint import load_l2r, save_l2r
from foresight.l2r.decode import decode
from foresight.l2r.linear import LinearL2R
from foresight.l2r.model import L2R, LearnedUpsampling
from foresight.l2r.subpixel import SubpixelL2R


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_has_the_papers_parameter_count():
    assert sum(p.numel() for p in L2R(16).parameters()) == 58_659


@pytest.mark.parametrize("shape", [(1, 16, 1, 4, 4), (2, 16, 5, 8, 8), (1, 16, 3, 5, 7)])
def test_keeps_frames_and_enlarges_space(shape):
    preview = L2R(16)(noise(*shape))
    batch, _, frames, height, width = shape
    assert preview.shape == (batch, frames, 8 * height, 8 * width, 3)
    assert 0 <= preview.min() and preview.max() <= 1


def test_the_past_does_not_see_the_future():
    model, latent = L2R(4), noise(1, 4, 5, 4, 4)
    before = model(latent)
    latent[:, :, 3:] += 1
    after = model(latent)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


CONVERTERS = {
    "paper": lambda: L2R(4, 2),
    "subpixel": lambda: SubpixelL2R(4, 2),
    "subpixel with network": lambda: SubpixelL2R(4, 2).widened(8, torch.Generator().manual_seed(0)),
    "linear": lambda: LinearL2R([[0.1, 0.2, 0.3]] * 4, scale=2),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_chosen_frames_are_those_of_the_whole_clip(name, monkeypatch):
    model, latent = CONVERTERS[name](), noise(2, 4, 7, 3, 5)
    for parameter in model.parameters():  # also what starts as zero
        torch.nn.init.normal_(parameter, std=0.2)
    whole = model(latent)
    for frames in ([0], [0, 3, 6], [5, 2], None):
        for pixels in (1, 2 * 60, 10**9):  # one frame at a time, two, all
            monkeypatch.setattr(decode_module, "PIXELS", pixels)
            expected = whole if frames is None else whole[:, frames]
            assert torch.allclose(decode(model, latent, frames), expected, atol=1e-5)


def test_chunks_are_halved_until_they_fit():
    class Limited(LinearL2R):
        limit, sizes = 2, []

        def forward(self, latent, frames=None):
            self.sizes.append(len(frames))
            if len(frames) > self.limit:
                raise torch.OutOfMemoryError("too many frames")
            return super().forward(latent, frames)

    model, latent = Limited([[0.1, 0.2, 0.3]] * 4, scale=2), noise(1, 4, 9, 3, 5)
    whole = LinearL2R([[0.1, 0.2, 0.3]] * 4, scale=2)(latent)
    assert torch.equal(decode(model, latent), whole)
    assert max(model.sizes) == 9 and sum(size for size in model.sizes if size <= 2) == 9
    model.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        decode(model, latent)


def test_upsampling_starts_bilinear():
    x = noise(1, 3, 2, 6, 6)
    ours = LearnedUpsampling(3, 4)(x)[0, :, :, 4:-4, 4:-4]  # borders differ: the convolution pads with zeros
    theirs = torch.nn.functional.interpolate(x[0].transpose(0, 1), scale_factor=4, mode="bilinear")[..., 4:-4, 4:-4]
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("converter", [L2R(16), LinearL2R([[0.1, 0.2, 0.3]] * 16)])
def test_wrong_latents_are_named(converter):
    with pytest.raises(ValueError, match="16 channels.* has 12"):
        converter(noise(1, 12, 1, 2, 2))
    with pytest.raises(ValueError, match=r"\[1, 16, 2, 2\]"):
        converter(noise(1, 16, 2, 2))


def test_checkpoint_round_trip(tmp_path):
    model = L2R(4, 2, {"name": "small"})
    save_l2r(model, tmp_path / "l2r.safetensors", {"latent_format": "Wan21"})
    loaded = load_l2r(tmp_path / "l2r.safetensors")
    assert (loaded.name, loaded.channels, loaded.metadata["latent_format"]) == ("small", 4, "Wan21")
    assert not loaded.training
    assert torch.allclose(loaded(noise(1, 4, 2, 3, 3)), model(noise(1, 4, 2, 3, 3)), atol=2e-3)


def test_files_that_are_no_converter_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="other.safetensors is no L2R converter"):
        load_l2r(path)
    save_file({"weight": torch.zeros(2)}, path, {"foresight.l2r": json.dumps({"channels": 4, "scale": 2})})
    with pytest.raises(ValueError, match="does not fit .* take it out"):
        load_l2r(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_l2r(path)


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs COMFYUI_PATH, which the test command sets")
def test_linear_map_is_comfyuis_at_latent_resolution(monkeypatch):
    monkeypatch.setattr(sys, "path", [os.environ["COMFYUI_PATH"], *sys.path])
    monkeypatch.setattr(sys, "argv", ["comfyui", "--cpu"])
    previewer = importlib.import_module("latent_preview").Latent2RGBPreviewer
    format_ = importlib.import_module("comfy.latent_formats").Wan21()
    latent = noise(1, 16, 1, 6, 5)
    theirs = previewer(format_.latent_rgb_factors, format_.latent_rgb_factors_bias).decode_latent_to_preview(latent)
    ours = LinearL2R(format_.latent_rgb_factors, format_.latent_rgb_factors_bias, scale=1)(latent)
    pixels = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(6, 5, 3)
    assert torch.equal((ours[0, 0] * 255).to(torch.uint8), pixels)


def test_linear_previews_are_smooth():
    edge = torch.zeros(1, 1, 1, 1, 8)
    edge[..., 4:] = 1
    row = LinearL2R([[1.0, 1.0, 1.0]], scale=8)(edge)[0, 0, 4, :, 0]
    assert row.shape == (64,)
    assert row.diff().abs().max() < 0.15  # blocks would jump by 0.5
