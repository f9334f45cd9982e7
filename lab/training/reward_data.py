"""What the demo family's latent reward learns from: x0 predictions on the way to clips, and what became of the clips.

Samples are clips of the demo transformer, several seeds a prompt, with three targets each by program: visual quality,
motion quality (both whatever the caption says) and the share of the caption's statements that hold. They are dear: 50
evaluations and a decoding each. Guesses cost one evaluation: the x0 prediction of a noised latent of a render. They
have no targets, and only show what the scorer makes of many scenes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...demo.clip_quality import motion_quality, visual_quality
from ...demo.flow import guided
from ...demo.judge import find_objects, judge
from ...demo.preset import CFG, STEPS
from ...demo.text import encode_text
from ...demo.world import FRAMES, Scene
from .chunks import make_chunks
from .common import STATE, part
from .latents import encode_scenes
from .scorer_samples import CHUNK, SampleSet, models, sampled, split_prompts, weights_digest

# Steps of 50 whose x0 predictions are kept: where a search looks, and a few later ones.
MOMENTS = (4, 6, 8, 10, 12, 14, 20, 30)
SEEDS = 6  # a prompt
# Samples to train on take half the steps, at half the cost; noise levels are about the same at the same share of the
# schedule.
TRAIN = SampleSet("train", "train", 120, SEEDS, STEPS // 2, tuple(moment // 2 for moment in MOMENTS))
VALIDATION = SampleSet("validation", "validation", 42, SEEDS, STEPS, MOMENTS)
RENDERS, SCENES_A_CHUNK = 1440, 48  # rendered clips of training prompts
GUESSES = 4  # noise levels for each rendered clip


@dataclass
class Samples:
    """N clips of P prompts with the x0 predictions of K moments each."""

    captions: list[str]  # [P]
    scenes: list[Scene]  # [P]
    prompt: Tensor  # [N], index into captions
    x0: Tensor  # [N, K, 16, 5, 8, 8], fp16
    sigmas: Tensor  # [K]
    targets: Tensor  # [N, 3], 0..1: visual quality, motion quality, share of the statements that hold


def sample_chunk(clips: SampleSet, number: int) -> dict[str, Tensor]:
    """Samples and judges the clips of a few prompts."""
    rows = clips.order()[number * CHUNK : (number + 1) * CHUNK]
    x0, sigmas, _, shown = sampled(clips, rows, number)
    targets = []
    for clip, (_, scene, *_) in zip(shown, rows, strict=True):
        held, objects = list(judge(clip, scene).attributes.values()), find_objects(clip)
        targets.append([visual_quality(objects, FRAMES), motion_quality(objects, FRAMES), sum(held) / len(held)])
    return {"x0": x0, "sigmas": sigmas, "targets": torch.tensor(targets)}


@torch.no_grad()
def guess_chunk(number: int, sigmas: tuple[float, float], renders: int) -> dict[str, Tensor]:
    """Renders a few scenes of training prompts, and guesses them again from GUESSES noise levels each."""
    transformer, _ = models()
    first = number * SCENES_A_CHUNK
    texts, scenes = zip(*split_prompts("train", renders)[first : first + SCENES_A_CHUNK], strict=True)
    context = torch.stack([encode_text(text) for text in texts])
    generator = torch.Generator().manual_seed(880_000 + number)
    latents, _ = encode_scenes(list(scenes), 880_000 + number, FRAMES)
    x0 = []
    for _ in range(GUESSES):
        sigma = sigmas[0] + (sigmas[1] - sigmas[0]) * torch.rand(len(texts), generator=generator)
        x = latents.float().lerp(torch.randn(latents.shape, generator=generator), sigma[:, None, None, None, None])
        x0.append(guided(transformer, x, sigma, context, CFG).half())
    return {"x0": torch.stack(x0, 1)}


def make_samples(clips: SampleSet, share: float) -> Samples:
    """The samples of a set; `share` of its prompts."""
    clips = replace(clips, prompts=part(clips.prompts, share))
    folder = STATE / f"reward_{weights_digest()}" / f"{clips.name}_{clips.prompts}"
    chunks = make_chunks(folder, sample_chunk, [(clips, n) for n in range(-(-len(clips.order()) // CHUNK))])
    x0, targets = (torch.cat([chunk[key] for chunk in chunks]) for key in ("x0", "targets"))
    texts, scenes = zip(*split_prompts(clips.split, clips.prompts), strict=True)
    return Samples(list(texts), list(scenes), torch.arange(len(x0)) // SEEDS, x0, chunks[0]["sigmas"], targets)


def make_guesses(sigmas: tuple[float, float], share: float) -> Tensor:
    """[N, GUESSES, 16, 5, 8, 8], fp16, from noise levels between the two sigmas."""
    renders = part(RENDERS, share)
    count = -(-len(split_prompts("train", renders)) // SCENES_A_CHUNK)
    folder = STATE / f"reward_{weights_digest()}" / f"guesses_{renders}"
    chunks = make_chunks(folder, guess_chunk, [(number, sigmas, renders) for number in range(count)])
    return torch.cat([chunk["x0"] for chunk in chunks])
