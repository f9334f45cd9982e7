"""The backend of an evaluation over the API of a running ComfyUI: the example graphs, with their widgets set.

What comes back is what the same run gives in process; only the noise levels of the steps are not told.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import numpy as np
from PIL import Image

from .api_graph import node
from .backend import Sampled
from .graph_settings import FAMILIES
from .graphs import node_of, one_node
from .server import ComfyClient, Prompt

TIMEOUT = 4 * 3600.0  # seconds for one clip: a 14B model on a small GPU takes the better part of an hour
FRAMES, AGAIN = "frames", "again_"
REPORT = "ForesightRunReport"


class Api:
    """The ComfyUI at `url`, with this pack. ConnectionError where there is none."""

    family = None

    def __init__(self, url: str):
        self.client = ComfyClient(url)
        try:
            self.nodes = self.client.object_info()
        except (OSError, HTTPException, ValueError) as error:  # nobody there; no HTTP; no URL, or no JSON
            raise ConnectionError(
                f"no ComfyUI answers at {url} ({getattr(error, 'reason', None) or error}): start it, or correct the "
                "address (http://127.0.0.1:8188 is usual)."
            ) from None
        if "ForesightSampler" not in self.nodes:
            raise ConnectionError(f"the ComfyUI at {url} has no Foresight: install the pack there and start it again.")

    def where(self) -> tuple[str, dict[str, str]]:
        stats = self.client.system_stats()
        system, devices = stats["system"], stats["devices"]
        names = ", ".join(device["name"] for device in devices)
        machine = f"{os.cpu_count()} CPU cores, no GPU" if names == "cpu" else names
        versions = {
            "comfyui": system["comfyui_version"], "torch": system["pytorch_version"],
            "python": system["python_version"].split()[0],
        }  # fmt: skip
        return f"{machine} (over the API)", versions

    def sampled(self, graph: Prompt, report: str, shown: str) -> Sampled:
        """report, shown: ids of its Run Report and of what shows the clip's frames."""
        outputs = self.client.queue(graph, TIMEOUT, [report, shown])["outputs"]
        (run_report,) = outputs[report]["foresight_report"]
        if run_report["final_score"] is None:
            raise ValueError(f"the finished clip of {run_report['prompt']!r} has no score: the sampler gave NaN.")
        files = outputs[shown]["images"]
        frames = [np.asarray(Image.open(io.BytesIO(self.client.view(file))).convert("RGB")) for file in files]
        return Sampled(np.stack(frames), run_report["final_score"], run_report, source=graph)


class OverApi(Api):
    """model: a key of graph_settings.FAMILIES, whose files the server has."""

    def __init__(self, url: str, model: str, steps: int | None = None):
        super().__init__(url)
        self.model = model
        self.steps = steps or FAMILIES[model].steps

    def graph(self, prompt: str, seed: int, settings: Mapping[str, Any], inject: bool, refine: bool) -> Prompt:
        graph = one_node(self.model, self.nodes, prompt=prompt, seed=seed, steps=self.steps)
        sampler, decoded = node_of(graph, "ForesightSampler"), node_of(graph, "VAEDecode")
        refiner = {} if refine else {"refiner": "off"}
        graph[sampler]["inputs"] |= {"plan": "paper", "inject": inject, **settings, **refiner}
        return graph | {FRAMES: node("PreviewImage", images=[decoded, 0])}

    def sample(
        self, prompt: str, seed: int, settings: Mapping[str, Any], *, inject: bool = False, refine: bool = False
    ) -> Sampled:
        graph = self.graph(prompt, seed, settings, inject, refine)
        return self.sampled(graph, node_of(graph, REPORT), FRAMES)

    def regenerate(self, prompt: str, seed: int, failed: Sampled) -> Sampled:
        """The failed run's own graph goes on, so that ComfyUI has its clip still; the new run's nodes are those of the
        visual hierarchy."""
        graph = failed.source
        base = graph[node_of(graph, "ForesightSampler")]["inputs"]
        sampler, decoded = node_of(graph, "ForesightSampler"), node_of(graph, "VAEDecode")
        settings = FAMILIES[self.model]
        refiner, guider, sampled, frames = (AGAIN + name for name in ("refiner", "guider", "sampler", "decoded"))
        guided = {"positive": [refiner, 2], "negative": [refiner, 3], "cfg": base["cfg"]}
        if settings.low_noise_model:
            experts = {name: base[name] for name in ("low_noise_model", "low_noise_cfg")}
            guiding = node("ForesightTwoExpertGuider", high_noise_model=base["model"], **guided, **experts)
        else:
            guiding = node("CFGGuider", model=base["model"], **guided)
        if settings.rule:
            own = node("ForesightCogVideoXSampler", model=base["model"], rule=settings.rule, steps=self.steps)
            rule = {AGAIN + "own": own}
            steps = {"sampler": [AGAIN + "own", 0], "sigmas": [AGAIN + "own", 1]}
        else:
            rule = {
                AGAIN + "select": node("KSamplerSelect", sampler_name=base["sampler_name"]),
                AGAIN + "sigmas": node(
                    "BasicScheduler", model=base["model"], scheduler=base["scheduler"], steps=self.steps, denoise=1.0
                ),
            }
            steps = {"sampler": [AGAIN + "select", 0], "sigmas": [AGAIN + "sigmas", 0]}
        report, shown = AGAIN + "report", AGAIN + FRAMES
        graph = graph | rule | {
            refiner: node(
                "ForesightPromptRefiner", clip=base["clip"], prompt=prompt, negative=base["negative"],
                preview=[decoded, 0], verdict=[sampler, 1], scorer=base["scorer"], back_end="ablation",
            ),
            guider: guiding,
            AGAIN + "noise": node("RandomNoise", noise_seed=seed),
            sampled: node(
                "ForesightMonitoredSampler", noise=[AGAIN + "noise", 0], guider=[guider, 0], **steps,
                latent_image=base["latent_image"], previous=[refiner, 5], on_reject="stop", keep_steps=False,
            ),
            frames: node("VAEDecode", samples=[sampled, 0], vae=graph[decoded]["inputs"]["vae"]),
            report: node(REPORT, verdict=[sampled, 3], images=[frames, 0], scorer=base["scorer"], save=False),
            shown: node("PreviewImage", images=[frames, 0]),
        }  # fmt: skip
        clip = self.sampled(graph, report, shown)
        # The report tells of the failed run as well, which is counted already.
        first, *trials = clip.report["trials"]
        spent = {name: clip.report[name] - first[name] for name in ("nfe_video", "nfe_single_frame")}
        seconds = clip.report["seconds"] - sum(first["seconds"].values())
        again = clip.report | {"trials": trials, **spent, "nfe": sum(spent.values()), "seconds": seconds}
        return Sampled(clip.frames, clip.final_score, again)
