"""Graphs as the files that ComfyUI's frontend opens: workflows and subgraph blueprints, laid out from left to right.

What a node looks like (its sockets, its widgets and their order) is taken from a server's object_info.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from ...evaluation.graph_settings import PACK
from ...evaluation.graphs import Input, ObjectInfo, inputs_of
from .graph import Graph, Link, Node
from .notes import DOWNLOADS

CORE = {"cnr_id": "comfy-core", "ver": "0.3.75"}  # the oldest ComfyUI that is supported
COLOURS = {"green": ("#232", "#353"), "red": ("#322", "#533")}  # as core's templates mark their prompts
BOX, BOX_OUT = -10, -20  # the frontend's ids of a subgraph's own ends
GAP, TITLE, SLOT, WIDGET, TEXT = 50, 30, 20, 26, 110  # pixels
# The live view below the widgets (web/foresight.js).
VIEWS = dict.fromkeys(("ForesightSampler", "ForesightMonitoredSampler", "ForesightSeedAudition"), 310)


def _slots(info: Mapping[str, Any]) -> list[Input]:
    """In the order of a node's slots: the frontend puts sockets before widgets, and a link names its slot by number."""
    return sorted(inputs_of(info), key=lambda each: each.is_widget)


class _Writer:
    """Turns a Graph into nodes, links and groups."""

    def __init__(self, graph: Graph, object_info: ObjectInfo):
        self.graph, self.info = graph, object_info
        self.links: list[dict[str, Any]] = []
        self.bounding: list[dict[str, Any]] = []
        for node in graph.nodes:
            self._link(node)
        self.nodes = self._place()

    def _link(self, node: Node) -> None:
        for slot, each in enumerate(_slots(self.info[node.type])):
            if isinstance(source := node.inputs.get(each.name), Link):
                origin = (source.node.id, source.slot) if source.node else (BOX, source.slot)
                self.connect(*origin, node.id, slot, each.type)

    def connect(self, origin: int, origin_slot: int, target: int, target_slot: int, type: str) -> int:
        ends = {"origin_id": origin, "origin_slot": origin_slot, "target_id": target, "target_slot": target_slot}
        self.links.append({"id": len(self.links) + 1, **ends, "type": type})
        return self.links[-1]["id"]

    def from_(self, id: int, slot: int) -> list[int]:
        return [link["id"] for link in self.links if (link["origin_id"], link["origin_slot"]) == (id, slot)]

    def _height(self, node: Node) -> int:
        if node.size[1]:
            return node.size[1]
        info, inputs = self.info[node.type], list(inputs_of(self.info[node.type]))
        widgets = [each for each in inputs if each.is_widget]
        height = max(len(inputs) - len(widgets), len(info["output"])) * SLOT + 12
        height += sum(TEXT if each.options.get("multiline") else WIDGET for each in widgets)
        height += WIDGET * sum("control_after_generate" in each.options for each in widgets)
        return height + VIEWS.get(node.type, 0)

    def _place(self) -> list[dict[str, Any]]:
        nodes, x = [], 0
        for column in sorted({group.column for group in self.graph.groups}):
            groups = [group for group in self.graph.groups if group.column == column]
            width = max(node.size[0] for group in groups for node in group.nodes)
            y = 0
            for group in groups:
                top, y = y, y + 50
                for node in group.nodes:
                    y += TITLE
                    nodes.append(self._node(node, [x, y], [width, self._height(node)]))
                    y += self._height(node) + 20
                box = [x - 15, top, width + 30, y - top]
                self.bounding.append({"id": len(self.bounding) + 1, "title": group.title, "bounding": box,
                                      "color": "#3f789e", "font_size": 24, "flags": {}})  # fmt: skip
                y += GAP
            x += width + GAP + 30
        return sorted(nodes, key=lambda node: node["id"])

    def _node(self, node: Node, position: list[int], size: list[int]) -> dict[str, Any]:
        info, inputs = self.info[node.type], list(inputs_of(self.info[node.type]))
        into = {(link["target_id"], link["target_slot"]): link["id"] for link in self.links}
        values = []
        for each in inputs:
            if each.is_widget:
                value = node.inputs.get(each.name, each.default)
                # A widget that something is connected to keeps a value of its own under the connection.
                values.append(each.default if isinstance(value, Link) else value)
                if each.options.get("control_after_generate"):
                    values.append("fixed")
        source = PACK if node.type.startswith("Foresight") else CORE
        models = [
            {"name": value, "url": DOWNLOADS[value][1], "directory": DOWNLOADS[value][0]}
            for value in values if value in DOWNLOADS
        ]  # fmt: skip
        entry = {
            "id": node.id, "type": node.type, "pos": position, "size": size, "flags": {}, "order": node.id - 1,
            "mode": 0,
            "inputs": [
                {"name": each.name, "type": each.type}
                | ({"shape": 7} if each.optional else {})
                | ({"widget": {"name": each.name}} if each.is_widget else {})
                | {"link": into.get((node.id, slot))}
                for slot, each in enumerate(_slots(info))
            ],
            "outputs": [
                {"name": name, "type": type, "links": self.from_(node.id, slot) or None}
                for slot, (name, type) in enumerate(zip(info["output_name"], info["output"], strict=True))
            ],
            "properties": {**source, "Node name for S&R": node.type} | ({"models": models} if models else {}),
            "widgets_values": values,
        }  # fmt: skip
        if node.title:
            entry["title"] = node.title
        if node.colour:
            entry["color"], entry["bgcolor"] = COLOURS[node.colour]
        return entry


def ui_workflow(graph: Graph, object_info: ObjectInfo) -> dict[str, Any]:
    """The workflow file."""
    writer = _Writer(graph, object_info)
    note = {
        "id": len(writer.nodes) + 1, "type": "MarkdownNote", "pos": [-460, 30], "size": [400, 420], "flags": {},
        "order": len(writer.nodes), "mode": 0, "inputs": [], "outputs": [], "properties": {},
        "widgets_values": [graph.note], "color": "#432", "bgcolor": "#653",
    }  # fmt: skip
    links = [list(link.values()) for link in writer.links]
    return _file(_id(graph.note + str(len(writer.nodes))), [*writer.nodes, note], links, writer.bounding)


def blueprint(
    name: str, graph: Graph, inputs: Mapping[str, str], outputs: Mapping[str, tuple[str, Link]],
    defaults: Mapping[str, Any], object_info: ObjectInfo,
) -> dict[str, Any]:  # fmt: skip
    """A subgraph blueprint: `graph` in a box with `inputs` (name -> type) and `outputs` (name -> type and source).

    Inputs of `defaults` are widgets of the box.
    """
    writer = _Writer(graph, object_info)
    box_outputs = []
    for slot, (title, (type, source)) in enumerate(outputs.items()):
        link = writer.connect(source.node.id, source.slot, BOX_OUT, slot, type)
        box_outputs.append({"id": _id(name, "out", title), "name": title, "type": type, "linkIds": [link]})
    for node in writer.nodes:
        for slot, output in enumerate(node["outputs"]):
            output["links"] = writer.from_(node["id"], slot) or None
    right = max(node["pos"][0] + node["size"][0] for node in writer.nodes)
    box = {
        "id": _id(name), "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {"lastGroupId": len(writer.bounding), "lastNodeId": len(writer.nodes),
                  "lastLinkId": len(writer.links), "lastRerouteId": 0},
        "inputNode": {"id": BOX, "bounding": [-220, 60, 140, 20 * len(inputs) + 40]},
        "outputNode": {"id": BOX_OUT, "bounding": [right + 80, 60, 140, 20 * len(outputs) + 40]},
        "inputs": [
            {"id": _id(name, "in", title), "name": title, "type": type, "linkIds": writer.from_(BOX, slot)}
            for slot, (title, type) in enumerate(inputs.items())
        ],
        "outputs": box_outputs, "widgets": [], "nodes": writer.nodes, "links": writer.links,
        "groups": writer.bounding, "extra": {},
    }  # fmt: skip
    outer = {
        "id": len(writer.nodes) + 1, "type": box["id"], "pos": [0, 0], "size": [400, 480], "flags": {}, "order": 0,
        "mode": 0,
        "inputs": [
            {"name": title, "type": type} | ({"widget": {"name": title}} if title in defaults else {}) | {"link": None}
            for title, type in inputs.items()
        ],
        "outputs": [{"name": title, "type": type, "links": None} for title, (type, _) in outputs.items()],
        "properties": {**PACK}, "widgets_values": list(defaults.values()),
    }  # fmt: skip
    return _file(_id(name, "file"), [outer], [], [], definitions={"subgraphs": [box]})


def _file(id: str, nodes: list, links: list, groups: list, **definitions: Any) -> dict[str, Any]:
    return {
        "id": id, "revision": 0, "last_node_id": nodes[-1]["id"], "last_link_id": len(links), "nodes": nodes,
        "links": links, "groups": groups, **definitions, "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _id(*names: str) -> str:
    """The frontend wants UUIDs; made from names they are the same at every writing."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(names)))
