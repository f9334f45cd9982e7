"""Samples of the demo transformer for test prompts, looked at from all sides: the raw material of `family_figures`.

One job is one prompt with all its seeds, sampled as one batch in plain torch, because that is faster. Tests hold that
sampler to ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ...evaluation.bench import Row
from ...evaluation.comfyui import comfyui_path, load_comfyui
from ...evaluation.results import environment
from ...evaluation.suites import Item
from ...evaluation.workers import Job
from ...l2r.checkpoint import load_l2r
from ...scoring.viclip import load_viclip
from ..training.common import CONVERTER, SCORER, TRANSFORMER, VAE
from ..training.scorer_data import Captions, network_frames

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


class FamilyWorker:
    """Does a job as `evaluation.workers.Worker` does: one method, one prompt with all its seeds."""

    def __init__(self, branches: int):
        self.branches = branches
        torch.set_num_threads(1)
        load_comfyui()
        models()

    def __call__(self, job: Job) -> dict[str, Any]:
        rows = look_at(job.item, [seed for _, seed in job.wanted], self.branches)
        here = environment("")
        return {"rows": [row | {"method": job.wanted[0][0]} for row in rows], "machine": here["machine"],
                "versions": {name: here[name] for name in ("comfyui", "torch", "python")}}  # fmt: skip


@torch.inference_mode()
def look_at(item: Item, seeds: Sequence[int], branches: int) -> list[Row]:
    """One prompt with all its seeds: what became of each, and what could be seen of it on the way.

    Each row: right; final_score; trace (of the preview at each step); measures: preview (the judge's smallest margin at
    the steps JUDGED), frame_right (a single frame of the same seed), branches (the verdicts after the x0 prediction of
    step BRANCHED was given fresh noise).
    """
    transformer, vae, l2r, viclip, captions = models()
    index, scene = item.index, item.scene
    context = encode_text(item.prompt)[None]
    text = F.normalize(viclip.encode_text(captions([item.prompt])), dim=-1)[0]
    count = len(seeds)

    def score(clips: Tensor) -> list[float]:
        features = F.normalize(viclip.encode_vision(network_frames(clips, viclip.config.frames)), dim=-1)
        return (features @ text).tolist()

    def decode(latents: Tensor) -> Tensor:
        return vae.decode(to_vae_space(latents)).movedim(1, -1).add(1).div(2).clamp(0, 1)

    def verdicts(latents: Tensor) -> list:
        return [judge(clip, scene) for clip in decode(latents)]

    trace: list[list[float]] = []
    margins: dict[int, list[float]] = {}
    branching = torch.empty(0)

    def watch(step: int, sigma: float, x0: Tensor) -> None:
        nonlocal branching
        preview = l2r(x0).clamp(0, 1)
        trace.append(score(preview))
        if step in JUDGED:
            margins[step] = [min(judge(clip, scene).margins.values()) for clip in preview]
        if step == BRANCHED:
            branching = x0

    noise = start_noise(index, seeds, FRAMES)
    final = sample(transformer, context.expand(count, -1, -1), noise, STEPS, CFG, SHIFT, watch, seed=index)
    clips = decode(final)
    right = [judge(clip, scene).right for clip in clips]
    single = start_noise(index, seeds, 1)
    frames = verdicts(sample(transformer, context.expand(count, -1, -1), single, STEPS, CFG, SHIFT, seed=index))
    again: list[list[bool]] = []
    sigmas = schedule(STEPS, SHIFT)[BRANCHED - 1 :]
    for branch in range(branches):
        fresh = start_noise(index, range(10_000 * (branch + 1), 10_000 * (branch + 1) + count), FRAMES)
        x = sigmas[0] * fresh + (1 - sigmas[0]) * branching
        again.append([v.right for v in verdicts(sample(
            transformer, context.expand(count, -1, -1), x, cfg=CFG, sigmas=sigmas, seed=branch + 1))])
    return [
        {
            "prompt_index": index, "difficulty": item.group, "prompt": item.prompt, "seed": seed,
            "right": bool(right[i]), "final_score": value, "notes": [],
            "trace": [[step, round(scores[i], 5), None] for step, scores in enumerate(trace, 1)],
            "measures": {
                "preview": {str(step): round(margin[i], 4) for step, margin in margins.items()},
                "frame_right": bool(frames[i].right), "branches": [bool(verdict[i]) for verdict in again],
            },
        }
        for i, (seed, value) in enumerate(zip(seeds, score(clips), strict=True))
    ]  # fmt: skip
