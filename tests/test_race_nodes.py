"""Foresight Sampler's race: which preset it goes by, and that no file and no widget can spoil a run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_wan

from foresight.evaluation.demo_command import demo_graph, generate
from foresight.evaluation.graphs import node_of
from foresight.scoring.race_preset import FittedRace, RacePreset, save_race_preset
from foresight.trials.race import LOOK, RANKS, Look

FITTED = FittedRace(budget=0.1, most=0.8, candidates=4, looks=(Look(0.1, 0.1, 0.09), Look(0.2, 0.15, 0.12)))
RACES = {"later": (FITTED, replace(FITTED, budget=0.4, candidates=6)), "all": (replace(FITTED, budget=0.15),)}
PRESET = RacePreset("scripted", "WAN21", 50, RACES)
GOOD = "z_good.json"


@pytest.fixture(scope="module")
def model():
    return tiny_wan.model()


@pytest.fixture
def rules(comfyui, model, tmp_path, monkeypatch):
    """race_rules(budget, self_refine, steps) among the files of tmp_path."""
    import folder_paths

    from foresight.nodes.races import race_rules

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "foresight_races", ([str(tmp_path)], {".json"}))
    return lambda budget=0.25, self_refine="later", steps=50: race_rules(
        tiny_wan.ScriptedScorer(), model, steps, budget, self_refine
    )


def test_a_preset_of_this_scorer_and_model_is_taken(rules, tmp_path):
    save_race_preset(PRESET, tmp_path / GOOD)
    cheap = rules()
    assert (cheap.preset, cheap.settings.candidates) == (GOOD, 4)
    assert cheap.looks == FITTED.looks and cheap.budget is None
    assert rules(0.5).settings.candidates == 6
    assert rules(0.2, "all").settings.self_refine == "all"


@pytest.mark.parametrize("change", [{"scorer": "viclip-l"}, {"model": "CogVideoX"}])
def test_a_preset_of_another_scorer_or_model_is_not(rules, tmp_path, change):
    save_race_preset(replace(PRESET, **change), tmp_path / "a_other.json")
    assert rules().preset is None and rules().looks == (Look(LOOK, RANKS, RANKS),) and rules().budget == 0.25
    save_race_preset(PRESET, tmp_path / GOOD)
    assert rules().preset == GOOD


def test_a_preset_holds_for_half_to_twice_its_steps(rules, tmp_path):
    save_race_preset(PRESET, tmp_path / GOOD)
    taken = {steps: rules(steps=steps).preset for steps in (4, PRESET.steps // 2, PRESET.steps * 2, PRESET.steps * 3)}
    assert list(taken.values()) == [None, GOOD, GOOD, None]


@pytest.mark.parametrize("budget, self_refine", [(0.05, "later"), (0.1, "all"), (5.0, "off"), (0.0, "later")])
def test_what_a_preset_does_not_hold_is_left_to_ranks(rules, tmp_path, budget, self_refine):
    save_race_preset(PRESET, tmp_path / GOOD)
    alone = rules(budget, self_refine)
    assert (alone.preset, alone.budget, alone.settings.self_refine) == (None, budget, self_refine)


BROKEN = {
    "empty": "", "torn": '{"schema": "foresight.race_preset"', "list": "[1]", "other schema": '{"schema": "x"}',
    "bytes": b"\xff\xfe\x00", "deep": "[" * 100_000,
}  # fmt: skip
SPOILED = {
    "NaN": ('"floor": 0.15', '"floor": NaN'), "unknown keys": ('"floor": 0.15', '"speed": 0.15'),
    "infinite": ('"steps": 50', '"steps": Infinity'), "a mode": ('"later"', '"sometimes"'),
    "no candidate": ('"candidates": 4', '"candidates": 0'), "newer": ('"version": 2', '"version": 3'),
    "no rows": ('"all": [', '"all": 3, "more": ['),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*BROKEN, *SPOILED, "a directory", "a link to nothing"])
def test_a_broken_file_stops_no_race(rules, tmp_path, kind, caplog):
    save_race_preset(PRESET, tmp_path / GOOD)
    bad = tmp_path / "a_bad.json"
    if kind in BROKEN:
        text = BROKEN[kind]
        bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    elif kind in SPOILED:
        before, after = SPOILED[kind]
        text = (tmp_path / GOOD).read_text()
        assert before in text
        bad.write_text(text.replace(before, after))
    elif kind == "a directory":
        bad.mkdir()
    else:
        bad.symlink_to(tmp_path / "nowhere.json")
    assert rules().preset == GOOD
    assert kind == "a directory" or "a_bad.json" in caplog.text
    (tmp_path / GOOD).unlink()
    assert rules().preset is None


@pytest.mark.parametrize("budget", [math.nan, -0.5, math.inf])
def test_a_budget_that_is_none_is_named(rules, budget):
    with pytest.raises(ValueError, match=f"budget is {budget}"):
        rules(budget)


# On a real server, with the demo family and few steps.


@pytest.fixture(scope="module")
def info(comfy_server):
    return comfy_server.object_info()


@pytest.fixture
def preset_file(comfy_server):
    """Where a preset of the server's own is put; taken away again."""
    path = comfy_server.base / "models" / "foresight_races" / "0_test.json"
    yield path
    path.unlink(missing_ok=True)


TEXT = "a red circle moves left on a white background"


def test_a_budget_of_nothing_gives_the_plain_clip_and_says_so(comfy_server, info):
    pair = generate(comfy_server, demo_graph(info, TEXT, 3, steps=6, budget=0.0))
    assert np.array_equal(pair.plain.frames, pair.final.frames)
    report = pair.report
    assert len(report["candidates"]) == 1 and report["nfe"] == report["nfe_plain"] == report["nfe_worst_case"] == 6
    assert any("the budget of 0% allows no second candidate" in note for note in report["notes"])


def test_the_servers_preset_is_used_and_named(comfy_server, info, preset_file):
    graph = demo_graph(info, TEXT, 4, steps=6)
    plain = generate(comfy_server, graph).report["settings"]
    passes = FittedRace(budget=0.0, most=0.9, candidates=3, looks=(Look(0.5, -1.0, -1.0),))
    preset = RacePreset(plain["scorer"], plain["model"], 6, {"later": (passes,)})
    save_race_preset(preset, preset_file)
    graph[node_of(graph, "ForesightSampler")]["inputs"]["budget"] = 0.2  # or ComfyUI would not run it again
    pair = generate(comfy_server, graph)
    assert pair.report["settings"]["race_preset"] == preset_file.name and pair.report["accepted"]
    assert [row["look_step"] for row in pair.report["candidates"]] == [3] and pair.report["nfe"] == 6
    assert np.array_equal(pair.plain.frames, pair.final.frames)
    preset_file.write_text("")
    graph[node_of(graph, "ForesightSampler")]["inputs"]["budget"] = 0.21
    assert generate(comfy_server, graph).report["settings"]["race_preset"] != preset_file.name
