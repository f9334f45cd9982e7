"""The demo family inside this process's ComfyUI: the same loaders, sampler and encoder as the demo workflows use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..demo import preset
from .comfyui import ROOT, load_comfyui

WATCHED = ("diffusion_models", "vae", "viclip", "l2r")  # folders of the weights that a watched run reads


@dataclass
class DemoFamily:
    """Loaded once; `inputs` makes the sampling inputs of one run."""

    steps: int = preset.STEPS
    shift: float = preset.SHIFT
    cfg: float = preset.CFG
    sampler: str = preset.SAMPLER
    weights: Path = ROOT / "weights"

    @cached_property
    def model(self):
        import comfy.sd
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        model = comfy.sd.load_diffusion_model(str(self.weights / "demo" / "diffusion_models" / preset.TRANSFORMER))
        return ModelSamplingSD3().patch(model, self.shift)[0]

    @cached_property
    def vae(self):
        import comfy.sd
        import comfy.utils

        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(self.weights / "demo" / "vae" / preset.VAE)))

    @cached_property
    def clip(self):
        from ..nodes.demo import word_clip

        return word_clip()

    @cached_property
    def scorer(self):
        from ..nodes.loaders import scorer_from_file

        return scorer_from_file(self.weights / "demo" / "viclip" / preset.SCORER)

    @cached_property
    def l2r(self):
        from ..l2r.checkpoint import load_l2r

        return load_l2r(self.weights / "l2r" / preset.CONVERTER)

    def gate(self, prompt: str, **rules):
        """The Dynamic Failure Gate with its default settings."""
        from ..nodes.inspection import build_gate
        from ..nodes.widgets import gate_defaults

        return build_gate(self.l2r, self.scorer, prompt, **{**gate_defaults(), **rules})

    def guider(self, prompt: str, negative: str = ""):
        import comfy.samplers

        from ..nodes.rewording import encode

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(encode(self.clip, prompt), encode(self.clip, negative))
        guider.set_cfg(self.cfg)
        return guider

    def reward(self, prompt: str, name: str):
        """What latent search looks for: "alignment", the gate's scorer on previews, or "latent", the trained reward."""
        from ..scoring.latent_reward import LatentReward
        from ..scoring.reward import AlignmentReward

        return AlignmentReward(self.gate(prompt)) if name == "alignment" else LatentReward(
            self.reward_model, self.scorer, prompt)  # fmt: skip

    @cached_property
    def reward_model(self):
        from ..scoring.latent_reward import load_reward

        return load_reward(self.weights / "demo" / "reward" / preset.REWARD)

    def inputs(self, prompt: str, seed: int, steps: int | None = None):
        import comfy.samplers

        from ..sampling.inputs import Inputs
        from ..sampling.noise import SeededNoise

        model_sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, preset.SCHEDULER, steps or self.steps)
        sampler = comfy.samplers.sampler_object(self.sampler)
        return Inputs(SeededNoise(seed), self.guider(prompt), sampler, sigmas, {"samples": torch.zeros(1, 16, 5, 8, 8)})

    def decode(self, latent) -> torch.Tensor:
        """[17, 64, 64, 3] in 0..1."""
        return self.vae.decode(latent["samples"])[0]


def start_worker() -> None:
    """What a process needs before it can sample in ComfyUI."""
    torch.set_num_threads(1)
    load_comfyui()
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False  # one bar is enough


def fingerprint(*parts: str) -> str:
    """Eight digits that change with any of the weights in the folders `parts`, by default those that a watched run
    reads: results of other weights must not be taken up again. The streaming students are no part of them."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "weights").rglob("*.safetensors")):
        if path.parent.name in (parts or WATCHED) and path.name not in preset.STUDENTS:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
