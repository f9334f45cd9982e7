"""Batches that the demo family's scorer is trained on: rendered clips, and what the transformer guesses of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..l2r.model import L2R
from ..scoring.preprocess import middle_frames
from .captions import caption, split_of
from .flow import guided
from .preset import CFG
from .scorer_data import STATEMENTS, Captions, near_miss, network_frames, scene_pairs, soften, statements
from .text import encode_text
from .token_contents import TOKEN, contents, full
from .train_common import random_scenes
from .wan_dit import WanTransformer
from .world import FRAMES, MOTIONS, Scene, draw, seen

PAIRS = 24  # scenes a batch, each with its near miss
SHARES = {"easy": 0.3, "medium": 0.3, "hard": 0.4}
STILLS = 0.15  # share of batches that show one frame, as the single-frame probe does
PREVIEWS = 0.6  # share of batches of guesses, once there are any
# Noise levels of the guesses: those of the detector's window and a little more noise, from which most clips are still
# finished as what they were (docs/demo_family.md). A single frame is decided later.
SIGMAS, STILL_SIGMAS = (0.65, 0.92), (0.4, 0.85)
MOTION = torch.tensor([i for i, name in enumerate(STATEMENTS) if name.split()[-1] in MOTIONS])


@dataclass
class Batch:
    """N clips (a scene and its near miss in turn, or unrelated ones) and 2N captions: theirs, then a near miss each."""

    frames: Tensor  # [N, T, 3, 64, 64]
    ids: Tensor  # [2N, context]
    shown: Tensor | None  # [N, statements]: what the clip shows, where that is known
    stated: Tensor  # [2N, statements]: what the caption says
    contents: Tensor  # [N, T, 4, 4, contents]: what the 16x16 pixels of each frame hold


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
        told = [(own, other)[k % 2] for k, (own, other) in enumerate(zip(scenes[part], near[part], strict=True))]
        context = torch.stack([encode_text(caption(scene, generator)) for scene in told])
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
        self.scenes: list[Scene] = []
        clips, shown, held = [], [], []
        while len(self.scenes) < 2 * pairs:
            drawn = [scene for scene in random_scenes(generator, 256, SHARES) if split_of(scene) == split]
            scenes, layouts = scene_pairs(drawn, generator, split)
            self.scenes += scenes
            clips.append(draw(layouts)[:, kept])
            shown += [statements(seen(*pair)) for pair in zip(scenes, layouts, strict=True)]
            held.append(full(contents(layouts, kept, TOKEN)).half())
        self.clips, self.shown, self.held = torch.cat(clips), torch.stack(shown), torch.cat(held)
        self.previews: list[Previews] = []

    def random(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def batch(self) -> Batch:
        still = self.random() < STILLS
        if self.previews and self.random() < PREVIEWS:
            found = self.previews[still]
            chosen = torch.randint(len(found.scenes), (2 * PAIRS,), generator=self.generator)
            near = [found.near[i] for i in chosen.tolist()]
            return self.describe([found.scenes[i] for i in chosen.tolist()], near, found.frames[chosen], None,
                                 found.contents[chosen])
        first = torch.randint(len(self.scenes) // 2, (PAIRS,), generator=self.generator) * 2
        chosen = torch.stack([first, first + 1], 1).flatten()
        view, shown = self.views[self.random() < 0.5], self.shown[chosen]
        if still:  # one frame shows no motion, so nothing is asked about it
            view, shown = view[:1] * self.frames, shown.index_fill(1, MOTION, 0)
        clips = self.clips[chosen][:, view]
        if self.random() < 0.6:
            clips = soften(clips, self.generator)
        scenes = [self.scenes[i] for i in chosen.tolist()]
        near = [near_miss(scene, self.generator, still) for scene in scenes]
        return self.describe(scenes, near, clips, shown, self.held[chosen][:, view])

    def describe(
        self, scenes: list[Scene], near: list[Scene], clips: Tensor, shown: Tensor | None, held: Tensor
    ) -> Batch:
        said = scenes + near
        return Batch(network_frames(clips, self.frames), self.captions([caption(s, self.generator) for s in said]),
                     shown, torch.stack([statements(scene) for scene in said]), held.float())
