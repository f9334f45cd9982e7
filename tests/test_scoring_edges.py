"""The scoring room at its edges: what just passes, what just does not, and what is read off a graph."""

from __future__ import annotations

import json
import unicodedata

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_wan import gate

from foresight.files.fields import FileError
from foresight.scoring.graph_words import is_link, texts
from foresight.scoring.race_preset import FittedRace, RacePreset, load_race_preset, save_race_preset
from foresight.scoring.tokens import clean_text
from foresight.scoring.viclip import ViCLIP, ViCLIPConfig, load_viclip, save_viclip
from foresight.trials.race import Look

RACE = FittedRace(1.0, 2.0, 2, (Look(0.2, 0.1, 0.1),), 0.0)
EDGES = {
    "budget": (0, 1000, -1e-6, 1000.5), "most": (1, 1000, 0.9, 1000.5), "candidates": (1, 64, 0, 65),
    "last_look": (-1000, 1000, -1000.5, 1000.5),
}  # fmt: skip
LOOK_EDGES = {
    "share": (1e-6, 1, 0, 1.0001), "floor": (-1000, 1000, -1000.5, 1000.5),
    "floor_self_refined": (-1000, 1000, -1000.5, 1000.5),
}  # fmt: skip


@pytest.mark.parametrize("name", [*EDGES, *LOOK_EDGES])
def test_a_race_presets_figures_are_read_up_to_their_edges(tmp_path, name):
    path = tmp_path / "race.json"
    save_race_preset(RacePreset("scripted", "WAN21", 50, {"off": (RACE,)}), path)
    document = json.loads(path.read_text())
    (row,) = document["races"]["off"]
    place = row if name in EDGES else row["looks"][0]
    low, high, *outside = {**EDGES, **LOOK_EDGES}[name]
    for value in (low, high):
        place[name] = value
        row["most"] = max(row["most"], row["budget"])
        path.write_text(json.dumps(document))
        (read,) = load_race_preset(path).races["off"]
        assert getattr(read if name in EDGES else read.looks[0], name) == value
    for value in outside:
        place[name] = value
        path.write_text(json.dumps(document))
        with pytest.raises(FileError, match=f"race.json.*{'look' if name == 'share' else name}"):
            load_race_preset(path)


def test_weights_without_a_description_are_named_by_their_file(tmp_path):
    save_viclip(ViCLIP(ViCLIPConfig(28, 14, 2, 64, 1, 1, 64, 1, 1, 8, 100, 8, "tiny")), tmp_path / "told.safetensors")
    assert load_viclip(tmp_path / "told.safetensors").config.name == "tiny"
    save_file(load_file(tmp_path / "told.safetensors"), tmp_path / "mine.safetensors")
    config = load_viclip(tmp_path / "mine.safetensors").config
    assert config.name == "ViCLIP (mine)" and (config.tau, config.delta) == (0.22, 0.05)


def test_ligatures_and_wide_letters_are_the_letters_they_stand_for():
    """All that ftfy takes apart: two letters in one, Roman and wide forms, the space of Chinese and Japanese."""
    joined = [*range(0x132, 0x134), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB05), 0xFB06]
    for char in map(chr, [*joined, *range(0xFF01, 0xFF5F)]):
        plain = unicodedata.normalize("NFKC", char)
        assert plain != char and clean_text(f"x{char}x") == clean_text(f"x{plain}x") == f"x{plain}x".lower()
    assert clean_text("x\u3000x") == "x x" and clean_text("\u0149") == "'n"
    assert clean_text("\u0131") == "\u0131", "a letter of its own"


def test_a_decision_by_hand_tells_the_last_score_that_was_seen():
    inspector = gate(0.2, 0.25, 0.21).inspector(50, 50)
    inspector.overrule(8, True, 1)
    (item,) = inspector.items()
    assert (item.accepted, item.predicted_score, item.stop_step, item.rule) == (True, None, 8, "user_accept")
    for step in (8, 9, 10):
        inspector.observe(step, 1.0, torch.zeros(1, 16, 3, 4, 4))
    inspector.overrule(10, False, 1)
    (item,) = inspector.items()
    assert (item.accepted, item.predicted_score, item.stop_step, item.rule) == (False, 0.21, 10, "user_reject")


TEXT = {"input": {"required": {"text": ["STRING", {"multiline": True}]}}, "output": ["CONDITIONING"]}
BOTH = {
    "input": {"required": {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"]}},
    "output": ["CONDITIONING", "CONDITIONING"], "output_name": ["positive", "negative"],
}  # fmt: skip
SAMPLER = {"input": {"required": {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"]}}, "output": ["LATENT"]}
INFO = {"Text": TEXT, "Both": BOTH, "Sampler": SAMPLER}


@pytest.mark.parametrize("swapped", [False, True])
def test_a_node_that_passes_both_prompts_on_is_followed_by_name(swapped):
    """As image-to-video conditioning does, and where somebody has crossed its outputs."""
    both = [["3", int(swapped)], ["3", int(not swapped)]]
    nodes = {
        "1": {"class_type": "Text", "inputs": {"text": "a dog"}},
        "2": {"class_type": "Text", "inputs": {"text": "blur"}},
        "3": {"class_type": "Both", "inputs": {"positive": ["1", 0], "negative": ["2", 0]}},
        "4": {"class_type": "Sampler", "inputs": dict(zip(("positive", "negative"), both, strict=True))},
    }  # fmt: skip
    assert texts(nodes, INFO, "4") == ({"blur": "2"} if swapped else {"a dog": "1"})


def test_a_link_is_a_node_and_one_of_its_outputs():
    assert is_link(["1", 0])
    for value in (["1", 0, 0], ["1"], [1, 0], ["1", "0"], ("1", 0), "1", None, []):
        assert not is_link(value)
