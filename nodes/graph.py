"""The graph that is being executed, and what in it is sampled with a model."""

from collections.abc import Mapping

from ..scoring.graph_words import Info, Link, Nodes, is_link


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
