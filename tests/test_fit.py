"""Converters that are fitted to a VAE: in closed form, refined, saved and found again."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from foresight.demo.wan_vae import load_vae
from foresight.l2r import fit
from foresight.l2r.checkpoint import load_l2r, save_l2r
from foresight.l2r.clips import procedural_clips
from foresight.l2r.fit import crops, fit_affine, key_frames, quality, refine
from foresight.l2r.model import L2R
from foresight.l2r.subpixel import SubpixelL2R
from foresight.lab.training.common import VAE, random_clips
from foresight.lab.training.l2r import pairs


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def demo_pairs():
    """Latents and frames of 24 clips to fit on, and of 8 others."""
    vae = load_vae(VAE)
    return [[pairs(vae, random_clips(torch.Generator().manual_seed(seed), count))] for seed, count in ((1, 24), (2, 8))]


class PerPosition(torch.nn.Module):
    """The best linear map of each latent alone, enlarged bilinearly: what latent_rgb_factors can be at most."""

    def __init__(self, latents, frames, scale=8):
        super().__init__()
        self.scale = scale
        rows = F.pad(latents.movedim(1, -1).flatten(0, 3), (0, 1), value=1.0)
        means = F.avg_pool2d(frames.flatten(0, 1).movedim(-1, 1), scale).movedim(1, -1).reshape(-1, 3)
        self.map = torch.linalg.lstsq(rows, means).solution

    def forward(self, latent, frames=None):
        latent = latent if frames is None else latent[:, :, frames]
        small = F.pad(latent.movedim(1, -1), (0, 1), value=1.0) @ self.map
        large = F.interpolate(small.flatten(0, 1).movedim(-1, 1), scale_factor=self.scale, mode="bilinear")
        return large.movedim(1, -1).unflatten(0, small.shape[:2]).clamp(0, 1)


def test_an_affine_decoder_is_found_exactly():
    truth = SubpixelL2R(4, 2)
    latent = draw(6, 4, 3, 6, 6)
    with torch.no_grad():
        truth.affine.weight.mul_(0.05)
        truth.affine.bias.fill_(0.5)
        frames = truth(latent)
    found = fit_affine([(latent, frames)], noise=1e-4)
    other = draw(2, 4, 3, 6, 6, seed=1)
    torch.testing.assert_close(found(other), truth(other), rtol=0, atol=1e-4)


def test_the_closed_form_beats_the_best_linear_map_by_2_db(demo_pairs):
    fitted_on, held_out = demo_pairs
    assert quality(fit_affine(fitted_on), held_out) >= quality(PerPosition(*fitted_on[0]), held_out) + 2


@pytest.fixture
def clock(monkeypatch):
    """Refinement's clock goes on by .02 seconds a step, on a busy machine too."""
    ticks = (0.02 * step for step in count())
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def test_refinement_goes_on_from_the_fit_and_gets_better(demo_pairs, clock):
    fitted_on, held_out = demo_pairs
    fitted = fit_affine(fitted_on)
    told = []
    refined = refine(fitted, fitted_on, 4, on_progress=told.append)
    assert quality(refined, held_out) > quality(fitted, held_out)
    assert told == sorted(told) and told[-1] == 1
    short = refine(fitted, fitted_on, 0.2)
    assert quality(short, held_out) > quality(fitted, held_out) - 0.5, "its first steps undo nothing"


def test_a_step_learns_from_many_clips_of_one_length():
    def pair(number, length, side):
        latent = torch.full((1, 4, length, side, side), float(number))
        return latent, torch.full((1, length, 2 * side, 2 * side, 3), -float(number))

    pairs_ = [pair(n, 3, 8) for n in range(1, 9)] + [pair(n, 5, 8) for n in range(9, 13)] + [pair(13, 3, 6)]
    shapes = set()
    for seed in range(60):
        latent, frames = crops(pairs_, 2, torch.Generator().manual_seed(seed))
        numbers = latent[:, 0, 0, 0, 0]
        assert torch.equal(frames[:, 0, 0, 0, 0], -numbers) and len(numbers.unique()) > 2
        shapes.add(tuple(latent.shape))
    assert shapes == {(8, 4, 3, 8, 8), (8, 4, 5, 8, 8), (8, 4, 3, 6, 6)}


def test_refinement_takes_half_of_its_time_for_fresh_pairs(demo_pairs, monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def fresh():
        now[0] += 0.3
        made.append(demo_pairs[0][0])
        return made[-1]

    def step(share):
        now[0] += 0.05

    given = demo_pairs[0][:1]
    refine(fit_affine(given), given, 6, fresh=fresh, on_progress=step)
    assert 2 <= 0.3 * len(made) <= 3.3 and len(given) == 1


def test_refinement_can_be_cancelled(demo_pairs):
    class Cancelled(Exception):
        pass

    def cancel(share):
        raise Cancelled

    with pytest.raises(Cancelled):
        refine(fit_affine(demo_pairs[0]), demo_pairs[0], 100, on_progress=cancel)


def test_it_sees_no_future_and_keeps_frames():
    model, latent = SubpixelL2R(4, 2, 8), draw(1, 4, 5, 4, 4)
    before = model(latent)
    assert before.shape == (1, 5, 8, 8, 3)
    latent[:, :, 3:] += 1
    assert torch.equal(before[:, :3], model(latent)[:, :3])


@pytest.mark.parametrize("channels, scale", [(48, 16), (128, 32), (12, 8)])
def test_other_latents_are_fitted_as_well(channels, scale):
    model = fit_affine([(draw(1, channels, 2, 3, 3), torch.rand(1, 2, 3 * scale, 3 * scale, 3))])
    assert model(draw(1, channels, 1, 2, 5)).shape == (1, 1, 2 * scale, 5 * scale, 3)


@pytest.mark.parametrize(
    "latent, frames, said",
    [
        ((1, 4, 2, 4, 4), (1, 3, 8, 8, 3), "do not belong together"),
        ((1, 4, 2, 4, 4), (1, 2, 9, 8, 3), "do not belong together"),
    ],
)
def test_pairs_that_do_not_fit_are_named(latent, frames, said):
    with pytest.raises(ValueError, match=said):
        fit_affine([(draw(*latent), torch.zeros(frames))])


def test_nan_latents_and_odd_clips_are_named():
    with pytest.raises(ValueError, match="NaN"):
        fit_affine([(torch.full((1, 4, 1, 2, 2), float("nan")), torch.zeros(1, 1, 4, 4, 3))])
    with pytest.raises(ValueError, match="8 frames do not make 3 latent frames"):
        key_frames(torch.zeros(1, 8, 4, 4, 3), 3)
    assert key_frames(torch.arange(9.0).view(1, 9, 1, 1, 1), 3).flatten().tolist() == [0, 4, 8]


def test_files_of_both_layouts_come_back(tmp_path):
    latent = draw(1, 4, 2, 3, 3)
    for model in (SubpixelL2R(4, 2, 6, {"name": "ours"}), L2R(4, 2, {"name": "paper"})):
        save_l2r(model, tmp_path / "l2r.safetensors")
        loaded = load_l2r(tmp_path / "l2r.safetensors")
        assert type(loaded) is type(model) and loaded.name == model.name
        torch.testing.assert_close(loaded(latent), model(latent), rtol=0, atol=2e-3)  # kept in half precision


# Of each kind with each texture: mean, deviation, a corner at the beginning, another at the end, and how much changes.
CLIPS = [
    (0.4875, 0.2471, 0.4793, 0.52, 0.062),
    (0.7268, 0.1815, 0.6078, 0.8823, 0.1468),
    (0.3773, 0.1095, 0.2748, 0.3925, 0.0136),
    (0.4888, 0.2512, 0.6361, 0.3741, 0.1294),
    (0.4957, 0.2629, 0.5457, 0.4986, 0.0046),
    (0.7704, 0.2055, 0.733, 0.9741, 0.1201),
    (0.4946, 0.0958, 0.4756, 0.4062, 0.0367),
    (0.3748, 0.1577, 0.3839, 0.4184, 0.0883),
    (0.4598, 0.2901, 0.6689, 0.3457, 0.0024),
    (0.6944, 0.2657, 0.9363, 0.7869, 0.0808),
    (0.5473, 0.0668, 0.4684, 0.5755, 0.011),
    (0.7047, 0.1608, 0.7574, 0.5672, 0.0663),
    (0.4617, 0.2868, 0.4635, 0.5526, 0.1383),
    (0.9359, 0.0927, 0.9441, 0.9786, 0.0656),
    (0.4275, 0.1016, 0.3186, 0.4137, 0.0098),
    (0.1029, 0.1628, 0.1198, 0.0944, 0.171),
]


def test_calibration_clips_are_those_that_the_published_converters_were_fitted_on():
    """On any version of torch, to what its interpolation may differ in."""
    clips = procedural_clips(16, 3, 32).double()
    corners = clips[:, 0, :16, :16, 0].mean((1, 2)), clips[:, -1, 16:, 16:, 2].mean((1, 2))
    whole = clips.mean((1, 2, 3, 4)), clips.std((1, 2, 3, 4))
    told = torch.stack([*whole, *corners, (clips[:, 0] - clips[:, -1]).abs().mean((1, 2, 3))], 1)
    torch.testing.assert_close(told, torch.tensor(CLIPS, dtype=torch.double), rtol=0, atol=4e-4)


def test_calibration_clips_are_the_same_each_time_and_move():
    clips = procedural_clips(8, 5, 32)
    assert clips.shape == (8, 5, 32, 32, 3) and 0 <= clips.min() and clips.max() <= 1
    assert torch.equal(clips, procedural_clips(8, 5, 32))
    assert not torch.equal(clips, procedural_clips(8, 5, 32, seed=1))
    assert (clips[:, 0] - clips[:, -1]).abs().flatten(1).mean(1).min() > 0
    assert clips.flatten(1).std(1).min() > 0.02
