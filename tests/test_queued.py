"""What nodes say of their widgets when a graph is queued, before anything loads, without a server."""

from __future__ import annotations

import asyncio

import pytest
from comfy_execution.utils import CurrentNodeContext

from foresight import comfy_entrypoint
from foresight.nodes import graph as graph_module
from foresight.nodes.enhancers import LatentSearchSampler, SelfRefineSampler
from foresight.nodes.hierarchy import ForesightSampler
from foresight.nodes.inspection import FailureGate
from foresight.nodes.reward import LatentRewardNode
from foresight.nodes.rewording import PromptRefiner
from foresight.nodes.streaming import ChunkGateNode, StreamingGuiderNode, StreamingSampler

LINK = ["9", 0]
GATE = {"prompt": "a cat", "start": 0.1, "end": 0.3, "single_start": 0.4, "single_end": 0.6}
REFINE = {"preset": "custom", "plan": "2-5:3", "plan_steps": 50, "tau": 0.2}
SEARCH = {"schedule": "10, 20", "schedule_of": 50, "gate": LINK}
STREAM = {
    "preset": "Self-Forcing", "schedule": "", "levels": "", "chunk": 0, "kv": "of the preset", "window": -1, "sink": -1,
}  # fmt: skip
CHUNKS = {"prompt": "a cat\n3: a dog", "looks": "last"}


def said(node, inputs, **others):
    """True, or why the graph is refused."""
    others = {"9": {"class_type": "Anything", "inputs": {}}, **others}
    token = graph_module._REQUEST.set({"prompt": {"1": {"class_type": "It", "inputs": inputs}, **others}})
    try:
        with CurrentNodeContext("a prompt", "1"):
            return node.validate_inputs({})
    finally:
        graph_module._REQUEST.reset(token)


@pytest.mark.parametrize("node, sound", [
    (FailureGate, GATE), (ForesightSampler, GATE), (SelfRefineSampler, REFINE), (LatentSearchSampler, SEARCH),
    (StreamingSampler, STREAM), (StreamingGuiderNode, {"prompts": "a cat\n3: a dog"}), (ChunkGateNode, CHUNKS),
    (LatentRewardNode, {"prompt": "a cat"}), (PromptRefiner, {"back_end": "ablation", "endpoint": "another machine's"}),
    (ForesightSampler, GATE | {"refiner": "off", "endpoint": "another machine's"}),
])  # fmt: skip
def test_what_makes_sense_is_taken_also_where_it_is_linked(node, sound):
    assert said(node, sound) is True
    for name in sound:
        assert said(node, sound | {name: LINK}) is True, f"{name} is not known yet"


@pytest.mark.parametrize("node, sound, wrong, message", [
    (FailureGate, GATE, {"prompt": " \n"}, "prompt is empty"),
    (FailureGate, GATE, {"start": 0.5}, "end = 0.3"), (FailureGate, GATE, {"single_end": 0.1}, "end = 0.1"),
    (ForesightSampler, GATE, {"prompt": ""}, "prompt is empty"), (ForesightSampler, GATE, {"end": 0.05}, "end = 0.05"),
    (ForesightSampler, GATE, {"refiner": "nonsense"}, "refiner is 'nonsense'"),
    (ForesightSampler, GATE, {"refiner": "endpoint", "endpoint": "no"}, "endpoint is 'no'"),
    (ForesightSampler, GATE, {"plan": "nonsense"}, "plan is 'nonsense': choose one of race, paper"),
    (SelfRefineSampler, REFINE, {"plan": "2-x"}, "plan: '2-x' is not"),
    (SelfRefineSampler, REFINE, {"tau": -1.0, "threshold": "quantile"}, "no preset has a quantile"),
    (LatentSearchSampler, SEARCH, {"schedule": "10, 60"}, "schedule is '10, 60'"),
    (LatentSearchSampler, SEARCH, {"method": "nonsense"}, "method is 'nonsense'"),
    (StreamingSampler, STREAM, {"schedule": "4222", "preset": "custom levels"}, "has steps of its own: empty it"),
    (StreamingSampler, STREAM, {"levels": "1000"}, "or empty levels"),
    (StreamingGuiderNode, {}, {"prompts": "3: it turns"}, "the first begins at 0"),
    (ChunkGateNode, CHUNKS, {"looks": "never"}, "looks is 'never'"),
    (ChunkGateNode, CHUNKS, {"prompt": ""}, "prompt is empty"),
    (ChunkGateNode, CHUNKS, {"prompt": "3: a"}, "begins at 0"),
    (LatentRewardNode, {}, {"prompt": " "}, "prompt is empty"),
    (LatentRewardNode, {}, {"weights": "no.safetensors"}, "no.safetensors"),
    (PromptRefiner, {}, {"back_end": "endpoint", "endpoint": "no"}, "endpoint is 'no'"),
])  # fmt: skip
def test_what_makes_no_sense_is_said_and_also_where_a_primitive_holds_it(node, sound, wrong, message):
    assert message in said(node, sound | wrong)
    held = [{"class_type": "PrimitiveString", "inputs": {"value": value}} for value in wrong.values()]
    primitives = {f"{n}0": each for n, each in enumerate(held, 2)}
    linked = {name: [id, 0] for name, id in zip(wrong, primitives, strict=True)}
    assert message in said(node, sound | linked, **primitives)


def test_a_search_needs_something_that_judges():
    rest = {name: value for name, value in SEARCH.items() if name != "gate"}
    assert "reward" in said(LatentSearchSampler, rest)
    assert said(LatentSearchSampler, rest | {"reward": LINK}) is True


def test_what_is_not_queued_now_is_left_alone():
    """Outside of a request, as where a graph is cached, there is nothing to look at."""
    assert FailureGate.validate_inputs({}) is True
    with CurrentNodeContext("a prompt", "1"):
        assert FailureGate.validate_inputs({}) is True
    assert "scorer takes FORESIGHT_SCORER, and MODEL is connected" in FailureGate.validate_inputs({"scorer": "MODEL"})
    assert FailureGate.validate_inputs({"scorer": "FORESIGHT_SCORER"}) is True


def test_every_node_that_looks_at_its_widgets_takes_a_graph_that_leaves_them_open():
    looking = [node for node in asyncio.run(nodes()) if issubclass(node, graph_module.Checked)]
    assert len(looking) > 8
    for node in (graph_module.Checked, *looking):
        node.check({}, {"1": {"inputs": {"gate": LINK}}}, "1")


async def nodes():
    return await (await comfy_entrypoint()).get_node_list()
