"""A ComfyUI whose console writes cp1252 (Windows): no prompt, wherever its text comes from, stops the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_weights
import torch
from test_workflows import FAIL, NEVER_BETTER, TINY

from foresight.evaluation.graphs import node_of
from foresight.evaluation.server import ComfyServer, ExecutionFailed, PromptRejected
from foresight.lab.graphs.forms import api_graph

ROOT = Path(__file__).resolve().parent.parent
CHINESE, HALF = "一只猫", "\ud83d"
ANYTHING = '''
class Anything(str):
    def __ne__(self, other):
        return False


class Give:
    RETURN_TYPES, FUNCTION, CATEGORY = (Anything("*"),), "give", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("STRING", {})}}

    def give(self, value):
        return (value,)


NODE_CLASS_MAPPINGS = {"Give": Give}
'''


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    base = tmp_path_factory.mktemp("cp1252")
    server = ComfyServer(
        comfyui, base, ROOT, log=base / "server.log", cpu=not torch.cuda.is_available(),
        arguments=("--disable-api-nodes",), variables={"PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    (base / "custom_nodes" / "anything.py").write_text(ANYTHING)
    tiny_weights.write(base / "models", *(TINY[key] for key in ("model", "vae", "scorer", "converter")))
    with server:
        yield server


@pytest.fixture(scope="module")
def info(server) -> dict[str, Any]:
    return server.object_info()


def graph(info, class_type="ForesightSampler", **widgets):
    prompt = api_graph("demo_one_node", info, **{**TINY, **FAIL, **NEVER_BETTER, "prompt": "a red circle", "seed": 5})
    prompt[node_of(prompt, class_type)]["inputs"] |= widgets
    return prompt


def report(server, prompt) -> dict[str, Any]:
    (found,) = server.queue(prompt, timeout=120)["outputs"][node_of(prompt, "ForesightRunReport")]["foresight_report"]
    return found


def test_a_refusal_that_quotes_the_prompt_is_logged_and_the_queue_goes_on(server, info):
    found = report(server, graph(info, prompt=CHINESE, refiner="ablation"))
    assert found["prompt"] == CHINESE and found["trials"][-1]["kind"] == "plain"
    assert "cannot be parted" in " ".join(found["notes"])
    told = server.log.read_text(encoding="cp1252")
    assert r"\u4e00\u53ea\u732b" in told and CHINESE not in told
    assert report(server, graph(info, refiner="restart", seed=6))["prompt"] == "a red circle"


@pytest.mark.parametrize("value", [CHINESE, HALF, f"{HALF}.safetensors", "\x1b[2J"])
@pytest.mark.parametrize(("class_type", "widget"), [
    ("ForesightSampler", "sampler_name"), ("ForesightSampler", "scheduler"), ("ForesightSampler", "plan"),
    ("ForesightSampler", "refiner"), ("ForesightSampler", "injection_mask"), ("ForesightL2RPreview", "converter"),
    ("ForesightViCLIPScore", "weights"), ("ForesightViCLIPScore", "precision"),
])  # fmt: skip
def test_a_wrong_choice_is_refused_and_the_queue_goes_on(server, info, class_type, widget, value):
    # The core of 0.33 refuses by itself: "Value not in list: sampler_name: ...".
    named = f"{widget}: |{widget.removeprefix('injection_')} is |is not in models"
    with pytest.raises((ExecutionFailed, PromptRejected), match=named):
        server.queue(graph(info, class_type, **{widget: value}), timeout=60)


def test_after_all_of_that_the_server_still_works(server, info):
    assert report(server, graph(info, seed=7))["prompt"] == "a red circle"


@pytest.mark.parametrize(("name", "widget", "value"), [
    ("ForesightSampler", "refiner", "manual"), ("ForesightSampler", "plan", "paper"),
    ("ForesightSampler", "endpoint", "none"), ("ForesightSampler", "manual_prompt", "other words"),
])  # fmt: skip
def test_a_linked_choice_is_taken(server, info, name, widget, value):
    prompt = graph(info, refiner="manual", manual_prompt="other words", seed=8)
    prompt["give"] = {"class_type": "Give", "inputs": {"value": value}}
    prompt[node_of(prompt, name)]["inputs"][widget] = ["give", 0]
    assert report(server, prompt)["refined_prompt"] == "other words"


def test_a_linked_choice_that_there_is_not_is_refused_once_it_is_known(server, info):
    prompt = graph(info)
    prompt["give"] = {"class_type": "Give", "inputs": {"value": CHINESE}}
    prompt[node_of(prompt, "ForesightSampler")]["inputs"]["refiner"] = ["give", 0]
    with pytest.raises(ExecutionFailed, match=r"refiner is '.*': choose one of"):
        server.queue(prompt)


def test_a_linked_back_end_of_the_refiner_node_is_taken(server, info):
    prompt = api_graph("demo_visual_hierarchy", info, **{**TINY, **FAIL, **NEVER_BETTER, "prompt": "a red circle"})
    node = prompt[node_of(prompt, "ForesightPromptRefiner")]["inputs"]
    prompt["give"] = {"class_type": "Give", "inputs": {"value": "manual"}}
    node |= {"back_end": ["give", 0], "manual_prompt": "other words"}
    assert report(server, prompt)["refined_prompt"] == "other words"
