"""Samples of the demo transformer with the judge's verdict, for the scorer's last stage."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...demo.captions import prompts
from ...demo.flow import sample, start_noise
from ...demo.judge import find_objects, judge
from ...demo.preset import CFG, SAMPLER, SHIFT, STEPS
from ...demo.text import encode_text
from ...demo.wan_dit import WanTransformer
from ...demo.wan_vae import WanVAE, to_vae_space
from ...demo.world import Scene
from ...l2r.model import L2R
from ...scoring.preprocess import middle_frames
from .common import STATE, load_checkpoint, save_checkpoint
from .token_contents import TOKEN, found_contents, full
from .train_dit import EXPORT as TRANSFORMER
from .train_l2r import VAE

LATENT_FRAMES = 5
SHARES = {"easy": 1, "medium": 2, "hard": 3}  # easy prompts seldom fail
CHUNK = 24


@dataclass
class Samples:
    """N samples with the previews of K moments of each; `steps` are steps of 50, the last is the finished latent."""

    captions: list[str]
    scenes: list[Scene]
    prompt: Tensor  # [N], index into captions
    right: Tensor  # [N], the judge's verdict on the finished clip
    share: Tensor  # [N], share of the stated attributes that hold in it
    steps: list[int]
    previews: Tensor  # [N, K, frames the scorer sees, 64, 64, 3] uint8
    contents: Tensor  # [N, frames the scorer sees, 4, 4, contents]: what the finished clip holds there

    @cached_property
    def ranked(self) -> list[tuple[int, int]]:
        """Pairs of samples of one prompt, the first of which keeps more of it."""
        return [
            (a, b)
            for p in self.prompt.unique().tolist()
            for members in [(self.prompt == p).nonzero()[:, 0].tolist()]
            for a in members for b in members if self.share[a] > self.share[b]
        ]

    def mixed(self) -> list[int]:
        """Prompts with both outcomes: only they tell a look at the clip from a guess at the caption."""
        return [p for p in self.prompt.unique().tolist() if len(self.right[self.prompt == p].unique()) > 1]


def split_prompts(split: str, count: int) -> list[tuple[str, Scene]]:
    """About `count` prompts, by difficulty in the proportion of SHARES."""
    total = sum(SHARES.values())
    return [pair for name, share in SHARES.items() for pair in prompts(split, name, round(count * share / total))]


def weights_digest() -> str:
    """Eight digits of the transformer and decoder whose clips are learned from, and of how they sample."""
    digest = hashlib.sha256(f"{SAMPLER} {CFG} {SHIFT}".encode())
    for path in (TRANSFORMER, VAE):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def samples_file(name: str) -> Path:
    """Another transformer, decoder or way of sampling has other samples."""
    return STATE / f"scorer_samples_{name}_{weights_digest()}.pt"


@torch.no_grad()
def generate(
    name: str, split: str, models: tuple[WanTransformer, WanVAE], count: int, seeds: int, steps: int,
    moments: list[int], frames: int = LATENT_FRAMES,
) -> dict:
    """Samples `seeds` clips of each of about `count` prompts in `steps` steps and judges them; kept on disk, chunk by
    chunk, so that the same call goes on after a stop. `moments`: steps of the schedule whose x0 predictions are kept.
    """
    path = samples_file(name)
    transformer, vae = models
    pairs = split_prompts(split, count)
    order = [(p, seed) for p in range(len(pairs)) for seed in range(seeds)]
    data = load_checkpoint(path) or {"x0": [], "right": [], "share": [], "contents": []}
    data |= {"steps": steps, "moments": moments, "frames": frames}
    done = sum(len(part) for part in data["right"])
    for start in range(done, len(order), CHUNK):
        part = order[start : start + CHUNK]
        context = torch.stack([encode_text(pairs[p][0]) for p, _ in part])
        noise = torch.cat([start_noise(p, [seed], frames) for p, seed in part])
        kept: dict[int, Tensor] = {}

        def keep(step: int, sigma: float, x0: Tensor, kept: dict[int, Tensor] = kept) -> None:
            if step in moments:
                kept[step] = x0.half()

        final = sample(transformer, context, noise, steps, CFG, SHIFT, keep, seed=start)
        clips = vae.decode(to_vae_space(final)).movedim(1, -1).add(1).div(2)
        verdicts = [judge(clip, pairs[p][1]) for clip, (p, _) in zip(clips, part, strict=True)]
        data["x0"].append(torch.stack([*(kept[step] for step in moments), final.half()], 1))
        data["right"].append(torch.tensor([verdict.right for verdict in verdicts]))
        holds = [list(verdict.attributes.values()) for verdict in verdicts]
        data["share"].append(torch.tensor([sum(held) / len(held) for held in holds]))
        data["contents"].append(torch.stack([
            full(found_contents(find_objects(clip), range(0, len(clip), 4), TOKEN)).half() for clip in clips]))
        save_checkpoint(path, data)
        rate = torch.cat(data["right"]).float().mean()
        logging.info("%s: %d of %d samples, %.3f right", name, start + len(part), len(order), rate)
    return data


@torch.no_grad()
def load_samples(name: str, split: str, l2r: L2R, count: int, seeds: int, shown: int) -> Samples:
    """The samples of `generate(name, ...)` that are on disk, seen through L2R; `shown`: frames the scorer looks at."""
    data = load_checkpoint(samples_file(name))
    pairs = split_prompts(split, count)
    x0, right = torch.cat(data["x0"]), torch.cat(data["right"])
    chosen = middle_frames(data["frames"], shown)
    previews = torch.stack([
        torch.cat([l2r(part.float())[:, chosen].mul(255).round().byte() for part in moment.split(16)])
        for moment in x0.unbind(1)
    ], 1)
    steps = [round(step * STEPS / data["steps"]) for step in (*data["moments"], data["steps"])]
    prompt = torch.arange(len(right)) // seeds
    texts, scenes = zip(*pairs, strict=True)
    return Samples(list(texts), list(scenes), prompt, right, torch.cat(data["share"]), steps, previews,
                   torch.cat(data["contents"])[:, chosen])
