"""A random Wan 2.1 transformer of the real architecture, small enough for a test, through ComfyUI's own loader."""

from __future__ import annotations

import comfy.latent_formats
import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import torch

from foresight.refiner.base import Rewording
from foresight.sampling.inputs import Inputs
from foresight.scoring.detector import DetectorSettings
from foresight.scoring.inspector import Gate

LATENT = (16, 3, 4, 4)


KINDS = {
    "2.1 T2V": {},  # and each expert of 2.2 14B T2V
    "2.1 I2V": {"model_type": "i2v", "in_dim": 36},
    "2.2 14B I2V": {"in_dim": 36},
    "2.2 5B": {"in_dim": 48, "out_dim": 48},
}


def network(kind="2.1 T2V", seed=0):
    """Core's module; the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = comfy.ldm.wan.model.WanModel(
            **{"model_type": "t2v", **KINDS[kind]}, dim=128, ffn_dim=128, num_heads=1, num_layers=2,
            operations=comfy.ops.disable_weight_init,
        )
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.06)
    return made


def model(kind="2.1 T2V", seed=0):
    """A ModelPatcher of `network`."""
    return comfy.sd.load_diffusion_model_state_dict(network(kind, seed).state_dict())


def conditioning(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 8, 4096, generator=generator), {}]]


class Noise:
    """ComfyUI's RandomNoise node output."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, latent):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(latent["samples"].shape, generator=generator)


def guided(patcher, cfg=4.0, prompt=1):
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(conditioning(prompt), conditioning(2))
    guider.set_cfg(cfg)
    return guider


def inputs(patcher, sampler="euler", steps=10, cfg=4.0, seed=3, batch=1, scheduler="simple") -> Inputs:
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps)
    latent = {"samples": torch.zeros(batch, *LATENT)}
    return Inputs(Noise(seed), guided(patcher, cfg), comfy.samplers.sampler_object(sampler), sigmas, latent)


class MeanL2R(torch.nn.Module):
    """A stand-in converter: three latent channels, squashed to 0..1."""

    name = "mean"
    channels, scale = 16, 1

    def forward(self, latent, frames=None):
        seen = latent[:, :3].permute(0, 2, 3, 4, 1).sigmoid()
        return seen if frames is None else seen[:, frames]


class ScriptedScorer:
    """Gives the scores it was told, in order; the last one goes on. A score may be an exception to raise."""

    name, tau, delta, device = "scripted", 0.22, 0.05, torch.device("cpu")

    def __init__(self, *scores):
        self.scores = list(scores)
        self.calls = 0
        self.prompts = []

    def encode_text(self, prompt):
        self.prompts.append(prompt)
        return torch.ones(4)

    def looks_at(self, count):
        return list(range(count))

    def score(self, frames, text):
        score = self.scores[min(self.calls, len(self.scores) - 1)]
        self.calls += 1
        if isinstance(score, BaseException):
            raise score
        return score


class CancellingScorer(ScriptedScorer):
    """Presses the user's cancel at its n-th call."""

    def __init__(self, at, *scores):
        super().__init__(*scores)
        self.at = at

    def score(self, frames, text):
        if self.calls + 1 == self.at:
            comfy.model_management.interrupt_current_processing()
        return super().score(frames, text)


def gate(*scores, prompt="a red circle", **changes) -> Gate:
    settings = {
        "l2r": MeanL2R(), "scorer": ScriptedScorer(*scores), "prompt": prompt,
        "video": DetectorSettings.video(), "single_frame": DetectorSettings.single_frame(),
    }
    return Gate(**{**settings, **changes})


class Rewriter:
    """A refiner that always has the same better prompt."""

    name = "rewriter"

    def reword(self, request):
        return Rewording("a clearly red circle", request.negative, "", ())


class Conditioned:
    """Stands for CLIP in reguide(): each prompt has a conditioning of its own."""

    def __init__(self, patcher):
        self.patcher = patcher
        self.prompts = []

    def __call__(self, prompt, negative):
        self.prompts.append((prompt, negative))
        return guided(self.patcher, prompt=len(prompt))
