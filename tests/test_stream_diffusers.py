"""Streams against diffusers' pipeline for block-causal Wan (AnyFlow-FAR): one clip from the same weights and noise.

Its network is Wan's with a second time embedding, whose gate is closed here, and a far past at lower resolution, which
begins behind its last chunk here. It takes deterministic steps, which a refiner of noise makes ours as well: the noise
that it puts back is the noise that is left.
"""

from __future__ import annotations

import pytest
import tiny_wan
import torch
from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from streams import SIGMAS, largest, streamed
from tiny_wan import Noise

SIZE = 16, 32  # 128 tokens a latent: its attention pads to multiples of that, and sees what it has padded


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


@pytest.fixture(scope="module")
def pipeline(patcher):
    network = patcher.model.diffusion_model
    transformer = AnyFlowFARTransformer3DModel(
        num_attention_heads=1, in_channels=16, out_channels=16, ffn_dim=network.blocks[0].ffn[0].out_features,
        num_layers=len(network.blocks), gate_value=0.0,
    )  # fmt: skip
    weights = convert_wan_transformer_to_diffusers({name: w.clone() for name, w in network.state_dict().items()})
    missing, unexpected = transformer.load_state_dict(weights, strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} <= {"far_patch_embedding", "condition_embedder"}
    assert all("delta_embedder" in name or "far_patch" in name for name in missing)
    made = AnyFlowFARPipeline(None, None, transformer.eval(), None, FlowMapEulerDiscreteScheduler())
    made.set_progress_bar_config(disable=True)
    return made


class Deterministic:
    """Gives the noise that is left of a chunk's own: with it a step is Euler's."""

    def __init__(self, noise, start=0):
        self.noise, self.start = noise, start

    def __call__(self, noise, before, cache, chunk, step):
        begin = chunk.start - self.start
        if step == 1:
            self.left = self.noise[:, :, begin : begin + chunk.frames]
        else:
            sigma = chunk.sigmas[step - 1]
            self.left = (self.x - (1 - sigma) * before) / sigma
        sigma = chunk.sigmas[step]
        self.x = (1 - sigma) * before + sigma * self.left
        return self.left


@pytest.mark.parametrize("chunk, frames, start, cfg", [(1, 4, 0, 1.0), (2, 6, 0, 3.0), (3, 7, 1, 1.0)])
def test_the_clip_is_diffusers(patcher, pipeline, chunk, frames, start, cfg):
    """From noise alone, with guidance, and from an image."""
    noise = Noise(5).generate_noise({"samples": torch.zeros(1, 16, frames, *SIZE)})
    image = torch.randn(1, 16, start, *SIZE, generator=torch.Generator().manual_seed(6)) if start else None
    given = patcher.model.process_latent_in(image) if start else None
    sampler = {"refine": Deterministic(noise[:, :, start:], start), "settings": {"chunk": chunk}, "start": image}
    clip, _ = streamed(patcher, frames, noise=noise, cfg=cfg, size=SIZE, **sampler)
    parts = [start] * (start > 0) + [chunk] * (frames // chunk)
    pipeline.transformer.register_to_config(full_chunk_limit=len(parts))
    positive, negative = (tiny_wan.conditioning(seed)[0][0] for seed in (1, 2))
    with torch.inference_mode():
        expected = pipeline(
            prompt_embeds=positive, negative_prompt_embeds=negative if cfg > 1 else None, guidance_scale=cfg,
            height=8 * SIZE[0], width=8 * SIZE[1], num_frames=4 * frames - 3, sigmas=SIGMAS[:-1].tolist(),
            latents=noise, chunk_partition=parts, output_type="latent",
            use_mean_velocity=False, video_latents=None if given is None else given.transpose(1, 2),
        ).frames  # fmt: skip
    assert largest(patcher.model.process_latent_in(clip), expected) < 2e-5
