"""The refiner's back ends through a real ComfyUI, and what a stranger's workflow can make it send: nothing."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tiny_weights
from openai_server import GOOD, OpenAIServer
from test_workflows import FAIL, NEVER_BETTER, TINY, both

from foresight.evaluation.graphs import node_of
from foresight.evaluation.server import ComfyServer, ExecutionFailed, Interrupted, PromptRejected
from foresight.lab.graphs.forms import api_graph

KEY = "sk-secret-of-the-machine"
PROMPT = "a red circle moves left on a white background"
REFINER = {"demo_one_node": "ForesightSampler", "demo_visual_hierarchy": "ForesightPromptRefiner"}


@pytest.fixture(scope="module")
def server(comfy_server: ComfyServer) -> ComfyServer:
    tiny_weights.write(comfy_server.base / "models", *(TINY[key] for key in ("model", "vae", "scorer", "converter")))
    return comfy_server


@pytest.fixture(scope="module")
def info(server) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture
def openai():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def config(server, openai):
    """The owner's file: one good profile, one that hangs. least_similarity is open, because the scorer is random."""
    path = server.base / "user" / "__foresight" / "endpoints.json"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "key").write_text(KEY)
    limits = {"model": "tiny", "key_file": str(path.parent / "key"), "least_similarity": 0, "price_output": 2.0}
    path.write_text(json.dumps({"profiles": {
        "mine": {"base_url": openai.url("good"), **limits},
        "hangs": {"base_url": openai.url("hang"), **limits, "deadline_s": 1.0},
        "waits": {"base_url": openai.url("hang"), **limits, "deadline_s": 600.0, "timeout_s": 600.0},
    }}))  # fmt: skip
    yield path
    path.unlink()


def graph(info, name: str, **refiner: Any):
    prompt = api_graph(name, info, **{**TINY, **FAIL, **NEVER_BETTER, "prompt": PROMPT, "seed": 81})
    prompt[node_of(prompt, REFINER[name])]["inputs"] |= refiner
    return prompt


def report(server, prompt) -> dict[str, Any]:
    (found,) = server.queue(prompt)["outputs"][node_of(prompt, "ForesightRunReport")]["foresight_report"]
    return found


@pytest.mark.parametrize("name, widget", [("demo_one_node", "refiner"), ("demo_visual_hierarchy", "back_end")])
def test_a_configured_endpoint_refines_the_prompt(server, info, config, openai, name, widget):
    assert server.object_info()[REFINER[name]]["input"]["optional"]["endpoint"][1]["options"] == [
        "none", "mine", "hangs", "waits"
    ]  # fmt: skip
    found = report(server, graph(info, name, **{widget: "endpoint", "endpoint": "mine"}))
    assert (found["prompt"], found["refined_prompt"]) == (PROMPT, GOOD["refined_prompt"])
    assert found["refined_negative"] == GOOD["negative_prompt"]
    (usage,) = [trial["details"]["usage"] for trial in found["trials"] if trial["kind"] == "refine"]
    assert usage == {"profile": "mine", "model": "tiny", "attempts": 1, "prompt_tokens": 800, "completion_tokens": 50,
                     "price": 1e-4}  # fmt: skip
    (sent,) = openai.seen
    assert sent["headers"]["Authorization"] == f"Bearer {KEY}"
    text = sent["body"]["messages"][0]["content"][0]["text"]
    assert PROMPT in text and "WAN21" in text
    told = json.dumps(found) + server.log.read_text(encoding="utf-8")
    assert KEY not in told and str(openai.server_port) not in json.dumps(found)


def test_a_server_that_hangs_leaves_a_finished_clip(server, info, config):
    found = report(server, graph(info, "demo_one_node", refiner="endpoint", endpoint="hangs"))
    assert found["trials"][-1]["kind"] == "plain" and found["refined_prompt"] is None
    assert "did not answer in time" in " ".join(found["notes"])


def test_a_cancel_reaches_a_call_within_a_second(server, info, config, openai):
    id = server.submit(graph(info, "demo_one_node", refiner="endpoint", endpoint="waits"))
    until = time.monotonic() + 120
    while not openai.seen:
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.3)
    begin = time.monotonic()
    server.interrupt()
    with pytest.raises(Interrupted):
        server.wait(id, timeout=30)
    assert time.monotonic() - begin < 1.5


def test_manual_takes_the_users_own_words(server, info):
    visual = both(server, info, seed=91, refiner="manual", manual_prompt="my own words", **FAIL, **NEVER_BETTER)
    assert (visual.report["prompt"] != "my own words") and visual.report["refined_prompt"] == "my own words"
    with pytest.raises(ExecutionFailed, match=r"(?s)\(ForesightSampler\).*manual_prompt is empty"):
        server.queue(graph(info, "demo_one_node", refiner="manual", manual_prompt=" "))


@pytest.mark.parametrize("widget", [{}, {"base_url": True}, {"key_file": True}])
def test_a_strangers_workflow_sends_nothing(server, info, config, openai, widget):
    """It names an address or a profile that is not there, and brings along what a profile would hold."""
    for name in (openai.url("good"), "../../evil", "none", "", {"base_url": openai.url("good"), "model": "m"}):
        extra = {key: openai.url("good") for key in widget}
        prompt = graph(info, "demo_one_node", refiner="endpoint", endpoint=name, **extra)
        with pytest.raises(PromptRejected, match=r"\(ForesightSampler\).*is not configured on this machine") as refused:
            server.queue(prompt)
        assert KEY not in str(refused.value)
    assert not openai.seen


def test_a_profile_that_is_not_used_stops_nothing(server, info):
    found = report(server, graph(info, "demo_one_node", refiner="off", endpoint="the stranger's own"))
    assert found["trials"][-1]["kind"] == "plain" or found["trial"] == "0"


def test_no_page_reads_or_writes_the_configuration(server, config, openai):
    before = config.read_bytes()
    for file in ("../__foresight/endpoints.json", "__foresight/endpoints.json", "endpoints.json"):
        for user in ("__foresight", "default", "../__foresight"):
            address = f"{server.url}/userdata/{urllib.parse.quote(file, safe='')}?overwrite=true"
            for data in (None, b'{"profiles": {}}'):
                try:
                    with urllib.request.urlopen(
                        urllib.request.Request(address, data, {"comfy-user": user}), timeout=30
                    ) as answer:
                        assert openai.url("good").encode() not in answer.read()
                except urllib.error.HTTPError:
                    continue
    assert config.read_bytes() == before
    assert [path.name for path in Path(config.parent).iterdir() if path.suffix == ".json"] == ["endpoints.json"]


def test_a_broken_configuration_is_named_and_keeps_no_node_from_loading(server, info, config):
    config.write_text('{"profiles": {"mine": {"base_url": "https://a/v1", "model": "m", "key": "sk-in-the-file"}}}')
    assert server.object_info()["ForesightSampler"]["input"]["optional"]["endpoint"][1]["options"] == ["none"]
    with pytest.raises(PromptRejected, match=r"\(ForesightSampler\).*key is unknown") as failed:
        server.queue(graph(info, "demo_one_node", refiner="endpoint", endpoint="mine"))
    assert "sk-in-the-file" not in str(failed.value)
