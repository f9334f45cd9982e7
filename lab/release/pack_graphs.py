"""The demo family's graphs in which other packs are tried (pack_checks.py), and a ComfyUI to run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from ...demo import preset
from ...evaluation.api_graph import node
from ...evaluation.graph_settings import DEMO
from ...evaluation.graphs import fill_defaults
from ...evaluation.server import ComfyServer, ExecutionFailed, Prompt

STEPS, SEED = 6, 5
ALWAYS, NEVER = -0.99, 0.99  # a tau that every clip reaches, and one that none does
SIZE = {"width": DEMO.width, "height": DEMO.height, "length": DEMO.length, "batch_size": 1}


class Bench:
    """A running ComfyUI with one pack beside this one."""

    def __init__(self, server: ComfyServer, pack: str, folder: Path):
        self.server, self.pack, self.folder = server, pack, folder
        self.info = server.object_info()

    def own(self, module: str) -> list[str]:
        return [id for id, told in self.info.items() if told["python_module"] == f"custom_nodes.{module}"]

    def run(self, nodes: Prompt) -> dict[str, Any]:
        return self.server.queue(fill_defaults(nodes, self.info))["outputs"]

    def clip(self, nodes: Prompt, samples: str = "sample") -> torch.Tensor:
        """The latent that a node of the graph makes."""
        return self.reported(nodes, samples)[0]

    def core(self, nodes: Prompt) -> torch.Tensor:
        """The same of a graph without Foresight's nodes."""
        try:
            return self.clip(nodes)
        except ExecutionFailed as error:
            raise AssertionError(f"fails without Foresight as well ({said(error)})") from error

    def reported(self, nodes: Prompt, samples: str = "sample", **run: list) -> tuple[torch.Tensor, dict[str, Any]]:
        """And the report of the run: verdict=[node, slot], or watch."""
        nodes = nodes | {"save": node("SaveLatent", samples=[samples, 0], filename_prefix="tried")}
        if run:
            nodes["report"] = node("ForesightRunReport", **run)
            if "watch" in run:
                nodes["report"]["inputs"]["images"] = ["frames", 0]
                nodes["frames"] = node("VAEDecode", samples=[samples, 0], vae=["vae", 0])
        outputs = self.run(nodes)
        latent = load(self.server.view(outputs["save"]["latents"][0]))["latent_tensor"]
        return latent, *outputs.get("report", {}).get("foresight_report", [{}])


def said(error: Exception) -> str:
    """In one line, without a traceback."""
    return " ".join(str(error).partition("\n  File ")[0].split())[:300].replace("|", "/")


def models(unet: dict[str, Any] | None = None, tau: float = NEVER) -> Prompt:
    """The demo family up to its gate; unet: the node that loads its transformer."""
    return {
        "unet": unet or node("UNETLoader", unet_name=preset.TRANSFORMER, weight_dtype="default"),
        "model": node("ModelSamplingSD3", model=["unet", 0], shift=preset.SHIFT),
        "clip": node("ForesightDemoTextEncoder"),
        "vae": node("VAELoader", vae_name=preset.VAE),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=DEMO.prompt),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "latent": node("EmptyHunyuanLatentVideo", **SIZE),
        "l2r": node("ForesightL2RPreview", converter=preset.CONVERTER),
        "scorer": node("ForesightViCLIPScore", weights=preset.SCORER),
        "gate": node("ForesightFailureGate", l2r=["l2r", 0], scorer=["scorer", 0], prompt=DEMO.prompt, tau=tau),
    }


def sampled(before: Prompt, name: str = "euler", class_type: str = "KSampler", seed: int = SEED, **more: Any) -> Prompt:
    """By KSampler, or what takes its place."""
    return before | {"sample": node(
        class_type, model=["model", 0], positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
        seed=seed, steps=STEPS, cfg=preset.CFG, sampler_name=name, scheduler=preset.SCHEDULER, denoise=1.0, **more,
    )}  # fmt: skip


def custom(before: Prompt, sampler: dict[str, Any], class_type: str = "SamplerCustomAdvanced", **more: Any) -> Prompt:
    parts = {"noise": "noise", "guider": "guider", "sampler": "sampler", "sigmas": "sigmas", "latent_image": "latent"}
    return before | {
        "noise": node("RandomNoise", noise_seed=SEED),
        "guider": node("CFGGuider", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
                       cfg=preset.CFG),
        "sampler": sampler,
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler=preset.SCHEDULER, steps=STEPS, denoise=1.0),
        "sample": node(class_type, **{name: [id, 0] for name, id in parts.items()}, **more),
    }  # fmt: skip


def watched(nodes: Prompt) -> Prompt:
    """The same graph, whose sampler gets the model through Watch."""
    patched = {"watch": node("ForesightWatch", model=["model", 0], gate=["gate", 0])}
    nodes = json.loads(json.dumps(nodes))
    for name in ("sample", "guider"):
        if name in nodes and "model" in nodes[name]["inputs"]:
            nodes[name]["inputs"]["model"] = ["watch", 0]
    return nodes | patched


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))
