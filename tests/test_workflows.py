"""The example graphs through a real ComfyUI, with random weights: the one node and the visual hierarchy agree."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
import tiny_wan
import tiny_weights
import torch
from PIL import Image
from safetensors.torch import load

from foresight.evaluation.graph_settings import (
    COGVIDEOX,
    EXAMPLES,
    FAMILIES,
    START,
    WAN,
    WAN_5B,
    WAN_14B,
    WAN_22,
    StreamedSettings,
)  # fmt: skip
from foresight.evaluation.graphs import api_form, node_of
from foresight.evaluation.server import ComfyServer, Prompt
from foresight.lab.graphs.forms import GRAPHS, api_graph, graph
from foresight.refiner.restart import SEED_STEP
from foresight.sampling.compat import RAW_INPUT
from foresight.trials.summary import report_text

ROOT = Path(__file__).resolve().parent.parent
FORMS = {"demo": ("demo_one_node", "demo_visual_hierarchy"),
         "wan": ("wan2.1_t2v_1.3b_one_node", "wan2.1_t2v_1.3b_visual_hierarchy"),
         "wan 14b": ("wan2.1_t2v_14b_one_node", "wan2.1_t2v_14b_visual_hierarchy"),
         "experts": ("wan2.2_t2v_14b_one_node", "wan2.2_t2v_14b_visual_hierarchy"),
         "5b": ("wan2.2_ti2v_5b_one_node", "wan2.2_ti2v_5b_visual_hierarchy"),
         "cogvideox": ("cogvideox_5b_one_node", "cogvideox_5b_visual_hierarchy")}  # fmt: skip
# The stand-ins bear the official names, so that the graphs can ask for what they ask for; 6 steps have windows
# 1..2 (video) and 3..4 (single frame).
TINY = {"model": WAN.model, "vae": WAN.vae, "scorer": WAN.scorer, "converter": "tiny_l2r.safetensors", "steps": 6,
        "text_encoder": None, "width": 32, "height": 32, "length": 9, "plan": "paper"}  # fmt: skip
# Native CogVideoX came after 0.3.75. The demo's encoder and a Wan VAE, of 16 channels as well, stand in for its own.
NEWER = ["cogvideox"] if RAW_INPUT else []
PASS, FAIL = {"tau": -0.99}, {"tau": 1.0}
TEXT = "a fox in the snow"
NEVER_BETTER, AS_GOOD = {"delta": 1.0}, {"delta": 0.0}


@pytest.fixture(scope="module")
def server(comfy_server: ComfyServer, comfyui: Path) -> ComfyServer:
    models = comfy_server.base / "models"
    tiny_weights.write(models, *(TINY[key] for key in ("model", "vae", "scorer", "converter")))
    tiny_weights.write_transformer(models, WAN_14B.model)
    tiny_weights.write_transformer(models, WAN_22.model)
    tiny_weights.write_transformer(models, WAN_22.low_noise_model, seed=1)
    tiny_weights.write_transformer(models, WAN_5B.model, channels=48)
    for s in EXAMPLES.values():
        if s.start_image and not isinstance(s, StreamedSettings):
            kind = "2.2 14B I2V" if s.low_noise_model else "2.1 I2V"
            for seed, file in enumerate(filter(None, (s.model, s.low_noise_model))):
                tiny_weights.write_network(models, file, tiny_wan.network(kind, seed))
        for seed, file in enumerate(s.loras):
            tiny_weights.write_lora(models, file, seed)
    shutil.copy(comfyui / "input" / START, comfy_server.base / "input" / START)
    if NEWER:
        import tiny_cogvideox

        tiny_weights.write_network(models, COGVIDEOX.model, tiny_cogvideox.model().model.diffusion_model)
    return comfy_server


@pytest.fixture(scope="module")
def info(server) -> dict[str, Any]:
    return server.object_info()


@dataclass(frozen=True)
class Run:
    report: dict[str, Any]
    latent: torch.Tensor
    executed: list[str]  # titles, or types where a node has no title

    @property
    def trial(self) -> str:
        return self.report["trial"]

    @property
    def decisions(self) -> list[Any]:
        kept = ("trial", "kind", "verdict", "items", "nfe_video", "nfe_single_frame", "details")
        return [{key: record[key] for key in kept} for record in self.report["trials"]]


def saved(samples: list) -> dict[str, Any]:
    return {"class_type": "SaveLatent", "inputs": {"samples": samples, "filename_prefix": "workflow_test"}}


def saved_latent(server: ComfyServer, entry: dict[str, Any], node: str) -> torch.Tensor:
    return load(server.view(entry["outputs"][node]["latents"][0]))["latent_tensor"]


def queue_watched(server: ComfyServer, prompt: Prompt) -> tuple[dict[str, Any], list[str]]:
    """The history entry, and the ids of the nodes that ran (what was cached or not needed is not among them)."""

    async def watch():
        client = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{server.url}/ws?clientId={client}") as socket:
                answer = await session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": client})
                assert answer.status == 200, await answer.text()
                id, executed = (await answer.json())["prompt_id"], []
                async for message in socket:
                    event = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {}
                    if event.get("type") != "executing" or event["data"].get("prompt_id") != id:
                        continue
                    if event["data"]["node"] is None:
                        return id, executed
                    executed.append(event["data"]["node"])

    id, executed = asyncio.run(watch())
    return server.wait(id), executed


def run(
    server: ComfyServer, info: dict[str, Any], name: str, widgets: Mapping[str, Any] = MappingProxyType({}), **overrides
) -> Run:
    """overrides: of the graph's settings. widgets: of Foresight Sampler, which no setting names."""
    prompt = api_graph(name, info, **{**TINY, **overrides})
    if widgets:
        prompt[node_of(prompt, "ForesightSampler")]["inputs"] |= widgets
    if name.startswith("wan2.2_ti2v_5b"):
        # Its VAE has one size only, 1.4 GB: the stand-in is never asked, and what would be decoded is saved below.
        prompt["latent"] = saved(prompt[node_of(prompt, "VAEDecode")]["inputs"].pop("samples"))
        prompt[node_of(prompt, "VAEDecode")] = {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 9, "color": 0},
        }
    else:
        prompt["latent"] = saved(prompt[node_of(prompt, "VAEDecode")]["inputs"]["samples"])
    entry, executed = queue_watched(server, prompt)
    (report,) = entry["outputs"][node_of(prompt, "ForesightRunReport")]["foresight_report"]
    titles = {str(node.id): node.title or node.type for node in graph(name, **{**TINY, **overrides}).nodes}
    return Run(report, saved_latent(server, entry, "latent"), [titles.get(id, id) for id in executed])


def both(server: ComfyServer, info: dict[str, Any], family: str = "demo", **overrides: Any) -> Run:
    """Runs both forms, asserts that they agree, and gives the visual one."""
    one, visual = (run(server, info, name, **overrides) for name in FORMS[family])
    assert visual.decisions == one.decisions
    assert visual.trial == one.trial
    assert torch.equal(visual.latent, one.latent)
    return visual


# The nodes of each branch, which must run when it is needed and must not when it is not.
BRANCHES = {
    "0": {"Monitored Sampler (base)"},
    "probe": {"Single-Frame Probe (1)"},
    "1": {"Latent Injector (1)", "Monitored Sampler (1)"},
    "2": {"ForesightPromptRefiner", "CFGGuider (refined)", "Monitored Sampler (2)"},
    "2->1": {"Single-Frame Probe (2→1)", "Latent Injector (2→1)", "Monitored Sampler (2→1)"},
}


def branches(outcome: Run) -> list[str]:
    every = set().union(*BRANCHES.values())
    ran = every & set(outcome.executed)
    found = [name for name, nodes in BRANCHES.items() if nodes & ran]
    assert ran == set().union(*(BRANCHES[name] for name in found))
    return found


def test_a_passing_clip_runs_nothing_else(server, info):
    visual = both(server, info, seed=11, **PASS)
    assert visual.trial == "0"
    assert branches(visual) == ["0"]


def test_a_better_single_frame_is_injected(server, info):
    for seed in range(20, 28):  # the weights are random, so on some seeds the frame is no better
        visual = both(server, info, seed=seed, **FAIL, **AS_GOOD)
        if visual.trial == "1":
            break
    assert visual.trial == "1"
    assert branches(visual) == ["0", "probe", "1"]


def test_without_a_better_frame_the_prompt_is_refined_and_a_frame_of_it_injected(server, info):
    visual = both(server, info, seed=31, refiner="ablation", **FAIL, **NEVER_BETTER)
    assert visual.trial == "2->1"
    assert branches(visual) == ["0", "probe", "2", "2->1"]
    assert visual.report["refined_prompt"] != visual.report["prompt"]


def test_a_refined_clip_that_passes_is_kept(server, info):
    for seed in range(40, 60):
        found = run(server, info, "demo_one_node", seed=seed, **FAIL, **NEVER_BETTER).report
        base, refined = (trial["verdict"]["predicted_score"] for trial in found["trials"] if trial["kind"] == "sample")
        if refined > base:
            break
    assert refined > base
    visual = both(server, info, seed=seed, tau=(base + refined) / 2, **NEVER_BETTER)
    assert visual.trial == "2"
    assert branches(visual) == ["0", "probe", "2"]


def test_by_default_a_restart_takes_other_noise_through_the_graph(server, info):
    visual = both(server, info, seed=71, **FAIL, **NEVER_BETTER)
    assert visual.trial == "2->1" and branches(visual) == ["0", "probe", "2", "2->1"]
    assert (visual.report["seed"], visual.report["final_seed"]) == (71, 71 + SEED_STEP)
    assert visual.report["refined_prompt"] == visual.report["prompt"]
    assert "with other noise" in report_text(visual.report)


def test_a_prompt_that_cannot_be_refined_is_sampled_plainly(server, info):
    visual = both(server, info, seed=51, prompt="circle", refiner="ablation", **FAIL, **NEVER_BETTER)
    assert (visual.trial, visual.report["trials"][-1]["kind"]) == ("0", "plain")
    assert "refine" in " ".join(visual.report["notes"])
    assert branches(visual) == ["0", "probe", "2"]


def real(family: str) -> dict[str, Any]:
    """The settings of a real model's graph that are not TINY's."""
    settings = FAMILIES[GRAPHS[FORMS[family][0]][1]]
    changes = {"model": settings.model, "converter": settings.converter}
    if family == "5b":
        changes |= {"width": 64, "height": 64}  # its latents are 16 times smaller
    if family == "cogvideox":
        changes["steps"] = 8  # divides its timesteps, as 50 does: only then is "simple" the trailing spacing
    return changes


@pytest.mark.parametrize("family", ["wan", "wan 14b", "experts", "5b", *NEWER])
def test_the_graphs_of_real_models_run(server, info, family):
    """With stand-ins for the big files, at a small size; the rest is the committed graph."""
    visual = both(server, info, family, seed=61, **real(family), **FAIL, **NEVER_BETTER)
    assert visual.trial == "2->1"


@pytest.mark.parametrize("family", ["demo", "wan", "wan 14b", "experts", "5b", *NEWER])
def test_the_one_node_graphs_race_and_decide_the_same_again(server, info, family):
    settings = {"seed": 91, "plan": FAMILIES["demo"].plan, **({} if family == "demo" else real(family))}
    budget = {"budget": 2.0}  # of so few steps a quarter pays for no second candidate
    first = run(server, info, FORMS[family][0], budget, **settings)
    tried = first.report["candidates"]
    assert len(tried) > 2 and [row["seed"] for row in tried] == list(range(91, 91 + 1_000_000 * len(tried), 1_000_000))
    assert any(row["self_refined"] for row in tried) == (family == "cogvideox"), "4 steps leave no pass, 8 do"
    (best,) = [row for row in tried if row["state"] == "delivered"]
    assert best["score"] == max(row["score"] for row in tried) and first.report["final_seed"] == best["seed"]
    assert first.report["nfe"] <= first.report["nfe_worst_case"] <= 3 * first.report["nfe_plain"]
    # ComfyUI keeps what it has made; with a widget of the paper's plan changed it makes it again.
    again = run(server, info, FORMS[family][0], budget | {"injection_strength": 0.5, "refiner": "off"}, **settings)
    assert "ForesightSampler" in again.executed and again.decisions == first.decisions
    assert again.report["candidates"] == tried and torch.equal(again.latent, first.latent)


def tiny(name: str) -> dict[str, Any]:
    """The settings of a graph with stand-ins for the big files."""
    s = EXAMPLES[GRAPHS[name][1]]
    # An image's reader has one size only, 1.2 GB; the model does without.
    real = {"model": s.model, "converter": s.converter, "clip_vision": None, "steps": 8 if s.rule else TINY["steps"]}
    return TINY | ({} if s.text_encoder is None else real) | {"prompt": TEXT} | ({"steps": 4} if s.loras else {})


RUN = [name for name in GRAPHS if NEWER or EXAMPLES[GRAPHS[name][1]].rule is None]


@pytest.mark.parametrize("name", ["1_start_here", *(name for name in RUN if name.endswith("_drop_in"))])
def test_the_graphs_of_the_drop_in_run(server, info, name):
    prompt, s = api_graph(name, info, **tiny(name)), EXAMPLES[GRAPHS[name][1]]
    sampler = prompt[node_of(prompt, "ForesightSamplerCustomAdvanced" if s.loras else "ForesightKSampler")]
    assert ("scorer" in sampler["inputs"]) == (s.text_encoder is None)
    if not s.loras:  # of few steps a quarter pays for no second candidate
        sampler["inputs"]["budget"] = 2.0
    (report,) = server.queue(prompt)["outputs"][node_of(prompt, "ForesightRunReport")]["foresight_report"]
    assert len(report["candidates"]) > 2 and report["prompt"] == TEXT
    assert report["settings"]["prompt_from"] == f"node {node_of(prompt, 'CLIPTextEncode')} (CLIPTextEncode)"


@pytest.mark.parametrize("switch_step", [1, 2])
def test_two_experts_in_four_steps_are_what_two_advanced_ksamplers_make(server, info, switch_step):
    """The first candidate is the clip of the graph that people have: a sampler node and a LoRA for each expert."""
    name = "wan2.2_t2v_14b_4_steps_drop_in"
    prompt = api_graph(name, info, **tiny(name), switch_step=switch_step, race={"budget": 0.0})
    guider = prompt[node_of(prompt, "ForesightTwoExpertGuider")]["inputs"]
    ours = prompt[node_of(prompt, "ForesightSamplerCustomAdvanced")]["inputs"]
    common = {"positive": guider["positive"], "negative": guider["negative"], "cfg": guider["cfg"], "noise_seed": 0,
              "steps": 4, "sampler_name": "euler", "scheduler": "simple"}  # fmt: skip
    high = {"model": guider["high_noise_model"], "latent_image": ours["latent_image"], "add_noise": "enable",
            "start_at_step": 0, "end_at_step": switch_step, "return_with_leftover_noise": "enable"}  # fmt: skip
    low = {"model": guider["low_noise_model"], "latent_image": ["high", 0], "add_noise": "disable",
           "start_at_step": switch_step, "end_at_step": 4, "return_with_leftover_noise": "disable"}  # fmt: skip
    for id, own in (("high", high), ("low", low)):
        prompt[id] = {"class_type": "KSamplerAdvanced", "inputs": common | own}
    prompt |= {"ours": saved(prompt[node_of(prompt, "VAEDecode")]["inputs"]["samples"]), "theirs": saved(["low", 0])}
    entry = server.queue(prompt)
    theirs = saved_latent(server, entry, "theirs")
    assert torch.allclose(saved_latent(server, entry, "ours"), theirs, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("name", [name for name in RUN if name.endswith("_seed_audition")])
def test_the_graphs_of_the_audition_run(server, info, name):
    prompt = api_graph(name, info, **tiny(name))
    text = server.queue(prompt)["outputs"][node_of(prompt, "PreviewAny")]["text"][0]
    report = json.loads(text)
    assert len(report["seeds"]) == 8 and report["chosen"][0] in report["seeds"]
    assert report["nfe"] < report["nfe_of_all_seeds"]


@pytest.mark.parametrize("name", [name for name in RUN if name.endswith("_watch")])
def test_the_graphs_of_watch_run(server, info, name):
    prompt = api_graph(name, info, **tiny(name))
    (report,) = server.queue(prompt)["outputs"][node_of(prompt, "ForesightRunReport")]["foresight_report"]
    assert report["nfe"] == TINY["steps"] and report["prompt"] == TEXT


@pytest.mark.parametrize("name", [name for name in RUN if name.endswith("_calibrate")])
def test_the_graphs_of_calibrate_run_alone_and_say_where_it_is_kept(server, info, name):
    demo = {"converter": FAMILIES["demo"].converter} if name.startswith("demo") else {}  # never kept beside its own
    prompt = api_graph(name, info, **tiny(name) | demo)
    node = node_of(prompt, "ForesightL2RCalibrate")
    shown = server.queue(prompt)["outputs"][node]
    text, place = shown["text"][0], server.base / "models" / "foresight_l2r"
    if name.startswith("demo"):
        assert "Not kept, because save is off" in text
    else:
        assert str(place) in text and len(list(place.glob("*_*.safetensors"))) > 1
    picture = Image.open(io.BytesIO(server.view(shown["images"][0])))
    assert picture.width == (3 if "ComfyUI's own" in shown["text"][1] else 2) * picture.height


@pytest.mark.parametrize("name", [name for name in GRAPHS if name.endswith(("_self_refine", "_latent_search"))])
def test_the_graphs_of_enhancers_run(server, info, name):
    settings = FAMILIES[GRAPHS[name][1]]
    family = {} if name.startswith("demo") else {"model": settings.model, "converter": settings.converter}
    prompt = api_graph(name, info, **{**TINY, **family})
    told = node_of(prompt, "PreviewAny", 1)  # the first tells the Run Report's text
    report = json.loads(server.queue(prompt)["outputs"][told]["text"][0])
    assert report["schema"] == "foresight.enhancer_report"
    if name.endswith("self_refine"):
        # Of 6 steps the T2V plan has the second refined once; the first, pure noise, leaves nothing to refine.
        assert report["self_refine"]["passes"] == {"2": 1} and report["nfe"] == 7
    else:
        sizes = [len(left) for left in report["search"]["population"].values()]
        assert sizes[0] == 6 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)
        assert 6 < report["nfe"] <= 3 * TINY["steps"] == report["search"]["budget"]


def test_a_passing_gate_gives_what_core_gives(server, info):
    prompt = api_graph("demo_visual_hierarchy", info, **TINY, **PASS, seed=71)
    monitored = prompt[node_of(prompt, "ForesightMonitoredSampler")]["inputs"]
    inputs = {name: monitored[name] for name in ("noise", "guider", "sampler", "sigmas", "latent_image")}
    prompt["core"] = {"class_type": "SamplerCustomAdvanced", "inputs": inputs}
    prompt |= {"ours": saved(prompt[node_of(prompt, "VAEDecode")]["inputs"]["samples"]), "theirs": saved(["core", 0])}
    entry = server.queue(prompt)
    assert torch.equal(saved_latent(server, entry, "ours"), saved_latent(server, entry, "theirs"))


def test_the_box_is_the_hierarchy(server, info):
    """Unpacked and fed from the visual graph, the committed box gives the visual graph's decisions and latent."""
    (path,) = (ROOT / "subgraphs").glob("*.json")
    (box,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    visual = api_graph("demo_visual_hierarchy", info, **TINY, **FAIL, **NEVER_BETTER, seed=81)
    gate = visual[node_of(visual, "ForesightFailureGate")]["inputs"]
    sampler = visual[node_of(visual, "ForesightMonitoredSampler")]["inputs"]
    guider = visual[node_of(visual, "CFGGuider")]["inputs"]
    negative = visual[node_of(visual, "CLIPTextEncode", 1)]["inputs"]
    fed = {**sampler, **gate, "model": guider["model"], "cfg": guider["cfg"], "clip": negative["clip"],
           "negative": negative["text"]}  # fmt: skip
    unpacked: Prompt = {}
    flat = {"nodes": box["nodes"], "links": [
        (link["id"], f"box{link['origin_id']}" if link["origin_id"] != -10 else "fed", link["origin_slot"])
        for link in box["links"]
    ]}  # fmt: skip
    for id, node in api_form(flat).items():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == "fed":
                node["inputs"][name] = fed[box["inputs"][value[1]]["name"]]
        unpacked[f"box{id}"] = node
    outputs = {}
    for link in box["links"]:
        if link["target_id"] == -20:
            outputs[box["outputs"][link["target_slot"]]["name"]] = [f"box{link['origin_id']}", link["origin_slot"]]
    theirs = visual[node_of(visual, "VAEDecode")]["inputs"]["samples"]
    report = {"class_type": "ForesightRunReport", "inputs": {"verdict": outputs["verdict"]}}
    ends = {"boxed": saved(outputs["latent"]), "open": saved(theirs), "end": report}
    entry = server.queue({**visual, **unpacked, **ends})
    assert torch.equal(saved_latent(server, entry, "boxed"), saved_latent(server, entry, "open"))
    boxed, open_ = (
        Run(entry["outputs"][id]["foresight_report"][0], None, []).decisions
        for id in ("end", node_of(visual, "ForesightRunReport"))
    )
    assert boxed == open_
