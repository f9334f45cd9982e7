"""What nodes decide by themselves, without a server: what they validate, show and compare, and read off a graph."""

from __future__ import annotations

from types import SimpleNamespace

import folder_paths
import pytest
import torch
from PIL import Image

import foresight.nodes.cogvideox as cogvideox
import foresight.nodes.core_vlm as core_vlm
import foresight.nodes.drop_in as drop_in
import foresight.nodes.panel as panel
from foresight.demo import preset
from foresight.nodes.back_ends import similarity
from foresight.nodes.demo import word_clip
from foresight.nodes.folders import WEIGHTS
from foresight.nodes.graph import sampled_with
from foresight.nodes.loaders import scorer_from_file
from foresight.nodes.shown import moving
from foresight.panel.runs import RunStore
from foresight.refiner.base import RewordingRequest
from foresight.trials.picture import Card


@pytest.mark.parametrize("node", [drop_in.ForesightKSampler, drop_in.ForesightSamplerCustomAdvanced])
def test_a_drop_in_asks_for_a_scorer_file_only_where_nothing_scores(monkeypatch, node):
    def none():
        raise ValueError("there is no file of a scorer")

    monkeypatch.setattr(drop_in, "own_scorer_file", none)
    assert node.validate_inputs({}) == node.validate_inputs({"l2r": "FORESIGHT_L2R"}) == "there is no file of a scorer"
    assert node.validate_inputs({"scorer": "FORESIGHT_SCORER"}) is True
    assert node.validate_inputs({"gate": "FORESIGHT_GATE"}) is True
    assert "gate takes FORESIGHT_GATE" in node.validate_inputs({"gate": "MODEL"})


INFO = {
    "Loader": {"output": ["MODEL"]}, "Patch": {"output": ["MODEL"]}, "Sampler": {"output": ["LATENT"]},
    "Decode": {"output": ["IMAGE"]},
}  # fmt: skip
SIDE_BY_SIDE = {  # two ways from one model: over a patch, and over two
    "1": ("Loader",), "2": ("Patch", "1"), "3": ("Sampler", "2"), "4": ("Patch", "1"), "5": ("Patch", "4"),
    "6": ("Sampler", "5"),
}  # fmt: skip
IN_A_ROW = {"1": ("Loader",), "2": ("Sampler", "1"), "3": ("Sampler", "1", "2"), "4": ("Decode", "3")}


@pytest.mark.parametrize("graph, last", [(SIDE_BY_SIDE, "6"), (IN_A_ROW, "3"), ({"1": ("Loader",)}, None)])
@pytest.mark.parametrize("order", [1, -1])
def test_what_samples_last_with_a_model_is_found_in_any_order_of_the_graph(graph, last, order):
    nodes = {
        id: {"class_type": kind, "inputs": {f"in {n}": [source, 0] for n, source in enumerate(sources)}}
        for id, (kind, *sources) in list(graph.items())[::order]
    }
    assert sampled_with(nodes, INFO, ["1", 0]) == (last and [last, 0])


def test_a_demo_prompt_has_cores_weights_and_word_ids():
    (plain,) = word_clip().tokenize("a (red:1.5) circle")["words"]
    assert plain == [("a", 1.0), ("red", 1.5), ("circle", 1.0)]
    (numbered,) = word_clip().tokenize("a (red:1.5) circle", return_word_ids=True)["words"]
    assert numbered == [("a", 1.0, 1), ("red", 1.5, 2), ("circle", 1.0, 3)]


def test_cogvideox_is_sampled_from_where_denoise_begins_and_within_its_timesteps(monkeypatch):
    sampling = SimpleNamespace(sigmas=torch.arange(1, 1001) / 100)
    model = SimpleNamespace(get_model_object=lambda name: sampling, model=object())
    with pytest.raises(ValueError, match="not native CogVideoX"):
        cogvideox.CogVideoXSampler.execute(model, "dpm", 50, 0.0, 1.0)
    monkeypatch.setattr(cogvideox, "takes_raw_input", lambda given: given is sampling)
    whole = cogvideox.CogVideoXSampler.execute(model, "dpm", 50, 0.0, 1.0).args[1]
    part = cogvideox.CogVideoXSampler.execute(model, "ddim", 25, 0.5, 0.5).args[1]
    assert len(whole) == 51 and torch.equal(part, whole[25:])
    assert len(cogvideox.CogVideoXSampler.execute(model, "dpm", 500, 0.0, 0.5).args[1]) == 501
    with pytest.raises(ValueError, match="501 steps at denoise 0.5 need 1002 timesteps"):
        cogvideox.CogVideoXSampler.execute(model, "dpm", 501, 0.0, 0.5)


@pytest.fixture(scope="module")
def scorer():
    return scorer_from_file(WEIGHTS / "demo" / "viclip" / preset.SCORER)


def test_texts_of_any_number_of_pieces_are_compared(scorer):
    """A refined prompt is often longer than the scorer's network takes at once."""
    short, other = "a red circle moves left", "a blue square moves up"
    long, longer = f"{short}. " * 12, f"{short}. " * 20
    assert scorer.encode_text(long).ndim == 2 and scorer.encode_text(short).ndim == 1
    alike = similarity(scorer)
    for one, two in ((short, short), (short, long), (long, longer), (longer, short)):
        assert alike(one, two) == pytest.approx(1, abs=0.01)
        assert alike(one, f"{other}. " * 12) < 0.95
    assert alike(short, other) == pytest.approx(float(scorer.encode_text(short) @ scorer.encode_text(other)), abs=1e-5)


def test_cores_vlm_is_asked_with_a_picture_and_its_answer_is_told_with_its_cost(monkeypatch):
    asked, released = {}, []
    monkeypatch.setattr(core_vlm, "release", released.append)  # ComfyUI 0.3.75 has no word for it

    def tokenize(text, **options):
        asked.update(options, text=text)
        return [1, 2]

    vlm = SimpleNamespace(
        tokenize=tokenize, generate=lambda tokens, **options: [5] * 7, patcher="the patcher",
        decode=lambda ids: '{"refined_prompt": "a clearly visible red circle moves left"}',
    )  # fmt: skip
    request = RewordingRequest("a red circle moves left", "blur", torch.rand(5, 32, 32, 3), 0.1)
    found = core_vlm.CoreReworder(vlm, lambda one, other: 0.9).reword(request)
    assert found.prompt == "a clearly visible red circle moves left" and found.usage == {"completion_tokens": 7}
    assert asked["image"].shape == (1, 68, 68, 3) and request.prompt in asked["text"]
    assert released == ["the patcher"]


def test_the_page_that_queued_is_told_and_every_client_sees_scores_on_the_node(monkeypatch):
    sent, shown = [], []
    monkeypatch.setattr(panel, "prompt_server", lambda: None)
    panel.send("foresight.step", {"score": 0.3}, "tab")
    monkeypatch.setattr(panel, "prompt_server", lambda: SimpleNamespace(send_sync=lambda *told: sent.append(told)))
    monkeypatch.setattr(panel, "show_on_node", lambda node, text: shown.append((node, text)))
    store = RunStore(panel.send)
    monkeypatch.setattr(panel, "STORE", store)
    for client in ("tab", None):
        with store.running(None, "prompt", "12", client) as run:
            run.begin("0", "sample", steps=50)
            run.step(1, 0.25)
            run.step(50, None)
            run.begin("candidate 2", "candidate", steps=50, details={"seed": 7})
            run.step(6, 0.5)
    assert shown == [("12", "Trial 0, step 1/50: score 0.250"), ("12", "Candidate 2, step 6/50: score 0.500")] * 2
    assert {client for _, _, client in sent} == {"tab"} and len(sent) == len([each for each in sent if each[1]["run"]])


@pytest.mark.parametrize("value, kind", [(0.8, torch.float32), (204, torch.uint8)])
def test_a_moving_clip_keeps_its_colours(tmp_path, monkeypatch, value, kind):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    shown = moving(Card("one", "", torch.full((3, 16, 16, 3), value, dtype=kind)))
    with Image.open(tmp_path / shown["filename"]) as image:
        assert abs(torch.tensor(list(image.convert("RGB").tobytes())).float().mean() - 204) < 2
