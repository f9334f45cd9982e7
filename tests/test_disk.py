"""What the nodes have to do with the disk: other people's files in our folders, files that are written anew, folders
that extra_model_paths.yaml names or that cannot be written to."""

from __future__ import annotations

import json
import shutil

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import tiny_wan
import torch
from safetensors.torch import save_file

from foresight.l2r import calibration
from foresight.l2r.checkpoint import load_l2r, save_l2r
from foresight.l2r.model import L2R
from foresight.lab.training.common import VAE
from foresight.nodes import folders
from foresight.nodes.back_ends import asked
from foresight.nodes.calibration import L2RCalibrate
from foresight.nodes.hierarchy import ForesightSampler
from foresight.nodes.inspection import FailureGate, L2RPreview, ViCLIPScore
from foresight.nodes.loaders import load_converter
from foresight.nodes.reward import LatentRewardNode
from foresight.nodes.rewording import PromptRefiner


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Each of our folders in one place, empty."""
    for name, extensions in folders.EXTENSIONS.items():
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], extensions))
        folder_paths.filename_list_cache.pop(name, None)
    yield tmp_path
    for name in folders.EXTENSIONS:
        folder_paths.filename_list_cache.pop(name, None)


def keep(path, name, **described):
    save_l2r(L2R(16, metadata={"name": name, "latent_format": "Wan21", **described}), path)
    folder_paths.filename_list_cache.clear()


def test_foreign_files_do_not_end_auto(places, caplog):
    here = places / "foresight_l2r"
    (here / "a_empty.safetensors").touch()
    save_file({"weight": torch.zeros(2)}, here / "b_foreign.safetensors")
    (here / "c_folder.safetensors").mkdir()
    (here / "d_gone.safetensors").symlink_to(here / "nowhere")
    (here / "e_text.sft").write_text("version https://git-lfs.github.com/spec/v1")
    assert load_converter("auto", tiny_wan.model()).name == "linear"
    keep(here / "f_mine.safetensors", "mine")
    assert load_converter("auto", tiny_wan.model()).name == "mine"
    assert {f"{letter}_" in caplog.text for letter in "abe"} == {True}


def test_auto_never_takes_the_demos_converter_for_another_model(places):
    ours = folders.WEIGHTS / "l2r" / "foresight_demo_l2r.safetensors"
    for name in (ours.name, "renamed.safetensors"):
        shutil.copy(ours, places / "foresight_l2r" / name)
        assert load_converter("auto", tiny_wan.model()).name == "linear"
        assert load_converter(name, None).name == "foresight-demo-l2r"


@pytest.mark.parametrize("named", ["torch", "LatentFormat_", "__name__", None])
def test_a_converter_that_names_no_latent_format_asks_for_the_model(places, named):
    keep(places / "foresight_l2r" / "mine.safetensors", "mine", latent_format=named)
    with pytest.raises(ValueError, match="L2R Preview: connect MODEL"):
        L2RPreview.execute("mine.safetensors", latent={"samples": torch.zeros(1, 16, 1, 2, 2)})


FOLDERS = [
    (FailureGate, "preset", "foresight_presets", "a.json"), (ViCLIPScore, "weights", "foresight", "a.safetensors"),
    (L2RPreview, "converter", "foresight_l2r", "a.safetensors"),
    (LatentRewardNode, "weights", "foresight_reward", "a.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize("node, widget, folder, name", FOLDERS)
def test_a_file_that_is_written_anew_is_a_new_input(places, node, widget, folder, name):
    path = places / folder / name

    def state(chosen=name):
        folder_paths.filename_list_cache.clear()
        return node.fingerprint_inputs(**{widget: chosen, "prompt": "a cat", "model": None})

    seen = [state()]
    for content in ("one", "three", ""):
        path.write_text(content)
        seen.append(state())
        assert state() == seen[-1]
    assert len(set(seen)) == 4
    (places / folder / ("z" + path.suffix)).write_text("another file")
    assert state() == seen[-1]  # the one that is named is the same
    assert state(None) != state(None if path.unlink() else None)  # a linked widget may name any
    json.dumps(state())


def test_auto_and_races_depend_on_which_files_are_there(places):
    seen = set()
    for name in (None, "a", "b"):
        if name:
            (places / "foresight_l2r" / f"{name}.sft").write_text("x")
            (places / "foresight_races" / f"{name}.json").write_text("x")
        folder_paths.filename_list_cache.clear()
        seen |= {L2RPreview.fingerprint_inputs(converter="auto"), ForesightSampler.fingerprint_inputs()}
    assert len(seen) == 6
    assert L2RPreview.fingerprint_inputs(converter="latent_rgb_factors") == ""
    assert ForesightSampler.fingerprint_inputs(plan="paper", refiner="off") == ("", "")


def test_a_preset_that_is_only_touched_makes_no_clip_again(places):
    path = places / "foresight_presets" / "a.json"
    path.write_text("{}")
    before = FailureGate.fingerprint_inputs(preset="a.json")
    path.touch()
    assert FailureGate.fingerprint_inputs(preset="a.json") == before


def test_a_profile_that_is_written_anew_counts_where_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path))
    entry = {"base_url": "http://127.0.0.1/v1", "model": "m"}

    def written(**changes):
        (tmp_path / "endpoints.json").write_text(json.dumps({"profiles": {"a": entry | changes, "b": entry}}))
        return [asked("endpoint", "a"), asked("endpoint", "b"), asked("restart", "a")]

    one, other = written(), written(model="n")
    assert [a == b for a, b in zip(one, other, strict=True)] == [False, True, True]
    assert PromptRefiner.fingerprint_inputs(back_end="endpoint", endpoint="a") == other[0]
    (tmp_path / "endpoints.json").write_text("{")
    assert "JSON" in asked("endpoint", "a")


def test_what_extra_model_paths_names_comes_first(tmp_path, monkeypatch):
    named = tmp_path / "named"
    for name in folders.EXTENSIONS:
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(named / name)], set()))
    before = folder_paths.get_folder_paths("checkpoints")
    folders.register()
    for name, extensions in folders.EXTENSIONS.items():
        paths, there = folder_paths.folder_names_and_paths[name]
        assert paths[0] == str(named / name) and there == extensions
        assert any(path.endswith(f"models/{name}") for path in paths[1:])
    assert folder_paths.get_folder_paths("checkpoints") == before


def test_the_first_place_that_can_be_written_to_is_taken(tmp_path, monkeypatch):
    places = [str(tmp_path / "shared"), str(tmp_path / "own"), str(folders.WEIGHTS / "l2r")]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "foresight_l2r", (places, {".sft"}))
    assert folders.writable("foresight_l2r") == places[0]
    monkeypatch.setattr(folders.os, "access", lambda path, mode: str(path) == places[1])
    (tmp_path / "shared").mkdir()
    (tmp_path / "own").mkdir()
    assert folders.writable("foresight_l2r") == places[1]
    monkeypatch.setattr(folders.os, "access", lambda path, mode: str(path).startswith(str(folders.WEIGHTS)))
    assert folders.writable("foresight_l2r") == places[0]  # never the pack's own


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("CLIPS", 4), ("HELD_OUT", 2), ("GROUPS", 1)):
        monkeypatch.setattr(calibration, name, value)
    return tiny_wan.model(), comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))


@pytest.mark.parametrize("fault", [
    OSError(28, "No space left on device"), PermissionError(13, "Permission denied"),
    OSError(30, "Read-only file system"),
])  # fmt: skip
def test_a_converter_that_cannot_be_kept_is_delivered_all_the_same(places, quick, monkeypatch, caplog, fault):
    def broken(*_):
        raise fault

    monkeypatch.setattr("foresight.files.documents.os.replace", broken)
    made = L2RCalibrate.execute(*quick)
    converter, decibels, _ = made.args
    assert converter(torch.zeros(1, 16, 1, 2, 2)).shape == (1, 1, 16, 16, 3) and decibels > 10
    told = converter.metadata["not_kept"]
    assert fault.strerror in told and "foresight_l2r" in told
    assert told in made.ui["text"][0] and told in caplog.text
    assert not list((places / "foresight_l2r").iterdir())


@pytest.mark.parametrize("described", [{"psnr": "high"}, {"learned": [1]}, {"fit_rows": "x"}, {"calibrated": 7}])
def test_a_kept_converter_that_is_damaged_is_replaced(places, quick, caplog, described):
    model, vae = quick
    path = calibration.path_of(places / "foresight_l2r", model.get_model_object("latent_format"), vae)
    keep(path, "old", **described)
    assert "not_kept" not in L2RCalibrate.execute(model, vae).args[0].metadata
    assert isinstance(load_l2r(path).metadata["psnr"], float) and f"{next(iter(described))} is" in caplog.text


def test_a_kept_converter_of_other_latents_is_named_before_anything_is_done(places, quick):
    model, vae = quick
    path = calibration.path_of(places / "foresight_l2r", model.get_model_object("latent_format"), vae)
    save_l2r(L2R(4), path)
    with pytest.raises(ValueError, match=rf"{path.name} is for latents of 4 channels .* take it out"):
        L2RCalibrate.execute(model, vae)


def test_a_kept_converter_without_figures_is_replaced_by_a_better(places, quick):
    model, vae = quick
    path = calibration.path_of(places / "foresight_l2r", model.get_model_object("latent_format"), vae)
    keep(path, "old", psnr=None, learned=None)
    L2RCalibrate.execute(model, vae)
    assert load_l2r(path).metadata["psnr"] > 10
