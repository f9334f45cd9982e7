"""The demo as API prompts, in core's and this pack's nodes. Widgets that are left out stand at their defaults."""

from __future__ import annotations

from typing import Any

from .preset import CFG, CONVERTER, SAMPLER, SCHEDULER, SCORER, SHIFT, STEPS, TRANSFORMER, VAE
from .world import FRAMES, SIZE

Prompt = dict[str, dict[str, Any]]

def _family() -> Prompt:
    return {
        "model": _node("UNETLoader", unet_name=TRANSFORMER, weight_dtype="default"),
        "shifted": _node("ModelSamplingSD3", model=["model", 0], shift=SHIFT),
        "vae": _node("VAELoader", vae_name=VAE),
        "clip": _node("ForesightDemoTextEncoder"),
        "latent": _node("EmptyHunyuanLatentVideo", width=SIZE, height=SIZE, length=FRAMES, batch_size=1),
    }


def plain(prompt: str, seed: int, steps: int = STEPS) -> Prompt:
    """A clip by core nodes alone; its frames are the images of node "save"."""
    return _family() | {
        "positive": _node("CLIPTextEncode", clip=["clip", 0], text=prompt),
        "negative": _node("CLIPTextEncode", clip=["clip", 0], text=""),
        "sampled": _node(
            "KSampler", model=["shifted", 0], seed=seed, steps=steps, cfg=CFG, sampler_name=SAMPLER,
            scheduler=SCHEDULER, positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
            denoise=1.0,
        ),
        "decoded": _node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "save": _node("SaveImage", images=["decoded", 0], filename_prefix="foresight_demo_plain"),
    }  # fmt: skip


def foresight(prompt: str, seed: int, steps: int = STEPS, **settings: Any) -> Prompt:
    """The same clip watched and repaired by the Foresight Sampler, whose other widgets `settings` names.

    Frames: the images of node "save"; preview of the first run at its decision: node "save_preview"; run report: node
    "report".
    """
    return _family() | {
        "scorer": _node("ForesightViCLIPScore", weights=SCORER),
        "l2r": _node("ForesightL2RPreview", converter=CONVERTER),
        "sampled": _node(
            "ForesightSampler", model=["shifted", 0], clip=["clip", 0], prompt=prompt, negative="", seed=seed,
            steps=steps, cfg=CFG, sampler_name=SAMPLER, scheduler=SCHEDULER, latent_image=["latent", 0],
            scorer=["scorer", 0], l2r=["l2r", 0], **settings,
        ),
        "decoded": _node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "save": _node("SaveImage", images=["decoded", 0], filename_prefix="foresight_demo"),
        "save_preview": _node("SaveImage", images=["sampled", 2], filename_prefix="foresight_demo_preview"),
        "report": _node("ForesightRunReport", verdict=["sampled", 1], images=["decoded", 0], scorer=["scorer", 0]),
    }  # fmt: skip


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
