"""The nodes as a real ComfyUI sees them: what is registered, what it says of itself, and what bad input leads to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import tiny_weights
import torch
from PIL import Image

from foresight.evaluation.api_graph import Graph
from foresight.evaluation.graphs import node_of
from foresight.evaluation.server import ComfyServer, ExecutionFailed, Prompt, PromptRejected
from foresight.l2r.checkpoint import save_l2r
from foresight.l2r.model import L2R
from foresight.lab.graphs.forms import api_graph
from foresight.lab.release.locales import files as locale_files
from foresight.scoring.detector import DetectorSettings
from foresight.scoring.preset import DetectorPreset, save_preset

ROOT = Path(__file__).resolve().parent.parent
NODES = {
    "ForesightKSampler": "KSampler (Foresight)",
    "ForesightSamplerCustomAdvanced": "SamplerCustomAdvanced (Foresight)",
    "ForesightL2RPreview": "L2R Preview",
    "ForesightL2RCalibrate": "L2R Calibrate",
    "ForesightViCLIPScore": "ViCLIP Score",
    "ForesightFailureGate": "Dynamic Failure Gate",
    "ForesightMonitoredSampler": "Monitored Sampler",
    "ForesightSingleFrameProbe": "Single-Frame Probe",
    "ForesightLatentInjector": "Latent Injector",
    "ForesightPromptRefiner": "VLM Prompt Refiner",
    "ForesightTrialSwitch": "Trial Switch",
    "ForesightSampler": "Foresight Sampler",
    "ForesightRunReport": "Run Report",
    "ForesightWatch": "Foresight Watch",
    "ForesightSeedAudition": "Seed Audition",
    "ForesightTwoExpertGuider": "Two-Expert Guider",
    "ForesightCogVideoXSampler": "CogVideoX Sampler",
    "ForesightDemoTextEncoder": "Demo Models",
    "ForesightLatentReward": "Latent Reward",
    "ForesightSelfRefineSampler": "Self-Refine Sampler",
    "ForesightLatentSearchSampler": "Latent Search Sampler",
    "ForesightEnhancerReport": "Enhancer Report",
    "ForesightCandidateNoise": "Candidate Noise",
    "ForesightStreamingSampler": "Streaming Sampler",
    "ForesightStreamingGuider": "Streaming Guider",
    "ForesightChunkGate": "Chunk Gate",
    "ForesightStreamingReport": "Streaming Report",
    "ForesightNoiseRefiner": "Noise Refiner",
}
# Sockets that mean what they mean on core's sampling nodes; everything else explains itself.
CORES = {"model", "high_noise_model", "low_noise_model", "clip", "noise", "guider", "sampler", "sigmas", "latent_image",
         "positive", "negative"}  # fmt: skip
TINY = {"model": "bad_wan.safetensors", "vae": "bad_vae.safetensors", "scorer": "bad_viclip.safetensors",
        "converter": "bad_l2r.safetensors", "steps": 6, "width": 32, "height": 32, "length": 9}  # fmt: skip


@pytest.fixture(scope="module")
def server(comfy_server: ComfyServer) -> ComfyServer:
    models = comfy_server.base / "models"
    tiny_weights.write(models, *(TINY[key] for key in ("model", "vae", "scorer", "converter")))
    save_l2r(L2R(4), models / "foresight_l2r" / "four_channels.safetensors")
    return comfy_server


@pytest.fixture(scope="module")
def info(server) -> dict[str, Any]:
    return server.object_info()


def test_the_nodes_are_designs(info):
    ours = {id: node for id, node in info.items() if node["python_module"] == "custom_nodes.foresight"}
    assert {id: node["display_name"] for id, node in ours.items()} == NODES
    assert json.loads((ROOT / "node_list.json").read_text(encoding="utf-8")) == NODES
    assert all(node["description"] for node in ours.values())


def test_every_node_stands_in_a_sub_category_and_is_found_by_what_it_is_for(info):
    ours = [node for node in info.values() if node["python_module"] == "custom_nodes.foresight"]
    rooms = {"sampling", "inspection", "paper", "enhancers", "models", "demo", "streaming"}
    assert {node["category"] for node in ours} == {f"Foresight/{room}" for room in rooms}
    if "search_aliases" in info["KSampler"]:  # 0.3.75 looks for names only
        for word in ("retry", "preview", "best of", "cancel", "score", "seeds"):
            found = [node["name"] for node in ours if word in node["search_aliases"]]
            assert len(found) > 1, word
        assert all(node["search_aliases"] for node in ours)


@pytest.mark.parametrize("id", NODES)
def test_every_input_explains_itself(info, id):
    silent = [
        name
        for kind in ("required", "optional")
        for name, (_, *options) in info[id]["input"].get(kind, {}).items()
        if name not in CORES and not (options and options[0].get("tooltip"))
    ]
    assert not silent


def changed(prompt: Prompt, class_type: str, **inputs: Any) -> Prompt:
    prompt[node_of(prompt, class_type)]["inputs"] |= inputs
    return prompt


def one_node(info, **settings: Any) -> Prompt:
    return api_graph("demo_one_node", info, **{**TINY, **settings})


def visual(info, **settings: Any) -> Prompt:
    return api_graph("demo_visual_hierarchy", info, **{**TINY, **settings})


def test_unknown_weights(server, info):
    # Newer versions of ComfyUI refuse the value themselves.
    message = r"(?s)\(ForesightViCLIPScore\).*'nothing.safetensors'.*bad_viclip.safetensors"
    with pytest.raises((PromptRejected, ExecutionFailed), match=message):
        server.queue(one_node(info, scorer="nothing.safetensors"))


@pytest.mark.parametrize(
    "class_type, widget",
    [
        ("ForesightSampler", "refiner"), ("ForesightSampler", "sampler_name"), ("ForesightSampler", "injection_mask"),
        ("ForesightSampler", "plan"), ("ForesightSampler", "self_refine"),
        ("ForesightViCLIPScore", "precision"), ("ForesightL2RPreview", "converter"),
    ],
)  # fmt: skip
def test_a_choice_that_there_is_not(server, info, class_type, widget):
    prompt = changed(one_node(info, tau=-0.99, seed=1), class_type, **{widget: "nonsense"})
    with pytest.raises((PromptRejected, ExecutionFailed), match=rf"(?s)\({class_type}\).*'nonsense'"):
        server.queue(prompt)


def test_a_preset_that_is_rewritten_is_read_by_the_next_run(server, info):
    path = server.base / "models" / "foresight_presets" / "mine.json"
    save_preset(DetectorPreset("tiny", 6, DetectorSettings()), path)
    prompt = changed(visual(info), "ForesightFailureGate", preset=path.name)
    server.queue(prompt)
    path.write_text("{}")
    with pytest.raises(ExecutionFailed, match=r"(?s)\(ForesightFailureGate\).*mine\.json is no detector preset"):
        server.queue(prompt)
    path.unlink()


@pytest.mark.parametrize("tau", [-1.1, 1.5])
def test_tau_out_of_range(server, info, tau):
    with pytest.raises(PromptRejected, match=r"ForesightSampler.*tau"):
        server.queue(one_node(info, tau=tau))


@pytest.mark.parametrize("budget", [-0.1, 10.5, "much"])
def test_a_budget_that_is_none(server, info, budget):
    with pytest.raises(PromptRejected, match=r"ForesightSampler.*budget"):
        server.queue(changed(one_node(info), "ForesightSampler", budget=budget))


@pytest.mark.parametrize("missing", ["l2r", "scorer"])
def test_a_gate_without_its_parts(server, info, missing):
    prompt = visual(info)
    del prompt[node_of(prompt, "ForesightFailureGate")]["inputs"][missing]
    with pytest.raises(PromptRejected, match=rf"ForesightFailureGate.*[Rr]equired input is missing.*{missing}"):
        server.queue(prompt)


@pytest.mark.parametrize("graph, node", [(one_node, "ForesightSampler"), (visual, "ForesightFailureGate")])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prompt": " \n"}, "prompt is empty.*Enter"),
        ({"gate": {"start": 0.5, "end": 0.2}}, r"end = 0.2.*start = 0.5.*raise end or lower start"),
        ({"gate": {"single_start": 0.9, "single_end": 0.1}}, r"end = 0.1.*start = 0.9.*raise end or lower start"),
    ],
)
def test_a_gate_that_makes_no_sense(server, info, graph, node, settings, message):
    with pytest.raises(PromptRejected, match=rf"(?s)\({node}\).*{message}"):
        server.queue(graph(info, **settings))


@pytest.mark.parametrize(
    "graph, node, inputs, message",
    [
        ("demo_self_refine", "ForesightSelfRefineSampler", {"preset": "custom", "plan": "2-x"}, "plan: '2-x' is not"),
        ("demo_self_refine", "ForesightSelfRefineSampler", {"threshold": "quantile"}, "no preset has a quantile"),
        ("demo_latent_search", "ForesightLatentSearchSampler", {"schedule": "10, 60"}, "schedule is '10, 60'"),
        ("demo_streaming", "ForesightStreamingSampler", {"preset": "sigmas", "schedule": "4"}, "has steps of its own"),
        ("demo_streaming", "ForesightStreamingGuider", {"prompts": "3: it turns"}, "the first begins at 0"),
        ("demo_streaming", "ForesightChunkGate", {"looks": "never"}, "looks is 'never'"),
        ("demo_one_node", "ForesightViCLIPScore", {"weights": "no"}, "not in models/foresight: put it there"),
        ("demo_one_node", "ForesightL2RPreview", {"converter": "no"}, "not in models/foresight_l2r: put it there"),
        ("demo_visual_hierarchy", "ForesightFailureGate", {"preset": "no.json"}, "not in models/foresight_presets"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_loads(server, info, graph, node, inputs, message):
    prompt = changed(api_graph(graph, info, **TINY), node, **inputs)
    with pytest.raises(PromptRejected, match=rf"(?s)\({node}\).*{message}") as refused:
        server.queue(prompt)
    assert str(refused.value).count(message.partition(":")[0]) == 1, "said once"


def test_what_other_nodes_make_is_looked_at_when_it_is_there(server, info):
    prompt = visual(info)
    prompt[node_of(prompt, "ForesightFailureGate")]["inputs"]["prompt"] = ["made", 0]
    prompt["made"] = {"class_type": "StringTrim", "inputs": {"string": " ", "mode": "Both"}}
    with pytest.raises(ExecutionFailed, match=r"(?s)\(ForesightFailureGate\).*prompt is empty"):
        server.queue(prompt)


@pytest.mark.parametrize(
    "between, message",
    [
        ({"class_type": "FlipSigmas", "inputs": {}}, "sigmas do not decrease.*not flipped"),
        ({"class_type": "SplitSigmas", "inputs": {"step": 0}}, r"sigmas has 1 value.*Raise steps"),
    ],
)
def test_a_schedule_that_is_none(server, info, between, message):
    prompt = visual(info)
    scheduler = node_of(prompt, "BasicScheduler")
    prompt["between"] = {**between, "inputs": {**between["inputs"], "sigmas": [scheduler, 0]}}
    changed(prompt, "ForesightMonitoredSampler", sigmas=["between", 0])
    with pytest.raises(ExecutionFailed, match=rf"(?s)\(ForesightMonitoredSampler\).*{message}"):
        server.queue(prompt)


def report(server, prompt: Prompt) -> dict[str, Any]:
    (told,) = server.queue(prompt)["outputs"][node_of(prompt, "ForesightRunReport")]["foresight_report"]
    return told


def test_a_report_is_kept_beside_its_picture(server, info):
    prompt = changed(one_node(info, tau=-0.99, steps=2), "ForesightRunReport", save=True)
    outputs = server.queue(prompt)["outputs"][node_of(prompt, "ForesightRunReport")]
    (image,) = outputs["images"]
    path = server.output / "foresight" / image["filename"]
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == outputs["foresight_report"][0]
    with Image.open(path) as picture:
        assert "ForesightRunReport" in picture.text["prompt"]


PLANS = pytest.mark.parametrize("plan, trial", [("race", "candidate 1"), ("paper", "0")])


@PLANS
def test_a_schedule_of_one_step_is_sampled(server, info, plan, trial):
    told = report(server, one_node(info, tau=-0.99, steps=1, plan=plan))
    assert (told["trial"], told["nfe"], told["accepted"]) == (trial, 1, True)


@PLANS
def test_a_converter_for_other_latents_leaves_plain_sampling(server, info, plan, trial):
    told = report(server, one_node(info, tau=1.0, seed=3, converter="four_channels.safetensors", plan=plan))
    assert (told["trial"], told["nfe"]) == (trial, 6)
    assert told["accepted"] is (plan == "paper")  # after a race the finished frames are held against tau
    (note,) = told["notes"]
    assert "4" in note and "16" in note and "channels" in note


def test_a_preview_of_other_latents(server, info):
    prompt = one_node(info)
    model, latent = (prompt[node_of(prompt, "ForesightSampler")]["inputs"][name] for name in ("model", "latent_image"))
    look = {"converter": "four_channels.safetensors", "model": model, "latent": latent}
    prompt = {id: prompt[id] for id in Graph(prompt, info).upstream(model[0], latent[0])}
    prompt["look"] = {"class_type": "ForesightL2RPreview", "inputs": look}
    prompt["save"] = {"class_type": "PreviewImage", "inputs": {"images": ["look", 1]}}
    with pytest.raises(ExecutionFailed, match=r"(?s)\(ForesightL2RPreview\).*16.*4|\(ForesightL2RPreview\).*4.*16"):
        server.queue(prompt)


def test_an_injection_that_starts_after_the_end(server, info):
    late = {"injection_start": 7}
    with pytest.raises(ExecutionFailed, match=r"(?s)\(ForesightMonitoredSampler\).*step 7.*6 steps.*start earlier"):
        server.queue(visual(info, tau=1.0, delta=1.0, seed=5, injection=late))


def test_a_probe_that_gives_no_frame_leaves_the_plain_run():
    from foresight.nodes.sampling import LatentInjector, MonitoredSampler, SingleFrameProbe

    class Broken(tiny_wan.Noise):
        def generate_noise(self, latent):
            return super().generate_noise(latent) * float("nan")

    given = tiny_wan.inputs(tiny_wan.model())
    rest = given.guider, given.sampler, given.sigmas, given.latent
    gate = tiny_wan.gate(0.1)
    rejected = MonitoredSampler.execute(given.noise, *rest, gate).args[3]
    anchor, verdict, _ = SingleFrameProbe.execute(Broken(3), *rest, gate, rejected).args
    assert not rejected.accepted and not verdict.accepted and "no usable frame" in verdict.record.message
    defaults = {"injection_start": 2, "injection_steps": 2, "injection_noise": "initial", "injection_mask": "linear",
                "injection_strength": 1.0}  # fmt: skip
    injection = LatentInjector.execute(anchor, **defaults).args[0]
    latent, _, _, story, _ = MonitoredSampler.execute(given.noise, *rest, injection=injection).args
    plain = MonitoredSampler.execute(given.noise, *rest).args[0]
    assert torch.equal(latent["samples"], plain["samples"])
    assert [record.kind for record in story.history] == ["sample", "probe", "plain"]


def test_a_graph_that_ends_in_a_refusal_leaves_the_server_usable(server, info):
    assert report(server, visual(info, tau=-0.99, seed=9))["accepted"]


def table(page: str, heading: str) -> list[list[str]]:
    """The rows below a heading of a node's help page, without the first two."""
    part = page.split(f"## {heading}\n", 1)[-1].split("\n## ")[0] if f"## {heading}\n" in page else ""
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.parametrize("id", NODES)
def test_a_nodes_help_page_tells_of_its_inputs_and_outputs(info, id):
    page = (ROOT / "web" / "docs" / f"{id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {NODES[id]}\n")
    inputs = {
        name: "COMBO" if isinstance(kind, list) else kind.replace("*", "any")
        for group in ("required", "optional")
        for name, (kind, *_) in info[id]["input"].get(group, {}).items()
    }
    told = {name: row[1] for row in table(page, "Inputs") for name in row[0].split(", ")}
    assert told == inputs
    assert [row[0] for row in table(page, "Outputs")] == info[id]["output_name"]
    assert all(len(row) >= 3 and row[2] for heading in ("Inputs", "Outputs") for row in table(page, heading))


def test_translations_are_those_of_the_nodes(info):
    for path, text in locale_files(info).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"run python -m foresight.lab.release.locales: {path}"
