"""Presets of the gate: kept and read back, and refused where they do not fit."""

from __future__ import annotations

import json

import pytest

from foresight.scoring.detector import DetectorSettings
from foresight.scoring.preset import DetectorPreset, load_preset, save_preset

PRESET = DetectorPreset("viclip-l", 50, DetectorSettings.video(tau=0.2, end=0.3, floors=(0.1, 0.12)), {"runs": 80})


def test_comes_back_as_it_was(tmp_path):
    save_preset(PRESET, tmp_path / "new" / "mine.json")
    assert load_preset(tmp_path / "new" / "mine.json") == PRESET


def test_is_refused_for_another_scorer():
    PRESET.check("viclip-l")
    with pytest.raises(ValueError, match=r"'viclip-l'.*'viclip-b'.*own settings"):
        PRESET.check("viclip-b")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d | {"schema": "other"}, "no detector preset"), (lambda d: d | {"version": 7}, "version 7"),
        (lambda d: d | {"video": {"speed": 1}}, "speed"), (lambda d: d | {"video": {"tau": 5}}, "tau is 5"),
        (lambda d: {k: v for k, v in d.items() if k != "scorer"}, "scorer"), (lambda d: [1], "no detector preset"),
        (lambda d: d | {"video": {"tau": "x"}}, "cannot be used"),
    ],
)  # fmt: skip
def test_names_the_file_and_what_is_wrong_with_it(tmp_path, change, message):
    path = tmp_path / "mine.json"
    save_preset(PRESET, path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=rf"mine\.json.*{message}"):
        load_preset(path)


def test_a_file_that_is_no_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b"\x00\xff")
    with pytest.raises(ValueError, match=r"mine\.json is no detector preset"):
        load_preset(path)


def test_the_gate_takes_it(tmp_path, monkeypatch):
    folder_paths = pytest.importorskip("folder_paths", reason="needs ComfyUI")
    from foresight.nodes.inspection import FailureGate
    from foresight.nodes.widgets import gate_defaults

    class Scorer:
        name, tau, delta, scale = "viclip-l", 0.22, 0.05, 1.0

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "foresight_presets", ([str(tmp_path)], {".json"}))
    save_preset(PRESET, tmp_path / "mine.json")
    given = {"l2r": None, "scorer": Scorer(), "prompt": "a cat", **gate_defaults()}
    gate = FailureGate.execute(**given, preset="mine.json").result[0]
    assert gate.video == PRESET.video and gate.delta == 0.05
    assert FailureGate.execute(**given).result[0].video.tau == 0.22
    Scorer.name = "another"
    with pytest.raises(ValueError, match="'another'"):
        FailureGate.execute(**given, preset="mine.json")
    with pytest.raises(ValueError, match=r"preset is 'gone.json'.*mine.json"):
        FailureGate.execute(**given, preset="gone.json")
