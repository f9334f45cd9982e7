"""Streams over a tiny random Wan: how they are sampled in tests, and core's causal class of the same weights."""

from __future__ import annotations

import json
from contextlib import contextmanager

import comfy.samplers
import comfy.sd
import tiny_wan
import torch
from tiny_wan import Noise

from foresight.sampling.stream_sampler import StreamSampler
from foresight.trials.stream import StreamSettings

SIGMAS = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])


def causal(patcher, **options):
    """The same weights in core's causal class (ComfyUI 0.33). options: of core's loader (dtype)."""
    metadata = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    weights = patcher.model.diffusion_model.state_dict()
    weights = {name: weight.clone() for name, weight in weights.items()}
    return comfy.sd.load_diffusion_model_state_dict(weights, options, metadata=metadata)


def sampled(
    patcher, sampler, frames=7, cfg=1.0, seed=3, batch=1, noise=None, guider=None, mask=None, callback=None,
    sigmas=SIGMAS, size=(4, 4), latent=None,
):  # fmt: skip
    """What the guider gives: [B, 16, frames, 4, 4]."""
    guider = guider or tiny_wan.guided(patcher, cfg)
    latent = torch.zeros(batch, 16, frames, *size) if latent is None else latent
    noise = Noise(seed).generate_noise({"samples": latent}) if noise is None else noise
    with torch.inference_mode():
        return guider.sample(
            noise, latent, sampler, sigmas, denoise_mask=mask, callback=callback, disable_pbar=True, seed=seed
        )


def streamed(patcher, frames=7, start=None, gate=None, previous=None, refine=None, settings=None, **run):
    """(latent, sampler) of a run whose settings are `settings`, over the schedule of SIGMAS by default."""
    sampler = StreamSampler(
        StreamSettings(**{"preset": "sigmas", "chunk": 1, **(settings or {})}), start, previous, gate, refine
    )
    return sampled(patcher, sampler, frames, **run), sampler


def core_streamed(patcher, frames=7, block=1, **run):
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": block})
    return sampled(patcher, sampler, frames, **run)


@contextmanager
def core_noise(monkeypatch):
    """Streams re-noise as core's sampler does: seeded by block and step."""

    def drawn(like, seed, frame, step, draw):
        generator = torch.Generator().manual_seed(seed + drawn.block(frame) * 1000 + step - 1)
        return torch.randn(like.shape, generator=generator)

    drawn.block = lambda frame: frame
    monkeypatch.setattr("foresight.sampling.stream_engine.drawn", drawn)
    yield drawn


def largest(a, b):
    return float((a - b).abs().max())
