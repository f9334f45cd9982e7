"""Converters that are fitted to a VAE: in closed form, refined, saved and found again."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import comfy.latent_formats
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import tiny_wan
import torch
from torch.nn import functional as F

from foresight.demo.wan_vae import load_vae
from foresight.l2r import calibration, fit
from foresight.l2r.checkpoint import load_fit, load_l2r, save_l2r
from foresight.l2r.clips import procedural_clips
from foresight.l2r.fit import crops, fit_affine, key_frames, quality, refine
from foresight.l2r.model import L2R
from foresight.l2r.pairs import encoded, fingerprint
from foresight.l2r.subpixel import SubpixelL2R
from foresight.lab.training.common import VAE, random_clips
from foresight.lab.training.l2r import pairs
from foresight.nodes.calibration import L2RCalibrate
from foresight.nodes.loaders import load_converter


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


def test_calibration_clips_are_the_same_each_time_and_move():
    clips = procedural_clips(8, 5, 32)
    assert clips.shape == (8, 5, 32, 32, 3) and 0 <= clips.min() and clips.max() <= 1
    assert torch.equal(clips, procedural_clips(8, 5, 32))
    assert not torch.equal(clips, procedural_clips(8, 5, 32, seed=1))
    assert (clips[:, 0] - clips[:, -1]).abs().flatten(1).mean(1).min() > 0
    assert clips.flatten(1).std(1).min() > 0.02


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only model folder with converters. Fewer and shorter clips are encoded, which is what takes the time."""
    for name, value in (("CLIPS", 12), ("HELD_OUT", 2), ("GROUPS", 2)):
        monkeypatch.setattr(calibration, name, value)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "foresight_l2r", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("foresight_l2r", None)
    return tmp_path


def test_the_node_calibrates_and_auto_finds_what_it_kept(folder):
    model, vae = tiny_wan.model(), comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    assert load_converter("auto", model).name == "linear"
    own = procedural_clips(1, 7, 70, seed=3)[0, :, :, :66]  # neither whole groups of frames nor whole latents
    converter, decibels, passed_on = L2RCalibrate.execute(model, vae, images=own).args
    assert passed_on is own
    assert decibels > 15 and converter.metadata["own_images"] == 7
    (kept,) = folder.iterdir()
    assert load_converter("auto", model).metadata["vae"] == converter.metadata["vae"] in kept.name
    written = kept.read_bytes()
    L2RCalibrate.execute(model, vae)  # no better, or the file has changed for the better
    assert load_l2r(kept).metadata["psnr"] >= converter.metadata["psnr"] or kept.read_bytes() == written
    save_l2r(L2R(16, metadata={"name": "trained", "latent_format": "Wan21"}), folder / "a_trained.safetensors")
    folder_paths.filename_list_cache.pop("foresight_l2r", None)
    assert load_converter("auto", model).name == "trained"


def test_a_vae_is_known_again_in_another_precision():
    """ComfyUI loads the same file in bfloat16 on one machine and in float32 on another."""
    vae, other = (comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE))) for _ in range(2))
    assert vae.vae_dtype == torch.float32
    known = fingerprint(vae)
    other.first_stage_model.conv1.weight.data.neg_()
    assert fingerprint(other) != known
    for precision in (torch.bfloat16, torch.float16):
        vae.first_stage_model.to(precision)
        assert fingerprint(vae) == known


def test_auto_takes_no_converter_of_another_vae(folder):
    """Neither with a VAE that says which, nor by guessing between two."""
    model, vae, other = tiny_wan.model(), *(comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE))) for _ in range(2))
    other.first_stage_model.conv2.weight.data.add_(1)

    def keep(name, calibrated, vae_name):
        described = {"name": name, "latent_format": "Wan21", "calibrated": calibrated, "vae": vae_name}
        save_l2r(L2R(16, metadata=described), folder / f"{name}.safetensors")
        folder_paths.filename_list_cache.pop("foresight_l2r", None)

    keep("a_learned", True, None)
    keep("b_others", True, fingerprint(other))
    assert load_converter("auto", model).name == "b_others"  # with nothing to choose between
    assert load_converter("auto", model, other).name == "b_others"
    assert load_converter("auto", model, vae).name == "a_learned"
    keep("c_own", True, fingerprint(vae))
    assert load_converter("auto", model, vae).name == "c_own"
    with pytest.raises(ValueError, match=r"L2R Preview: b_others\S+, c_own\S+ .* are for different VAEs"):
        load_converter("auto", model)
    keep("d_trained", False, fingerprint(other))
    assert load_converter("auto", model).name == load_converter("auto", model, other).name == "d_trained"
    assert load_converter("auto", model, vae).name == "c_own"


def decoded_clips(count, seed):
    """LATENT and IMAGE of demo clips, as VAE Decode gives them."""
    vae = load_vae(VAE)
    clips = random_clips(torch.Generator().manual_seed(seed), count).float() / 255
    with torch.no_grad():
        latents = [vae.encode(clip[None].movedim(-1, 1) * 2 - 1) for clip in clips]
    return [({"samples": latent}, clip) for latent, clip in zip(latents, clips, strict=True)]


@pytest.fixture(scope="module")
def finished():
    return decoded_clips(6, 5)


def test_refining_for_too_short_a_time_makes_nothing_worse(folder, monkeypatch):
    model, vae = tiny_wan.model(), comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    _, fitted, _ = L2RCalibrate.execute(model, vae, save=False).args
    ticks = (0.3 * step for step in count())
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    _, refined, _ = L2RCalibrate.execute(model, vae, refine_seconds=1, save=False).args
    assert refined >= fitted


def test_the_node_refines_on_fresh_clips_in_inference_mode_as_comfyui_runs_it(folder, clock, monkeypatch):
    made = []
    monkeypatch.setattr(calibration, "encoded", lambda *given: made.append(encoded(*given)) or made[-1])
    model, vae = tiny_wan.model(), comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    with torch.inference_mode():
        _, fitted, _ = L2RCalibrate.execute(model, vae, save=False).args
        converter, refined, _ = L2RCalibrate.execute(model, vae, refine_seconds=1, save=False).args
        again = refine(converter, [(torch.zeros(1, 16, 1, 8, 8), torch.zeros(1, 1, 64, 64, 3))], 0.1)
    assert refined >= fitted and again.width
    assert len(made) > 2 * calibration.CLIPS + 1, "more than the clips that either call begins with"


def test_it_learns_from_every_finished_clip(folder, finished):
    unseen = [(latent["samples"], clip) for latent, clip in decoded_clips(4, 6)]
    model = tiny_wan.model()
    made = []
    for latent, images in finished:
        before = images.clone()
        converter, _, passed_on = L2RCalibrate.execute(model, images=images, latent=latent, learn=True).args
        assert passed_on is images and torch.equal(images, before)
        made.append(converter)
    (kept,) = folder.iterdir()
    assert "any" in kept.name and load_l2r(kept).metadata["learned"] == 6
    others = [calibration.decoded(comfy.latent_formats.Wan21(), *other) for other in unseen]
    assert quality(made[-1], others) > quality(made[0], others) + 1, "more clips help with others"
    # The same as all at once: nothing is forgotten.
    together = calibration.AffineFit(16, 8)
    for latent, images in finished:
        together.add(*calibration.decoded(comfy.latent_formats.Wan21(), latent["samples"], images), calibration.ROWS)
    torch.testing.assert_close(converter.affine.weight, together.solve().affine.weight)
    assert kept.stat().st_size < 2_000_000
    assert load_converter("auto", model).metadata["learned"] == 6


def test_learning_is_off_unless_asked_and_takes_a_bounded_share(folder, finished, monkeypatch):
    latent, images = finished[0]
    model = tiny_wan.model()
    L2RCalibrate.execute(model, images=images, latent=latent, save=False)
    assert not list(folder.iterdir())
    L2RCalibrate.execute(model, images=images, latent=latent, learn=True)
    (kept,) = folder.iterdir()
    written = kept.read_bytes()
    L2RCalibrate.execute(model, images=images, latent=finished[1][0])  # not to learn: the kept one stays
    assert kept.read_bytes() == written
    monkeypatch.setattr(calibration, "ROWS", 100)
    L2RCalibrate.execute(model, images=finished[1][1], latent=finished[1][0], learn=True)
    assert load_fit(kept).rows == 5 * 64 + 64 and load_fit(kept).clips == 2


def test_what_does_not_belong_together_is_named(folder, finished):
    model, (latent, images) = tiny_wan.model(), finished[0]
    with pytest.raises(ValueError, match="connect the images it was decoded to"):
        L2RCalibrate.execute(model, latent=latent)
    with pytest.raises(ValueError, match="connect a VAE, or a latent"):
        L2RCalibrate.execute(model, images=images)
    with pytest.raises(ValueError, match="do not make 5 latent frames"):
        L2RCalibrate.execute(model, latent=latent, images=images[:7])
    fit = calibration.AffineFit(16, 8)
    with pytest.raises(ValueError, match="4 channels do not go with a fit to 16"):
        fit.add(draw(1, 4, 1, 2, 2), torch.zeros(1, 1, 16, 16, 3))


def test_nothing_is_written_unless_asked(folder):
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    L2RCalibrate.execute(tiny_wan.model(), vae, save=False)
    assert not list(folder.iterdir())


def test_vaes_that_make_no_pairs_are_named(folder):
    def refused(change, said):
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
        change(vae)
        with pytest.raises(ValueError, match=said):
            L2RCalibrate.execute(tiny_wan.model(), vae)

    def cannot(image):  # as ComfyUI marks small VAEs that have no encoder
        raise NotImplementedError("This light tae doesn't support encoding currently")

    refused(lambda vae: setattr(vae, "process_input", cannot), "cannot encode .* connect one that can, or a latent")
    refused(lambda vae: setattr(vae, "latent_dim", 1), "no pictures in three colours")  # of sound, of meshes
    refused(
        lambda vae: setattr(vae.first_stage_model, "encode", lambda images: torch.zeros(1, 4, 5, 8, 8)),
        "have 4 channels, the model's 16: connect the VAE that belongs to the model",
    )
    with pytest.raises(ValueError, match="no weights of a VAE that ComfyUI knows"):
        L2RCalibrate.execute(tiny_wan.model(), comfy.sd.VAE(sd={"weight": torch.zeros(1)}))
    assert not list(folder.iterdir())


def test_images_smaller_than_a_latent_are_named(folder):
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    with pytest.raises(ValueError, match="4x4 pixels, less than one latent"):
        L2RCalibrate.execute(tiny_wan.model(), vae, images=torch.zeros(1, 4, 4, 3))
