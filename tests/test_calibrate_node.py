"""L2R Calibrate: what it makes, keeps and finds again, and what it names."""

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

from foresight.demo.wan_vae import load_vae
from foresight.l2r import calibration, fit
from foresight.l2r.checkpoint import load_fit, load_l2r, save_l2r
from foresight.l2r.clips import procedural_clips
from foresight.l2r.fit import quality, refine
from foresight.l2r.model import L2R
from foresight.l2r.pairs import encoded, fingerprint
from foresight.lab.training.common import VAE, random_clips
from foresight.nodes.calibration import L2RCalibrate
from foresight.nodes.loaders import load_converter


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def clock(monkeypatch):
    """Refinement's clock goes on by .02 seconds a step, on a busy machine too."""
    ticks = (0.02 * step for step in count())
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


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
    out = L2RCalibrate.execute(model, vae, images=own)
    converter, decibels, passed_on = out.args
    assert len(out.ui["images"]) == 1 and out.ui["text"][0].startswith(f"{decibels:.1f} dB")
    assert out.ui["text"][1] == "Shown: a frame, ComfyUI's own preview of it, and the preview from here on."
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
