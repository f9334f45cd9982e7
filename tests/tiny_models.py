"""The families of video models that the pack is tried on: real architectures, tiny and random, guided as ComfyUI does.

Each builder gives Inputs for a sampler's name; image-to-video families start from core's own conditioning nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import comfy.samplers
import tiny_wan
import torch
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanImageToVideo
from tiny_wan import LATENT, conditioning

from foresight.sampling.compat import RAW_INPUT
from foresight.sampling.experts import I2V_BOUNDARY, T2V_BOUNDARY, TwoExpertGuider
from foresight.sampling.inputs import Inputs
from foresight.sampling.vp import fitting

IMAGE = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))


class Vae:
    """The shapes that a VAE gives; Wan's without more. every: frames a latent frame, 0 for VAEs of pictures."""

    def __init__(self, channels: int = 16, scale: int = 8, every: int = 4):
        self.channels, self.scale, self.every = channels, scale, every

    def encode(self, images):
        frames, height, width, _ = images.shape
        places = height // self.scale, width // self.scale
        shape = (frames, self.channels, *places)
        if self.every:
            shape = (1, self.channels, (frames - 1) // self.every + 1, *places)
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(images.sum())))


@dataclass(frozen=True)
class Family:
    """models: kinds of tiny_wan.KINDS, the high-noise expert first. start: whether clips start from an image."""

    models: tuple[str, ...]
    start: bool = False
    boundary: float = T2V_BOUNDARY

    def conditions(self, prompt: int) -> tuple[list, list, dict]:
        """Positive, negative and latent, as core's nodes give them; `prompt` seeds the words."""
        positive, negative = conditioning(prompt), conditioning(2)
        if self.models == ("2.2 5B",):
            image = IMAGE if self.start else None
            return positive, negative, Wan22ImageToVideoLatent.execute(Vae(48, 16), 64, 64, 9, 1, image).args[0]
        if self.start:
            return WanImageToVideo.execute(positive, negative, Vae(), 32, 32, 9, 1, IMAGE).args
        return positive, negative, {"samples": torch.zeros(1, *LATENT)}

    def guide(self, patchers: list, prompt: int = 1, cfg: float = 4.0):
        if len(patchers) > 1:
            guider = TwoExpertGuider(*patchers, boundary=self.boundary)
        else:
            guider = comfy.samplers.CFGGuider(*patchers)
        guider.set_conds(*self.conditions(prompt)[:2])
        guider.set_cfg(cfg)
        return guider

    def patchers(self) -> list:
        return [_model(kind, seed) for seed, kind in enumerate(self.models)]

    def inputs(
        self, sampler: str = "euler", cfg: float = 4.0, steps: int = 10, batch: int = 1,
        patch: Callable = lambda model: model,
    ) -> Inputs:
        patchers = [patch(patcher) for patcher in self.patchers()]
        sampling = patchers[0].get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        latent = self.conditions(1)[2]
        if batch > 1:
            latent = {name: value.repeat(batch, 1, 1, 1, 1) for name, value in latent.items()}
        made = fitting(comfy.samplers.sampler_object(sampler), sampling)
        return Inputs(tiny_wan.Noise(3), self.guide(patchers, cfg=cfg), made, sigmas, latent)


class CogVideoX(Family):
    def patchers(self) -> list:
        import tiny_cogvideox  # needs ComfyUI 0.33

        return [_once(tiny_cogvideox.model)]

    def conditions(self, prompt: int) -> tuple[list, list, dict]:
        return conditioning(prompt), conditioning(2), {"samples": torch.zeros(1, 16, 3, 8, 8)}


@cache
def _model(kind: str, seed: int):
    return tiny_wan.model(kind, seed)


@cache
def _once(make: Callable):
    return make()


FAMILIES = {
    "Wan 2.1 T2V": Family(("2.1 T2V",)),
    "Wan 2.1 I2V": Family(("2.1 I2V",), start=True),
    "Wan 2.2 14B T2V, two experts": Family(("2.1 T2V", "2.1 T2V")),
    "Wan 2.2 14B I2V, two experts": Family(("2.2 14B I2V", "2.2 14B I2V"), start=True, boundary=I2V_BOUNDARY),
    "Wan 2.2 5B T2V": Family(("2.2 5B",)),
    "Wan 2.2 5B I2V": Family(("2.2 5B",), start=True),
}
if RAW_INPUT:
    FAMILIES["CogVideoX T2V"] = CogVideoX(())


def with_mask(given: Inputs) -> Inputs:
    """An inpainting run: half of every frame is known."""
    samples = torch.randn(given.latent["samples"].shape, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(samples.shape[0], 1, *samples.shape[2:])
    mask[..., : mask.shape[-1] // 2] = 0
    return replace(given, latent={"samples": samples, "noise_mask": mask})
