"""The example graphs as files: what their makers write, what commands read, and where their models come from."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import comfyui_version
import pytest

from foresight.evaluation.graph_settings import EXAMPLES, FAMILIES
from foresight.evaluation.graphs import api_form, one_node
from foresight.evaluation.server import ComfyServer
from foresight.lab.graphs.__main__ import BLUEPRINT, BOX_INPUTS
from foresight.lab.graphs.__main__ import files as graph_files
from foresight.lab.graphs.forms import GRAPHS, api_graph, graph
from foresight.lab.graphs.notes import CONVERTED
from foresight.lab.graphs.ui_format import CORE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def info(comfy_server: ComfyServer) -> dict[str, Any]:
    return comfy_server.object_info()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_committed_file_is_the_graph(info, name):
    """If this fails, the graphs have changed: write the files anew with `python -m foresight.lab.graphs`."""
    committed = api_form(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))
    now = api_graph(name, info)
    assert committed.keys() == now.keys()
    for id, node in committed.items():
        assert node["class_type"] == now[id]["class_type"]
        # A newer ComfyUI may have added widgets to its nodes.
        assert node["inputs"].items() <= now[id]["inputs"].items()
        assert graph(name).prompt()[id]["inputs"].items() <= node["inputs"].items()


@pytest.mark.skipif(comfyui_version.__version__ != CORE["ver"], reason="the files are written with the oldest ComfyUI")
def test_the_files_are_what_their_command_writes(info):
    """If this fails: `python -m foresight.lab.graphs`."""
    for path, text in graph_files(info).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, path


@pytest.mark.parametrize("family", FAMILIES)
def test_commands_read_the_one_node_graph_from_its_file(info, family):
    widgets = {"prompt": "a red ring", "seed": 5, "steps": 7, "tau": 0.3}
    assert one_node(family, info, **widgets) == api_graph(f"{family}_one_node", info, **widgets)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_file_names_its_sources(comfy_server, info, name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folders = json.loads(comfy_server.get("/models"))
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        module, properties = info[node["type"]]["python_module"], node["properties"]
        if module == "custom_nodes.foresight":
            assert (properties["cnr_id"], properties["ver"]) == (project["name"], project["version"])
        else:
            assert properties["cnr_id"] == "comfy-core" and module.split(".")[0] in ("nodes", "comfy_extras")
        for model in properties.get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["directory"] in folders
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(".safetensors")
    named = {model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])}
    s = EXAMPLES[GRAPHS[name][1]]
    wanted = {s.model, s.low_noise_model, s.vae, s.text_encoder, s.clip_vision, s.scorer, *s.loras} - {None}
    wanted &= wanted if s.text_encoder else set()
    if name.endswith("_calibrate"):
        wanted &= {s.model, s.vae}
    if name.endswith("_drop_in"):  # its scorer loads itself; the note says where it goes
        wanted -= {s.scorer}
        assert s.scorer in json.dumps(workflow)
    text = graph(name).note
    assert all(f"convert {CONVERTED[file][1]} {file}`" in text for file in wanted & CONVERTED.keys())
    wanted -= CONVERTED.keys()  # are nowhere to be had under ComfyUI's names; the note says how they are made
    assert named == wanted


def test_every_graph_has_a_title_and_a_text_of_its_own_and_the_demo_is_first():
    notes = [graph(name).note for name in GRAPHS]
    assert len(set(notes)) == len(GRAPHS) == len({note.splitlines()[0] for note in notes})
    assert all(note.startswith("## ") and "**" in note for note in notes)
    first = min(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert EXAMPLES[GRAPHS[first][1]].model == FAMILIES["demo"].model


def test_comfyui_offers_the_graphs_and_the_box(comfy_server):
    assert sorted(json.loads(comfy_server.get("/workflow_templates"))["foresight"]) == sorted(GRAPHS)
    assert {path.suffix for path in (ROOT / "workflows").iterdir()} <= {".json", ".jpg"}
    pictures = {path.stem: path.stat().st_size for path in (ROOT / "workflows").glob("*.jpg")}
    assert pictures.keys() == GRAPHS.keys() and max(pictures.values()) < 100_000
    offered = json.loads(comfy_server.get("/global_subgraphs"))
    (id,) = [id for id, entry in offered.items() if entry["name"] == BLUEPRINT]
    served = json.loads(json.loads(comfy_server.get(f"/global_subgraphs/{id}"))["data"])
    (box,) = served["definitions"]["subgraphs"]
    assert served["nodes"][0]["type"] == box["id"]
    assert [socket["name"] for socket in box["inputs"]] == list(BOX_INPUTS)
