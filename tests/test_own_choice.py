"""What is taken where nothing is connected or chosen: by what the files are, never by the order of their names."""

from __future__ import annotations

import os
from dataclasses import replace

import folder_paths
import pytest
import tiny_wan
import tiny_weights

from foresight.demo import preset
from foresight.l2r.checkpoint import save_l2r
from foresight.l2r.model import L2R
from foresight.nodes.folders import WEIGHTS, files
from foresight.nodes.inspection import ViCLIPScore
from foresight.nodes.loaders import load_converter, own_scorer, own_scorer_file
from foresight.nodes.races import race_rules
from foresight.scoring.race_preset import FittedRace, RacePreset, save_race_preset
from foresight.scoring.viclip import ViCLIP, ViCLIPConfig, described_name, save_viclip
from foresight.trials.race import Look

DEMO = WEIGHTS / "demo" / "viclip" / preset.SCORER
EXTENSIONS = {"foresight": {".safetensors", ".pth"}, "foresight_l2r": {".safetensors"}, "foresight_races": {".json"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's own folder of a kind; what comes with the pack lies behind it, as register() puts it."""

    def make(kind: str, shipped: str):
        places = ([str(tmp_path), str(WEIGHTS / shipped)], EXTENSIONS[kind])
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, places)
        folder_paths.filename_list_cache.pop(kind, None)
        return tmp_path

    return make


@pytest.fixture
def scorers(folder):
    return folder("foresight", "demo/viclip")


def scorer(path, name):
    save_viclip(ViCLIP(replace(tiny_weights.SCORER, name=name)), path)


def test_the_demos_scorer_is_never_taken(scorers):
    with pytest.raises(ValueError, match="models/foresight has none for this model. Put ViClip-InternVid"):
        own_scorer_file()
    (scorers / "a_copy.safetensors").write_bytes(DEMO.read_bytes())  # under any name
    with pytest.raises(ValueError, match="has none for this model"):
        own_scorer_file()
    scorer(scorers / "z.safetensors", ViCLIPConfig.name)
    assert own_scorer_file() == "z.safetensors" and own_scorer().name == ViCLIPConfig.name


def test_the_first_choice_of_a_widget_is_the_users_own(scorers):
    assert files("foresight") == [preset.SCORER]
    scorer(scorers / "model.safetensors", ViCLIPConfig.name)
    assert files("foresight") == ["model.safetensors", preset.SCORER]
    (weights,) = [each for each in ViCLIPScore.define_schema().inputs if each.id == "weights"]
    assert weights.options[0] == "model.safetensors"


def test_of_several_scorers_the_published_one_is_taken(scorers):
    scorer(scorers / "a.safetensors", "mine")
    assert own_scorer_file() == "a.safetensors"
    scorer(scorers / "b.safetensors", "another")
    with pytest.raises(ValueError, match="has several .a.safetensors, b.safetensors.: connect ViCLIP Score"):
        own_scorer_file()
    scorer(scorers / "c.safetensors", ViCLIPConfig.name)
    assert own_scorer_file() == "c.safetensors"
    (scorers / "c.safetensors").rename(scorers / "c.pth")  # is not even opened
    assert own_scorer_file() == "c.pth" and described_name(scorers / "c.pth") == ViCLIPConfig.name


def test_what_is_no_scorer_is_passed_over(scorers, caplog):
    (scorers / "a.safetensors").write_bytes(b"no weights")
    (scorers / "b.safetensors").mkdir()
    save_l2r(L2R(4), scorers / "c.safetensors")
    scorer(scorers / "d.safetensors", ViCLIPConfig.name)
    assert own_scorer_file() == "d.safetensors"
    assert "a.safetensors is no whole safetensors file" in caplog.text and "not a ViCLIP" in caplog.text


def test_a_scorer_is_kept_until_its_file_is_another(scorers):
    path = scorers / "a.safetensors"
    scorer(path, "first")
    kept = own_scorer()
    assert own_scorer() is kept
    scorer(path, "second")
    os.utime(path, ns=(1, 1))
    assert own_scorer().name == "second"


@pytest.mark.parametrize("better, worse", [
    ({"psnr": 20.0, "vae": "x"}, {"psnr": 30.0}), ({"psnr": 21.0}, {"psnr": 20.0}),
    ({"learned": 2, "psnr": 20.0}, {"learned": 1, "psnr": 22.0}), ({"learned": 1, "psnr": 20.0}, {"psnr": 25.0}),
])  # fmt: skip
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_of_several_converters_the_best_is_taken(folder, better, worse, names):
    place = folder("foresight_l2r", "l2r")
    for name, described in zip(names, (better, worse), strict=True):
        made = {"latent_format": "Wan21", "calibrated": True, "name": str(described), **described}
        save_l2r(L2R(16, metadata=made), place / f"{name}.safetensors")
    assert load_converter("auto", tiny_wan.model()).name == str(better)


def test_the_demos_converter_is_never_taken_by_auto(folder):
    place = folder("foresight_l2r", "l2r")
    (place / "a.safetensors").write_bytes((WEIGHTS / "l2r" / preset.CONVERTER).read_bytes())
    assert load_converter("auto", tiny_wan.model()).name == "linear"


def test_of_several_race_presets_the_nearest_then_the_own_then_the_newest_is_taken(folder, monkeypatch, tmp_path):
    place, shipped = folder("foresight_races", "demo/races"), tmp_path / "pack"
    shipped.mkdir()
    folder_paths.folder_names_and_paths["foresight_races"][0][1] = str(shipped)
    monkeypatch.setattr("foresight.nodes.folders.WEIGHTS", shipped)
    races = {"later": (FittedRace(0.1, 0.8, 3, (Look(0.1, 0.1, 0.1),)),)}

    def put(path, steps, written):
        save_race_preset(RacePreset("scripted", "WAN21", steps, races), path)
        os.utime(path, ns=(written, written))
        folder_paths.filename_list_cache.clear()

    def taken(steps):
        return race_rules(tiny_wan.ScriptedScorer(), tiny_wan.model(), steps, 0.25, "later").preset

    put(place / "a.json", 50, 5)
    put(place / "b.json", 30, 1)
    assert (taken(50), taken(30), taken(45), taken(32)) == ("a.json", "b.json", "a.json", "b.json")
    put(shipped / "0.json", 30, 9)
    assert taken(30) == "b.json"
    put(place / "c.json", 30, 2)
    assert taken(30) == "c.json"
    put(shipped / "1.json", 20, 1)
    assert taken(20) == "1.json"
