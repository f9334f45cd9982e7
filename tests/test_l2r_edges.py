"""The converters' room at its edges: memory of a chunk, what noise does to a fit, image VAEs, what is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foresight.l2r import decode as decode_module
from foresight.l2r.calibration import before_and_after, calibrate, worth_keeping
from foresight.l2r.decode import decode
from foresight.l2r.fit import AffineFit, fit_affine
from foresight.l2r.pairs import encoded


class Format:
    latent_channels, latent_rgb_factors = 4, None

    def process_in(self, latent):
        return 2 * latent


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(3, 20), (20, 3), (8, 8)])
def test_a_chunk_is_as_many_frames_as_its_pixels_allow(size, monkeypatch):
    made = []

    def converter(latent, frames):
        made.append(len(frames))
        return torch.zeros(1, len(frames), 2 * latent.shape[3], 2 * latent.shape[4], 3)

    converter.scale = 2
    frame = 4 * size[0] * size[1]
    by_pixels = {2 * frame: [2, 2, 2, 1], 3 * frame - 1: [2, 2, 2, 1], frame - 1: [1] * 7, 7 * frame: [7]}
    for pixels, chunks in by_pixels.items():
        monkeypatch.setattr(decode_module, "PIXELS", pixels)
        made.clear()
        decode(converter, torch.zeros(1, 4, 7, *size))
        assert made == chunks


@pytest.mark.parametrize("noise", [0.01, 0.5, 2.0])
def test_a_fit_trusts_noisy_latents_as_much_as_least_squares_does(noise):
    """Of values with variance 1 that carry noise of deviation s, a weight w becomes w / (1 + s^2)."""
    latent = draw(4, 1, 3, 40, 40)
    frames = 0.5 + 0.1 * latent.movedim(1, -1).expand(-1, -1, -1, -1, 3)
    solved = fit_affine([(latent, frames)], noise)
    weight = solved.affine.weight[:, 0, 1, 1, 1]
    assert torch.allclose(weight, torch.full((3,), 0.1 / (1 + noise**2)), rtol=0.05)
    assert torch.allclose(solved.affine.bias, torch.full((3,), 0.5), atol=0.01)


def test_an_image_vae_makes_one_latent_of_each_frame():
    vae = SimpleNamespace(encode=lambda clip: clip[:, ::2, ::2].movedim(-1, 1).repeat(1, 2, 1, 1)[:, :4])
    clip = torch.rand(5, 8, 6, 3, generator=torch.Generator().manual_seed(0))
    latent, frames = encoded(vae, Format(), clip)
    assert latent.shape == (1, 4, 5, 4, 3) and torch.equal(frames, clip[None])
    assert torch.equal(latent[0, 1], 2 * clip[:, ::2, ::2, 1]), "frame by frame, in the model's space"


def test_a_fresh_fit_replaces_what_is_worse_only():
    made = lambda **metadata: SimpleNamespace(metadata=metadata)  # noqa: E731
    assert worth_keeping(made(psnr=20.0), None) and worth_keeping(made(psnr=20.1), made(psnr=20.0))
    assert not worth_keeping(made(psnr=20.0), made(psnr=20.0)), "no worse is kept"
    assert worth_keeping(made(psnr=20.0), made()), "where nothing is known of it"
    assert not worth_keeping(made(psnr=30.0), made(psnr=20.0, learned=1)), "what was learned is not lost"
    assert worth_keeping(made(psnr=10.0, learned=2), made(psnr=20.0, learned=1))


def test_a_clip_is_learned_only_where_that_is_asked_for(tmp_path):
    samples = draw(1, 4, 3, 8, 8)
    images = torch.rand(9, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    converter, _ = calibrate(None, Format(), images, samples, tmp_path)
    assert "learned" not in converter.metadata and converter.metadata["kept"].startswith("Kept as")
    for times in (1, 2):
        converter, _ = calibrate(None, Format(), images, samples, tmp_path, learn=True)
        assert converter.metadata["learned"] == times
    assert converter.metadata["vae"] is None and converter.metadata["held_out"] == "each clip before it was learned"
    calibrate(None, Format(), images, samples, tmp_path / "no", save=False)
    assert not (tmp_path / "no").exists()

    shown = before_and_after(None, Format(), images, samples, converter, converter)
    assert shown.shape == (1, 256, 3 * 256, 3), "small clips are shown larger, both ways alike"
    blocks = shown[0].view(16, 16, 48, 16, 3)
    assert torch.equal(blocks, blocks[:, :1, :, :1].expand_as(blocks)), "each pixel a square"
    assert torch.allclose(blocks[:, 0, :16, 0], images[4])


def test_a_fit_counts_what_it_was_given():
    fit = AffineFit(4, 2)
    fit.add(draw(2, 4, 5, 6, 3), torch.rand(2, 5, 12, 6, 3))
    assert (fit.clips, fit.rows) == (2, 2 * 5 * 18)
    fit.add(draw(1, 4, 5, 6, 3), torch.rand(1, 5, 12, 6, 3), limit=2 * 18)
    assert (fit.clips, fit.rows) == (3, 12 * 18)
