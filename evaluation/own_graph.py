"""A person's own graph, as ComfyUI exports it for its API, turned into a plain run that is scored at every step.

Nothing is changed of the clip: a sampler node with a MODEL is watched by Foresight Watch, one with a GUIDER becomes
Monitored Sampler (the same sockets, report only), and Foresight Sampler samples plainly. What repairs or refines
(trials, Self-Refine, Latent Search) is passed by, and only what the decoded clip needs is queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from .api_graph import SEEDS, Graph, GraphError, Link, is_link, node
from .bench import WATCH
from .graphs import ObjectInfo, fill_defaults, inputs_of
from .server import Prompt

SCORER, CONVERTER, GATE, WATCHED, REPORT, FRAMES = (
    f"foresight_{name}" for name in ("scorer", "converter", "gate", "watch", "report", "frames")
)
SOCKETS = ("noise", "guider", "sampler", "sigmas", "latent_image")  # of SamplerCustomAdvanced and Monitored Sampler
STREAMS = "ForesightStreamingSampler"
DEMO = "foresight_demo"  # files of the demo family, which fit no other model


@dataclass(frozen=True)
class OwnGraph:
    """graph: plain, only what the clip needs. decoder, sampler: ids. seed: the id and the name of the input that it
    goes to; texts: the same of the words. scorer, converter: nodes to add. model: None where it is not known."""

    graph: Graph
    decoder: str
    sampler: str
    seed: tuple[str, str]
    texts: tuple[tuple[str, str], ...]
    scorer: dict[str, Any]
    converter: dict[str, Any]
    model: Link | None

    @classmethod
    def of(
        cls, nodes: Prompt, info: ObjectInfo, scorer: str | None = None, converter: str | None = None,
        prompt_node: str | None = None,
    ) -> OwnGraph:
        """scorer, converter: files on the server, in place of the graph's own. prompt_node: where the words go, where
        several nodes have some. GraphError."""
        whole = Graph(nodes, info).plain()
        decoder = whole.decoder()
        samplers = whole.samplers(whole.upstream(decoder))
        streams = [id for id in whole.upstream(*samplers) if whole.nodes[id]["class_type"] == STREAMS]
        if streams:
            raise GraphError(
                f"{whole.names(streams)}: a clip that is made chunk by chunk is looked at by Chunk Gate, not raced, "
                "so there is nothing to tune."
            )
        if len(samplers) > 1:
            raise GraphError(
                f"{whole.names(samplers)} make the clip together, and one sampler can be tuned: leave a second pass "
                "out, or join two experts in Foresight Sampler (low_noise_model, as the template "
                "wan2.2_t2v_14b_one_node has it)."
            )
        (sampler,) = samplers
        model = _model(whole, sampler)
        own = _scorer(whole, sampler, scorer), _converter(whole, sampler, decoder, converter, model)
        needed = [value[0] for each in own for value in each["inputs"].values() if is_link(value)]
        graph = Graph({id: whole.nodes[id] for id in whole.upstream(decoder, *needed)}, info)
        return cls(
            graph, decoder, sampler, _seed(graph, sampler), _texts(graph, sampler, prompt_node), *own, model
        )

    @property
    def kind(self) -> str:
        class_type = self.graph.nodes[self.sampler]["class_type"]
        return class_type if class_type == "ForesightSampler" or not self.guided else "GUIDER"

    @property
    def guided(self) -> bool:
        return "GUIDER" in self.graph.types(self.sampler).values()

    def prompt(self, text: str, seed: int, light: bool = False) -> Prompt:
        """What is queued for one clip; its outputs are REPORT and FRAMES. light: lightly self-refined. GraphError"""
        nodes = deepcopy(self.graph.nodes)
        for id, name in self.texts:
            nodes[id]["inputs"][name] = text
        nodes[self.seed[0]]["inputs"][self.seed[1]] = seed
        inputs, scorer, converter = nodes[self.sampler]["inputs"], [SCORER, 0], [CONVERTER, 0]
        own = {SCORER: self.scorer, CONVERTER: self.converter}
        if self.kind == "ForesightSampler":
            plainly = {"plan": "paper", "inject": False, "refiner": "off", "tau": -1.0, "delta": -1.0, "every": 1}
            inputs |= {**plainly, **WATCH, "scorer": scorer, "l2r": converter}
            inputs.pop("vlm", None)
            if light:
                own |= _select(inputs) if "sampler" not in inputs else {}
                own |= _refine(inputs.get("sampler", ["foresight_select", 0]))
                inputs["sampler"] = ["foresight_light", 0]
            told = {"verdict": [self.sampler, 1]}
        else:
            own[GATE] = node("ForesightFailureGate", l2r=converter, scorer=scorer, prompt=text, **WATCH)
            if self.guided or light:
                sockets, added = self._sockets(inputs, seed, light)
                watched = node("ForesightMonitoredSampler", gate=[GATE, 0], on_reject="report only", **sockets)
                own |= added | {self.sampler: watched}
                told = {"verdict": [self.sampler, 3]}
            else:
                own[WATCHED] = node("ForesightWatch", model=self.model, gate=[GATE, 0])
                (name,) = self.graph.links(self.sampler, "MODEL")
                inputs[name] = [WATCHED, 0]
                told = {"watch": [WATCHED, 1]}
        images = [self.decoder, 0]
        own[REPORT] = node("ForesightRunReport", images=images, scorer=scorer, save=False, **told)
        own[FRAMES] = node("PreviewImage", images=images)
        return nodes | fill_defaults(own, self.graph.info)

    def _sockets(self, inputs: dict[str, Any], seed: int, light: bool) -> tuple[dict[str, Link], Prompt]:
        """The five sockets of Monitored Sampler, and the nodes that are needed for them."""
        sockets, own = {name: inputs[name] for name in SOCKETS if is_link(inputs.get(name))}, {}
        if "noise" not in sockets:
            sockets["noise"], own["foresight_noise"] = ["foresight_noise", 0], node("RandomNoise", noise_seed=seed)
        if not self.guided:
            if self.kind not in ("KSampler", "SamplerCustom"):
                raise GraphError(
                    f"{self.graph.name(self.sampler)}: --light refines the clips of KSampler, SamplerCustom, "
                    "SamplerCustomAdvanced and Foresight Sampler: exchange it for one of these, or leave --light out."
                )
            guided = {name: inputs[name] for name in ("positive", "negative", "cfg")}
            sockets["guider"] = ["foresight_guider", 0]
            own["foresight_guider"] = node("CFGGuider", model=self.model, **guided)
        if "sampler" not in sockets:
            sockets["sampler"] = ["foresight_select", 0]
            own |= _select(inputs)
        if "sigmas" not in sockets:
            schedule = {name: inputs[name] for name in ("scheduler", "steps", "denoise")}
            sockets["sigmas"] = ["foresight_sigmas", 0]
            own["foresight_sigmas"] = node("BasicScheduler", model=self.model, **schedule)
        if light:
            own |= _refine(sockets["sampler"])
            sockets["sampler"] = ["foresight_light", 0]
        return sockets, own


def _select(inputs: Mapping[str, Any]) -> Prompt:
    return {"foresight_select": node("KSamplerSelect", sampler_name=inputs["sampler_name"])}


def _refine(sampler: Link) -> Prompt:
    return {"foresight_light": node("ForesightSelfRefineSampler", sampler=sampler, preset="light")}


def _model(graph: Graph, sampler: str) -> Link | None:
    """What the sampler, or its guider, samples with. GraphError where a sampler cannot be watched."""
    if graph.nodes[sampler]["class_type"] == "ForesightSampler":
        return graph.inputs(sampler).get("model")
    models = graph.links(sampler, "MODEL")
    if guiders := graph.links(sampler, "GUIDER"):
        missing = [name for name in SOCKETS if not is_link(graph.inputs(sampler).get(name))]
        if missing not in ([], ["noise"]):
            raise GraphError(
                f"{graph.name(sampler)} has no {', '.join(missing)} connected, as SamplerCustomAdvanced has, so it "
                "cannot be watched: exchange it for SamplerCustomAdvanced."
            )
        models = graph.links(next(iter(guiders.values()))[0], "MODEL")
    elif len(models) != 1:
        raise GraphError(
            f"{graph.name(sampler)} has {len(models)} models connected, and one can be watched: use KSampler, or "
            "Foresight Sampler, which takes two experts."
        )
    return next(iter(models.values()), None)


def _seed(graph: Graph, sampler: str) -> tuple[str, str]:
    inputs = graph.inputs(sampler)
    if inputs.get("add_noise") in ("disable", False):
        raise GraphError(
            f"{graph.name(sampler)}: add_noise is {inputs['add_noise']!r}, so every seed gives the same clip: switch "
            "it on."
        )
    id = inputs["noise"][0] if is_link(inputs.get("noise")) else sampler
    for name in SEEDS:
        if name in graph.inputs(id):
            return id, name
    raise GraphError(f"{graph.name(id)} has no seed, so every clip would be the same: connect RandomNoise.")


def _texts(graph: Graph, sampler: str, chosen: str | None) -> tuple[tuple[str, str], ...]:
    if graph.nodes[sampler]["class_type"] == "ForesightSampler":
        return ((sampler, "prompt"),)
    if chosen is not None:
        if chosen not in graph.nodes or not graph.wordings(chosen):
            able = graph.names(id for id in graph.nodes if graph.wordings(id)) or "none"
            raise GraphError(f"--prompt-node {chosen} takes no prompt in this graph; these do: {able}.")
        return tuple((chosen, name) for name in graph.wordings(chosen))
    found = graph.texts(sampler)
    if not found:
        raise GraphError(
            f"no text prompt leads to {graph.name(sampler)}: connect CLIP Text Encode to its positive conditioning."
        )
    if len(found) > 1:
        raise GraphError(
            f"the words of {graph.names(found)} are joined on the way to {graph.name(sampler)}: say with --prompt-node "
            f"ID which of them the prompts go to ({', '.join(found)})."
        )
    return tuple((found[0], name) for name in graph.wordings(found[0]))


def _kept(graph: Graph, sampler: str, classes: tuple[str, ...]) -> dict[str, Any] | None:
    """A node of these classes that is in the graph, without the inputs that wait for the clip."""
    for each in graph.nodes.values():
        if each["class_type"] in classes:
            early = {n: v for n, v in each["inputs"].items() if not is_link(v) or sampler not in graph.upstream(v[0])}
            return node(each["class_type"], **early)
    return None


def _files(info: ObjectInfo, class_type: str, name: str) -> list[str]:
    return [file for i in inputs_of(info[class_type]) if i.name == name for file in i.options["options"]]


def _scorer(graph: Graph, sampler: str, file: str | None) -> dict[str, Any]:
    loader = "ForesightViCLIPScore"
    there = _files(graph.info, loader, "weights")
    if file is None and (kept := _kept(graph, sampler, (loader,))):
        kept["inputs"].pop("images", None)
        return kept
    if file is not None and file not in there:
        raise GraphError(f"--scorer {file}: the server's models/foresight has {', '.join(there) or 'nothing'}.")
    usable = [file] if file else [name for name in there if not name.startswith(DEMO)]
    if not usable:
        raise GraphError(
            "the server has no scorer for your model: put ViClip-InternVid-10M-FLT.pth or ViCLIP-L-14's "
            f"model.safetensors into its models/foresight (there: {', '.join(there) or 'nothing'})."
        )
    if len(usable) > 1:
        raise GraphError(f"the server has several scorers: say with --scorer which one judges ({', '.join(usable)}).")
    return node(loader, weights=usable[0])


def _converter(graph: Graph, sampler: str, decoder: str, file: str | None, model: Link | None) -> dict[str, Any]:
    loader = "ForesightL2RPreview"
    there = _files(graph.info, loader, "converter")
    if file is None and (kept := _kept(graph, sampler, (loader, "ForesightL2RCalibrate"))):
        return kept
    if file is not None and file not in there:
        raise GraphError(f"--converter {file}: the server's models/foresight_l2r has {', '.join(there)}.")
    vae = next(iter(graph.links(decoder, "VAE").values()))
    return node(loader, converter=file or "auto", vae=vae, **({"model": model} if model else {}))
