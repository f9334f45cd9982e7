"""A random CogVideoX transformer of the real architecture, small enough for a test, through ComfyUI's own loader.

Needs ComfyUI 0.33 or newer.
"""

from __future__ import annotations

import comfy.ldm.cogvideo.model
import comfy.ops
import comfy.sd
import torch
from tiny_wan import Noise, guided

from foresight.sampling.inputs import Inputs
from foresight.sampling.vp import trailing_sigmas, vp_sampler

LATENT = (16, 3, 8, 8)


def model():
    """A ModelPatcher; the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(
            num_attention_heads=2, num_layers=2, time_embed_dim=64, text_embed_dim=4096,
            use_rotary_positional_embeddings=True, operations=comfy.ops.disable_weight_init,
        )
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.06)
    return comfy.sd.load_diffusion_model_state_dict(network.state_dict())


def inputs(patcher, rule="ddim", steps=10) -> Inputs:
    sigmas = trailing_sigmas(patcher.get_model_object("model_sampling").sigmas, steps)
    return Inputs(Noise(3), guided(patcher), vp_sampler(rule), sigmas, {"samples": torch.zeros(1, *LATENT)})
