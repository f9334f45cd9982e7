"""What a scorer reads of a prompt: its words, in every place that scores."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from test_viclip import random_model
from tiny_wan import gate, inputs, model

from foresight.nodes import NODES
from foresight.refiner.ablation import AblationReworder
from foresight.refiner.base import RewordingRequest
from foresight.sampling.run import monitored_sample
from foresight.scoring.tokens import clip_tokenizer
from foresight.scoring.viclip_scorer import ViCLIPScorer
from foresight.scoring.words import plain
from foresight.trials.report import run_report
from foresight.trials.summary import report_text


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("(one large purple:1.0) triangle moving down", "one large purple triangle moving down"),
        ("((a) big:1.2) (dog:0.8), (very) small", "a big dog, very small"),
        ("(((cat:1.1):1.2) on (a (red:1.5) mat:1e0):.9)", "cat on a red mat"),
        (r"a toy \(plastic\), (a \(red\) ball:1.2)", "a toy (plastic), a (red) ball"),
        ("(x:nan) and (y:inf), ratio 16:9, (a:b)", "x and y, ratio 16:9, a:b"),
        ("a cat, <lora:my style:0.8>, <lyco:x:1:0.5> a dog", "a cat, a dog"),
        ("embedding:easyneg, a cat, (embedding:sub/bad.pt:1.2) fish embedding:last", "a cat, fish"),
        ("a cat BREAK a dog\nBREAK", "a cat a dog"),
        ("/* not this */ a cat // nor this\non a mat /* open", "a cat on a mat"),
        ("a {red|deep blue} {2::big|small} ball", "a red deep blue big small ball"),
        ("a {red {dark|light}|} ball of __animals/cats__", "a red dark light ball of"),
        (r"a \{b\|c\}", "a {b|c}"),
        ("<lora:x:1>, embedding:y BREAK (:1.2)", ""),
        # Nothing of this is syntax.
        ("a cat, a dog,", "a cat, a dog,"),
        ("(a cat", "(a cat"),
        ("a cat) at 5:30 <3 a < b", "a cat) at 5:30 <3 a < b"),
        ("a breakdancer breaks a snake_case sign", "a breakdancer breaks a snake_case sign"),
        ("a re-embedding:x of BREAKS", "a re-embedding:x of BREAKS"),
        ("一只猫，(阳光明媚:1.3)", "一只猫，阳光明媚"),
    ],
)
def test_syntax_goes_and_words_stay(prompt, words):
    assert plain(prompt) == words


@pytest.fixture
def scorer():
    folder = Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer"
    return ViCLIPScorer(random_model(), clip_tokenizer(folder))


def test_a_scorer_gives_one_text_one_feature_whatever_its_syntax(scorer):
    bare = scorer.encode_text("one large purple triangle moving down")
    for prompt in (
        "(one large purple:1.0) triangle moving down", "<lora:x:1> one large purple triangle moving down",
        "embedding:x one large {purple} triangle /* down */ moving BREAK (down)",
    ):  # fmt: skip
        assert torch.equal(scorer.encode_text(prompt), bare)
    assert not torch.equal(scorer.encode_text(r"\(one\) large purple triangle moving down"), bare)


def test_what_has_no_words_is_refused_by_name(scorer):
    with pytest.raises(ValueError, match="tiny: the prompt has no words"):
        scorer.encode_text("<lora:x:1> BREAK")


def test_ablation_leaves_out_words_and_never_syntax(scorer):
    prompt = "<lora:a, b:0.8>, (a red ball:1.2), a blue cup, embedding:good, /* a, b */"
    found = AblationReworder(scorer).reword(RewordingRequest(prompt, "", torch.rand(8, 28, 28, 3), 0.1))
    assert sorted(item["phrase"] for item in found.evidence) == ["a blue cup", "a red ball"]
    assert "<lora:a, b:0.8>" in found.prompt and "embedding:good" in found.prompt


HOSTILE = (
    "(", ")", "(a:1.2)", "(:", "((a:1):", "/*", "/", "//", "<a:", "<", "__a", "_", "__-", "embedding:", "embedding:\\(",
    "{", "{1", "{ ", "|1.1", "\\(", "\\", " ", " ,", ":", "BREAK", "1", "e", "猫", "\ud83d", "\n",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_of_anything_is_read_at_once(piece):
    """Work that grew by the square of the length would take hours here."""
    assert isinstance(plain(piece * (1_000_000 // len(piece))), str)


def test_a_megabyte_of_any_mixture_is_read_at_once():
    chance = random.Random(0)
    for _ in range(20):
        some = chance.sample(HOSTILE, 3)
        assert isinstance(plain("".join(chance.choices(some, k=300_000))), str)


def test_choices_are_made_where_the_text_is_encoded_and_nowhere_else():
    """A text box that only repeats the encoder's prompt would draw choices of its own, and judge another clip."""
    made = {
        (node.define_schema().node_id.removeprefix("Foresight"), widget.id): bool(widget.dynamic_prompts)
        for node in NODES for widget in node.define_schema().inputs if getattr(widget, "multiline", False)
    }  # fmt: skip
    own = {("Sampler", name) for name in ("prompt", "negative", "manual_prompt")}
    encoded = own | {("PromptRefiner", "manual_prompt")}
    assert {place for place, chosen in made.items() if chosen} == encoded
    assert {("FailureGate", "prompt"), ("ViCLIPScore", "prompt"), ("LatentReward", "prompt")} <= made.keys()


def test_the_report_says_what_the_scorer_read():
    patcher = model()
    for prompt, lines in (
        ("(a red:1.2) circle BREAK", ["Scored against its words: a red circle"]), ("a red  circle", []),
    ):  # fmt: skip
        verdict = monitored_sample(inputs(patcher, steps=4), gate(0.3, prompt=prompt)).verdict
        report = run_report(verdict)
        assert (report["prompt"], report["settings"]["scored_text"]) == (prompt, "a red circle")
        assert [said for said in report_text(report).splitlines() if said.startswith("Scored")] == lines


def test_a_prompt_of_syntax_alone_is_sampled_and_said_to_be_unscored(scorer):
    """Nothing of it can be scored, and that ends no run (promise 2)."""
    setup = inputs(model(), steps=8)
    plain_run = monitored_sample(setup).latent["samples"]
    result = monitored_sample(setup, gate(prompt="<lora:x:1>, embedding:y", scorer=scorer))
    report = run_report(result.verdict)
    assert torch.equal(result.latent["samples"], plain_run) and report["accepted"]
    assert "has no words" in " ".join(report["notes"])
