"""The demo family's streaming students: shipped, small, loaded by core as what they are, and run by their graph."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.samplers
import pytest
import torch
from streams import core_noise, core_streamed, largest, sampled
from tiny_wan import Noise

from foresight.demo import preset
from foresight.evaluation import demo_family
from foresight.evaluation.graphs import api_form, fill_defaults, node_of
from foresight.evaluation.server import ExecutionFailed
from foresight.lab.release import students
from foresight.lab.training.common import ROOT, TRANSFORMER, WEIGHTS
from foresight.lab.training.streams import How, trained_how
from foresight.nodes import demo
from foresight.sampling.compat import CAUSAL_WAN
from foresight.sampling.stream_sampler import StreamSampler
from foresight.trials.stream import StreamSettings

NAMES = {file: name for name, file in preset.MODELS.items()}
# How the help page says that each is sampled, and how it was trained to be.
SETTINGS = {
    preset.STREAMER: (StreamSettings("Self-Forcing", chunk=1, window=7), How("4")),
    preset.DIAGONAL: (StreamSettings("Diagonal Distillation", chunk=1, window=7, sink=0), How("4322222", 100.0, None)),
}  # fmt: skip
PROMPT = "a red circle moves left on a white background"


def shipped(file: str) -> Path:
    path = WEIGHTS / "diffusion_models" / file
    if not path.exists():
        pytest.skip(f"the weights of the streaming student are not here yet: {file}")
    return path


def guided(model) -> comfy.samplers.CFGGuider:
    model = model.clone()
    model.model.model_sampling.set_parameters(shift=preset.STREAM_SHIFT)
    clip, guider = demo.word_clip(), comfy.samplers.CFGGuider(model)
    guider.set_conds(*(clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")))
    guider.set_cfg(preset.STREAM_CFG)
    return guider


def test_all_weights_are_small_and_the_pages_name_them():
    files = [path for path in (ROOT / "weights").rglob("*") if path.is_file()]
    pages = "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("demo_family", "evidence"))
    assert sum(path.stat().st_size for path in files) < 35e6
    assert not [path.name for path in files if path.name not in pages]
    assert not [name for name in preset.MODELS.values() if name not in pages]


def test_the_model_card_says_what_its_files_say():
    """If this fails: `python -m foresight.lab.release.students`."""
    text = students.PAGE.read_text(encoding="utf-8")
    assert students.page(text) == text


def test_the_model_card_tells_figures_or_that_they_are_open():
    half = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"name": "diagonal, 4322222", "right": half, "segments": [{"right": half}] * 2}
    tables = {"students": [row], "long": [row | {"name": "diagonal, 55 latents"}]}
    document = {"prompts": 204, "split": "test", "tables": tables}
    told = students.card(document, [{}, {"steps": 600, "minutes": 41.3}])
    assert "| open | 600, 41 |" in told and "of 204 test prompts | open | 50.0 % (40.0 to 60.0) |" in told
    assert "| open | 50.0 %; 50.0 % |" in told


def test_old_graphs_load_the_model_of_whole_clips(monkeypatch):
    loaded = []
    monkeypatch.setattr(demo.comfy.sd, "load_diffusion_model", lambda path: loaded.append(Path(path).name))
    demo.DemoTextEncoder.execute()
    assert loaded == [preset.TRANSFORMER]


@pytest.mark.parametrize("name", list(preset.MODELS))
def test_a_missing_file_is_named_with_the_way_out(monkeypatch, tmp_path, name):
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    told = rf"Demo Models: model is '{name}', but {preset.MODELS[name]} is not in .*install the pack again"
    with pytest.raises(ValueError, match=told):
        demo.DemoTextEncoder.execute(name)


def test_what_was_measured_without_the_students_does_not_change_with_them(monkeypatch, tmp_path):
    folder = tmp_path / "weights" / "demo" / "diffusion_models"
    folder.mkdir(parents=True)
    monkeypatch.setattr(demo_family, "ROOT", tmp_path)
    (folder / preset.TRANSFORMER).write_bytes(b"one")
    before = demo_family.fingerprint()
    for file in preset.STUDENTS:
        (folder / file).write_bytes(b"more")
    assert demo_family.fingerprint() == before
    (folder / preset.TRANSFORMER).write_bytes(b"another")
    assert demo_family.fingerprint() != before


@pytest.mark.parametrize("file", preset.STUDENTS)
def test_core_loads_a_student_as_what_it_is(file):
    """By the node and by core's own loader; as causal where core knows that (0.33), from the file's metadata."""
    path = shipped(file)
    import comfy.model_base

    import nodes

    assert path.stat().st_size < 1.01 * TRANSFORMER.stat().st_size
    assert trained_how(path) == SETTINGS[file][1]
    ours = demo.DemoTextEncoder.execute(NAMES[file]).result[1].model
    core = nodes.UNETLoader().load_unet(file, "default")[0].model
    wanted = comfy.model_base.WAN21_CausalAR if CAUSAL_WAN else comfy.model_base.WAN21
    assert type(ours) is type(core) is wanted
    here, there = ours.state_dict(), core.state_dict()
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in there)


@pytest.mark.parametrize("file", preset.STUDENTS)
def test_a_student_streams_as_it_was_trained(file):
    shipped(file)
    model = demo.DemoTextEncoder.execute(NAMES[file]).result[1]
    sampler = StreamSampler(SETTINGS[file][0])
    clip = sampled(None, sampler, 7, guider=guided(model), size=(8, 8))
    assert torch.isfinite(clip).all() and 0.5 < model.model.process_latent_in(clip).std() < 2
    assert sampler.result["nfe"] == {preset.STREAMER: 34, preset.DIAGONAL: 17}[file]


@pytest.mark.skipif(not CAUSAL_WAN, reason="this ComfyUI has no sampler for causal Wan")
def test_cores_own_stream_of_the_four_step_student_is_ours(monkeypatch):
    shipped(preset.STREAMER)
    model = demo.DemoTextEncoder.execute(NAMES[preset.STREAMER]).result[1]
    noise = Noise(4).generate_noise({"samples": torch.zeros(1, 16, 7, 8, 8)})
    run = {"guider": guided(model), "size": (8, 8), "noise": noise}
    expected = core_streamed(None, 7, **run)
    with core_noise(monkeypatch):
        found = sampled(None, StreamSampler(SETTINGS[preset.STREAMER][0]), 7, **run)
    assert largest(found, expected) < 1e-4


@pytest.fixture(scope="module")
def graph(comfy_server):
    """The committed example, as the frontend sends it."""
    workflow = json.loads((ROOT / "workflows" / "demo_streaming.json").read_text(encoding="utf-8"))
    return fill_defaults(api_form(workflow), comfy_server.object_info())


def test_the_example_streams_the_four_step_student(comfy_server, graph):
    path = WEIGHTS / "diffusion_models" / preset.STREAMER
    if not path.exists():  # the graph says what is missing
        with pytest.raises(ExecutionFailed, match=f"{preset.STREAMER} is not in"):
            comfy_server.queue(graph)
        return
    outputs = comfy_server.queue(graph)["outputs"]
    report = json.loads(outputs[node_of(graph, "PreviewAny")]["text"][0])
    assert (report["preset"], report["schedule"], report["nfe_plain"]) == ("Self-Forcing", "4" * 7, 34)
    assert report["made"] == preset.STREAM_LATENTS and report["nfe"] >= 34
    assert report["causal_by_file"] == CAUSAL_WAN
