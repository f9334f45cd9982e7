"""Trial 2's table: which phrase states what failed, and the figures of runs whose outcome is known beforehand."""

from __future__ import annotations

import pytest

from foresight.demo.captions import parse_caption, prompts
from foresight.evaluation.results import environment
from foresight.lab.experiments.trial_2 import ARMS, markdown, stating, summarize
from foresight.refiner.phrases import split_phrases


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_every_judged_attribute_is_stated_by_a_phrase(difficulty):
    for caption, scene in prompts("test", difficulty, 40):
        phrases = split_phrases(caption, 12)
        for number, thing in enumerate(scene.objects, 1):
            words = phrases[stating(f"object {number} colour", phrases, scene)].text
            assert thing.colour in words and thing.shape in words
            if thing.motion is not None:
                moved = phrases[stating(f"object {number} direction", phrases, scene)].text
                assert (thing.motion if thing.motion != "still" else "") in moved
        if scene.background:
            assert "background" in phrases[stating("background", phrases, scene)].text
        if scene.relation:
            stated = phrases[stating("relation", phrases, scene)].text.split()
            assert set(stated) & {"left", "right", "above", "over", "below", "under"}
        assert stating("count", phrases, scene) is not None


def test_two_objects_that_move_apart_have_a_phrase_each():
    caption = "a red circle moving left above a blue square moving right on a white background"
    scene, phrases = parse_caption(caption), split_phrases(caption, 12)
    asked = ("object 1 direction", "object 2 direction", "relation")
    found = {attribute: phrases[stating(attribute, phrases, scene)].text for attribute in asked}
    assert found == {"object 1 direction": "moving left", "object 2 direction": "moving right",
                     "relation": "above a blue square"}  # fmt: skip


def made_up(prompt: int, base: bool, **right: bool) -> dict:
    return {
        "prompt_index": prompt, "accepted": False, "right": {"base": base, **right}, "emphasised": "a red circle",
        "failed": None if base else "a red circle" if right["ablation"] else "moves left",
    }  # fmt: skip


@pytest.fixture
def runs() -> list[dict]:
    # Each prompt: a failure that all repair, one that only other noise repairs, a good clip that ablation spoils.
    every = dict.fromkeys(ARMS, True)
    return [
        run for prompt in range(4) for run in (
            made_up(prompt, False, **every),
            made_up(prompt, False, ablation=False, restart=True, truth=False, both=True),
            made_up(prompt, True, **{**every, "ablation": False}),
            {"prompt_index": prompt, "accepted": True},
        )
    ]  # fmt: skip


def test_figures_count_rejected_runs_only(runs):
    summary = summarize(runs)
    assert (summary["runs"], summary["rejected"], summary["prompts"]) == (16, 12, 4)
    assert summary["right"]["base"]["value"] == pytest.approx(1 / 3)
    assert summary["repaired"]["ablation"]["value"] == summary["repaired"]["truth"]["value"] == 0.5
    assert (summary["spoiled"]["ablation"]["value"], summary["spoiled"]["restart"]["value"]) == (1, 0)
    difference = summary["differences"]["ablation minus restart"]
    assert difference["all"]["value"] == pytest.approx(-2 / 3) and difference["failed"]["value"] == pytest.approx(-0.5)
    assert (summary["ablation_finds_what_failed"]["count"], summary["ablation_finds_what_failed"]["of"]) == (4, 8)


def test_the_page_states_the_same_figures(runs):
    pytest.importorskip("comfyui_version")
    page = markdown({"summary": summarize(runs), "environment": environment("the command")})
    assert "12 of 16 runs were rejected" in page and "-66.7 %" in page and "nan" not in page
