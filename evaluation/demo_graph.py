"""The demo workflow as an API prompt, with a plain branch beside it and the frames of both saved."""

from __future__ import annotations

from typing import Any

from .server import Prompt
from .ui_format import ObjectInfo
from .workflows import api_graph, node_of

# Output nodes to run one at a time: the others' nodes stay in the prompt, so that ComfyUI keeps what they have loaded.
PLAIN, FORESIGHT, PREVIEW = "save_plain", "save", "save_preview"
REPORT = "ForesightRunReport"
_SHARED = ("model", "seed", "steps", "cfg", "sampler_name", "scheduler", "latent_image")


def demo_graph(object_info: ObjectInfo, prompt: str, seed: int, **settings: Any) -> Prompt:
    """workflows/demo_one_node.json with this prompt and seed, and the same clip by core's KSampler.

    settings: of evaluation.graph_settings.Settings. Frames are the images of the output nodes PLAIN, FORESIGHT and
    PREVIEW.
    """
    graph = api_graph("demo_one_node", object_info, prompt=prompt, seed=seed, **settings)
    sampled, decoded = node_of(graph, "ForesightSampler"), node_of(graph, "VAEDecode")
    given = graph[sampled]["inputs"]
    return graph | {
        "positive": _node("CLIPTextEncode", clip=given["clip"], text=given["prompt"]),
        "negative": _node("CLIPTextEncode", clip=given["clip"], text=given["negative"]),
        "plain": _node(
            "KSampler", **{name: given[name] for name in _SHARED}, positive=["positive", 0], negative=["negative", 0],
            denoise=1.0,
        ),
        "plain_frames": _node("VAEDecode", samples=["plain", 0], vae=graph[decoded]["inputs"]["vae"]),
        PLAIN: _node("SaveImage", images=["plain_frames", 0], filename_prefix="foresight_demo_plain"),
        FORESIGHT: _node("SaveImage", images=[decoded, 0], filename_prefix="foresight_demo"),
        PREVIEW: _node("SaveImage", images=[sampled, 2], filename_prefix="foresight_demo_preview"),
    }  # fmt: skip


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
