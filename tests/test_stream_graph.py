"""The example graph of streaming through a real ComfyUI, with random weights: its clip, its report, and the panel."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import tiny_weights
from playwright.sync_api import expect, sync_playwright
from safetensors.torch import load

from foresight.evaluation.graph_settings import EXAMPLES, START, StreamedSettings
from foresight.evaluation.graphs import node_of
from foresight.evaluation.server import ComfyServer, PromptRejected
from foresight.lab.graphs.forms import GRAPHS, api_graph
from foresight.lab.release.pictures import CHROMIUM, FLAGS, NO_DIALOGS, READY
from foresight.trials.stream import PRESETS

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
    assert (report["nfe"], report["nfe_plain"], report["schedule"]) == (24, 24, "44444")
    assert [trial["kind"] for trial in shown["trials"]] == ["chunk"] * 5 and not shown["live"]
    assert [trial["details"] for trial in shown["trials"]] == [{"chunk": n, "draw": 0} for n in range(5)]
    assert all(trial["verdict"]["accepted"] and trial["pictures"] for trial in shown["trials"])
    assert shown["report"]["nfe"] == 20 and text.startswith("24 forwards for 5 latents")


def test_a_stream_that_fails_is_drawn_again_within_its_budget(server):
    report, shown, text = run(server, tau=1.0, seed=12)
    assert 24 < report["nfe"] <= 24 + 12 and report["redraws"] > 0
    assert len(shown["trials"]) > 5 and "draw 1" in text
    kept = [trial["details"]["chunk"] for trial in shown["trials"] if trial["verdict"]["accepted"]]
    assert kept == list(range(5))


CAUSAL = [name for name, (_, family) in GRAPHS.items()
          if isinstance(EXAMPLES[family], StreamedSettings) and EXAMPLES[family].text_encoder]  # fmt: skip
SMALL = {key: TINY[key] for key in ("vae", "scorer")} | {"text_encoder": None, "width": 32, "height": 32}


@pytest.mark.parametrize("name", CAUSAL)
def test_the_graphs_of_causal_models_run(server, comfyui, name):
    """With stand-ins for the big files, at a small size and at their own length and schedule."""
    s = EXAMPLES[GRAPHS[name][1]]
    models = server.base / "models"
    tiny_weights.write_transformer(models, s.model)
    for file in s.loras:
        tiny_weights.write_lora(models, file, 1)
    shutil.copy(comfyui / "input" / START, server.base / "input" / START)
    prompt = api_graph(name, server.object_info(), **SMALL, tau=-0.99)
    latents, made = (2 * s.length + 3 if name.endswith("_extension") else s.length) // 4 + 1, prompt.copy()
    made["latent"] = {"class_type": "SaveLatent", "inputs": {
        "samples": prompt[node_of(prompt, "VAEDecode")]["inputs"]["samples"], "filename_prefix": "stream"}}  # fmt: skip
    outputs = server.queue(made)["outputs"]
    assert load(server.view(outputs["latent"]["latents"][0]))["latent_tensor"].shape == (1, 16, latents, 4, 4)
    (text,) = outputs[node_of(prompt, "PreviewAny")]["text"]
    report, preset = json.loads(text), PRESETS[s.stream["preset"]]
    given = bool(s.start_image) + latents // 2 * name.endswith("_extension")
    chunks = -(-(latents - given) // preset.chunk)
    recached = 2 * 12 // 3 if "long_" in name else 0  # of the whole window, at two chunks
    started = int(bool(s.start_image))  # the image is read into the cache
    assert report["preset"] == s.stream["preset"] and report["schedule"] == "4" * chunks
    assert report["nfe"] == 5 * chunks - 1 + recached + started and report["made"] == latents - given


def test_what_cannot_be_is_told_when_the_graph_is_queued(server):
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
