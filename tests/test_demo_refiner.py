"""The demo's noise refiner: its place in the lists, its graph with a stand-in, and, once they are here, its weights."""

from __future__ import annotations

import json

import folder_paths
import pytest
import tiny_weights
from refiners import written
from test_stream_graph import TINY

from foresight.demo import preset
from foresight.demo.wan_dit import load_transformer
from foresight.evaluation.graphs import node_of
from foresight.evaluation.server import PromptRejected
from foresight.lab.graphs.forms import api_graph
from foresight.nodes import folders
from foresight.sampling.refiner_file import MODEL, describe

FILE = folders.WEIGHTS / "demo" / "refiners" / preset.REFINER


def test_the_packs_refiner_is_listed_behind_ones_own(monkeypatch, tmp_path):
    pack, own = tmp_path / "weights", tmp_path / "models" / folders.REFINERS
    for folder, name in ((pack / "demo" / "refiners", preset.REFINER), (own, "mine.safetensors")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        folder: ([str(tmp_path / folder)], set()) for folder in ("checkpoints", *folders.DEMO)})  # fmt: skip
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folders, "WEIGHTS", pack)
    folders.register()
    assert folders.files(folders.REFINERS) == ["mine.safetensors", preset.REFINER]


@pytest.fixture(scope="module")
def server(comfy_server):
    tiny_weights.write(comfy_server.base / "models", *(TINY[key] for key in ("model", "vae", "scorer", "converter")))
    return comfy_server


def test_its_graph_is_that_of_streaming_with_one_node_more(server):
    info = server.object_info()
    refined, plain = (api_graph(name, info) for name in ("demo_noise_refiner", "demo_streaming"))
    node = refined[node_of(refined, "ForesightNoiseRefiner")]
    assert node["inputs"]["weights"] == preset.REFINER
    kinds = sorted(each["class_type"] for each in refined.values())
    assert kinds == sorted([*(each["class_type"] for each in plain.values()), "ForesightNoiseRefiner"])
    stream = refined[node_of(refined, "ForesightStreamingSampler")]["inputs"]
    own = plain[node_of(plain, "ForesightStreamingSampler")]["inputs"]
    assert stream.keys() - own.keys() == {"refiner"}
    assert stream["refiner"] == [node_of(refined, "ForesightNoiseRefiner"), 0]


def test_its_graph_runs_with_a_stand_in(server):
    models = server.base / "models"
    network = load_transformer(models / "diffusion_models" / TINY["model"])
    (models / folders.REFINERS).mkdir(exist_ok=True)
    name = written(models / folders.REFINERS / "tiny_refiner.safetensors", network, MODEL).name
    prompt = api_graph("demo_noise_refiner", server.object_info(), **TINY, tau=-0.99, noise_refiner=name)
    outputs = server.queue(prompt)["outputs"]
    report = json.loads(outputs[node_of(prompt, "PreviewAny")]["text"][0])
    assert report["refiner"]["forwards"] == 5 * 3 and report["nfe"] == 24 + 15
    assert all(size > 0 for size in report["refiner"]["change_by_step"].values())


def test_its_weights_are_named_where_they_are_missing(server):
    if FILE.exists():
        pytest.skip("the weights are here")
    with pytest.raises(PromptRejected, match=preset.REFINER):
        server.queue(api_graph("demo_noise_refiner", server.object_info(), **TINY))


needs_weights = pytest.mark.skipif(
    not (FILE.exists() and (folders.WEIGHTS / folders.DEMO["diffusion_models"] / preset.STREAMER).exists()),
    reason=f"the weights of the demo's noise refiner or of its student are not here yet: {FILE.name}",
)


@needs_weights
def test_it_belongs_to_the_shipped_student():
    described = describe(FILE)
    described.require(load_transformer(folders.WEIGHTS / folders.DEMO["diffusion_models"] / preset.STREAMER), "test")
    assert (described.name, described.made_for) == (FILE.stem, preset.STREAMER)
    assert FILE.stat().st_size < 6e6


@needs_weights
def test_its_graph_runs(server):
    prompt = api_graph("demo_noise_refiner", server.object_info(), tau=-0.99)
    report = json.loads(server.queue(prompt)["outputs"][node_of(prompt, "PreviewAny")]["text"][0])
    assert report["refiner"]["forwards"] == 7 * 3 and report["nfe"] == 34 + 21
    assert report["refiner"]["name"] == FILE.stem
    assert all(0.01 < size < 2 for size in report["refiner"]["change_by_step"].values())
