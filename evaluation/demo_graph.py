"""The demo workflow as an API prompt, with a plain branch beside it and the frames of both saved."""

from __future__ import annotations

from typing import Any

from .graphs import ObjectInfo, node_of, one_node
from .server import Prompt

# Output nodes to run one at a time: the others' nodes stay in the prompt, so that ComfyUI keeps what they have loaded.
PLAIN, FORESIGHT, PREVIEW = "save_plain", "save", "save_preview"
REPORT = "ForesightRunReport"
_SHARED = ("model", "seed", "steps", "cfg", "sampler_name", "scheduler", "latent_image")


def demo_graph(object_info: ObjectInfo, prompt: str, seed: int, **widgets: Any) -> Prompt:
    """workflows/demo_one_node.json with this prompt and seed, and the same clip by core's KSampler.

    widgets: of Foresight Sampler. Frames are the images of the output nodes PLAIN, FORESIGHT and PREVIEW.
    """
    graph = one_node("demo", object_info, prompt=prompt, seed=seed, **widgets)
    sampled, decoded = node_of(graph, "ForesightSampler"), node_of(graph, "VAEDecode")
    inputs = graph[sampled]["inputs"]
    return graph | {
        "positive": _node("CLIPTextEncode", clip=inputs["clip"], text=inputs["prompt"]),
        "negative": _node("CLIPTextEncode", clip=inputs["clip"], text=inputs["negative"]),
        "plain": _node(
            "KSampler", **{name: inputs[name] for name in _SHARED}, positive=["positive", 0], negative=["negative", 0],
            denoise=1.0,
        ),
        "plain_frames": _node("VAEDecode", samples=["plain", 0], vae=graph[decoded]["inputs"]["vae"]),
        PLAIN: _node("SaveImage", images=["plain_frames", 0], filename_prefix="foresight_demo_plain"),
        FORESIGHT: _node("SaveImage", images=[decoded, 0], filename_prefix="foresight_demo"),
        PREVIEW: _node("SaveImage", images=[sampled, 2], filename_prefix="foresight_demo_preview"),
    }  # fmt: skip


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
