"""Latents of rendered clips and images of training prompts, and the text features of their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...demo.captions import prompts
from ...demo.text import TOKENS, WIDTH, encode_text, split_words
from ...demo.wan_vae import load_vae, to_model_space
from ...demo.world import DIFFICULTIES, FRAMES, Scene, arrange, draw
from .chunks import make_chunks
from .common import STATE, VAE, part, to_network
from .token_contents import token_contents

SHARES = {"easy": 0.25, "medium": 0.35, "hard": 0.4}
CAPTIONS, CLIPS = 12_000, 8_000  # the clips are of the first captions
CHUNK = 64


@torch.no_grad()
def encode_scenes(scenes: Sequence[Scene], seed: int, frames: int) -> tuple[Tensor, Tensor]:
    """Render scenes with `frames` frames. Gives model-space latents, fp16 [scenes, 16, F, 8, 8], and their tokens'
    contents, fp16."""
    vae, generator = load_vae(VAE), torch.Generator().manual_seed(seed)
    layouts = [arrange(scene, generator) for scene in scenes]
    latents = [to_model_space(vae.encode(to_network(part))).half() for part in draw(layouts, frames).split(8)]
    return torch.cat(latents), token_contents(layouts, frames).half()


def training_data(share: float, seed: int) -> dict[str, Any]:
    """Latents of rendered training prompts and their tokens' contents, made once and kept on disk.

    share: of CAPTIONS and CLIPS.
    captions: list of texts; images: [captions, 16, 1, 8, 8]; clips: [clips, 16, 5, 8, 8] of the first captions;
    images_contents, clips_contents: see `token_contents`.
    """
    captions, clips = part(CAPTIONS, share), part(CLIPS, share)
    latents, _ = encode_scenes([prompts("train", "hard", 1)[0][1]], seed, 1)
    digest = hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:8]  # another VAE or world, other latents
    pairs = [pair for name in DIFFICULTIES for pair in prompts("train", name, round(captions * SHARES[name]))]
    pairs = [pairs[i] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    data: dict[str, Any] = {"captions": [text for text, _ in pairs]}
    for name, count, frames in (("images", len(pairs), 1), ("clips", clips, FRAMES)):
        first_seed = seed * 10**6 + frames * 10**5
        jobs = [([scene for _, scene in pairs[i : min(i + CHUNK, count)]], first_seed + i // CHUNK, frames)
                for i in range(0, count, CHUNK)]  # fmt: skip
        chunks = make_chunks(STATE / f"{name}_{digest}_{captions}_{clips}_{seed}", encode_chunk, jobs)
        data[name], data[f"{name}_contents"] = (
            torch.cat([chunk[key] for chunk in chunks]) for key in ("latents", "contents"))
    return data


def encode_chunk(scenes: Sequence[Scene], seed: int, frames: int) -> dict[str, Tensor]:
    return dict(zip(("latents", "contents"), encode_scenes(scenes, seed, frames), strict=True))


class TextTable:
    """Features of many captions, fp16, without their padding."""

    def __init__(self, captions: Sequence[str]):
        self.rows = [encode_text(text)[: len(split_words(text))].half() for text in captions]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """[B, TOKENS, WIDTH] float32; index -1 is the empty caption."""
        out = torch.zeros(len(indices), TOKENS, WIDTH)
        for row, index in zip(out, indices, strict=True):
            if index >= 0:
                row[: len(self.rows[index])] = self.rows[index]
        return out
