"""A graph of ComfyUI nodes as it is built in Python, and the prompt for ComfyUI's API that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...evaluation.server import Prompt

WIDTH = 340  # of a node in the frontend, in pixels


@dataclass
class Node:
    """inputs: by name; a Link, or the value of a widget. size: None is computed."""

    id: int
    type: str
    inputs: dict[str, Any]
    title: str | None = None
    colour: str | None = None
    size: tuple[int, int | None] = (WIDTH, None)

    def __getitem__(self, slot: int) -> Link:
        return Link(self, slot)


@dataclass(frozen=True)
class Link:
    """An output of a node, or an input of the box around the graph (node None)."""

    node: Node | None
    slot: int


@dataclass
class Group:
    title: str
    column: int
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Graph:
    """Nodes in groups; groups of one column stand below each other. note: Markdown, left of everything."""

    note: str = ""
    groups: list[Group] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        return sorted((node for group in self.groups for node in group.nodes), key=lambda node: node.id)

    def group(self, title: str, column: int) -> None:
        """Nodes that are added from now on belong to this group."""
        self.groups.append(Group(title, column))

    def add(
        self, class_type: str, /, *, title: str | None = None, colour: str | None = None,
        size: tuple[int, int | None] = (WIDTH, None), **inputs: Any,
    ) -> Node:  # fmt: skip
        node = Node(len(self.nodes) + 1, class_type, inputs, title, colour, size)
        self.groups[-1].nodes.append(node)
        return node

    def prompt(self) -> Prompt:
        """The API form."""
        return {
            str(node.id): {
                "class_type": node.type,
                "inputs": {
                    name: [str(value.node.id), value.slot] if isinstance(value, Link) else value
                    for name, value in node.inputs.items()
                },
            }
            for node in self.nodes
        }
