"""The example graphs in ComfyUI's real frontend: they open without missing nodes and become the prompts we mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from foresight.evaluation.graph_settings import EXAMPLES, START
from foresight.evaluation.server import ComfyServer, Prompt
from foresight.lab.graphs.forms import GRAPHS, api_graph
from foresight.lab.graphs.notes import CONVERTED, DOWNLOADS
from foresight.lab.release.pictures import CHROMIUM, FLAGS, READY
from foresight.sampling.compat import RAW_INPUT

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def page(comfy_server: ComfyServer, comfyui: Path) -> Iterator[Page]:
    models = comfy_server.base / "models"
    named = {name: folder for name, (folder, *_) in (DOWNLOADS | CONVERTED).items()}
    for name, folder in named.items():  # a file's name is enough for the frontend
        (models / folder).mkdir(parents=True, exist_ok=True)
        (models / folder / name).touch()
    shutil.copy(comfyui / "input" / START, comfy_server.base / "input" / START)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(comfy_server.url)
        page.wait_for_function(READY)
        yield page
        browser.close()


def opened(page: Page, workflow: dict[str, Any]) -> tuple[Prompt, list[str]]:
    """The prompt that the frontend makes of a workflow file, and the types of nodes that it does not know."""
    return page.evaluate(
        """async (workflow) => {
            await app.loadGraphData(workflow)
            const missing = workflow.nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])
            return [(await app.graphToPrompt()).output, missing]
        }""",
        workflow,
    )


# ComfyUI 0.3.75 has no native CogVideoX: its text encoder's type is no choice there.
OPENED = [name for name, (_, family) in GRAPHS.items() if RAW_INPUT or EXAMPLES[family].rule is None]
# A node's box with its title, as drawn on the canvas, and those of every two that share a place.
OVERLAPS = """async (workflow) => {
    await app.loadGraphData(workflow)
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 400))  // pictures and live views make nodes higher
    const boxes = app.graph.nodes.map(node => [...node.getBounding(), node.title]), found = []
    boxes.forEach(([x, y, width, height, one], i) => boxes.slice(i + 1).forEach(([x2, y2, width2, height2, other]) => {
        if (x < x2 + width2 && x2 < x + width && y < y2 + height2 && y2 < y + height) found.push([one, other])
    }))
    return found
}"""


@pytest.mark.parametrize("name", OPENED)
def test_a_graph_opens_and_becomes_its_prompt(page, comfy_server, name):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt, missing = opened(page, workflow)
    assert not missing
    info = comfy_server.object_info()
    made = {id: {"class_type": node["class_type"], "inputs": known(node, info)} for id, node in prompt.items()}
    assert made == api_graph(name, info)
    assert not wrong_inputs(made, info)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_node_lies_over_another(page, name):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert page.evaluate(OVERLAPS, workflow) == []
    moved = workflow["nodes"][1] | {"pos": workflow["nodes"][0]["pos"]}
    assert page.evaluate(OVERLAPS, workflow | {"nodes": [workflow["nodes"][0], moved], "links": []})


def known(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the server defines; the frontend adds some of its own, which the server drops (PreviewAny)."""
    names = set().union(*info[node["class_type"]]["input"].values())
    return {name: value for name, value in node["inputs"].items() if name in names}


def wrong_inputs(prompt: Prompt, info: dict[str, Any]) -> list[str]:
    """What the server's definitions say against a prompt: missing inputs, links of another type, unknown choices."""
    found = []
    for id, node in prompt.items():
        groups = info[node["class_type"]]["input"]
        for name, (kind, *options) in {**groups.get("required", {}), **groups.get("optional", {})}.items():
            where = f"{id} {node['class_type']}.{name}"
            if name not in node["inputs"]:
                found += [f"{where} is missing"] if name in groups.get("required", {}) else []
                continue
            value = node["inputs"][name]
            choices = kind if isinstance(kind, list) else options[0].get("options") if kind == "COMBO" else None
            if isinstance(value, list):
                origin = info[prompt[value[0]]["class_type"]]["output"][value[1]]
                if origin != kind and "*" not in (origin, kind):
                    found.append(f"{where} takes {kind}, not {origin}")
            elif choices is not None and value not in choices:
                found.append(f"{where} has no choice {value!r}")
    return found
