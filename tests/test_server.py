"""The server helper against a real ComfyUI: what every workflow test stands on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foresight.evaluation.server import ComfyServer, ExecutionFailed, PromptRejected, link

ROOT = Path(__file__).resolve().parent.parent
IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 0xFF0000}}


def saved(image: list) -> dict:
    return {"class_type": "SaveImage", "inputs": {"images": image, "filename_prefix": "server_test"}}


def test_a_prompt_runs_and_its_file_comes_back(comfy_server: ComfyServer):
    entry = comfy_server.queue({"1": IMAGE, "2": saved(["1", 0])})
    (file,) = entry["outputs"]["2"]["images"]
    data = comfy_server.view(file)
    assert data.startswith(b"\x89PNG")
    assert (comfy_server.output / file["filename"]).read_bytes() == data


def test_a_refused_prompt_names_the_node(comfy_server: ComfyServer):
    wide = {"class_type": "EmptyImage", "inputs": {**IMAGE["inputs"], "width": -1}}
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\)") as refused:
        comfy_server.queue({"1": wide, "2": saved(["1", 0])})
    assert list(refused.value.node_errors) == ["1"]


def test_an_error_in_a_node_is_raised_here(comfy_server: ComfyServer):
    small, tall = (
        {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": height, "batch_size": 1}}
        for height in (16, 32)
    )
    side_by_side = {"class_type": "LatentConcat", "inputs": {"samples1": ["1", 0], "samples2": ["2", 0], "dim": "x"}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "server_test"}}
    with pytest.raises(ExecutionFailed, match=r"node 3 \(LatentConcat\)"):
        comfy_server.queue({"1": small, "2": tall, "3": side_by_side, "4": save})


def test_node_list_is_what_comfyui_registers(comfy_server: ComfyServer):
    registered = {
        node: info["display_name"]
        for node, info in comfy_server.object_info().items()
        if info["python_module"] == "custom_nodes.foresight"
    }
    assert registered == json.loads((ROOT / "node_list.json").read_text(encoding="utf-8")), comfy_server.log_tail()


def test_a_server_that_cannot_start_says_why(comfyui, tmp_path):
    server = ComfyServer(
        comfyui, tmp_path / "base", ROOT, log=tmp_path / "log", cpu=True, arguments=("--no-such-option",)
    )
    with pytest.raises(RuntimeError, match="(?s)ended with code 2.*no-such-option"):
        server.start()
    assert server.process is None


def test_the_link_follows_a_moved_pack(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "here").write_text(name)
    for name in ("old", "new", "new"):
        link(tmp_path / name, tmp_path / "place")
        assert (tmp_path / "place" / "here").read_text() == name
