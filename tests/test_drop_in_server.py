"""The drop-ins in a real ComfyUI: one node of a graph replaced, its text found, and what cannot run said at once."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import tiny_weights
import torch
from safetensors.torch import load

from foresight.demo import preset
from foresight.evaluation.api_graph import node
from foresight.evaluation.server import ExecutionFailed, PromptRejected
from foresight.scoring.graph_words import texts
from foresight.scoring.viclip import ViCLIP, ViCLIPConfig, save_viclip

TEXT = "a red circle moves left"
WAN = "drop_in_wan.safetensors"


@pytest.fixture(scope="module")
def server(comfy_server):
    """With a scorer that bears the published one's name: what other tests have left there does not matter."""
    models = comfy_server.base / "models"
    tiny_weights.write_transformer(models, WAN)
    (models / "foresight").mkdir(exist_ok=True)
    path = models / "foresight" / "drop_in_viclip.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scorer = ViCLIP(replace(tiny_weights.SCORER, name=ViCLIPConfig.name))
        for parameter in scorer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    save_viclip(scorer, path)
    yield comfy_server
    path.unlink()


@pytest.fixture(scope="module")
def info(server):
    return server.object_info()


def graph(**changes) -> dict:
    """The simplest graph that people have. changes: nodes by "n" + their id."""
    nodes = {
        "1": node("UNETLoader", unet_name=WAN, weight_dtype="default"),
        "3": node("ForesightDemoTextEncoder"),
        "4": node("VAELoader", vae_name=preset.VAE),
        "5": node("CLIPTextEncode", clip=["3", 0], text=TEXT),
        "6": node("CLIPTextEncode", clip=["3", 0], text="blurred, watermark"),
        "7": node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
        "8": node("KSampler", model=["1", 0], positive=["5", 0], negative=["6", 0], latent_image=["7", 0], seed=5,
                  steps=6, cfg=2.0, sampler_name="uni_pc", scheduler="simple", denoise=1.0),
        "9": node("SaveLatent", samples=["8", 0], filename_prefix="drop_in"),
    } | {id[1:]: each for id, each in changes.items()}  # fmt: skip
    return deepcopy(nodes)


def advanced() -> dict:
    made = {"noise": "13", "guider": "14", "sampler": "11", "sigmas": "12", "latent_image": "7"}
    return graph(
        n8=node("SamplerCustomAdvanced", **{name: [id, 0] for name, id in made.items()}),
        n11=node("KSamplerSelect", sampler_name="euler"),
        n12=node("BasicScheduler", model=["1", 0], scheduler="simple", steps=6, denoise=1.0),
        n13=node("RandomNoise", noise_seed=5),
        n14=node("CFGGuider", model=["1", 0], positive=["5", 0], negative=["6", 0], cfg=2.0),
    )


def replaced(nodes: dict, **inputs) -> dict:
    """The sampler exchanged for ours, which takes its inputs as they are, and outputs its report."""
    nodes = deepcopy(nodes)
    nodes["8"]["class_type"] = "Foresight" + nodes["8"]["class_type"]
    nodes["8"]["inputs"] |= inputs
    slot = 1 if nodes["8"]["class_type"] == "ForesightKSampler" else 2
    return nodes | {"10": node("ForesightRunReport", verdict=["8", slot])}


def run(server, nodes: dict):
    """(latent, report, text)."""
    outputs = server.queue(nodes)["outputs"]
    told = outputs.get("10", {})
    latent = load(server.view(outputs["9"]["latents"][0]))["latent_tensor"]
    return latent, *told.get("foresight_report", [None]), *told.get("text", [None])


@pytest.mark.parametrize("own", [graph, advanced])
def test_one_node_is_replaced_and_nothing_else(server, own):
    core = run(server, own())[0]
    latent, report, text = run(server, replaced(own(), budget=0.0))
    assert torch.equal(latent, core)
    assert f"Prompt, from node 5 (CLIPTextEncode): {TEXT}" in text
    assert report["settings"]["scorer"] == ViCLIPConfig.name
    raced, report, _ = run(server, replaced(own(), budget=2.0, self_refine="off"))
    assert len(report["candidates"]) > 2
    alone = own()
    alone["8" if "seed" in alone["8"]["inputs"] else "13"]["inputs"] |= {
        "seed" if "seed" in alone["8"]["inputs"] else "noise_seed": report["final_seed"]
    }
    assert torch.equal(raced, run(server, alone)[0])


def test_image_to_video_enters_as_it_is(server):
    own = graph(
        n15=node("WanImageToVideo", positive=["5", 0], negative=["6", 0], vae=["4", 0], width=32, height=32, length=9,
                 batch_size=1, start_image=["16", 0]),
        n16=node("EmptyImage", width=32, height=32, batch_size=1, color=255),
    )  # fmt: skip
    own["8"]["inputs"] |= {"positive": ["15", 0], "negative": ["15", 1], "latent_image": ["15", 2]}
    latent, report, _ = run(server, replaced(own, budget=0.0))
    assert torch.equal(latent, run(server, own)[0]) and report["prompt"] == TEXT


def test_another_text_is_another_run(server):
    for text in ("one", "two"):
        own = graph()
        own["5"]["inputs"]["text"] = text
        assert run(server, replaced(own, budget=0.0))[1]["prompt"] == text


def test_a_text_that_is_made_while_the_graph_runs_is_asked_for(server):
    own = graph(n15=node("StringConcatenate", string_a="a red", string_b="circle", delimiter=" "))
    own["5"]["inputs"]["text"] = ["15", 0]
    message = r"(?s)\(ForesightKSampler\).*prompt is empty, and no text was found.*connect the text to it"
    with pytest.raises(PromptRejected, match=message):
        server.queue(replaced(own))
    report = run(server, replaced(own, budget=0.0, prompt=["15", 0]))[1]
    assert report["prompt"] == "a red circle" and report["settings"]["prompt_from"] == "the sampler's widget"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_asked_for(server, text):
    own = graph()
    own["5"]["inputs"]["text"] = text
    with pytest.raises(PromptRejected, match=r"(?s)\(ForesightKSampler\).*prompt is empty"):
        server.queue(replaced(own, prompt=" "))


def test_without_a_scorer_it_is_said_before_anything_loads(server):
    folder = server.base / "models" / "foresight"
    aside = folder.rename(folder.with_name("foresight_aside"))
    message = r"(?s)ForesightKSampler.*models/foresight has none.*Put ViClip-InternVid"
    folder.mkdir()
    try:
        with pytest.raises(PromptRejected, match=message):
            server.queue(replaced(graph()))
        # The demo's can be connected.
        own = graph(n15=node("ForesightViCLIPScore", weights=preset.SCORER, precision="fp32"))
        report = run(server, replaced(own, budget=0.0, scorer=["15", 0]))[1]
        assert report["settings"]["scorer"] == "foresight-demo-viclip"
    finally:
        folder.rmdir()
        aside.rename(folder)


WRONG = {"gate": "7", "scorer": "5", "model": "7", "l2r": "3", "latent_image": "5", "positive": "7"}


@pytest.mark.parametrize("name, link", WRONG.items())
def test_a_wrong_link_is_refused_at_once(server, name, link):
    with pytest.raises(PromptRejected, match=f"(?s)ForesightKSampler.*{name}"):
        server.queue(replaced(graph(), **{name: [link, 0]}))


@pytest.mark.parametrize("inputs", [{"budget": -0.5}, {"steps": 0}, {"denoise": 1.5}, {"self_refine": "maybe"}])
def test_a_value_out_of_range_is_refused(server, inputs):
    (name,) = inputs
    with pytest.raises((PromptRejected, ExecutionFailed), match=f"(?s)ForesightKSampler.*{name}"):
        server.queue(replaced(graph(), **inputs))


# Which text: no run is needed to see it.


def encoder(text, **more):
    return node("CLIPTextEncode", clip=["3", 0], text=text, **more)


def between(class_type, slot=0, **inputs) -> dict:
    """A node between the encoders and the sampler."""
    own = graph(n15=node(class_type, **inputs), n16=encoder("in the snow"), n17=encoder("a red circle"))
    own["8"]["inputs"]["positive"] = ["15", slot]
    return own


BOTH = {"positive": ["5", 0], "negative": ["6", 0]}
FOUND = {
    "combined": (between("ConditioningCombine", conditioning_1=["5", 0], conditioning_2=["16", 0]),
                 [TEXT, "in the snow"]),
    "a text in another": (between("ConditioningConcat", conditioning_to=["17", 0], conditioning_from=["5", 0]), [TEXT]),
    "control": (between("ControlNetApplyAdvanced", **BOTH, control_net=["1", 0], image=["1", 0]), [TEXT]),
    "control, crossed": (between("ControlNetApplyAdvanced", 1, **BOTH, control_net=["1", 0], image=["1", 0]),
                         ["blurred, watermark"]),
    "VACE": (between("WanVaceToVideo", **BOTH, vae=["4", 0], width=32, height=32, length=9, batch_size=1, strength=1.0),
             [TEXT]),
    "guidance": (between("FluxGuidance", conditioning=["5", 0], guidance=3.5), [TEXT]),
    "two encoders' texts": (between("CLIPTextEncodeFlux", clip=["3", 0], clip_l="red circle", t5xxl=TEXT, guidance=3.5),
                            [TEXT]),
    "a primitive": (graph(n5=encoder(["15", 0]), n15=node("PrimitiveStringMultiline", value=TEXT)), [TEXT]),
    "primitives in a row": (graph(n5=encoder(["15", 0]), n15=node("PrimitiveString", value=["16", 0]),
                                  n16=node("PrimitiveStringMultiline", value=TEXT)), [TEXT]),
    "made while it runs": (graph(n5=encoder(["15", 0]), n15=node("StringTrim", string=TEXT, mode="Both")), []),
    "no text": (between("ConditioningZeroOut", conditioning=["15", 0]), []),
    "a guider": (advanced(), [TEXT]),
    "a guider of two": (advanced() | {"14": node("DualCFGGuider", model=["1", 0], cond1=["5", 0], cond2=["16", 0],
                                                 negative=["6", 0], cfg_conds=2.0, cfg_cond2_negative=2.0),
                                      "16": encoder("in the snow")}, [TEXT, "in the snow"]),
    "no guidance": (advanced() | {"14": node("BasicGuider", model=["1", 0], conditioning=["5", 0])}, [TEXT]),
    "two experts": (advanced() | {"14": node("ForesightTwoExpertGuider", high_noise_model=["1", 0],
                                             low_noise_model=["1", 0], **BOTH, cfg=2.0)}, [TEXT]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_the_positive_text_is_found(info, kind):
    nodes, wanted = FOUND[kind]
    assert list(texts(nodes, info, "8")) == wanted


def test_a_switch_of_another_pack_is_followed(info):
    switch = {"input": {"required": {"one": ("*", {}), "index": ("INT", {})}}, "output": ["*"], "output_name": ["out"]}
    nodes = between("Any Switch", one=["18", 0], index=1) | {"18": node("Any Switch", one=["5", 0], index=1)}
    assert texts(nodes, {**info, "Any Switch": switch}, "8") == {TEXT: "5"}
