"""Graphs as ComfyUI's API takes them: what leads to what, and which node samples, decodes, or is told what to show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..scoring.graph_words import Link, is_link, positive, text_inputs, text_nodes
from .graphs import SEEDS, ObjectInfo, inputs_of
from .server import Prompt

# In a plain run the first output of these is what comes in here.
PASSED_BY = {
    "ForesightTrialSwitch": "on_accept", "ForesightSelfRefineSampler": "sampler", "ForesightEnhancerReport": "latent",
    "ForesightLatentSearchSampler": "sampler", "ForesightWatch": "model",
}  # fmt: skip
# In a plain run these are core's nodes, whose place they take.
DROP_INS = {"ForesightKSampler": "KSampler", "ForesightSamplerCustomAdvanced": "SamplerCustomAdvanced"}
EXPORT = "open it in ComfyUI, choose Workflow > Export (API), and name that file"


class GraphError(Exception):
    """What in the graph cannot be used, and the way out."""


def read_graph(path: Path) -> Prompt:
    """The nodes of an exported graph by id. GraphError."""
    try:
        graph = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise GraphError(f"the graph {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise GraphError(f"the graph {path} is no JSON ({error}): {EXPORT}.") from None
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise GraphError(f"{path} is a workflow as the editor saves it, not as the API takes it: {EXPORT}.")
    nodes = graph.values() if isinstance(graph, dict) else ()
    if not nodes or not all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in nodes
    ):
        raise GraphError(f"{path} is no graph of ComfyUI (each node with class_type and inputs): {EXPORT}.")
    return graph


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


class Graph:
    """A graph with what the server says of its nodes' types. GraphError for nodes that the server does not have."""

    def __init__(self, nodes: Prompt, info: ObjectInfo):
        self.nodes, self.info = nodes, info
        for id, each in nodes.items():
            if each["class_type"] not in info:
                raise GraphError(
                    f"{self.name(id)}: the server has no such node: install the pack that brings it, or leave it out."
                )
            for name, value in each["inputs"].items():
                if is_link(value) and value[0] not in nodes:
                    raise GraphError(
                        f"{self.name(id)}: {name} is linked to node {value[0]}, which is not there: {EXPORT}."
                    )

    def name(self, id: str) -> str:
        return f"node {id} ({self.nodes[id]['class_type']})"

    def names(self, ids: Iterable[str]) -> str:
        return ", ".join(map(self.name, ids))

    def inputs(self, id: str) -> dict[str, Any]:
        return self.nodes[id]["inputs"]

    def types(self, id: str) -> dict[str, str]:
        return {each.name: each.type for each in inputs_of(self.info[self.nodes[id]["class_type"]])}

    def outputs(self, id: str) -> list[Any]:
        return list(self.info[self.nodes[id]["class_type"]].get("output", ()))

    def links(self, id: str, type: str) -> dict[str, Link]:
        """The linked inputs of a type."""
        types = self.types(id)
        return {name: value for name, value in self.inputs(id).items() if is_link(value) and types.get(name) == type}

    def upstream(self, *ids: str) -> list[str]:
        """These nodes and all that they need, in the graph's order."""
        found, left = set(), list(ids)
        while left:
            if (id := left.pop()) not in found:
                found.add(id)
                left += [value[0] for value in self.inputs(id).values() if is_link(value)]
        return [id for id in self.nodes if id in found]

    def plain(self) -> Graph:
        """Without what is passed by, and with core's own nodes."""

        def source(link: Link) -> Link:
            for _ in self.nodes:  # as many as there can be in a row
                passed = PASSED_BY.get(self.nodes[link[0]]["class_type"])
                inner = self.inputs(link[0]).get(passed) if link[1] == 0 else None
                if not is_link(inner):
                    break
                link = inner
            return link

        def own(class_type: str, inputs: dict[str, Any]) -> dict[str, Any]:
            core = DROP_INS.get(class_type, class_type)
            names = inputs if core == class_type else [each.name for each in inputs_of(self.info[core])]
            return node(core, **{n: source(v) if is_link(v) else v for n, v in inputs.items() if n in names})

        nodes = {id: {**each, **own(each["class_type"], each["inputs"])} for id, each in self.nodes.items()}
        return Graph(nodes, self.info)

    def samplers(self, among: Iterable[str]) -> list[str]:
        """Those that make a LATENT by a GUIDER, or by a MODEL and a seed."""

        def samples(id: str) -> bool:
            types = self.types(id)
            by_model = "MODEL" in types.values() and any(name in types for name in SEEDS)
            return "LATENT" in self.outputs(id) and ("GUIDER" in types.values() or by_model)

        return [id for id in among if samples(id)]

    def decoder(self) -> str:
        """The node that makes the finished clip's frames of a sampler's latent. GraphError: none, or several clips."""
        samplers = self.samplers(self.nodes)
        if not samplers:
            raise GraphError(
                "no node of the graph samples (makes a LATENT by a MODEL and a seed, or by a GUIDER, as KSampler, "
                f"SamplerCustomAdvanced or Foresight Sampler do); there are {self.names(self.nodes)}."
            )
        decoders = [
            id for id in self.nodes
            if self.outputs(id)[:1] == ["IMAGE"] and {"LATENT", "VAE"} <= set(self.types(id).values())
            and self.samplers(self.upstream(id))
        ]  # fmt: skip
        last = [id for id in decoders if not any(id in self.upstream(other) for other in decoders if other != id)]
        clips = {json.dumps(list(self.links(id, "LATENT").values())): id for id in reversed(last)}
        if not clips:
            raise GraphError(f"no node decodes what {self.name(samplers[-1])} samples: add VAE Decode.")
        if len(clips) > 1:
            raise GraphError(f"{self.names(last)} decode several clips: export a graph that makes one.")
        return next(iter(clips.values()))

    def texts(self, sampler: str) -> list[str]:
        """The nodes whose words a sampler is to show."""
        return text_nodes(self.nodes, self.info, positive(self.nodes, self.info, sampler))

    def wordings(self, id: str) -> list[str]:
        """The inputs of a node by which it is told what to show."""
        return text_inputs(self.nodes, self.info, id)
