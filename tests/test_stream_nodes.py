"""The nodes of streaming: what their widgets mean, and what bad input leads to."""

from __future__ import annotations

import json

import pytest
import tiny_wan
import torch
from comfy_execution.graph import ExecutionBlocker
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from streams import SIGMAS, causal
from tiny_wan import MeanL2R, ScriptedScorer

from foresight.nodes.streaming import ChunkGateNode, StreamingGuiderNode, StreamingReport, StreamingSampler
from foresight.sampling.compat import CAUSAL_WAN
from foresight.sampling.experts import TwoExpertGuider
from foresight.sampling.monitor import MonitorSampler
from foresight.trials.stream import StreamSettings

SAMPLER = {"preset": "Self-Forcing", "schedule": "", "levels": "", "chunk": 0, "kv": "of the preset", "window": -1,
           "sink": -1}  # fmt: skip
GATE = {"prompt": "a cat", "tau": 0.5, "plan": "gate", "looks": "2, last", "tries": 3, "depth": 1, "budget": 0.5}


class Clip:
    """Encodes a text as the tiny conditioning of its length."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return tiny_wan.conditioning(len(tokens))


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


def made(**widgets):
    return StreamingSampler.execute(**SAMPLER | widgets).args[0]


def gated(*scores, **widgets):
    return ChunkGateNode.execute(MeanL2R(), ScriptedScorer(*scores), **GATE | widgets).args[0]


def sampled(patcher, sampler, guider=None, frames=7, sigmas=SIGMAS):
    latent = {"samples": torch.zeros(1, 16, frames, 4, 4)}
    guider = guider or tiny_wan.guided(patcher, 1.0)
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(4), guider, sampler, sigmas, latent).result[0]


def test_widgets_that_are_left_alone_are_the_presets():
    assert made().settings == StreamSettings()
    diagonal = made(preset="Diagonal Distillation").settings
    assert (diagonal.kv, diagonal.window, diagonal.sink, diagonal.digits) == ("reuse last", 12, 3, "4322222")
    assert made(preset="Diagonal Distillation", window=0, sink=0).settings.window == 0
    own = made(schedule="5333333", chunk=2, kv="noisy", window=8, sink=2, context_noise=0.2).settings
    assert own == StreamSettings("Self-Forcing", "5333333", "", 2, "noisy", 8, 2, 0.2)


@pytest.mark.parametrize("widgets, message", [
    ({"preset": "best"}, "preset is 'best': choose one of"),
    ({"kv": "all"}, "kv is 'all': choose one of"),
    ({"schedule": "4x"}, "one digit from 1 to 9"),
    ({"schedule": "4", "preset": "sigmas"}, "Streaming Sampler: schedule is '4', but preset 'sigmas'"),
    ({"levels": "1000, 500"}, "Streaming Sampler: levels is '1000, 500', but preset is 'Self-Forcing'"),
    ({"window": 2}, "window is 2 latents, but a chunk alone has 3"),
    ({"window": 6, "sink": 6}, "lower sink, or raise window"),
    ({"goes_on": True}, "window is 0"),
    ({"previous": object()}, "previous is not from a Streaming Sampler"),
])  # fmt: skip
def test_widgets_that_make_no_sense(widgets, message):
    with pytest.raises(ValueError, match=message):
        made(**widgets)


def test_a_graph_with_every_node(patcher):
    gate = gated(0.9, 0.9, 0.1, 0.9)
    sampler = made(chunk=1, chunk_gate=gate)
    guider = StreamingGuiderNode.execute(patcher, Clip(), "a cat\n3: a dog, running", "", 1.0, True).args[0]
    clip = sampled(patcher, sampler, guider)
    node = StreamingReport.execute(sampler, clip)
    latent, nfe, text = node.args
    report = json.loads(text)
    assert latent is clip and nfe == report["nfe"] == 34 + 3 + 2  # a recache of three latents, and a draw of two steps
    assert report["redraws"] == 1 and [row["chunk"] for row in report["chunks"]] == list(range(7))
    assert "chunk 1, draw 0: 0.100 after 2 steps" in node.ui["text"][0]
    one_prompt = StreamingGuiderNode.execute(patcher, Clip(), "a cat", "", 1.0, True).args[0]
    plain = sampled(patcher, made(chunk=1), one_prompt)
    assert torch.equal(clip["samples"][:, :, 0], plain["samples"][:, :, 0])


@pytest.mark.parametrize("preset, levels, sigmas, nfe", [
    ("custom levels", "1000, 500; 1, 0.9, 0.8", SIGMAS, 2 + 3 * 2 + 2),
    ("sigmas", "", SIGMAS, 4 * 3 + 2),
    ("sigmas", "", torch.tensor([1.0, 0.5, 0.0, 1.0, 0.0]), 2 + 1 + 1 + 2),
])  # fmt: skip
def test_schedules_of_ones_own(patcher, preset, levels, sigmas, nfe):
    sampler = made(preset=preset, levels=levels)
    sampled(patcher, sampler, sigmas=sigmas)
    assert sampler.result["nfe"] == nfe


def test_one_sampler_goes_on_with_another(patcher):
    endless = {"window": 4, "chunk": 2, "goes_on": True}
    first = made(**endless)
    begun = sampled(patcher, first, frames=4)
    then = made(**endless, start=begun, previous=first)
    clip = sampled(patcher, then, frames=8)
    whole = sampled(patcher, made(**endless), frames=8)
    assert torch.equal(clip["samples"][:, :, 4:], whole["samples"][:, :, 4:])


def test_negatives_are_read_with_cfg(patcher):
    with_cfg = StreamingGuiderNode.execute(patcher, Clip(), "a cat", "blurry", 3.0, True).args[0]
    without = StreamingGuiderNode.execute(patcher, Clip(), "a cat", "blurry", 1.0, True).args[0]
    assert "negative" in with_cfg.original_conds and "negative" not in without.original_conds
    sampled(patcher, made(), with_cfg, frames=3)


@pytest.mark.parametrize("prompts, message", [
    ("", "empty prompt"), ("a\n9: b", "a prompt begins at chunk 9"), ("3: a", "the first begins at 0"),
])  # fmt: skip
def test_prompts_that_make_no_sense(patcher, prompts, message):
    with pytest.raises(ValueError, match=message):
        sampled(patcher, made(), StreamingGuiderNode.execute(patcher, Clip(), prompts, "", 1.0, True).args[0])
    with pytest.raises(ValueError, match="clip is empty"):
        StreamingGuiderNode.execute(patcher, None, "a", "", 1.0, True)


def test_a_gates_prompt_after_the_end_is_named(patcher):
    with pytest.raises(ValueError, match="Chunk Gate: a prompt begins at chunk 9, but the last chunk .* is 2"):
        sampled(patcher, made(chunk_gate=gated(0.9, prompt="a cat\n9: a dog")))


def test_two_experts_are_refused(patcher):
    guider = TwoExpertGuider(patcher, tiny_wan.model(seed=1))
    guider.set_conds(tiny_wan.conditioning(1), tiny_wan.conditioning(2))
    guider.set_cfg(1.0)
    with pytest.raises(ValueError, match="one cache, for one model, but Two-Expert Guider"):
        sampled(patcher, made(), guider)


def test_a_conditioning_for_a_part_of_the_steps_is_refused(patcher):
    positive = tiny_wan.conditioning(1)
    positive[0][1]["start_percent"] = 0.5
    guider = tiny_wan.guided(patcher, 1.0)
    guider.set_conds(positive, tiny_wan.conditioning(2))
    with pytest.raises(ValueError, match="no block of it ran.*prompts for a part of the steps"):
        sampled(patcher, made(), guider)


def test_it_is_said_what_a_model_shows_that_is_not_causal(patcher):
    """Its file cannot tell, unless it is core's own kind."""
    for model, told in ((patcher, True), *(((causal(patcher), False),) if CAUSAL_WAN else ())):
        sampler = made()
        clip = sampled(model, sampler, tiny_wan.guided(model, 1.0))
        assert ("smear, jump or fade" in StreamingReport.execute(sampler, clip).ui["text"][0]) == told


@pytest.mark.parametrize("widgets, message", [
    ({"plan": "all"}, "plan is 'all'"), ({"looks": "never"}, "looks is 'never'"), ({"prompt": " "}, "prompt is empty"),
    ({"prompt": "4: a"}, "prompts begin at chunks"), ({"budget": -1.0}, "budget is -1.0"),
])  # fmt: skip
def test_gates_that_make_no_sense(widgets, message):
    with pytest.raises(ValueError, match=message):
        gated(0.9, **widgets)


def test_the_scorers_own_tau_is_the_floor():
    assert gated(0.9, tau=-1.0).settings.floor == ScriptedScorer.tau


def test_a_stream_that_nothing_stops_says_what_its_chunks_score(patcher):
    """How a person finds tau; draws after the first are left out, which a tau would have chosen."""
    def told(*scores, **widgets):
        sampler = made(chunk=1, chunk_gate=gated(*scores, prompt="a cat", looks="last", **widgets))
        node = StreamingReport.execute(sampler, sampled(patcher, sampler, tiny_wan.guided(patcher, 1.0)))
        return node.args[1], node.ui["text"][0]

    scores = 0.05, float("nan"), 0.1, 0.3, 0.2, 0.15, 0.25
    nfe, text = told(*scores, tau=-0.99)
    assert nfe == 34 and "first score 0.050 to 0.300, half of them below 0.175; tau is -0.990" in text
    assert "first score 0.050 to 0.900, half of them below 0.900; tau is 0.220" in told(0.05, 0.8, 0.9, tau=0.22)[1]
    assert "drawn first" not in told(float("nan"))[1]


def test_a_report_of_nothing(patcher):
    clip = {"samples": torch.zeros(1)}
    for sampler in (made(), tiny_wan.inputs(patcher).sampler):
        node = StreamingReport.execute(sampler, clip)
        assert node.args[0] is clip and all(isinstance(each, ExecutionBlocker) for each in node.args[1:])
        assert "Nothing to tell" in node.ui["text"][0]


def test_the_monitored_sampler_watches_a_stream(patcher):
    sampler = made(chunk=1)
    plain = sampled(patcher, sampler)
    monitor = MonitorSampler(sampler, tiny_wan.gate(0.9).inspector(4))
    assert torch.equal(sampled(patcher, monitor)["samples"], plain["samples"])
    assert monitor.evaluations == 34 and StreamingReport.execute(monitor, plain).args[1] == 34


def test_a_race_is_refused_and_says_what_to_do(patcher):
    from foresight.sampling.candidates import CandidateEngine

    guider = tiny_wan.guided(patcher, 1.0)
    engine = CandidateEngine(made(), guider, SIGMAS, {"model_options": {}}, None, None)
    with pytest.raises(ValueError, match="cannot be raced.*Chunk Gate"):
        engine.costs(torch.zeros(1, 16, 7, 4, 4))
