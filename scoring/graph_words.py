"""The words behind a sampler's positive conditioning, found in its graph as ComfyUI's API has it.

A graph is a mapping of node ids to {"class_type", "inputs"}; `info` says of each class what ComfyUI's object_info does:
{"input": {"required": {name: (type, options)}, ...}, "output": types, "output_name": names}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

Nodes = Mapping[str, Mapping[str, Any]]
Info = Mapping[str, Mapping[str, Any]]
Link = list[Any]
ANY = ("*", "COMFY_MATCHTYPE_V3")  # what switches and reroutes say of their sockets


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def texts(nodes: Nodes, info: Info, sampler: str) -> dict[str, str]:
    """What the positive conditioning of a sampler node says, and for each text the id of the node that encodes it.

    As it is written there, or as one primitive node holds it: a text that other nodes make while the graph runs is not
    among them, nor is one that another holds whole.
    """
    said = {}
    for id in text_nodes(nodes, info, positive(nodes, info, sampler)):
        for name in text_inputs(nodes, info, id):
            text = (_written(nodes, info, nodes[id]["inputs"][name]) or "").strip()
            said.setdefault(text, id)
    return {text: id for text, id in said.items() if text and not any(text in other for other in said if other != text)}


def positive(nodes: Nodes, info: Info, sampler: str) -> list[Link]:
    """The links by which a sampler node, or its guider, is told what to show."""
    conditions = _links(nodes, info, sampler, "CONDITIONING")
    if "positive" in conditions:
        return [conditions["positive"]]
    guiders = _links(nodes, info, sampler, "GUIDER").values() if not conditions else ()
    told = [link for name, link in conditions.items() if "negative" not in name]
    return told + [link for guider in guiders for link in positive(nodes, info, guider[0])]


def text_nodes(nodes: Nodes, info: Info, links: list[Link]) -> list[str]:
    """Ids of the nodes whose words become the CONDITIONING at the other ends of the links."""
    return list(dict.fromkeys(chain.from_iterable(_upstream(nodes, info, link, frozenset()) for link in links)))


def text_inputs(nodes: Nodes, info: Info, id: str) -> list[str]:
    """The inputs by which a node that makes CONDITIONING is told what to show."""
    if "CONDITIONING" not in info[nodes[id]["class_type"]]["output"]:
        return []
    return [
        name for name, (type, options) in _inputs(nodes, info, id).items()
        if type == "STRING" and name in nodes[id]["inputs"] and "negative" not in name
        and (name in ("text", "prompt") or options.get("multiline"))
    ]  # fmt: skip


def _upstream(nodes: Nodes, info: Info, link: Link, seen: frozenset[str]) -> Iterator[str]:
    id, slot = link
    if id in seen:
        return
    if text_inputs(nodes, info, id):
        yield id
        return
    conditions, names = _links(nodes, info, id, "CONDITIONING"), info[nodes[id]["class_type"]].get("output_name")
    same = names[slot] if names and slot < len(names) else None  # nodes that take and give positive and negative
    for name, inner in conditions.items():
        if name == same or same not in conditions:
            yield from _upstream(nodes, info, inner, seen | {id})


def _inputs(nodes: Nodes, info: Info, id: str) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Name -> type and options, as the node's class has them."""
    groups = info[nodes[id]["class_type"]]["input"]
    entries = chain.from_iterable((groups.get(kind) or {}).items() for kind in ("required", "optional"))
    return {name: (type, rest[0] if rest else {}) for name, (type, *rest) in entries}


def _links(nodes: Nodes, info: Info, id: str, type: str) -> dict[str, Link]:
    """The linked inputs that bring a type, by what they take or by what is at their other end."""
    found = {}
    types = _inputs(nodes, info, id)
    for name, value in nodes[id]["inputs"].items():
        if not is_link(value) or value[0] not in nodes:
            continue
        outputs = info[nodes[value[0]]["class_type"]]["output"]
        brought = outputs[value[1]] if value[1] < len(outputs) else None
        taken = types.get(name, ("*",))[0]
        if type in (taken, brought) or (taken in ANY and brought in ANY):
            found[name] = value
    return found


def _written(nodes: Nodes, info: Info, value: object) -> str | None:
    """A text as it stands in the graph; through nodes that hold one text and nothing else."""
    for _ in nodes:  # as many as there can be in a row
        if not is_link(value):
            break
        inputs = _inputs(nodes, info, value[0]) if value[0] in nodes else {}
        if [type for type, _ in inputs.values()] != ["STRING"]:
            return None
        value = nodes[value[0]]["inputs"].get(*inputs)
    return value if isinstance(value, str) else None
