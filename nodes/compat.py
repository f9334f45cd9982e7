"""Every difference between ComfyUI versions that the nodes have to know; those of sampling are in sampling/compat.py."""

import sys

import comfy.model_management
import comfy.model_patcher
from comfy.comfy_types import IO
from comfy_api.latest import io

# The V3 AnyType is a plain "*", which 0.3.75 does not accept as the output to a typed input; the V1 constant compares
# equal to every type on both versions.
AnyType = io.Custom(IO.ANY)


def advanced(*inputs):
    """Marks inputs as advanced: 0.3.75 has no such argument, but both versions serialise extra_dict."""
    for each in inputs:
        each.extra_dict = {**(getattr(each, "extra_dict", None) or {}), "advanced": True}
    return list(inputs)


def searchable(schema, *words: str):
    """The schema, found by these words as well in the search of newer versions; 0.3.75 does not know of them."""
    schema.search_aliases = list(words)
    return schema


def kept(samples):
    """A latent in the type in which newer cores keep what a KSampler gives (--fp16-intermediates)."""
    dtype = getattr(comfy.model_management, "intermediate_dtype", None)
    return samples.to(dtype=dtype()) if dtype else samples


def model_patcher(model, load_device, offload_device):
    """Core's own patcher class; newer cores exchange it at start, so it is looked up at each call."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=load_device, offload_device=offload_device)


def generates(clip) -> bool:
    """Whether core can run this CLIP, or any of this class, as a language model; newer cores can."""
    return hasattr(clip, "generate")


def prompt_server():
    """The running server, or None. Its module can be imported only by ComfyUI's own main."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def queued(prompt_id: str | None = None) -> tuple[dict, dict]:
    """The graph that is being executed, by node id, and what came with it (extra_data); empty where that is not known.
    prompt_id: of it, where several may be.."""
    running = getattr(getattr(prompt_server(), "prompt_queue", None), "currently_running", {})
    for _, prompt, graph, extra, *_ in list(running.values()):
        if prompt_id in (None, prompt):
            return graph, {key: value for key, value in extra.items() if value is not None}
    return {}, {}


def show_on_node(node_id: str, text: str) -> None:
    """Text on a node while or after it runs; nothing where there is no server. The V3 API has no call for it."""
    if server := prompt_server():
        server.send_progress_text(text, node_id)
