"""Run Report and Enhancer Report on their own nodes: a picture, moving clips and lines of text; and a watch alone."""

from __future__ import annotations

import io
import json

import folder_paths
import pytest
import tiny_weights
import torch
from PIL import Image
from tiny_wan import ScriptedScorer, gate, inputs, model

from foresight.demo import preset
from foresight.evaluation.api_graph import node
from foresight.evaluation.graphs import fill_defaults
from foresight.evaluation.server import ExecutionFailed
from foresight.lab.release.locales import panel_texts
from foresight.nodes.enhancers import EnhancerReport, LatentSearchSampler, SelfRefineSampler
from foresight.nodes.report import RunReport
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.trials.race import Rules


@pytest.fixture(scope="module")
def patcher():
    return model()


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def frames(path) -> int:
    with Image.open(path) as image:
        assert image.format == "WEBP"
        return image.n_frames


def in_words(said: list) -> str:
    """As a page says it, whose words are those of the locales."""
    template, values = said
    assert template in panel_texts()
    return template.format(**{name: in_words(v) if isinstance(v, list) else v for name, v in values.items()})


def says_it_itself(clips: list[dict]) -> None:
    for clip in clips:
        assert in_words(clip["said"]["name"]) == clip["name"]
        assert clip["said"]["about"] is None or in_words(clip["said"]["about"]) == clip["about"]


def test_the_finished_clip_moves_beside_what_was_put_aside(patcher, temp):
    verdict = run_race(inputs(patcher), gate(0.1, 0.3, 0.2, 0.25), Rules.ranks(0.4, "off")).verdict
    on_node = RunReport.execute(verdict=verdict).ui
    (picture,) = on_node["images"]
    assert picture["type"] == "temp" and Image.open(temp / picture["filename"]).size == (1200, 800)
    clips = on_node["foresight_clips"]
    assert [clip["finished"] for clip in clips] == [True] + [False] * (len(clips) - 1) and len(clips) > 2
    assert clips[0]["name"] == "the finished clip" and clips[0]["about"].startswith("final score 0.250")
    assert {clip["name"] for clip in clips[1:]} >= {"candidate 1", "candidate 2, delivered"}
    says_it_itself(json.loads(json.dumps(clips)))
    assert all(frames(temp / clip["filename"]) == 3 for clip in clips[1:])
    assert len(on_node["text"][0].splitlines()) > 4


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_item_of_a_batch_is_scored_shown_and_named(patcher, temp, batch):
    verdict = monitored_sample(inputs(patcher, batch=batch), gate(0.3)).verdict
    scores = [0.1, 0.2, 0.4][:batch]
    images = torch.rand(batch * 9, 16, 16, 3)
    out = RunReport.execute(verdict=verdict, images=images, scorer=ScriptedScorer(*scores))
    report = json.loads(out.args[2])
    assert report["final_scores"] == scores and report["final_score"] == max(scores)
    clips = [clip for clip in out.ui["foresight_clips"] if clip["finished"]]
    names = ["the finished clip"] if batch == 1 else [f"the finished clip, item {i + 1}" for i in range(batch)]
    assert [clip["name"] for clip in clips] == names and all(frames(temp / clip["filename"]) == 9 for clip in clips)
    says_it_itself(clips)
    assert ("Item 2: final score 0.200, still below tau 0.220" in out.args[1].splitlines()) == (batch > 1)


def test_what_cannot_be_shown_costs_the_show_only(patcher, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    verdict = monitored_sample(inputs(patcher), gate(0.3)).verdict
    whole = RunReport.execute(verdict=verdict)
    monkeypatch.setattr("foresight.nodes.shown.ui.ImageSaveHelper.save_images", full)
    monkeypatch.setattr("foresight.nodes.shown.ui.ImageSaveHelper.save_animated_webp", full)
    short = RunReport.execute(verdict=verdict)
    assert short.args[1:] == whole.args[1:] and torch.equal(short.args[0], whole.args[0])
    assert not {"images", "foresight_clips"} & short.ui.keys() and short.ui["text"] == whole.ui["text"]


def test_an_enhancers_report_shows_its_candidates_and_where_it_refined(patcher, temp):
    given = inputs(patcher, steps=8)
    refined = SelfRefineSampler.execute(given.sampler, "distilled", "", 40, 0.0).result[0]
    search = LatentSearchSampler.execute(
        refined, 3, "beam", "3", 8, 0.5, 0, gate=gate(0.1, 0.3, 0.2)
    ).result[0]  # fmt: skip
    noise = given.noise.generate_noise(given.latent)
    given.guider.sample(noise, given.latent["samples"], search, given.sigmas, seed=3)
    on_node = EnhancerReport.execute(search, given.latent).ui
    assert Image.open(temp / on_node["images"][0]["filename"]).size == (1200, 800)
    mask, won, *others = on_node["foresight_clips"]
    says_it_itself(on_node["foresight_clips"])
    assert mask["name"] == "where it was refined" and (won["name"], won["finished"]) == ("candidate 1", True)
    assert won["about"] == "finished; reward 0.300 at step 4" and len(others) == 2
    assert all("dropped after step 4; reward" in other["about"] for other in others)


@pytest.fixture(scope="module")
def server(comfy_server):
    tiny_weights.write_transformer(comfy_server.base / "models", "reports_wan.safetensors")
    return comfy_server


def told(server, nodes: dict) -> dict:
    nodes = fill_defaults(nodes, server.object_info())
    return server.queue(nodes)["outputs"]


def graph(**changes) -> dict:
    """A watch under core's own sampler, and the obvious link from it to a report."""
    return {
        "1": node("UNETLoader", unet_name="reports_wan.safetensors", weight_dtype="default"),
        "3": node("ForesightDemoTextEncoder"),
        "5": node("CLIPTextEncode", clip=["3", 0], text="a red circle"),
        "7": node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
        "8": node("KSampler", model=["13", 0], positive=["5", 0], negative=["5", 0], latent_image=["7", 0], seed=5,
                  steps=10, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=1.0),
        "9": node("SaveLatent", samples=["8", 0], filename_prefix="watched"),
        "10": node("ForesightRunReport", watch=["13", 1]),
        "11": node("ForesightViCLIPScore", weights=preset.SCORER, precision="fp32", prompt=""),
        "12": node("ForesightFailureGate", l2r=["14", 0], scorer=["11", 0], prompt="a red circle"),
        "13": node("ForesightWatch", model=["1", 0], gate=["12", 0], enabled=True),
        "14": node("ForesightL2RPreview", converter="auto", model=["1", 0]),
    } | {id[1:]: each for id, each in changes.items()}  # fmt: skip


def report_of(outputs: dict) -> dict:
    """Of the node that stands in for the report, which is shown on it."""
    (own,) = [output for id, output in outputs.items() if "foresight_report" in output and id.split(".")[0] == "10"]
    return own


def test_a_watch_and_a_report_need_one_link(server):
    """The report waits for the sampler, tells of every run anew, and outputs what it tells."""
    more = {"n15": node("SaveImage", images=["10", 0], filename_prefix="report")}
    for seed in (5, 6, 6):
        nodes = graph(**more)
        nodes["8"]["inputs"]["seed"] = seed
        outputs = told(server, nodes)
        own = report_of(outputs)
        (report,) = own["foresight_report"]
        assert report["seed"] == seed and len(report["final_scores"]) == 1
        assert any(clip["finished"] for clip in own["foresight_clips"]) and own["images"][0]["type"] == "temp"
        clip = Image.open(io.BytesIO(server.view(own["foresight_clips"][0])))
        assert clip.format == "WEBP" and 1 < clip.n_frames <= 3  # WebP joins frames that are the same
        assert outputs["15"]["images"]


@pytest.mark.parametrize("guider", [False, True])
def test_it_waits_for_the_last_sampler_of_the_model(server, guider):
    nodes = graph()
    nodes["8"]["inputs"]["seed"] = 100 + guider  # else it is cached, and not run in this prompt
    nodes["16"] = node("KSampler", **nodes["8"]["inputs"] | {"latent_image": ["8", 0], "seed": 7, "denoise": 0.5})
    nodes["9"]["inputs"]["samples"] = ["16", 0]
    if guider:
        nodes |= {
            "16": node("SamplerCustomAdvanced", noise=["20", 0], guider=["21", 0], sampler=["22", 0], sigmas=["23", 0],
                       latent_image=["8", 0]),
            "20": node("RandomNoise", noise_seed=7), "22": node("KSamplerSelect", sampler_name="euler"),
            "21": node("CFGGuider", model=["13", 0], positive=["5", 0], negative=["5", 0], cfg=2.0),
            "23": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=10, denoise=0.5),
        }  # fmt: skip
    (report,) = report_of(told(server, nodes))["foresight_report"]
    assert len(report["trials"]) == 2, "both runs of the watched model are told of"


def test_a_watch_that_is_off_or_that_nothing_samples_with_is_said(server):
    nodes = graph()
    nodes["13"]["inputs"]["enabled"] = False
    outputs = told(server, nodes)
    assert "No run to tell of" in outputs["10"]["text"][0] and outputs["9"]
    nodes = graph()
    nodes["8"]["inputs"]["model"] = ["1", 0]
    with pytest.raises(ExecutionFailed, match="no sampler was found behind the watched model"):
        told(server, nodes)
