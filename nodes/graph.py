"""The graph that is queued or executed: what its widgets say before anything loads, what is sampled with a model."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from comfy_execution.validation import validate_node_input

from ..scoring.graph_words import Info, Link, Nodes, is_link
from ..trials.foreign import check_choice
from .compat import prompt_server

_REQUEST: ContextVar[Mapping[str, Any] | None] = ContextVar("what is being queued", default=None)


def register() -> None:
    """Follows what is queued; nothing where there is no server (tests, scripts)."""
    if server := prompt_server():
        server.add_on_prompt_handler(_see)


def _see(request):
    _REQUEST.set(request)  # of this request alone: ComfyUI looks at its graph in the same task
    return request


class Checked(io.ComfyNode):
    """A node that looks at its widgets when its graph is queued: what is wrong with them is said before anything loads."""

    elsewhere: tuple[str, ...] = ()  # choices that may be another machine's, where they are not used

    @classmethod
    def check(cls, known: dict[str, Any], graph: Nodes, id: str) -> None:
        """ValueError with the way out. known: the node's widgets; of those that are linked only what core's primitives
        hold, all others are known when the graph runs."""

    @classmethod
    def validate_inputs(cls, input_types):
        inputs = cls.define_schema().inputs
        # ComfyUI leaves this check to a node that asks what is connected.
        for each in inputs:
            if each.id in input_types and not validate_node_input(input_types[each.id], each.io_type):
                return f"{each.id} takes {each.io_type}, and {input_types[each.id]} is connected."
        context, graph = get_executing_context(), (_REQUEST.get() or {}).get("prompt") or {}
        if context is None or context.node_id not in graph:
            return True
        given = graph[context.node_id]["inputs"]
        values = {each.id: _held(graph, given.get(each.id)) for each in inputs if isinstance(each, io.WidgetInput)}
        known = {name: value for name, value in values.items() if value is not None}
        try:
            cls.check(known, graph, context.node_id)
            for each in inputs:
                if isinstance(each, io.Combo.Input) and each.id in known and each.id not in cls.elsewhere:
                    check_choice(each.id, known[each.id], each.options)  # 0.3.75 does not
        except ValueError as error:
            return str(error)
        return True


def _held(nodes: Nodes, value: object) -> object:
    """A value as it stands in a graph, in the node itself or in one of core's primitives; None where it does not."""
    for _ in nodes:  # as many as there can be in a row
        if not is_link(value):
            break
        node = nodes.get(value[0], {"class_type": ""})
        value = node["inputs"].get("value") if node["class_type"].startswith("Primitive") else None
    return None if is_link(value) else value


class Classes(dict):
    """What ComfyUI's object_info says of a node's class, as scoring.graph_words reads it."""

    def __missing__(self, name: str) -> Mapping:
        import nodes  # ComfyUI's own, which is loaded by whoever executes a graph

        kind = nodes.NODE_CLASS_MAPPINGS[name]
        names = getattr(kind, "RETURN_NAMES", None)
        return {"input": kind.INPUT_TYPES(), "output": kind.RETURN_TYPES, "output_name": names}


def executed(hidden) -> Nodes:
    """hidden: of a node that asks for `dynprompt`."""
    return {id: hidden.dynprompt.get_node(id) for id in hidden.dynprompt.all_node_ids()}


def sampled_with(nodes: Nodes, info: Info, link: Link) -> Link | None:
    """The LATENT of the last node that samples with the model at a link; None where nothing does."""
    latents = _behind(nodes, info, link)
    last = [each for each in latents if not any(_behind(nodes, info, each, other[0]) for other in latents if other != each)]
    return last[-1] if last else None


def _behind(nodes: Nodes, info: Info, link: Link, wanted: str | None = None) -> list[Link]:
    """The first LATENT output on each way that leads on from a link; of the node `wanted` alone, however far away."""
    found, seen, ahead = [], set(), [tuple(link)]
    while ahead:
        source = ahead.pop(0)
        for id, node in nodes.items():
            if id in seen or not any(is_link(value) and tuple(value) == source for value in node["inputs"].values()):
                continue
            seen.add(id)
            outputs = list(info[node["class_type"]]["output"])
            if "LATENT" in outputs and wanted in (None, id):
                found.append([id, outputs.index("LATENT")])
            if "LATENT" not in outputs or wanted is not None:
                ahead += [(id, slot) for slot in range(len(outputs))]
    return found
