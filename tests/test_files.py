"""The one reader of our files: whatever a file holds, it is read in bounds or refused by name; what is written replaces
the old as a whole or not at all."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from foresight.files import documents, weights
from foresight.files.documents import MOST_BYTES, read_document, write_document
from foresight.files.fields import Fields, FileError
from foresight.files.weights import write_weights
from foresight.l2r.checkpoint import load_fit, load_l2r, save_l2r
from foresight.l2r.fit import AffineFit
from foresight.l2r.model import L2R
from foresight.scoring.latent_reward import RewardConfig, RewardModel, load_reward, save_reward
from foresight.scoring.preset import DetectorPreset, DetectorSettings, load_preset, save_preset
from foresight.scoring.viclip import ViCLIP, ViCLIPConfig, load_viclip, save_viclip

FIGURES = {
    "name": "r", "scorer": "s", "steps": 50, "accuracy": [{"step": at, "latent_reward": 0.9} for at in (10, 20)],
}  # fmt: skip
REWARD = RewardConfig(channels=4, frames=2, side=4, width=16, heads=2, layers=1, text_dim=8)
VICLIP = ViCLIPConfig(28, 14, 2, 32, 1, 2, 16, 1, 2, 8, 100, 8, "tiny")


def described(path, key) -> dict:
    with weights.open_weights(path, key, "file", "", 1 << 30) as file:
        return {**file.description.entries}


def rewritten(path, key, **changes):
    """The same tensors under a description with other entries."""
    entries = described(path, key) | changes
    with weights.open_weights(path, key, "file", "", 1 << 30) as file:
        tensors = {name: file.get(name).clone() for name in file.shapes}
    save_file(tensors, path, {key: json.dumps(entries)})


@pytest.fixture
def converter(tmp_path):
    save_l2r(L2R(4, 2, {"name": "mine"}), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def reward(tmp_path):
    save_reward(RewardModel(REWARD), tmp_path / "mine.safetensors", FIGURES)
    return tmp_path / "mine.safetensors"


@pytest.mark.parametrize("entry, value", [
    ("psnr", "high"), ("psnr", 1e400), ("learned", 2.5), ("learned", -1), ("name", ["x"]), ("name", "\ud800"),
    ("name", "x" * 5000), ("latent_format", 7), ("channels", 10**9), ("channels", 0), ("channels", None),
    ("channels", "4"), ("channels", True), ("scale", float("nan")), ("scale", 10**40), ("architecture", {"a": 1}),
    ("architecture", "new"), ("calibrated", "yes"), ("vae", "\n"),
])  # fmt: skip
def test_a_converters_entries_are_checked_by_name(converter, entry, value):
    rewritten(converter, "foresight.l2r", **{entry: value})
    with pytest.raises(FileError, match=rf"mine\.safetensors cannot be used: {entry} is .*: give .*\. Make it again"):
        load_l2r(converter)


@pytest.mark.parametrize("sums, problem", [
    ({"fit_rows": 5, "fit_clips": 1}, "'fit.gram' is not of shape"), ({"fit_rows": "5"}, "fit_rows is '5'"),
    ({"fit_rows": 0}, "fit_rows is 0"), ({"fit_rows": 10**30}, "fit_rows is 1000"),
])  # fmt: skip
def test_sums_of_a_fit_are_checked_before_they_are_made_room_for(converter, sums, problem):
    assert load_fit(converter) is None
    rewritten(converter, "foresight.l2r", **sums)
    with pytest.raises(FileError, match=f"mine.safetensors.*{problem}"):
        load_fit(converter)


def test_a_fit_comes_back_with_its_converter(tmp_path):
    fit = AffineFit(4, 2)
    fit.add(torch.rand(1, 4, 2, 3, 3), torch.rand(1, 2, 6, 6, 3))
    save_l2r(fit.solve(), tmp_path / "a.safetensors", fit=fit)
    again = load_fit(tmp_path / "a.safetensors")
    assert (again.rows, again.clips) == (18, 1) and torch.equal(again.gram, fit.gram)


@pytest.mark.parametrize("config, named", [
    ({"layers": 10**6}, "config.layers is 1000000"), ({"width": 10**6}, "config.width"),
    ({"heads": 3}, "config.heads is 3"), ({"frames": 2.5}, "config.frames is 2.5"),
    ({"sigmas": [1, 0]}, "config.sigmas"), ({"sigmas": [0.1]}, "config.sigmas"),
    ({"colour": 1}, "does not know: colour"), ({"patch": 3}, "config.patch is 3"),
])  # fmt: skip
def test_a_rewards_layout_is_bounded_before_it_is_laid_out(reward, config, named):
    rewritten(reward, "foresight.reward", config={**described(reward, "foresight.reward")["config"], **config})
    with pytest.raises(FileError, match=rf"mine\.safetensors.*{named}"):
        load_reward(reward)


@pytest.mark.parametrize("changes, named", [
    ({"steps": 0}, "steps is 0"), ({"accuracy": [1]}, r"accuracy\[0\] is 1"), ({"scorer": None}, "scorer is None"),
    ({"accuracy": [{"step": 1, "latent_reward": "good"}]}, r"accuracy\[0\].latent_reward is 'good'"),
])  # fmt: skip
def test_a_rewards_figures_are_checked_by_name(reward, changes, named):
    rewritten(reward, "foresight.reward", **changes)
    with pytest.raises(FileError, match=rf"mine\.safetensors.*{named}"):
        load_reward(reward)


@pytest.mark.parametrize("load, save, key", [
    (load_l2r, lambda path: save_l2r(L2R(4, 2), path), "foresight.l2r"),
    (load_reward, lambda path: save_reward(RewardModel(REWARD), path, FIGURES), "foresight.reward"),
    (load_viclip, lambda path: save_viclip(ViCLIP(VICLIP), path), "foresight.viclip"),
])  # fmt: skip
class TestWeightFiles:
    def test_a_description_that_is_none(self, tmp_path, load, save, key):
        for text in ("[" * 100_000, "{", "7", "NaN", '{"channels": ' + "9" * 5000 + "}", "\ud7ff\x00"):
            save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {key: text})
            with pytest.raises(FileError, match=r"a\.safetensors"):
                load(tmp_path / "a.safetensors")

    def test_a_file_that_is_none(self, tmp_path, load, save, key):
        path = tmp_path / "a.safetensors"
        save(path)
        whole = path.read_bytes()
        for content in (b"", b"\x00", whole[:-1], whole[:50], whole + b"x", struct.pack("<Q", 1 << 60) + whole[8:]):
            path.write_bytes(content)
            with pytest.raises(FileError, match=r"a\.safetensors is no whole safetensors file"):
                load(path)
        path.unlink()
        with pytest.raises(FileError, match=r"a\.safetensors is not there, or no file"):
            load(path)
        os.mkfifo(path)  # to open it would wait for ever
        with pytest.raises(FileError, match=r"a\.safetensors is not there, or no file"):
            load(path)

    def test_tensors_that_are_not_the_layouts(self, tmp_path, load, save, key):
        path = tmp_path / "a.safetensors"
        save(path)
        with weights.open_weights(path, key, "file", "", 1 << 30) as file:
            tensors = {name: file.get(name).clone() for name in file.shapes}
            about = {key: json.dumps(file.description.entries)}
        first = next(iter(tensors))
        for changed in ({first: torch.zeros(7, 1, 0)}, {"more": torch.zeros(1)}, {first: tensors[first].int()}):
            save_file(tensors | changed, path, about)
            with pytest.raises(FileError, match=r"a\.safetensors"):
                load(path)
        del tensors[first]
        save_file(tensors, path, about)
        with pytest.raises(FileError, match=r"a\.safetensors"):
            load(path)

    def test_a_file_without_end_is_not_read(self, tmp_path, load, save, key):
        with (tmp_path / "a.safetensors").open("wb") as file:
            file.truncate(1 << 40)  # a hole: it takes no space
        with pytest.raises(FileError, match=r"a\.safetensors is no .*1099511627776 bytes"):
            load(tmp_path / "a.safetensors")


def test_weights_that_are_not_finite_are_named(converter):
    model = load_l2r(converter)
    model.to_rgb.bias.data[1] = torch.nan
    save_l2r(model, converter)
    with pytest.raises(FileError, match=r"mine\.safetensors.*'to_rgb\.bias' holds NaN"):
        load_l2r(converter)


def test_viclips_layers_are_bounded(tmp_path):
    path = tmp_path / "a.safetensors"
    save_viclip(ViCLIP(VICLIP), path)
    with weights.open_weights(path, "foresight.viclip", "", "", 1 << 30) as file:
        tensors = {name: file.get(name).clone() for name in file.shapes}
    save_file(tensors | {"vision_encoder.transformer.resblocks.999999.x": torch.zeros(1)}, path)
    with pytest.raises(FileError, match=r"a\.safetensors.*vision_layers is 1000000"):
        load_viclip(path)


@pytest.mark.parametrize("value", ["1e999", "NaN", '"9"', "true", "1001", "-1001", "null", "[1]"])
def test_a_number_is_one_in_range(value):
    text = f'{{"a": {value}}}'
    with pytest.raises(FileError, match=r"x\.json cannot be used: .*a.*\. Mend it\."):
        Fields(json.loads(text), "x.json", "Mend it.").number("a", -1000, 1000)


@pytest.mark.parametrize("setting, value", [
    ("patience", 2.5), ("patience", float("inf")), ("accept_patience", 10**30), ("tau", "x"), ("history", 1),
    ("floors", [0.1, None]), ("floors", 7), ("start", True), ("scale", float("nan")), ("every", 3),
])  # fmt: skip
def test_a_presets_settings_are_checked_by_name(tmp_path, setting, value):
    path = tmp_path / "mine.json"
    save_preset(DetectorPreset("s", 50, DetectorSettings()), path)
    document = json.loads(path.read_text())
    document["video"][setting] = value
    path.write_text(json.dumps(document))
    with pytest.raises(FileError, match=rf"mine\.json cannot be used: video.*{setting}.*calibrate"):
        load_preset(path)


@pytest.mark.parametrize("content", [
    b" " * (MOST_BYTES + 1), b"[" * 100_000, b"\xff", b'{"schema": "s", "version": ' + b"9" * 5000 + b"}", b"",
    b'{"schema": "s", "version": "2"}', b'{"schema": "s"}',
])  # fmt: skip
def test_a_document_that_is_none_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FileError, match=r"x\.json .*Write it again \(command\)"):
        read_document(tmp_path / "x.json", "s", 1, "list", "command")


def test_a_document_that_an_editor_has_marked_is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"schema": "s", "version": 1}', encoding="utf-8-sig")
    assert read_document(tmp_path / "x.json", "s", 1, "list", "command").entries["version"] == 1


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path, old = tmp_path / "x.json", {"a": 1}
    write_document(path, old)
    with pytest.raises(ValueError):
        write_document(path, {"a": float("nan")})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(documents.os, "replace", full)
    with pytest.raises(OSError):
        write_document(path, {"a": 2})
    with pytest.raises(OSError):
        write_weights(path, {"a": torch.zeros(1)}, "key", {})
    assert json.loads(path.read_text()) == old and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_oserror_and_leaves_the_old_weights(converter, monkeypatch):
    def full(*_):
        raise weights.SafetensorError("No space left on device (os error 28)")

    before = converter.read_bytes()
    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_l2r(L2R(4, 2), converter)
    assert converter.read_bytes() == before and list(converter.parent.iterdir()) == [converter]
