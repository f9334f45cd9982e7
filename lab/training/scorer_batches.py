"""Batches that the demo family's scorer is trained on: rendered clips, and what the transformer guesses of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...demo.captions import caption, split_of
from ...demo.flow import guided
from ...demo.preset import CFG
from ...demo.text import encode_text
from ...demo.wan_dit import WanTransformer
from ...demo.world import FRAMES, MOTIONS, Layout, Scene, draw, seen
from ...l2r.model import L2R
from ...scoring.preprocess import middle_frames
from .common import random_scenes
from .scorer_data import (
    STATEMENTS,
    Captions,
    mirrored,
    near_miss,
    network_frames,
    scene_pairs,
    soften,
    spoil,
    statements,
)
from .scorer_samples import Samples
from .token_contents import TOKEN, contents, full

PAIRS = 16  # scenes a batch, each with a near miss and a spoilt clip
GUESSES = 48  # a batch
NEAR = 3  # captions of near misses for each clip
SHARES = {"easy": 0.3, "medium": 0.3, "hard": 0.4}
STILLS = 0.15  # share of batches that show one frame, as the single-frame probe does
PREVIEWS = 0.6  # share of batches of guesses, once there are any
# Noise levels of the guesses: about those of the detector's window. A single frame is decided later.
SIGMAS, STILL_SIGMAS = (0.5, 0.9), (0.35, 0.8)
MOTION = torch.tensor([i for i, name in enumerate(STATEMENTS) if name.split()[-1] in MOTIONS])


@dataclass
class Batch:
    """N clips and M captions. The first `known` clips and captions belong together in turn, one to one; further clips
    are spoilt, further captions those of near misses."""

    frames: Tensor  # [N, T, 3, 64, 64]
    ids: Tensor  # [M, context]
    truth: Tensor  # [N, M]: 1 where a caption is true of a clip
    weight: Tensor  # [N, M] of the sigmoid loss
    known: int
    shown: Tensor | None  # [known, statements]: what the first clips show, where that is known
    stated: Tensor  # [M, statements]: what the captions say
    contents: Tensor  # [N, T, 4, 4, contents]: what the 16x16 pixels of each frame hold, nan unknown


@dataclass
class Previews:
    """Guesses of clips of scenes, beside the near miss whose caption half of them were guessed with."""

    scenes: list[Scene]
    near: list[Scene]
    frames: Tensor  # uint8 [N, T, 64, 64, 3]
    contents: Tensor  # [N, T, 4, 4, contents]


@torch.no_grad()
def guess(
    transformer: WanTransformer, l2r: L2R, scenes: Sequence[Scene], latents: Tensor, held: Tensor, shown: int,
    generator: torch.Generator,
) -> Previews:
    """The transformer's x0 predictions of noised model-space latents [N, 16, F, 8, 8], through L2R.

    Half are guided by the scene's own caption, half by a near miss's: they look like clips that the transformer got
    wrong. held: [N, F * 16, contents] (`token_contents`). shown: frames that the scorer looks at.
    """
    still = latents.shape[2] == 1
    low, high = STILL_SIGMAS if still else SIGMAS
    near = [near_miss(scene, generator, still) for scene in scenes]
    frames, chosen = [], middle_frames(latents.shape[2], shown)
    for start in range(0, len(scenes), 48):
        part = slice(start, start + 48)
        named = [(own, other)[k % 2] for k, (own, other) in enumerate(zip(scenes[part], near[part], strict=True))]
        context = torch.stack([encode_text(caption(scene, generator)) for scene in named])
        x0 = latents[part].float()
        sigma = low + (high - low) * torch.rand(len(x0), generator=generator)
        x = x0.lerp(torch.randn(x0.shape, generator=generator), sigma[:, None, None, None, None])
        frames.append(l2r(guided(transformer, x, sigma, context, CFG))[:, chosen].mul(255).round().byte())
    held = held.unflatten(1, (-1, 4, 4))[:, chosen]
    return Previews(list(scenes), near, torch.cat(frames), held)


class Source:
    """Draws batches of rendered clips, and of `previews` once there are any.

    Clips are rendered once, as the frames that the scorer picks from a clip or a preview; wordings, blur and most near
    misses are drawn anew each time.
    """

    def __init__(self, captions: Captions, generator: torch.Generator, frames: int, pairs: int, split: str = "train"):
        self.captions, self.generator, self.frames = captions, generator, frames
        clip, preview = middle_frames(FRAMES, frames), middle_frames((FRAMES + 3) // 4, frames)
        kept = sorted({*clip, *(4 * i for i in preview)})
        self.views = [kept.index(i) for i in clip], [kept.index(4 * i) for i in preview]
        self.scenes: list[Scene] = []  # of scenes and near misses in turn; likewise:
        clips, shown, held = [], [], []
        spoilt: list[tuple[Tensor, Tensor]] = []  # a clip and what it holds for each pair, after its scene
        while len(self.scenes) < 2 * pairs:
            drawn = [scene for scene in random_scenes(generator, 256, SHARES) if split_of(scene) == split]
            scenes, layouts = scene_pairs(drawn, generator, split)
            self.scenes += scenes
            clips.append(draw(layouts)[:, kept])
            shown += [statements(seen(*pair)) for pair in zip(scenes, layouts, strict=True)]
            held.append(full(contents(layouts, kept, TOKEN)).half())
            spoilt.append(spoilt_clips(layouts[::2], kept, generator))
        self.clips, self.shown, self.held = torch.cat(clips), torch.stack(shown), torch.cat(held)
        self.spoilt, self.spoilt_held = (torch.cat(part) for part in zip(*spoilt, strict=True))
        self.previews: list[Previews] = []

    def random(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def batch(self) -> Batch:
        still = self.random() < STILLS
        if self.previews and self.random() < PREVIEWS:
            previews = self.previews[still]
            rows = torch.randint(len(previews.scenes), (GUESSES,), generator=self.generator)
            scenes, near = ([part[i] for i in rows.tolist()] for part in (previews.scenes, previews.near))
            return captioned(self.captions, self.generator, scenes, network_frames(previews.frames[rows], self.frames),
                             previews.contents[rows], near=near, still=still)
        pairs = torch.randint(len(self.spoilt), (PAIRS,), generator=self.generator)
        chosen = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()
        view, shown = self.views[self.random() < 0.5], self.shown[chosen]
        clips, held = self.clips[chosen], self.held[chosen]
        if still:  # one frame shows no motion, so nothing is asked about it
            view, shown = view[:1] * self.frames, shown.index_fill(1, MOTION, 0)
        else:
            clips, held = torch.cat([clips, self.spoilt[pairs]]), torch.cat([held, self.spoilt_held[pairs]])
        clips = clips[:, view]
        if self.random() < 0.6:
            clips = soften(clips, self.generator)
        batch = captioned(self.captions, self.generator, [self.scenes[i] for i in chosen.tolist()],
                          network_frames(clips, self.frames), held[:, view], still=still)
        batch.shown = shown
        own = torch.arange(batch.known)
        batch.weight[own, own ^ 1] = 0.0 if still else 1.0  # one frame may not tell a scene from its near miss
        rest = torch.arange(len(clips) - batch.known)
        batch.weight[batch.known + rest, 2 * rest] = 1
        return batch


def spoilt_clips(layouts: Sequence[Layout], kept: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips of spoilt layouts at the frames `kept`, uint8 [N, F, 64, 64, 3], and what they hold,
    [N, F, 4, 4, contents]."""
    before, after = zip(*(spoil(layout, generator) for layout in layouts), strict=True)
    turn = torch.randint(FRAMES // 3, 2 * FRAMES // 3 + 1, (len(layouts),), generator=generator)
    early = torch.tensor(kept) < turn[:, None]
    parts = ((draw(side)[:, kept], full(contents(side, kept, TOKEN)).half()) for side in (before, after))
    return tuple(torch.where(early[..., None, None, None], *pair) for pair in zip(*parts, strict=True))


def captioned(
    captions: Captions, generator: torch.Generator, scenes: Sequence[Scene], frames: Tensor, held: Tensor,
    near: Sequence[Scene] = (), still: bool = False,
) -> Batch:
    """A batch of clips of scenes, captioned anew, beside captions of NEAR near misses each; near: the first of these.
    frames, held: of the scenes' clips first, then of others that are no scene's."""
    known = len(scenes)
    misses = list(near)
    while len(misses) < NEAR * known:
        misses += [near_miss(scene, generator, still) for scene in scenes]
    named = [*scenes, *misses]
    own = torch.arange(known)
    truth = torch.zeros(len(frames), len(named))
    truth[own, own] = 1
    # The near misses decide where the threshold lies, the other pairs of the batch are easy.
    weight = torch.full_like(truth, 0.5 / len(named))
    weight[own, own] = 1
    for k in range(1, NEAR + 1):
        weight[own, own + k * known] = 1.5 / NEAR
    return Batch(frames, captions([caption(scene, generator) for scene in named]), truth, weight, known, None,
                 torch.stack([statements(scene) for scene in named]), held.float())


def samples_batch(
    samples: Samples, chosen: Sequence[int], moment: int, captions: Captions, generator: torch.Generator
) -> Batch:
    """Samples at one moment, each with its prompt's scene, half of them mirrored with it. A right one is wrong for
    every near miss; of a wrong one only that is known."""
    previews, held = samples.previews[chosen, moment], samples.contents[chosen]
    scenes = [samples.scenes[p] for p in samples.prompt[chosen].tolist()]
    if torch.rand((), generator=generator) < 0.5:
        turned = [mirrored(scene) for scene in scenes]
        flip = torch.tensor([split_of(scene) == "train" for scene in turned])
        scenes = [new if yes else old for old, new, yes in zip(scenes, turned, flip.tolist(), strict=True)]
        previews = torch.where(flip[:, None, None, None, None], previews.flip(3), previews)
        held = torch.where(flip[:, None, None, None, None], held.flip(3), held)
    batch = captioned(captions, generator, scenes, network_frames(previews, previews.shape[1]), held)
    right, own = samples.right[chosen].float(), torch.arange(len(chosen))
    batch.truth[own, own] = right
    batch.weight *= right[:, None]
    batch.weight[own, own] = 1
    return batch
