"""The panel's events and routes on a real ComfyUI server, for clients without a browser."""

from __future__ import annotations

import asyncio
import json
import struct
import urllib.error
import urllib.request

import aiohttp
import pytest

from foresight.evaluation.graphs import node_of, one_node
from foresight.evaluation.server import ComfyServer

TEXT = 3  # core's binary message for text on a node


def listen(server: ComfyServer, **settings):
    """Queues the demo as client "mine" and gives all JSON messages to it and to client "other", and its texts."""
    prompt = one_node("demo", server.object_info(), steps=12, **settings)

    async def run():
        url = server.url.replace("http", "ws")
        async with aiohttp.ClientSession() as session:
            mine, other = [await session.ws_connect(f"{url}/ws?clientId={name}") for name in ("mine", "other")]
            await session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "mine"})
            heard, texts, overheard = [], [], []
            async for message in mine:
                if message.type is aiohttp.WSMsgType.BINARY:
                    kind, length = struct.unpack(">II", message.data[:8])
                    if kind == TEXT:
                        texts.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
                    continue
                heard.append(json.loads(message.data))
                if heard[-1]["type"] in ("execution_success", "execution_error"):
                    break
            while True:
                try:
                    message = await other.receive(timeout=0.5)
                except TimeoutError:
                    break
                if message.type is aiohttp.WSMsgType.TEXT:
                    overheard.append(json.loads(message.data))
            await mine.close()
            await other.close()
            return heard, texts, overheard

    return node_of(prompt, "ForesightSampler"), *asyncio.run(run())


def test_the_client_that_queued_hears_and_no_other(comfy_server):
    node, heard, texts, overheard = listen(comfy_server, tau=-0.99, seed=11, plan="paper")
    assert heard[-1]["type"] == "execution_success"
    ours = [message for message in heard if message["type"].startswith("foresight.")]
    assert [m["type"] for m in ours][:2] == ["foresight.start", "foresight.trial"]
    assert ours[-1]["type"] == "foresight.end" and ours[-1]["data"]["report"]["nfe"] == 12
    assert {m["data"]["run"] for m in ours} == {ours[0]["data"]["run"]}
    assert [m["data"]["sequence"] for m in ours] == list(range(1, len(ours) + 1))
    assert not [message for message in overheard if message["type"].startswith("foresight.")]
    # Core's own progress goes on, and says the score to whoever has no panel.
    assert [m["data"]["value"] for m in heard if m["type"] == "progress" and m["data"]["node"] == node][-1] == 12
    scores = [text for id, text in texts if id == node]
    assert scores and all(text.startswith("Trial 0, step ") and "score" in text for text in scores)
    found = json.loads(comfy_server.get(f"/foresight/runs/{ours[0]['data']['run']}"))
    assert found["node"] == node and not found["live"]


def test_a_race_is_told_without_a_panel_too(comfy_server):
    node, heard, texts, _ = listen(comfy_server, seed=11, plan="race", budget=1.0)
    assert heard[-1]["type"] == "execution_success"
    report = [m for m in heard if m["type"] == "foresight.end"][-1]["data"]["report"]
    assert len(report["candidates"]) > 1 and report["final_score_of"] == "frames"
    looks = [text for id, text in texts if id == node]
    assert [text.split(",")[0] for text in looks] == [f"Candidate {row['candidate']}" for row in report["candidates"]]


def test_a_page_of_another_origin_decides_nothing(comfy_server):
    runs = json.loads(comfy_server.get("/foresight/runs"))["runs"]
    id = runs[0]["id"] if runs else "0" * 32
    for origin, status in (("http://evil.example", 403), ("http://localhost:port", 400), (None, 409 if runs else 404)):
        request = urllib.request.Request(
            f"{comfy_server.url}/foresight/runs/{id}/decision", json.dumps({"decision": "stop"}).encode(),
            {"Content-Type": "application/json", **({"Origin": origin} if origin else {})},
        )  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == status
