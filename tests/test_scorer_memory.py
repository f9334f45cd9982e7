"""Scorer, converter and reward are loaded by ComfyUI with the model. Without memory for them there the clip is sampled
alone, and is the plain one."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from streams import sampled
from tiny_wan import ScriptedScorer, conditioning, gate, guided, inputs, model

from foresight.l2r.model import L2R
from foresight.nodes.compat import model_patcher
from foresight.nodes.loaders import managed
from foresight.sampling.audition import hold_audition
from foresight.sampling.probe import single_frame_probe
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.stream_gate import ChunkGate
from foresight.sampling.stream_guider import StreamingGuider
from foresight.sampling.stream_sampler import StreamSampler
from foresight.sampling.watch import Watch
from foresight.scoring.latent_reward import LatentReward, RewardConfig, RewardModel
from foresight.scoring.reward import AlignmentReward
from foresight.trials.race import Rules
from foresight.trials.stream import StreamSettings
from foresight.trials.stream_plans import GateSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patcher():
    return model()


def weighty(*scores):
    """A scorer with weights of its own."""
    scorer = ScriptedScorer(*scores)
    scorer.patcher = model_patcher(torch.nn.Linear(4, 4), CPU, CPU)
    return scorer


@pytest.fixture
def loads(monkeypatch):
    """What ComfyUI was asked to load, with no room for anything beside the model."""
    asked, load = [], comfy.model_management.load_models_gpu

    def short_of_memory(models, *args, **kwargs):
        asked.append(len(models))
        if len(models) > 1:
            raise torch.OutOfMemoryError("no memory for two")
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", short_of_memory)
    return asked


@pytest.fixture
def loaded(monkeypatch):
    """How many models ComfyUI was asked to load together, call by call."""
    asked, load = [], comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu",
        lambda models, *args, **kwargs: [asked.append(len(models)), load(models, *args, **kwargs)][1],
    )  # fmt: skip
    return asked


def plainly(patcher):
    setup = inputs(patcher)
    result = SamplerCustomAdvanced.execute(setup.noise, setup.guider, setup.sampler, setup.sigmas, setup.latent)
    return result.result[0]["samples"]


def watched(patcher, scorer):
    setup, watch = inputs(patcher), Watch(gate(scorer=scorer))
    noise = setup.noise.generate_noise(setup.latent)
    guider = guided(watch.patch(patcher))
    found = guider.sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas, seed=3)
    assert watch.verdict.record.items[0].trace and patcher.get_additional_models() == []
    return found


def monitored(patcher, scorer):
    return monitored_sample(inputs(patcher), gate(scorer=scorer)).latent["samples"]


def raced(patcher, scorer):
    return run_race(inputs(patcher), gate(scorer=scorer), Rules.ranks(0.0, "off")).latent["samples"]


def auditioned(patcher, scorer):
    found = hold_audition(lambda seed: inputs(patcher), gate(scorer=scorer), (3,), keep=1, fraction=0.2)
    return found.latent["samples"]


@pytest.mark.parametrize("way", [monitored, watched, raced, auditioned])
def test_without_memory_for_the_scorer_the_clip_is_the_plain_one(patcher, loads, way):
    assert torch.equal(way(patcher, weighty(0.3)), plainly(patcher))
    assert loads[:2] == [2, 1], "the scorer is tried first, then left out"


def test_a_probe_does_without_it_too(patcher, loads):
    scorer = weighty(0.1, 0.1, 0.1, 0.3)
    rejected = monitored_sample(inputs(patcher), gate(scorer=scorer)).verdict
    anchor, _ = single_frame_probe(inputs(patcher), gate(scorer=scorer), rejected)
    assert anchor is not None


def test_a_scorer_that_fits_is_loaded_with_the_model(patcher, loaded):
    monitored(patcher, weighty(0.3))
    assert loaded == [2]


def in_memory(network):
    return any(each.model is network.patcher for each in comfy.model_management.current_loaded_models)


def test_so_is_a_converter_that_a_node_gives_and_it_is_freed_as_all_models_are(patcher, loaded):
    converter = managed(L2R())
    passed = monitored_sample(inputs(patcher), gate(scorer=weighty(0.3), l2r=converter))
    assert loaded == [3] and in_memory(converter)
    assert torch.equal(passed.latent["samples"], plainly(patcher))
    comfy.model_management.unload_all_models()
    assert not in_memory(converter)
    again = monitored_sample(inputs(patcher), gate(scorer=weighty(0.3), l2r=converter))
    assert again.verdict.record.items == passed.verdict.record.items


def test_what_a_search_asks_of_clips_is_loaded_too(patcher):
    scorer, converter = weighty(0.3), managed(L2R())
    scorer.name = "scripted"
    network = managed(RewardModel(RewardConfig(width=64, heads=1, layers=1), {"scorer": "scripted"}))
    assert AlignmentReward(gate(scorer=scorer, l2r=converter)).patchers == (converter.patcher, scorer.patcher)
    assert LatentReward(network, scorer, "a red circle").patchers == (network.patcher, scorer.patcher)


@pytest.mark.parametrize("watched_too", [False, True])
def test_so_is_what_the_gate_of_a_stream_needs(patcher, loaded, watched_too):
    """Once each, whoever brings it, and for this stream only."""
    judges = gate(scorer=weighty(0.3), l2r=managed(L2R()))
    own = Watch(judges).patch(patcher) if watched_too else patcher
    guider = StreamingGuider(own, [(0, conditioning(1))], None, 1.0, True)
    brings = guider.model_patcher
    clips = []
    for chunk_gate in (ChunkGate(judges, GateSettings(0.1)), None):
        stream = StreamSampler(StreamSettings(preset="sigmas", chunk=1), gate=chunk_gate)
        clips.append(sampled(patcher, stream, frames=2, guider=guider))
        assert guider.model_patcher is brings
    assert loaded == [3, 3 if watched_too else 1] and torch.equal(*clips)


def test_no_memory_for_the_model_itself_is_said_by_core(patcher, monkeypatch):
    def none_at_all(models, *args, **kwargs):
        raise torch.OutOfMemoryError("no memory for the model")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", none_at_all)
    with pytest.raises(torch.OutOfMemoryError, match="for the model"):
        monitored(patcher, weighty(0.3))


@pytest.mark.parametrize("way", [monitored, watched])
def test_a_cancel_while_models_are_loaded_is_the_users(patcher, monkeypatch, way):
    def cancelled(models, *args, **kwargs):
        raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        way(patcher, weighty(0.3))
