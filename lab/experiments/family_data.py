"""Samples of the demo transformer for test prompts, looked at from all sides: the raw material of `family_figures`.

One job is one prompt with all its seeds, sampled as one batch in plain torch, because nothing of ComfyUI is needed here
and batches are faster. Tests hold that sampler to ComfyUI's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from ...demo.flow import sample, schedule, start_noise
from ...demo.judge import judge
from ...demo.preset import CFG, SHIFT, STEPS
from ...demo.text import encode_text
from ...demo.wan_dit import load_transformer
from ...demo.wan_vae import load_vae, to_vae_space
from ...demo.world import Scene
from ...evaluation.comfyui import comfyui_path
from ...l2r.checkpoint import load_l2r
from ...scoring.viclip import load_viclip
from ..training.scorer_data import Captions, network_frames
from ..training.train_dit import EXPORT as TRANSFORMER
from ..training.train_l2r import EXPORT as CONVERTER
from ..training.train_l2r import VAE
from ..training.train_scorer import EXPORT as SCORER

JUDGED = (2, 3, 5, 8, 10, 12, 14, 20, 30, 40)  # steps at which the judge looks at the preview
BRANCHED = 10  # step of 50 whose x0 prediction is re-noised
FRAMES = 5  # latent frames of a clip


@lru_cache(maxsize=1)
def models() -> tuple:
    """transformer, VAE, L2R, scorer and the scorer's captions; loaded once in each process."""
    viclip = load_viclip(SCORER)
    tokens = CLIPTokenizer.from_pretrained(str(comfyui_path() / "comfy" / "sd1_tokenizer"))
    captions = Captions(lambda text: tokens(text)["input_ids"], viclip.config.context)
    return load_transformer(TRANSFORMER), load_vae(VAE), load_l2r(CONVERTER), viclip, captions


def start_worker() -> None:
    torch.set_num_threads(1)
    models()


@torch.inference_mode()
def look_at(
    index: int, difficulty: str, prompt: str, scene: Scene, seeds: range, branches: int
) -> list[dict[str, Any]]:
    """One prompt with all its seeds: what became of each, and what could be seen of it on the way.

    Each record: right; attributes; score (of the finished clip); trace (of the preview at each step); preview (the
    judge's smallest margin at the steps JUDGED); frame_right (a single frame of the same seed); branches (the verdicts
    after the x0 prediction of step BRANCHED was given fresh noise).
    """
    transformer, vae, l2r, viclip, captions = models()
    context = encode_text(prompt)[None]
    said = F.normalize(viclip.encode_text(captions([prompt])), dim=-1)[0]
    count = len(seeds)

    def score(clips: Tensor) -> list[float]:
        seen = F.normalize(viclip.encode_vision(network_frames(clips, viclip.config.frames)), dim=-1)
        return (seen @ said).tolist()

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(to_vae_space(latents)).movedim(1, -1).add(1).div(2).clamp(0, 1)

    def verdicts(latents: Tensor) -> list:
        return [judge(clip, scene) for clip in decode(latents)]

    trace: list[list[float]] = []
    margins: dict[int, list[float]] = {}
    kept = torch.empty(0)

    def watch(step: int, sigma: float, x0: Tensor) -> None:
        nonlocal kept
        preview = l2r(x0).clamp(0, 1)
        trace.append(score(preview))
        if step in JUDGED:
            margins[step] = [min(judge(clip, scene).margins.values()) for clip in preview]
        if step == BRANCHED:
            kept = x0

    noise = start_noise(index, seeds, FRAMES)
    final = sample(transformer, context.expand(count, -1, -1), noise, STEPS, CFG, SHIFT, watch, seed=index)
    clips = decode(final)
    judged = [judge(clip, scene) for clip in clips]
    single = start_noise(index, seeds, 1)
    frames = verdicts(sample(transformer, context.expand(count, -1, -1), single, STEPS, CFG, SHIFT, seed=index))
    again: list[list[bool]] = []
    sigmas = schedule(STEPS, SHIFT)[BRANCHED - 1 :]
    for branch in range(branches):
        fresh = start_noise(index, range(10_000 * (branch + 1), 10_000 * (branch + 1) + count), FRAMES)
        x = sigmas[0] * fresh + (1 - sigmas[0]) * kept
        again.append([v.right for v in verdicts(sample(
            transformer, context.expand(count, -1, -1), x, cfg=CFG, sigmas=sigmas, seed=branch + 1))])
    return [
        {
            "prompt_index": index, "difficulty": difficulty, "prompt": prompt, "seed": seed, "right": judged[i].right,
            "attributes": judged[i].attributes, "score": value, "trace": [round(step[i], 5) for step in trace],
            "preview": {str(step): round(margin[i], 4) for step, margin in margins.items()},
            "frame_right": frames[i].right, "branches": [verdict[i] for verdict in again],
        }
        for i, (seed, value) in enumerate(zip(seeds, score(clips), strict=True))
    ]  # fmt: skip
