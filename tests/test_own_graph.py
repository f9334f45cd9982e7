"""A person's own graph becomes a plain run that is scored at every step, or it is said why it cannot."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from foresight.demo import preset
from foresight.evaluation.api_graph import PASSED_BY, Graph, GraphError, node, read_graph
from foresight.evaluation.graphs import WORKFLOWS, api_form, fill_defaults
from foresight.evaluation.own_graph import FRAMES, GATE, REPORT, OwnGraph

WORDS, SEED = "a fox in the snow", 77
REPAIRS = {*PASSED_BY, "ForesightSingleFrameProbe", "ForesightLatentInjector", "ForesightPromptRefiner"}
SCORER = preset.SCORER


@pytest.fixture(scope="module")
def info(comfy_server):
    return comfy_server.object_info()


def core() -> dict:
    """What ComfyUI exports of the simplest graph for the demo model: no node of Foresight but its text encoder."""
    return {
        "1": node("UNETLoader", unet_name=preset.TRANSFORMER, weight_dtype="default"),
        "2": node("ModelSamplingSD3", model=["1", 0], shift=preset.SHIFT),
        "3": node("ForesightDemoTextEncoder"),
        "4": node("VAELoader", vae_name=preset.VAE),
        "5": node("CLIPTextEncode", clip=["3", 0], text="a red circle"),
        "6": node("CLIPTextEncode", clip=["3", 0], text="blurred"),
        "7": node("EmptyHunyuanLatentVideo", width=64, height=64, length=17, batch_size=1),
        "8": node("KSampler", model=["2", 0], positive=["5", 0], negative=["6", 0], latent_image=["7", 0], seed=1,
                  steps=4, cfg=preset.CFG, sampler_name=preset.SAMPLER, scheduler=preset.SCHEDULER, denoise=1.0),
        "9": node("VAEDecode", samples=["8", 0], vae=["4", 0]),
        "10": node("SaveImage", images=["9", 0], filename_prefix="mine"),
    }  # fmt: skip


def custom() -> dict:
    graph = core()
    own = {name: graph["8"]["inputs"][name] for name in ("model", "positive", "negative", "cfg", "latent_image")}
    return graph | {
        "8": node("SamplerCustom", **own, add_noise=True, noise_seed=1, sampler=["11", 0], sigmas=["12", 0]),
        "11": node("KSamplerSelect", sampler_name=preset.SAMPLER),
        "12": node("BasicScheduler", model=["2", 0], scheduler=preset.SCHEDULER, steps=4, denoise=1.0),
    }


def advanced() -> dict:
    graph = custom()
    return graph | {
        "8": node("SamplerCustomAdvanced", noise=["13", 0], guider=["14", 0], sampler=["11", 0], sigmas=["12", 0],
                  latent_image=["7", 0]),
        "13": node("RandomNoise", noise_seed=1),
        "14": node("CFGGuider", model=["2", 0], positive=["5", 0], negative=["6", 0], cfg=preset.CFG),
    }  # fmt: skip


def changed(graph: dict, **nodes) -> dict:
    """Input values by "n" + the node's id; None takes an input away."""
    graph = deepcopy(graph)
    for id, inputs in nodes.items():
        graph[id[1:]]["inputs"] = {k: v for k, v in (graph[id[1:]]["inputs"] | inputs).items() if v is not None}
    return graph


KINDS = {"KSampler": core, "SamplerCustom": custom, "SamplerCustomAdvanced": advanced}


def of(graph: dict, info: dict, **options) -> OwnGraph:
    return OwnGraph.of(graph, info, **{"scorer": SCORER, "converter": preset.CONVERTER} | options)


def queued(own: OwnGraph, info: dict, light: bool = False) -> Graph:
    """Only what runs."""
    prompt = own.prompt(WORDS, SEED, light)
    whole = Graph(prompt, info)
    return Graph({id: prompt[id] for id in whole.upstream(REPORT, FRAMES)}, info)


def of_class(graph: Graph, class_type: str) -> list[dict]:
    return [each["inputs"] for each in graph.nodes.values() if each["class_type"] == class_type]


NOTHING_SAMPLES = "no node of the graph samples"
STREAMS = sorted(path.stem for path in WORKFLOWS.glob("*.json") if "StreamingSampler" in path.read_text("utf-8"))
UNUSABLE = {
    "1_start_here": "decode several clips", "demo_calibrate": NOTHING_SAMPLES,
    "wan2.1_t2v_1.3b_calibrate": NOTHING_SAMPLES, "cogvideox_5b_calibrate": NOTHING_SAMPLES,
    **dict.fromkeys(STREAMS, "made chunk by chunk"),
}  # fmt: skip


def text_of(graph: Graph, inputs: dict, side: str) -> str:
    """What is said at "positive" or "negative", also where a start image's node stands between."""
    before = graph.inputs(inputs[side][0])
    return before["text"] if "text" in before else text_of(graph, before, side)


def example(name: str, info: dict) -> dict:
    return fill_defaults(api_form(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))), info)


@pytest.mark.parametrize("name", sorted({path.stem for path in WORKFLOWS.glob("*.json")} - UNUSABLE.keys()))
def test_every_example_graph_becomes_a_plain_run(info, name):
    own = OwnGraph.of(example(name, info), info, scorer=SCORER)
    graph = queued(own, info)
    (sampler,) = graph.samplers(graph.nodes)
    inputs = graph.inputs(sampler)
    watched = {"ForesightWatch"} if graph.nodes[sampler]["class_type"] == "KSampler" else set()
    assert {each["class_type"] for each in graph.nodes.values()} & REPAIRS == watched
    if graph.nodes[sampler]["class_type"] == "ForesightSampler":
        assert (inputs["plan"], inputs["inject"], inputs["refiner"]) == ("paper", False, "off")
        assert (inputs["start"], inputs["end"], inputs["every"], inputs["seed"]) == (1.0, 1.0, 1, SEED)
        assert inputs["prompt"] == WORDS != inputs["negative"] and "sampler" not in inputs
    elif graph.nodes[sampler]["class_type"] == "KSampler":
        (watched,) = of_class(graph, "ForesightWatch")
        assert inputs["model"] != watched["model"] and inputs["seed"] == SEED and "budget" not in inputs
        assert text_of(graph, inputs, "positive") == WORDS != text_of(graph, inputs, "negative")
    else:
        assert set(inputs) - {"keep_steps", "schedule_steps"} == {
            "noise", "guider", "sampler", "sigmas", "latent_image", "gate", "on_reject"}  # fmt: skip
        assert inputs["on_reject"] == "report only" and graph.inputs(inputs["noise"][0])["noise_seed"] == SEED
        gate, (guider,) = graph.inputs(GATE), graph.links(sampler, "GUIDER").values()
        assert (gate["prompt"], gate["start"], gate["end"], gate["every"]) == (WORDS, 1.0, 1.0, 1)
        conditions = graph.inputs(guider[0])
        assert text_of(graph, conditions, "positive") == WORDS != text_of(graph, conditions, "negative")
    refined = queued(own, info, light=True)
    assert [each["preset"] for each in of_class(refined, "ForesightSelfRefineSampler")] == ["light"]


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_example_graph_that_cannot_be_tuned_says_why(info, name):
    with pytest.raises(GraphError, match=UNUSABLE[name]):
        OwnGraph.of(example(name, info), info, scorer=SCORER)


def test_a_sampler_with_a_model_is_watched_and_stays_as_it_is(info):
    for make in (core, custom):
        graph = queued(of(make(), info), info)
        before, after = make()["8"], graph.nodes["8"]
        seed = next(name for name in before["inputs"] if name.endswith("seed"))
        assert after == node(before["class_type"], **before["inputs"] | {"model": after["inputs"]["model"], seed: SEED})
        (watch,) = of_class(graph, "ForesightWatch")
        assert watch["model"] == ["2", 0] and watch["enabled"] is True
        assert graph.inputs("5")["text"] == WORDS and graph.inputs("6")["text"] == "blurred"
        (report,) = of_class(graph, "ForesightRunReport")
        assert report["images"] == ["9", 0] and report["save"] is False and "10" not in graph.nodes


@pytest.mark.parametrize("make", [core, advanced])
def test_a_drop_in_is_run_as_the_node_whose_place_it_takes(info, make):
    graph = make() | {"20": node("ForesightViCLIPScore", weights=SCORER, precision="fp32")}
    own = changed(graph, n8={"budget": 0.5, "prompt": "another", "scorer": ["20", 0]})
    own["8"]["class_type"] = "Foresight" + own["8"]["class_type"]
    for light in (False, True):
        assert queued(of(own, info), info, light).nodes == queued(of(graph, info), info, light).nodes


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_light_clips_are_made_of_the_same_parts(info, make):
    graph = queued(of(make(), info), info, light=True)
    (sampled,), (guider,) = of_class(graph, "ForesightMonitoredSampler"), of_class(graph, "CFGGuider")
    assert guider == {"model": ["2", 0], "positive": ["5", 0], "negative": ["6", 0], "cfg": preset.CFG}
    (schedule,) = of_class(graph, "BasicScheduler")
    assert (schedule["steps"], schedule["scheduler"], schedule["denoise"]) == (4, preset.SCHEDULER, 1.0)
    (noise,), (chosen,) = of_class(graph, "RandomNoise"), of_class(graph, "KSamplerSelect")
    assert noise["noise_seed"] == SEED and chosen["sampler_name"] == preset.SAMPLER
    assert graph.nodes[sampled["sampler"][0]]["inputs"]["preset"] == "light"


def test_words_are_found_behind_nodes_that_pass_conditioning_on(info):
    started = node("WanImageToVideo", positive=["5", 0], negative=["6", 0], vae=["4", 0], width=64, height=64,
                   length=17, batch_size=1)  # fmt: skip
    graph = changed(core(), n8={"positive": ["20", 0], "negative": ["20", 1]}) | {"20": started}
    assert of(graph, info).texts == (("5", "text"),)
    linked = changed(core(), n5={"text": ["21", 0]}) | {"21": node("PrimitiveStringMultiline", value="a cat")}
    assert of(linked, info).prompt(WORDS, 1)["5"]["inputs"]["text"] == WORDS
    plain = changed(advanced(), n14={"negative": None, "positive": None, "cfg": None})
    plain["14"] = node("BasicGuider", model=["2", 0], conditioning=["5", 0])
    assert of(plain, info).texts == (("5", "text"),)


def test_what_foresight_does_in_the_graph_already_is_left_out(info):
    gate = node("ForesightFailureGate", l2r=["32", 0], scorer=["33", 0], prompt="x")
    graph = changed(core(), n8={"model": ["30", 0]}) | {
        "30": node("ForesightWatch", model=["2", 0], gate=["31", 0]), "31": gate,
        "32": node("ForesightL2RPreview", converter=preset.CONVERTER, latent=["8", 0]),
        "33": node("ForesightViCLIPScore", weights=SCORER, images=["9", 0]),
    }  # fmt: skip
    own = OwnGraph.of(graph, info)
    assert own.scorer["inputs"]["weights"] == SCORER and own.converter["inputs"] == {"converter": preset.CONVERTER}
    found = queued(own, info)
    (watch,) = of_class(found, "ForesightWatch")
    assert watch["model"] == ["2", 0] and not {"30", "31", "32", "33"} & set(found.nodes)


def test_an_audition_is_one_seed_in_a_plain_run(info):
    sockets = {name: advanced()["8"]["inputs"][name] for name in ("guider", "sampler", "sigmas", "latent_image")}
    graph = advanced() | {"8": node("ForesightSeedAudition", **sockets, gate=["99", 0], seed=1)}
    graph |= {"99": node("ForesightFailureGate", l2r=["98", 0], scorer=["97", 0], prompt="x"),
              "98": node("ForesightL2RPreview", converter=preset.CONVERTER),
              "97": node("ForesightViCLIPScore", weights=SCORER)}  # fmt: skip
    found = queued(of(graph, info), info)
    (noise,) = of_class(found, "RandomNoise")
    assert noise["noise_seed"] == SEED and of_class(found, "ForesightMonitoredSampler")


def without(info: dict, *weights: str) -> dict:
    found = deepcopy(info)
    options = found["ForesightViCLIPScore"]["input"]["required"]["weights"]
    (options[0] if isinstance(options[0], list) else options[1]["options"])[:] = weights
    return found


SECOND = {"20": node("KSampler", **core()["8"]["inputs"] | {"latent_image": ["8", 0]})}
JOINED = {"21": node("CLIPTextEncode", clip=["3", 0], text="in oil"),
          "22": node("ConditioningCombine", conditioning_1=["5", 0], conditioning_2=["21", 0])}  # fmt: skip


@pytest.mark.parametrize("graph, said", [
    ({"1": core()["1"]}, r"no node of the graph samples .* there are node 1 \(UNETLoader\)"),
    ({id: each for id, each in core().items() if id not in ("9", "10")}, r"no node decodes what node 8 \(KSampler\)"),
    (changed(core(), n9={"samples": ["20", 0]}) | SECOND, r"node 8 \(KSampler\), node 20 \(KSampler\) make the clip"),
    (core() | SECOND | {"23": node("VAEDecode", samples=["20", 0], vae=["4", 0])}, "decode several clips"),
    (changed(core(), n8={"positive": None}), r"no text prompt leads to node 8 \(KSampler\)"),
    (changed(core(), n8={"positive": ["22", 0]}) | JOINED, r"node 5 .* node 21 .* are joined .* --prompt-node ID"),
    (changed(core(), n8={"model": None}), r"node 8 \(KSampler\) has 0 models connected"),
    (changed(core(), n8={"model": ["40", 0]}), r"node 8 \(KSampler\): model is linked to node 40, which is not there"),
    (changed(custom(), n8={"add_noise": False}), r"node 8 \(SamplerCustom\): add_noise is False"),
    (advanced() | {"13": node("DisableNoise")}, r"node 13 \(DisableNoise\) has no seed"),
    (changed(advanced(), n8={"sigmas": None}), r"node 8 \(SamplerCustomAdvanced\) has no sigmas connected"),
    (core() | {"50": node("SomebodysNode")}, r"node 50 \(SomebodysNode\): the server has no such node"),
])  # fmt: skip
def test_a_graph_that_cannot_be_used_names_node_and_way_out(info, graph, said):
    with pytest.raises(GraphError, match=said):
        of(graph, info)


def test_where_several_texts_are_joined_the_prompt_goes_to_the_named_one(info):
    graph = changed(core(), n8={"positive": ["22", 0]}) | JOINED
    prompt = of(graph, info, prompt_node="5").prompt(WORDS, 1)
    assert (prompt["5"]["inputs"]["text"], prompt["21"]["inputs"]["text"]) == (WORDS, "in oil")
    with pytest.raises(GraphError, match=r"--prompt-node 8 takes no prompt .*: node 3|--prompt-node 8 .* node 5"):
        of(graph, info, prompt_node="8")


def test_a_file_that_the_server_lacks_is_named_with_those_that_it_has(info):
    for option in ("scorer", "converter"):
        with pytest.raises(GraphError, match=f"--{option} none.bin: .*foresight_demo"):
            of(core(), info, **{option: "none.bin"})
    with pytest.raises(GraphError, match="no scorer for your model: put .*foresight_demo_viclip"):
        OwnGraph.of(core(), without(info, SCORER))
    assert OwnGraph.of(core(), without(info, "mine.pth", SCORER)).scorer["inputs"]["weights"] == "mine.pth"
    with pytest.raises(GraphError, match="several scorers: say with --scorer which one judges .mine.pth, other.pth."):
        OwnGraph.of(core(), without(info, "mine.pth", "other.pth"))
    with pytest.raises(GraphError, match="--light refines the clips of KSampler"):
        stepwise = {name: value for name, value in core()["8"]["inputs"].items() if name not in ("seed", "denoise")}
        stepwise |= {"noise_seed": 1, "add_noise": "enable", "start_at_step": 0, "end_at_step": 99,
                     "return_with_leftover_noise": "disable"}  # fmt: skip
        of(core() | {"8": node("KSamplerAdvanced", **stepwise)}, info).prompt(WORDS, 1, light=True)


@pytest.mark.parametrize("text, said", [
    ('{"nodes": [], "links": [], "version": 0.4}', "as the editor saves it.*Export"), ("{", "no JSON.*Export"),
    ("[" * 100_000, "no JSON"), ("[]", "no graph of ComfyUI"), ("{}", "no graph of ComfyUI"), ("3", "no graph"),
    ('{"1": {"class_type": 3, "inputs": {}}}', "no graph"), ('{"1": {"class_type": "KSampler"}}', "no graph"),
])  # fmt: skip
def test_a_file_that_is_no_exported_graph_says_how_to_make_one(tmp_path, text, said):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(GraphError, match=said):
        read_graph(path)
    with pytest.raises(GraphError, match="cannot be read: No such file"):
        read_graph(tmp_path / "none.json")
