"""The example graphs in workflows/ as prompts for ComfyUI's API, with widgets set as a user would set them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .server import Prompt

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")
ObjectInfo = Mapping[str, Mapping[str, Any]]


def one_node(family: str, object_info: ObjectInfo, **widgets: Any) -> Prompt:
    """The family's one-node graph in workflows/ with these widgets of its Foresight Sampler.

    object_info: the server's; widgets that its ComfyUI has and the file has not stand at their defaults.
    """
    return fill_defaults(api_form(one_node_file(family, **widgets)), object_info)


def one_node_file(family: str, **widgets: Any) -> dict[str, Any]:
    """The same as the frontend opens it: the workflow file with these widgets. Raises ValueError for one it has not."""
    workflow = json.loads((WORKFLOWS / f"{family}_one_node.json").read_text(encoding="utf-8"))
    (sampler,) = (node for node in workflow["nodes"] if node["type"] == "ForesightSampler")
    for name, value in widgets.items():
        sampler["widgets_values"][_widgets(sampler).index(name)] = value
    return workflow


def _widgets(node: Mapping[str, Any]) -> list[str]:
    """The name of each value of a node of a workflow file; "" is what the frontend does with the seed after a run."""
    names = [slot["name"] for slot in node["inputs"] if "widget" in slot]
    return [each for name in names for each in ((name, "") if name in SEEDS else (name,))]


def node_of(prompt: Prompt, class_type: str, nth: int = 0) -> str:
    """The id of the nth node of a type, in the order in which the graph was built."""
    return [id for id, node in prompt.items() if node["class_type"] == class_type][nth]


def api_form(workflow: dict[str, Any]) -> Prompt:
    """The prompt that the frontend makes of a workflow file without subgraphs, reroutes and muted nodes."""
    sources = {id: [str(origin), slot] for id, origin, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values = {name: value for name, value in zip(_widgets(node), node["widgets_values"], strict=True) if name}
        links = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values | links}
    return prompt


@dataclass(frozen=True)
class Input:
    """An input of a node as the server defines it."""

    name: str
    type: str
    optional: bool
    options: Mapping[str, Any]

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGETS and not self.options.get("forceInput")

    @property
    def default(self) -> Any:
        """What the frontend would put into the widget."""
        if self.type == "COMBO":
            return self.options.get("default", next(iter(self.options["options"]), None))
        return self.options.get("default", {"STRING": "", "BOOLEAN": False}.get(self.type, self.options.get("min", 0)))


def inputs_of(info: Mapping[str, Any]) -> Iterator[Input]:
    """In the order of the definition, which is that of the widgets' values."""
    for kind in ("required", "optional"):
        for name, (type, *rest) in info["input"].get(kind, {}).items():
            options = rest[0] if rest else {}
            if isinstance(type, list):  # V1 nodes put a combo's choices where its type would be
                type, options = "COMBO", {**options, "options": type}
            yield Input(name, type, kind == "optional", options)


def fill_defaults(prompt: Prompt, object_info: ObjectInfo) -> Prompt:
    """The prompt with every open widget at its default, as the frontend sends it."""
    return {
        id: {
            "class_type": node["class_type"],
            "inputs": {
                each.name: node["inputs"].get(each.name, each.default)
                for each in inputs_of(object_info[node["class_type"]])
                if each.is_widget or each.name in node["inputs"]
            },
        }
        for id, node in prompt.items()
    }
