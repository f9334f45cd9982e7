"""Rewording without a model: phrases, ablation by the scorer, restart with other noise."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.demo.captions import prompts
from foresight.refiner.ablation import AblationReworder, AblationSettings
from foresight.refiner.base import RewordingError, RewordingRequest
from foresight.refiner.phrases import emphasise, join, split_phrases, weighted_parts, without
from foresight.refiner.restart import SEED_STEP, RestartReworder
from foresight.scoring.words import plain

PREVIEW = torch.zeros(5, 8, 8, 3)
DEMO = "a red circle moves left above a small blue square on a grey background"


class WordBag:
    """Scores a text by the share of its words that the preview shows. Like every scorer, it reads the words alone."""

    name = "word bag"

    def __init__(self, seen: str, offset: float = 0.0):
        self.seen, self.offset, self.texts = set(seen.split()), offset, []

    def encode_text(self, prompt):
        self.texts.append(plain(prompt))
        return self.texts[-1]

    def score(self, frames, text):
        words = re.findall(r"\w+", text.lower())
        return self.offset + sum(word in self.seen for word in words) / len(words)


def reword(prompt, scorer, negative="", **changes):
    refiner = AblationReworder(scorer, AblationSettings(**changes))
    return refiner.reword(RewordingRequest(prompt, negative, PREVIEW, 0.1))


@pytest.mark.parametrize(
    "missing, expected",
    [
        ("above small blue square", "(above a small blue square:1.3), a red circle moves left on a grey background"),
        ("grey background", "(on a grey background:1.3), a red circle moves left above a small blue square"),
        # These cannot move without changing what they belong to, so they are weighted where they stand.
        ("moves left", DEMO.replace("moves left", "(moves left:1.3)")),
        ("red circle", DEMO.replace("a red circle", "(a red circle:1.3)")),
    ],
)
def test_the_phrase_that_the_preview_lacks_is_emphasised(missing, expected):
    seen = " ".join(word for word in DEMO.split() if word not in missing.split())
    found = reword(DEMO, WordBag(seen))
    assert found.prompt == expected
    assert found.evidence[0]["difference"] > 0
    assert set(missing.split()) <= set(found.evidence[0]["phrase"].split())
    assert found.reasoning.startswith(f'The preview lacks "{found.evidence[0]["phrase"]}"')


def test_evidence_lists_every_phrase_by_difference():
    scorer = WordBag("a red circle on grey background")
    whole = scorer.score(PREVIEW, DEMO)
    evidence = reword(DEMO, scorer).evidence
    assert sorted(item["phrase"] for item in evidence) == sorted(
        ["a red circle", "moves left", "above a small blue square", "on a grey background"]
    )
    differences = [item["difference"] for item in evidence]
    assert differences == sorted(differences, reverse=True)
    for item in evidence:
        rest = " ".join(DEMO.replace(item["phrase"], "").split())
        assert item["score_without"] == scorer.score(PREVIEW, rest)
        assert item["difference"] == item["score_without"] - whole


def test_when_nothing_is_missing_the_least_visible_phrase_is_emphasised():
    class Everything(WordBag):
        def score(self, frames, text):
            return {"a dog on grass": 0.30, "a dog": 0.28, "on grass": 0.20}[text]

    found = reword("a dog on grass", Everything(""))
    assert found.prompt == "(on grass:1.3), a dog"
    assert found.reasoning.startswith("No phrase is clearly missing")


def test_deterministic_and_bounded():
    prompt = ", ".join(f"thing{i} of kind{i}" for i in range(40))
    first, second = WordBag("thing3"), WordBag("thing3")
    assert reword(prompt, first, max_phrases=6) == reword(prompt, second, max_phrases=6)
    assert len(first.texts) == 7
    scored = " ".join(first.texts[1:])
    assert all(f"thing{i}" in scored for i in range(40))  # no part of the prompt is left out of the comparison


def test_ties_go_to_the_earlier_phrase():
    class Same(WordBag):
        def score(self, frames, text):
            return 0.2

    assert reword("a dog, a cat, a cow", Same("")).prompt == "(a dog:1.3), a cat, a cow"


def test_negative_is_kept_as_given():
    assert reword(DEMO, WordBag("a"), negative="blurry, (text:1.2)").negative == "blurry, (text:1.2)"


@pytest.mark.parametrize(
    "prompt, reason", [("", "empty"), ("  \n", "empty"), ("...", "empty"), ("dog", "cannot be parted")]
)
def test_prompts_without_parts_are_refused_with_the_reason(prompt, reason):
    with pytest.raises(RewordingError, match=reason):
        reword(prompt, WordBag("a"))


def test_unusable_scores_and_previews_are_refused_with_the_reason():
    with pytest.raises(RewordingError, match="word bag scored the preview nan"):
        reword(DEMO, WordBag("a", offset=float("nan")))
    with pytest.raises(RewordingError, match="no preview"):
        AblationReworder(WordBag("a")).reword(RewordingRequest(DEMO, "", None, None))
    with pytest.raises(RewordingError, match="highest weight"):
        reword("(a dog:1.5), a cat", WordBag("a cat"))


@pytest.mark.parametrize("changes", [{"max_phrases": 1}, {"weight": 1.0}, {"weight": 1.6}, {"weight": float("nan")}])
def test_settings_out_of_range_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        AblationSettings(**changes)


def test_scorer_sees_words_without_weights_and_escapes():
    scorer = WordBag("grass")
    found = reword(r"(a red ball:1.2) rolling over grass, toy \(plastic\)", scorer)
    assert scorer.texts[0] == "a red ball rolling over grass, toy (plastic)"
    assert not any(":" in text or "\\" in text for text in scorer.texts)
    assert found.prompt == r"(a red ball:1.5) (rolling:1.3) over grass, toy \(plastic\)"


@pytest.mark.parametrize(
    "text",
    ["a dog", "(a dog)", "((a) dog:1.2) b", "((a:0.5) b)", r"\(a\) (b:1.1)", "(a:b)", "(a", "a) b", "(:1.2)", "()"],
)
def test_weights_are_read_as_comfyui_reads_them(comfyui, text):
    from comfy.sd1_clip import escape_important, token_weights, unescape_important

    expected = [(unescape_important(part), weight) for part, weight in token_weights(escape_important(text), 1.0)]
    ours = [(part.replace("\\(", "(").replace("\\)", ")"), weight) for part, weight in weighted_parts(text)]
    assert [pair for pair in ours if pair[0]] == [pair for pair in expected if pair[0]]


@pytest.mark.parametrize(
    "prompt, phrases",
    [
        ("a red circle", ["a red", "circle"]),
        ("black and white cat", ["black", "and white", "cat"]),
        ("a yellow ring and a blue ring", ["a yellow ring", "a blue ring"]),
        ("the run along the river", ["the run", "along the river"]),
        ("a square to the left of a cross", ["a square", "to the left of a cross"]),
        ("version 4.5, costs 1,000", ["version 4.5", "costs 1,000"]),
        ("(a cat, on a mat:1.2), rain", ["(a cat, on a mat:1.2)", "rain"]),
        ("一只猫，阳光明媚", ["一只猫", "阳光明媚"]),
    ],
)
def test_where_prompts_part(prompt, phrases):
    assert [phrase.text for phrase in split_phrases(prompt, 12)] == phrases


@pytest.mark.parametrize(
    "prompt, index, expected",
    [
        ("a cat and a dog on a chair", 2, "a cat and a dog (on a chair:1.3)"),  # the cat would sit there too
        ("a cat, its tail up", 1, "a cat, (its tail up:1.3)"),  # refers back
        ("a cat, soft light", 1, "(soft light:1.3), a cat"),
        ("a cat. it rains, soft light", 2, "a cat. (soft light:1.3), it rains"),  # within its sentence
        ("a big dog, a girl with a hat", 2, "a big dog, a girl (with a hat:1.3)"),
    ],
)
def test_a_phrase_only_moves_where_it_keeps_its_meaning(prompt, index, expected):
    assert emphasise(split_phrases(prompt, 12), index, 1.3, 1.5, True) == expected


def test_phrases_stay_in_place_when_asked():
    phrases = split_phrases("a cat, soft light", 12)
    assert emphasise(phrases, 1, 1.3, 1.5, False) == "a cat, (soft light:1.3)"


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_demo_captions_keep_their_words(difficulty):
    for caption, _ in prompts("train", difficulty, 60):
        phrases = split_phrases(caption, 12)
        assert len(phrases) >= 2 and join(phrases) == caption
        for index, phrase in enumerate(phrases):
            refined = emphasise(phrases, index, 1.3, 1.5, True)
            assert sorted(re.findall(r"\w+", plain(refined))) == sorted(caption.replace(",", "").split())
            assert f"({phrase.text}:1.3)" in refined
            rest = without(phrases, index)
            assert phrase.text not in rest or caption.count(phrase.text) > 1
            assert rest == rest.strip(" ,")


WORDS = "a dog cat and on moves both the , . ( ) (x:1.2) \\( left of ; : 猫".split()


@settings(max_examples=100)
@given(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join))
def test_any_text_is_parted_without_loss(text):
    phrases = split_phrases(text, 5)
    assert len(phrases) <= 5
    if phrases:
        assert join(phrases) in text
    if len(phrases) > 1:
        for index in range(len(phrases)):
            without(phrases, index)
            refined = plain(emphasise(phrases, index, 1.3, 1.5, True))
            assert sorted(re.findall(r"[a-z猫]+", refined)) == sorted(re.findall(r"[a-z猫]+", plain(join(phrases))))


def test_a_restart_asks_for_the_noise_of_a_far_seed():
    found = RestartReworder().reword(RewordingRequest(DEMO, "blur", None, 0.1, seed=5))
    assert (found.prompt, found.negative, found.seed) == (DEMO, "blur", 5 + SEED_STEP)
    assert RestartReworder().reword(RewordingRequest(DEMO, "", None, 0.1, seed=2**64 - 1)).seed == SEED_STEP - 1
    with pytest.raises(RewordingError, match="connect NOISE"):
        RestartReworder().reword(RewordingRequest(DEMO, "", None, 0.1))


@pytest.mark.parametrize("piece", ["that ", "a,", "a and ", "in ", " ", "(", "猫，", "<a:"])
def test_prompts_beyond_what_encoders_read_are_not_parted(piece):
    """Parting takes time by the square of the length, so the length is bounded."""
    most = AblationSettings().max_characters
    with pytest.raises(RewordingError, match=f"the prompt has {most + 1} characters, and at most {most} are parted"):
        reword((piece * (most + 1))[: most + 1], WordBag("a"))
    assert reword("a dog, " + "cat " * (most // 4 - 2), WordBag("cat")).prompt.startswith("(a dog:1.3)")
