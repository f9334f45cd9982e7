"""Samples of the demo transformer with the judge's verdict, for the scorer's last stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ...demo.captions import prompts
from ...demo.flow import sample, start_noise
from ...demo.judge import find_objects, judge
from ...demo.preset import CFG, SAMPLER, SHIFT, STEPS
from ...demo.text import encode_text
from ...demo.wan_dit import WanTransformer, load_transformer
from ...demo.wan_vae import WanVAE, load_vae, to_vae_space
from ...demo.world import Scene
from ...l2r.model import L2R
from ...scoring.preprocess import middle_frames
from .chunks import make_chunks
from .common import STATE, TRANSFORMER, VAE
from .token_contents import TOKEN, found_contents, full

SHARES = {"easy": 1, "medium": 2, "hard": 3}  # easy prompts seldom fail
CHUNK = 24


@dataclass(frozen=True)
class SampleSet:
    """Clips of about `prompts` prompts of a split, `seeds` each, sampled in `steps` steps; of the x0 predictions those
    after the steps `moments` are kept."""

    name: str
    split: str
    prompts: int
    seeds: int
    steps: int
    moments: tuple[int, ...]
    frames: int = 5  # latent ones

    def order(self) -> list[tuple[str, Scene, int, int]]:
        """text, scene, number of the prompt and seed of every clip."""
        return [(text, scene, number, seed) for number, (text, scene) in
                enumerate(split_prompts(self.split, self.prompts)) for seed in range(self.seeds)]  # fmt: skip


WATCHED = tuple(range(1, 15))  # the steps that the detector sees
# Samples to train on take half as many steps, at half the cost.
TRAIN, STILLS, VALIDATION = (
    SampleSet("train", "train", 480, 5, STEPS // 2, (2, 3, 4, 5, 6, 7, 10)),
    SampleSet("stills", "train", 120, 4, STEPS // 2, (6, 10, 12, 15), frames=1),
    SampleSet("validation", "validation", 60, 5, STEPS, WATCHED),
)


@dataclass
class Samples:
    """N samples with the previews of K moments of each, the last of which is the finished latent."""

    captions: list[str]
    scenes: list[Scene]
    prompt: Tensor  # [N], index into captions
    right: Tensor  # [N], the judge's verdict on the finished clip
    share: Tensor  # [N], share of the stated attributes that hold in it
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


@cache
def models() -> tuple[WanTransformer, WanVAE]:
    """This process's transformer and VAE."""
    return load_transformer(TRANSFORMER), load_vae(VAE)


@torch.no_grad()
def sampled(
    clips: SampleSet, rows: Sequence[tuple[str, Scene, int, int]], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 predictions [N, K, 16, F, 8, 8] fp16 and their noise levels [K], the final latents, and the clips
    [N, T, 64, 64, 3] of a few rows of the set's order."""
    transformer, vae = models()
    context = torch.stack([encode_text(text) for text, *_ in rows])
    noise = torch.cat([start_noise(number, [seed_], clips.frames) for _, _, number, seed_ in rows])
    moments: list[tuple[float, Tensor]] = []

    def keep(step: int, sigma: float, x0: Tensor) -> None:
        if step in clips.moments:
            moments.append((sigma, x0.half()))

    final = sample(transformer, context, noise, clips.steps, CFG, SHIFT, keep, seed=seed)
    sigmas, x0 = zip(*moments, strict=True)
    shown = vae.decode(to_vae_space(final)).movedim(1, -1).add(1).div(2)
    return torch.stack(x0, 1), torch.tensor(sigmas), final, shown


def sample_chunk(clips: SampleSet, start: int) -> dict[str, Tensor]:
    """Samples and judges CHUNK clips of a set."""
    rows = clips.order()[start : start + CHUNK]
    x0, _, final, shown = sampled(clips, rows, start)
    verdicts = [judge(clip, scene) for clip, (_, scene, *_) in zip(shown, rows, strict=True)]
    holds = [list(verdict.attributes.values()) for verdict in verdicts]
    return {
        "x0": torch.cat([x0, final.half()[:, None]], 1), "right": torch.tensor([verdict.right for verdict in verdicts]),
        "share": torch.tensor([sum(held) / len(held) for held in holds]),
        "contents": torch.stack([full(found_contents(find_objects(clip), range(0, len(clip), 4), TOKEN)).half()
                                 for clip in shown]),
    }  # fmt: skip


@torch.no_grad()
def make_samples(clips: SampleSet, l2r: L2R, shown: int) -> Samples:
    """The samples of a set, made where they are not on disk, seen through L2R; `shown`: frames the scorer looks at."""
    folder = STATE / f"scorer_samples_{weights_digest()}" / f"{clips.name}_{clips.prompts}"
    order = clips.order()
    chunks = make_chunks(folder, sample_chunk, [(clips, start) for start in range(0, len(order), CHUNK)])
    x0, right, share, contents = (torch.cat([chunk[key] for chunk in chunks]) for key in
                                  ("x0", "right", "share", "contents"))  # fmt: skip
    frames = middle_frames(clips.frames, shown)
    previews = torch.stack([
        torch.cat([l2r(part.float())[:, frames].mul(255).round().byte() for part in moment.split(16)])
        for moment in x0.unbind(1)
    ], 1)
    texts, scenes = zip(*split_prompts(clips.split, clips.prompts), strict=True)
    return Samples(list(texts), list(scenes), torch.arange(len(right)) // clips.seeds, right, share,
                   previews, contents[:, frames])  # fmt: skip
