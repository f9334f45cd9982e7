"""The translations have a text for everything that the nodes say, and none too many."""

from __future__ import annotations

from foresight.lab.release.locales import differences, faults

ENGLISH = {"Node": {"display_name": "Node", "inputs": {"seed": {"name": "seed", "tooltip": "Of the noise."}}}}


def test_translations_are_whole():
    """If this fails: write the texts that are named below into their file, or delete them."""
    assert not faults(), "\n".join(faults())


def test_what_a_translation_lacks_or_has_too_much_is_named():
    assert differences(ENGLISH, ENGLISH) == []
    other = {"Node": {"display_name": "节点", "inputs": {"seed": {"name": "种子"}, "steps": {"name": "步数"}}}}
    assert differences(ENGLISH, other) == ["lacks Node.inputs.seed.tooltip", "still has Node.inputs.steps.name"]


def test_a_reworded_english_sentence_breaks_nothing():
    reworded = {"Node": {**ENGLISH["Node"], "display_name": "The node"}}
    assert differences(reworded, ENGLISH) == []
