"""Prompts longer than the scorer reads: in pieces, told, and what fits is scored as it always was."""

from __future__ import annotations

import logging
import random
import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_wan
import torch
from test_drop_in import floors, ksampler  # noqa: F401 (a fixture)
from test_latent_reward import LATENT, tiny
from test_viclip import random_model
from torch.nn import functional as F

from foresight.demo.captions import prompts
from foresight.evaluation.statistics import bootstrap_within
from foresight.evaluation.suites import load_suite
from foresight.lab.experiments import long_prompts
from foresight.nodes.drop_in import ForesightKSampler
from foresight.nodes.inspection import ViCLIPScore
from foresight.nodes.panel import STORE
from foresight.sampling.run import monitored_sample
from foresight.sampling.search import SearchSampler, SearchSettings
from foresight.scoring.latent_reward import LatentReward
from foresight.scoring.pieces import SHARPNESS, Reading, aligned, parted, together
from foresight.scoring.reward import AlignmentReward
from foresight.scoring.tokens import clean_text, clip_tokenizer, context_ids
from foresight.scoring.viclip_scorer import ViCLIPScorer
from foresight.scoring.words import plain
from foresight.trials.report import run_report
from foresight.trials.summary import report_text

# 180 words, as prompt enhancers write them.
LONG = (
    "Cinematic documentary style, soft morning light. A young woman with short red hair, wearing a blue raincoat and "
    "yellow boots, walks slowly along a narrow cobbled street of an old harbour town, while seagulls circle above the "
    "wet slate roofs, fishermen mend their nets on the quay, and a small white dog follows her at a distance of a few "
    "steps, stopping now and then to sniff at the crates. She holds a paper bag of fresh bread in her left hand. She "
    "smiles at a shopkeeper who is opening green wooden shutters. The camera follows her from behind at shoulder "
    "height, then moves around to show her face in profile as she turns the corner and looks up at the church tower. "
    "The background is slightly out of focus, with warm reflections of the rising sun in puddles and shop windows. "
    "Medium shot, 35mm lens, shallow depth of field, natural colours and fine film grain. The mood is calm, hopeful "
    "and a little nostalgic, and every movement is smooth and natural, without cuts. Steam rises from a cup "
    "nearby."
)


@pytest.fixture
def scorer(comfyui):
    return ViCLIPScorer(random_model(), clip_tokenizer(comfyui / "comfy" / "sd1_tokenizer"))


def plain_feature(scorer, text):
    """What the scorer gave before there were pieces, and VBench gives."""
    ids = torch.tensor([context_ids(scorer._tokenize(clean_text(text)), scorer.config.context)])
    return F.normalize(scorer.model.encode_text(ids)[0].float(), dim=-1)


def test_what_fits_has_the_feature_and_score_it_had(scorer):
    frames = torch.rand(8, 28, 28, 3, generator=torch.Generator().manual_seed(0))
    captions = [text for difficulty in ("easy", "medium", "hard") for text, _ in prompts("test", difficulty, 100)]
    edges = ["a cat " * count for count in (14, 15, 16, 19)]  # 30, 32, 34 and 40 tokens
    with torch.no_grad():
        for text in [*captions, *edges, "A large wave, seen from a boat; it breaks. Foam!"]:
            feature, before = scorer.encode_text(text), plain_feature(scorer, text)
            assert torch.equal(feature, before)
        assert scorer.score(frames, feature) == float(scorer.encode_frames(frames) @ before)


@pytest.mark.parametrize("text", [
    LONG, LONG.replace(".", ";"), re.sub(r"[.,;]", "", LONG), LONG.replace(".", ","), f"{LONG} " * 8,
    "masterpiece, best quality, (red ball:1.3), " * 20, "1920x1080 at 3.5 mm and f/1.8! " * 20,
])  # fmt: skip
def test_pieces_fit_and_hold_every_word_once(scorer, text):
    reading = scorer.reading(text)
    assert len(reading.pieces) > 1 and all(len(ids) <= scorer.config.context for ids in reading.ids)
    assert " ".join(reading.pieces).split() == clean_text(plain(text)).split()


def test_sentences_stay_whole_where_they_fit_and_clauses_where_they_do_not():
    fits = lambda text: len(text.split()) <= 6  # noqa: E731
    assert parted("A cat sits. A dog, which is old, runs over a hill. (It rains.) 3.5 mm", fits) == [
        "A cat sits.", "A dog, which is old,", "runs over a hill.", "(It rains.)", "3.5 mm",
    ]  # fmt: skip
    assert parted("one two three four five six seven eight", fits) == ["one two three four five six", "seven eight"]
    assert parted("猫が座る。犬が走る。", lambda text: len(text) <= 6) == ["猫が座る。", "犬が走る。"]


def test_the_score_of_pieces_lies_between_their_mean_and_their_best():
    features = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    reading = Reading(tuple("abcd"), tuple([0] * (n + 2) for n in (10, 20, 5, 5)))
    text, shares = together(features, reading), torch.tensor([0.25, 0.5, 0.125, 0.125])
    clip = F.normalize(torch.randn(16, generator=torch.Generator().manual_seed(3)), dim=-1)
    cosines = features @ clip
    for scale in (0.5, 1.0):
        expected = (shares * (cosines * SHARPNESS / scale).exp()).sum().log() * scale / SHARPNESS
        assert aligned(clip, text, scale) == pytest.approx(float(expected), abs=1e-5)
        assert cosines @ shares < aligned(clip, text, scale) < cosines.max()
    same = together(features[:1].expand(4, -1), reading)
    assert aligned(clip, same, 1.0) == pytest.approx(float(cosines[0]), abs=1e-5)  # what it is alone
    assert torch.equal(together(features[:1], reading), features[0])


@pytest.mark.parametrize("text, note", [
    ("a cat " * 16, "the scorer reads 32 tokens of 34 here; cut: 'a cat'"),
    (LONG, r"the prompt is scored in \d+ pieces of at most 32 tokens"),
    ("x" * 300, "the scorer reads 32 tokens of"), ("a cat " * 3000, "the scorer reads the first 10,000 characters"),
    ("черный кот медленно идет по крыше старого дома", "most of the prompt is not in Latin letters"),
    ("一只黑猫在夕阳下慢慢走过老房子的屋顶", "most of the prompt is not in Latin letters"),
    ("Eine rote Kugel rollt langsam über einen alten Holztisch aus Eichenholz", "does not read like English"),
    ("siyah bir kedi güneş batarken eski bir evin çatısında yavaşça yürüyor", "does not read like English"),
])
def test_what_is_not_read_as_it_is_written_is_told(scorer, text, note):
    assert any(re.match(note, said) or note in said for said in scorer.reading(text).notes)


@pytest.mark.parametrize("text", [
    "a red circle", "1girl, ultra-detailed, (8k:1.2), bokeh, Unreal Engine 5", "Pripyat, Chornobyl", "💃 dancing",
    "a cat in 東京", "café, naïve façade, a señorita in Curaçao", "a tyrannosaurus", "1920x1080, 24 fps, f/1.8",
    "The bund Shanghai by Hokusai, in the style of Ukiyo", "a cat " * 15,
])
def test_nothing_is_told_of_what_is_read_whole(scorer, text):
    assert scorer.reading(text).notes == () and len(scorer.reading(text).pieces) == 1


def test_vbenchs_prompts_are_scored_as_vbench_scores_them(scorer):
    if find_spec("vbench") is None:
        pytest.skip("VBench's list of prompts is not installed")
    readings = [scorer.reading(item.prompt) for item in load_suite("vbench").items]
    assert sum(len(reading.pieces) > 1 for reading in readings) == 1
    assert not any("English" in note for reading in readings for note in reading.notes)


def test_a_latent_reward_reads_a_prompt_in_pieces():
    class Pieces:
        name, scale = "words", 1.0

        def encode_text(self, prompt):
            drawn = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))  # other than the clips are many
            return F.normalize(drawn, dim=-1) / 5

        def reading(self, prompt):
            return Reading(tuple("abcde"), notes=("told",))

    reward = LatentReward(tiny(), Pieces(), LONG)
    scores = reward.score(LATENT, 0.5, 10)
    assert scores.shape == (3,) and scores.isfinite().all() and reward.notes == ("told",)
    alone = torch.cat([reward.score(item, 0.5, 10) for item in LATENT.split(1)])
    assert torch.allclose(scores, alone, atol=1e-5)
    assert AlignmentReward(tiny_wan.gate(prompt=LONG, scorer=Pieces())).notes == ("told",)


def test_a_search_tells_how_its_reward_reads_the_prompt(scorer):
    setup, found = tiny_wan.inputs(tiny_wan.model(), steps=4), []
    reward = AlignmentReward(tiny_wan.gate(prompt=LONG, scorer=scorer))
    settings = SearchSettings(candidates=2, schedule=(0.5,))
    sampler = SearchSampler(setup.sampler, reward, settings)
    verdict = monitored_sample(replace(setup, sampler=sampler)).verdict
    found = [trial["details"]["search"]["notes"] for trial in run_report(verdict)["trials"]]
    assert "pieces of at most 32 tokens" in found[0][0]


@pytest.mark.parametrize("score", [0.3, 0.0], ids=["passes", "races"])
def test_a_node_says_once_in_report_panel_and_log_how_a_long_prompt_is_scored(scorer, score, caplog, monkeypatch):
    """180 words, through the node; the run's own latent is what it is with a short prompt."""
    scores = iter([score])
    scorer.name, real = "scripted", scorer.score
    monkeypatch.setattr(scorer, "score", lambda frames, text: real(frames, text) * 0 + next(scores, 0.1))
    with caplog.at_level(logging.WARNING, logger="foresight"):
        gate = tiny_wan.gate(scorer=scorer)
        latent, verdict = ForesightKSampler.execute(**ksampler(), gate=gate, prompt=LONG).args
    report = run_report(verdict)
    pieces = report["settings"]["scored_pieces"]
    note = f"the prompt is scored in {len(pieces)} pieces of at most 32 tokens"
    assert len(LONG.split()) == 180 and report["notes"].count(note) == 1
    text = report_text(report)
    assert f"Scored against its words, in {len(pieces)} pieces: {' | '.join(pieces)}" in text
    assert f"Note: {note}" in text
    assert (len(report["candidates"]) > 1) == (score < 0.2)
    assert [line for record in caplog.records if "pieces" in (line := record.getMessage())] == [f"Foresight: {note}"]
    assert STORE.run(verdict.run).settings["text_notes"] == [note]


def test_viclip_score_says_it_in_the_log(scorer, caplog, monkeypatch):
    monkeypatch.setattr("foresight.nodes.inspection.load_scorer", lambda *_: scorer)
    monkeypatch.setattr("foresight.nodes.inspection.on_device", lambda scorer: scorer)
    frames = torch.rand(8, 28, 28, 3, generator=torch.Generator().manual_seed(0))
    for prompt, told in ((LONG, 1), ("a red circle", 0)):
        caplog.clear()
        score = ViCLIPScore.execute("any", images=frames, prompt=prompt).args[1]
        assert score == scorer.score(frames, scorer.encode_text(prompt))
        assert sum("pieces" in record.getMessage() for record in caplog.records) == told


@pytest.mark.parametrize("padding", long_prompts.PADDINGS)
def test_the_measured_prompts_are_long_and_say_what_the_caption_says(padding):
    items = load_suite("demo_validation", 30).items
    for item in items:
        text = long_prompts.PADDINGS[padding](item, random.Random(item.index))
        assert long_prompts.WORDS <= len(text.split()) < long_prompts.WORDS + 30
        assert text == long_prompts.PADDINGS[padding](item, random.Random(item.index))
        if padding != "parts":
            assert long_prompts.sentence(item.prompt) in text
        elif item.scene.background:
            assert f"The background is {item.scene.background}." in text


def test_what_is_measured_is_what_the_scorer_does():
    features = F.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(2)), dim=-1)
    clips = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(3)), dim=-1)
    text = together(features, Reading(tuple("abc"), tuple([0] * (n + 2) for n in (10, 20, 10))))
    measured = long_prompts.soft_maximum(
        (clips @ features.T).double().numpy(), np.array([0.25, 0.5, 0.25]), SHARPNESS / 0.5
    )
    assert np.allclose(measured, aligned(clips, text, 0.5), atol=1e-5)


def test_a_difference_within_prompts_is_paired():
    right, groups = [True, False] * 10, np.repeat(np.arange(10), 2)
    good, none = np.array([1.0, 0.0] * 10), np.zeros(20)
    assert bootstrap_within(good, right, groups, good) == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert bootstrap_within(good, right, groups, none) == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_reports_of_short_prompts_are_what_they_were(scorer):
    verdict = monitored_sample(tiny_wan.inputs(tiny_wan.model(), steps=4), tiny_wan.gate(scorer=scorer)).verdict
    report = run_report(verdict)
    assert not {"scored_pieces", "text_notes"} & report["settings"].keys() and report["notes"] == []


def test_a_reading_that_fails_ends_no_run(scorer, monkeypatch):
    def broken(prompt):
        raise RuntimeError("no tokens")

    setup = tiny_wan.inputs(tiny_wan.model(), steps=4)
    plain_run = monitored_sample(setup).latent["samples"]
    monkeypatch.setattr(scorer, "reading", broken)
    result = monitored_sample(setup, tiny_wan.gate(scorer=scorer))
    assert torch.equal(result.latent["samples"], plain_run) and run_report(result.verdict)["accepted"]
