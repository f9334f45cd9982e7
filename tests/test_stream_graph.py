"""The example graph of streaming through a real ComfyUI, with random weights: its clip, its report, and the panel."""

from __future__ import annotations

import json
import re

import pytest
import tiny_weights
from playwright.sync_api import expect, sync_playwright

from foresight.evaluation.graphs import node_of
from foresight.evaluation.server import ComfyServer, PromptRejected
from foresight.lab.graphs.forms import api_graph
from foresight.lab.release.pictures import CHROMIUM, FLAGS, NO_DIALOGS, READY

TINY = {"model": "stream_wan.safetensors", "vae": "stream_vae.safetensors", "scorer": "stream_viclip.safetensors",
        "converter": "stream_l2r.safetensors", "width": 32, "height": 32, "length": 17}  # fmt: skip


@pytest.fixture(scope="module")
def server(comfy_server: ComfyServer) -> ComfyServer:
    tiny_weights.write(comfy_server.base / "models", *(TINY[key] for key in ("model", "vae", "scorer", "converter")))
    return comfy_server


def run(server, **settings):
    """(the report, what the panel shows of the run) of the graph."""
    prompt = api_graph("demo_streaming", server.object_info(), **TINY | settings)
    outputs = server.queue(prompt)["outputs"]
    (text,) = outputs[node_of(prompt, "PreviewAny")]["text"]
    shown = json.loads(server.get("/foresight/runs"))["runs"][0]["id"]
    return json.loads(text), json.loads(server.get(f"/foresight/runs/{shown}")), outputs[
        node_of(prompt, "ForesightStreamingReport")]["text"][0]  # fmt: skip


def test_a_stream_that_passes(server):
    report, shown, text = run(server, tau=-0.99, seed=11)
    assert (report["nfe"], report["nfe_plain"], report["schedule"]) == (44, 44, "88888")
    assert [trial["kind"] for trial in shown["trials"]] == ["chunk"] * 5 and not shown["live"]
    assert [trial["details"] for trial in shown["trials"]] == [{"chunk": n, "draw": 0} for n in range(5)]
    assert all(trial["verdict"]["accepted"] and trial["pictures"] for trial in shown["trials"])
    assert shown["report"]["nfe"] == 40 and text.startswith("44 forwards for 5 latents")


def test_a_stream_that_fails_is_drawn_again_within_its_budget(server):
    report, shown, text = run(server, tau=1.0, seed=12)
    assert 44 < report["nfe"] <= 44 + 22 and report["redraws"] > 0
    assert len(shown["trials"]) > 5 and "draw 1" in text
    kept = [trial["details"]["chunk"] for trial in shown["trials"] if trial["verdict"]["accepted"]]
    assert kept == list(range(5))


def test_a_model_of_another_kind_is_named(server):
    prompt = api_graph("demo_streaming", server.object_info(), **TINY)
    stream = node_of(prompt, "ForesightStreamingSampler")
    prompt[stream]["inputs"] |= {"preset": "Self-Forcing", "chunk": 3, "window": 2}
    with pytest.raises(PromptRejected, match=r"(?s)\(ForesightStreamingSampler\).*window is 2 latents"):
        server.queue(prompt)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
def test_the_panel_shows_chunks_come_and_go(server):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.request.post(f"{server.url}/settings", data=NO_DIALOGS)
        page.goto(server.url)
        page.wait_for_function(READY)
        page.keyboard.press("Escape")
        page.click(".foresight-tab-button")
        client = page.evaluate("() => app.api?.clientId ?? window.comfyAPI.api.api.clientId")
        prompt = api_graph("demo_streaming", server.object_info(), **TINY, tau=1.0, seed=21)
        server.wait(server.submit(prompt, [node_of(prompt, "ForesightStreamingReport")], client))
        panel = page.locator(".foresight-panel")
        expect(panel).to_contain_text(re.compile(r"Chunk 4, draw \d: kept"))
        told = panel.inner_text()
        browser.close()
    assert "Chunk 0, draw 0: taken back, score" in told and ", still below 1.000" in told
    assert "Trial" not in told
