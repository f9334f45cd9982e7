"""What the demo family's latent reward learns from: x0 predictions on the way to clips, and what became of the clips.

Samples are clips of the demo transformer, several seeds a prompt, with three targets each by program: visual quality,
motion quality (both whatever the caption says) and the share of the caption's statements that hold. They are dear: 50
evaluations and a decoding each. Guesses cost one evaluation: the x0 prediction of a noised latent of a render. They
have no targets, and only show what the scorer makes of many scenes.

Every chunk is a file of its own, so that processes share the work and a stop loses one chunk each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from ...demo.clip_quality import motion_quality, visual_quality
from ...demo.flow import guided, sample, start_noise
from ...demo.judge import find_objects, judge
from ...demo.preset import CFG, SHIFT, STEPS
from ...demo.text import encode_text
from ...demo.wan_vae import to_vae_space
from ...demo.world import FRAMES, Scene
from .common import STATE, load_checkpoint, part, save_checkpoint
from .scorer_figures import models
from .scorer_samples import LATENT_FRAMES, split_prompts, weights_digest
from .train_dit import encode_scenes
from .train_l2r import VAE

SEEDS = 6  # a prompt
PROMPTS_A_CHUNK, SCENES_A_CHUNK = 4, 48
# Steps of 50 whose x0 predictions are kept: where a search looks, and a few later ones.
MOMENTS = (4, 6, 8, 10, 12, 14, 20, 30)
GUESSES = 4  # noise levels for each rendered clip


@dataclass(frozen=True)
class Set:
    """About `prompts` prompts of a split. Samples to train on take half the steps, at half the cost; noise levels are
    about the same at the same share of the schedule."""

    name: str
    split: str
    prompts: int
    steps: int


TRAIN = Set("train", "train", 120, STEPS // 2)
VALIDATION = Set("validation", "validation", 42, STEPS)
RENDERS = 1440  # rendered clips of training prompts


@dataclass
class Samples:
    """N clips of P prompts with the x0 predictions of K moments each."""

    captions: list[str]  # [P]
    scenes: list[Scene]  # [P]
    prompt: Tensor  # [N], index into captions
    x0: Tensor  # [N, K, 16, 5, 8, 8], fp16
    sigmas: Tensor  # [K]
    targets: Tensor  # [N, 3], 0..1: visual quality, motion quality, share of the statements that hold


@cache
def loaded():
    """This process's transformer and VAE."""
    torch.set_num_threads(1)
    return models()


@torch.no_grad()
def sample_chunk(path: Path, number: int, chosen: Set, prompts: int) -> None:
    """Samples and judges the clips of a few prompts; `prompts`: how many the set has in all."""
    transformer, vae = loaded()
    first = number * PROMPTS_A_CHUNK
    pairs = split_prompts(chosen.split, prompts)[first : first + PROMPTS_A_CHUNK]
    context = torch.stack([encode_text(text) for text, _ in pairs]).repeat_interleave(SEEDS, 0)
    noise = torch.cat([start_noise(first + p, range(SEEDS), LATENT_FRAMES) for p in range(len(pairs))])
    kept: list[tuple[float, Tensor]] = []

    def keep(step: int, sigma: float, x0: Tensor) -> None:
        if step * STEPS // chosen.steps in MOMENTS:
            kept.append((sigma, x0.half()))

    final = sample(transformer, context, noise, chosen.steps, CFG, SHIFT, keep, seed=number)
    targets = []
    for latent, (_, scene) in zip(final.split(1), [pair for pair in pairs for _ in range(SEEDS)], strict=True):
        clip = vae.decode(to_vae_space(latent))[0].movedim(0, -1).add(1).div(2)
        held, found = list(judge(clip, scene).attributes.values()), find_objects(clip)
        targets.append([visual_quality(found, FRAMES), motion_quality(found, FRAMES), sum(held) / len(held)])
    save_checkpoint(path, {"x0": torch.stack([x0 for _, x0 in kept], 1), "sigmas": torch.tensor([s for s, _ in kept]),
                           "targets": torch.tensor(targets)})


@torch.no_grad()
def guess_chunk(path: Path, number: int, sigmas: tuple[float, float], renders: int) -> None:
    """Renders a few scenes of training prompts, and guesses them again from GUESSES noise levels each."""
    transformer, _ = loaded()
    first = number * SCENES_A_CHUNK
    texts, scenes = zip(*split_prompts("train", renders)[first : first + SCENES_A_CHUNK], strict=True)
    context = torch.stack([encode_text(text) for text in texts])
    generator = torch.Generator().manual_seed(880_000 + number)
    latents, _ = encode_scenes(VAE, list(scenes), 880_000 + number, FRAMES)
    x0 = []
    for _ in range(GUESSES):
        sigma = sigmas[0] + (sigmas[1] - sigmas[0]) * torch.rand(len(texts), generator=generator)
        x = latents.float().lerp(torch.randn(latents.shape, generator=generator), sigma[:, None, None, None, None])
        x0.append(guided(transformer, x, sigma, context, CFG).half())
    save_checkpoint(path, {"x0": torch.stack(x0, 1)})


def make(name: str, count: int, work: Callable, arguments: tuple, workers: int) -> list[dict]:
    """The `count` chunks of a set, those that are not on disk yet made by processes of one thread each."""
    folder = STATE / f"reward_{weights_digest()}" / name
    paths = [folder / f"{number}.pt" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        logging.info("%s: %d of %d chunks to make", name, len(missing), count)
        # The models are too small for several threads.
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            given = (repeat(each) for each in arguments)
            for done, _ in enumerate(pool.map(work, [paths[n] for n in missing], missing, *given), 1):
                logging.info("%s: %d of %d", name, done, len(missing))
    return [load_checkpoint(path) for path in paths]


def make_samples(chosen: Set, share: float, workers: int) -> Samples:
    """The samples of a set; `share` of its prompts."""
    prompts = part(chosen.prompts, share)
    pairs = split_prompts(chosen.split, prompts)
    count = -(-len(pairs) // PROMPTS_A_CHUNK)
    chunks = make(f"{chosen.name}_{prompts}", count, sample_chunk, (chosen, prompts), workers)
    x0, targets = (torch.cat([chunk[key] for chunk in chunks]) for key in ("x0", "targets"))
    texts, scenes = zip(*pairs, strict=True)
    return Samples(list(texts), list(scenes), torch.arange(len(x0)) // SEEDS, x0, chunks[0]["sigmas"], targets)


def make_guesses(sigmas: tuple[float, float], share: float, workers: int) -> Tensor:
    """[N, GUESSES, 16, 5, 8, 8], fp16, from noise levels between the two sigmas."""
    renders = part(RENDERS, share)
    count = -(-len(split_prompts("train", renders)) // SCENES_A_CHUNK)
    chunks = make(f"guesses_{renders}", count, guess_chunk, (sigmas, renders), workers)
    return torch.cat([chunk["x0"] for chunk in chunks])
