"""Trains the demo family's Wan transformer: ``python -m foresight.lab.training.train_dit --steps 10000``.

As real text-to-video models: images first, then clips with images mixed in. The same command resumes after a stop.
``python -m foresight.lab.experiments.family_figures`` measures the shipped weights on held-out prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, repeat
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...demo.captions import prompts
from ...demo.text import TOKENS, WIDTH, encode_text, split_words
from ...demo.wan_dit import HEAD_DIM, Attention, WanTransformer, rope_angles
from ...demo.wan_vae import load_vae, to_model_space
from ...demo.world import DIFFICULTIES, FRAMES, Scene, arrange, draw
from ...l2r.averaging import Average
from .common import (
    DATA_HELP,
    STATE,
    WEIGHTS,
    Clock,
    Muon,
    load_checkpoint,
    part,
    save_checkpoint,
    to_network,
    today,
    trapezoid,
)
from .token_contents import CONTENTS, token_contents
from .train_vae import EXPORT as VAE_EXPORT

EXPORT = WEIGHTS / "diffusion_models" / "foresight_demo_wan.safetensors"
SHARES = {"easy": 0.25, "medium": 0.35, "hard": 0.4}
CAPTIONS, CLIPS = 12_000, 8_000  # latents on disk; the clips are of the first captions
IMAGES_FIRST = 0.3  # of the steps; real models learn images first, which is why their single frames are better
IMAGES_MIXED = 0.2  # of the batches after that
CLIP_BATCH, IMAGE_BATCH = 64, 96  # Muon costs the same for any batch
# Found by 300 steps on images: validation loss .65 with 2e-3 for all, .52 with 8e-3 for Muon, .45 with these.
MUON_LR, LR, TEXT_LR = 2e-2, 5e-3, 2e-3
TAPS = ((0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0))
TAP_STRENGTH = 4.6  # beside content of 0.3 a channel
CONTENTS_WEIGHT = 0.1  # a first guess: at the end both losses weigh about as much as 4 to 1
DROPOUT = 0.1  # of the captions, for classifier-free guidance
# Composition is settled between these noise levels: from real clips noised to .8, a model finished 85 % right that
# finished only 28 % right from .95 (docs/demo_family.md). Less noise hides the layout of a single frame: it has fewer
# values to be read from.
DECISIVE, DECISIVE_SHARE = {"clips": (0.8, 0.985), "images": (0.6, 0.95)}, 0.7


@torch.no_grad()
def encode_scenes(vae_path: Path, scenes: Sequence[Scene], seed: int, frames: int) -> tuple[Tensor, Tensor]:
    """Render scenes with `frames` frames. Gives model-space latents, fp16 [scenes, 16, F, 8, 8], and their tokens'
    contents, fp16."""
    vae, generator = load_vae(vae_path), torch.Generator().manual_seed(seed)
    layouts = [arrange(scene, generator) for scene in scenes]
    latents = [to_model_space(vae.encode(to_network(part))).half() for part in draw(layouts, frames).split(8)]
    return torch.cat(latents), token_contents(layouts, frames).half()


def training_data(vae_path: Path, share: float, seed: int) -> dict:
    """Latents of rendered training prompts and their tokens' contents, made once and kept on disk.

    share: of CAPTIONS and CLIPS.
    captions: list of texts; images: [captions, 16, 1, 8, 8]; clips: [clips, 16, 5, 8, 8] of the first captions;
    images_contents, clips_contents: see `token_contents`.
    """
    captions, clips = part(CAPTIONS, share), part(CLIPS, share)
    latents, _ = encode_scenes(vae_path, [prompts("train", "hard", 1)[0][1]], seed, 1)
    digest = hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:8]  # another VAE or world, other latents
    path = STATE / f"latents_{digest}_{captions}_{clips}_{seed}.pt"
    if data := load_checkpoint(path):
        return data
    pairs = [pair for name in DIFFICULTIES for pair in prompts("train", name, round(captions * SHARES[name]))]
    pairs = [pairs[i] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    data: dict = {"captions": [text for text, _ in pairs]}
    # Small convolutions gain nothing from a second thread: one process per core is twice as fast.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for name, count, frames in (("images", len(pairs), 1), ("clips", clips, FRAMES)):
            chunks = [[scene for _, scene in pairs[i : min(i + 64, count)]] for i in range(0, count, 64)]
            seeds = range(seed * 10**6 + frames * 10**5, seed * 10**6 + frames * 10**5 + len(chunks))
            encoded = list(pool.map(encode_scenes, repeat(vae_path), chunks, seeds, repeat(frames)))
            data[name], data[f"{name}_contents"] = (torch.cat(parts) for parts in zip(*encoded, strict=True))
            print(f"{count} {name} encoded", flush=True)
    save_checkpoint(path, data)
    return data


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


def initialise(model: WanTransformer) -> None:
    """Wan's initialisation (Xavier, small text and time embeddings, a silent head), and attention that starts as the
    taps of a convolution: each layer looks at one neighbour in x, time or y.

    One head of random queries takes thousands of steps to find its neighbours (cf. Trockman and Kolter 2023, "Mimetic
    Initialization of Self-Attention Layers").
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in (model.time_embedding[0], model.time_embedding[2], model.text_embedding[0], model.text_embedding[2]):
        nn.init.normal_(linear.weight, std=0.02)
    nn.init.xavier_uniform_(model.patch_embedding.weight.data.flatten(1))
    nn.init.zeros_(model.patch_embedding.bias)
    nn.init.zeros_(model.head.head.weight)
    for block, offset in zip(model.blocks, cycle(TAPS)):
        look_at(block.self_attn, offset)


@torch.no_grad()
def look_at(attention: Attention, offset: tuple[int, int, int]) -> None:
    """Make most of the attention fall on the token `offset` (time, y, x) away: constant queries and keys, which the
    rotary embedding turns into a function of the offset, outweigh those that depend on the content."""
    turns = rope_angles((2, 2, 2)).view(2, 2, 2, -1)
    turns = turns[1, 0, 0], turns[0, 1, 0], turns[0, 0, 1]  # by one token along each axis
    for projection in (attention.q, attention.k):
        projection.weight *= 0.3
    for turn, step in zip(turns, offset, strict=True):
        for pair in turn.nonzero()[:2, 0].tolist():  # the two fastest turns tell near from far
            for start in range(0, attention.q.out_features, HEAD_DIM):
                angle = turn[pair] * step
                attention.q.bias[start + 2 * pair] = TAP_STRENGTH
                attention.k.bias[start + 2 * pair] = TAP_STRENGTH * angle.cos()
                attention.k.bias[start + 2 * pair + 1] = -TAP_STRENGTH * angle.sin()
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(1.4)  # sharper than 1: three fifths of the attention falls on the neighbour


def reader(model: WanTransformer) -> nn.Module:
    """Reads the tokens' contents half-way through the model; only training needs it."""
    read = nn.Sequential(nn.LayerNorm(model.dim), nn.Linear(model.dim, len(CONTENTS)))
    nn.init.zeros_(read[1].weight)
    nn.init.constant_(read[1].bias, -3.0)  # most tokens hold nothing
    return read


def optimisers(model: WanTransformer, read: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest, its widest matrix at a lower rate."""
    named = dict(model.named_parameters())
    matrices = [p for k, p in named.items() if k.startswith("blocks.") and p.ndim == 2]
    widest = named.pop("text_embedding.0.weight")
    rest = [p for k, p in named.items() if not (k.startswith("blocks.") and p.ndim == 2)]
    rest += read.parameters()
    groups = [{"params": rest, "lr": LR}, {"params": [widest], "lr": TEXT_LR}]
    return [Muon(matrices, MUON_LR), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)]


def draw_sigma(count: int, kind: str, generator: torch.Generator) -> Tensor:
    """Noise levels [count] for "clips" or "images": evenly spread (lower variance than independent ones) over the
    decisive ones and over all."""
    t = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    low, high = DECISIVE[kind]
    decisive = torch.rand(count, generator=generator) < DECISIVE_SHARE
    return torch.where(decisive, low + (high - low) * t, t)


def velocity_loss(model, x0: Tensor, context: Tensor, sigma: Tensor, noise: Tensor,
                  hidden: list[Tensor] | None = None) -> Tensor:
    """Mean squared error of the velocity noise - x0, per item [B]. hidden: see WanTransformer."""
    level = sigma.view(-1, 1, 1, 1, 1)
    velocity = model(level * noise + (1 - level) * x0, sigma * 1000, context, hidden)
    return (velocity - (noise - x0)).square().flatten(1).mean(1)


@torch.no_grad()
def validation_loss(model, data: dict, table: TextTable) -> float:
    """On clips of held-out captions, always at the same noise."""
    generator = torch.Generator().manual_seed(0)
    x0 = data["clips"].float()
    noise = torch.randn(x0.shape, generator=generator)
    sigma = draw_sigma(len(x0), "clips", generator)
    return velocity_loss(model, x0, table.batch(range(len(x0))), sigma, noise).mean().item()


def held_out(vae_path: Path, count: int = 96) -> tuple[dict, TextTable]:
    pairs = [pair for name in DIFFICULTIES for pair in prompts("validation", name, count // 3)]
    latents, _ = encode_scenes(vae_path, [scene for _, scene in pairs], 1, FRAMES)
    return {"clips": latents}, TextTable([text for text, _ in pairs])


def write_weights(model: WanTransformer, metadata: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, path, {k: str(v) for k, v in metadata.items()})


def train(steps: int, dim: int, layers: int, ffn_dim: int, seed: int, share: float, export_path: Path,
          compile_blocks: bool) -> None:
    path = STATE / f"dit_{dim}_{layers}_{ffn_dim}_{seed}.pt"
    data = training_data(VAE_EXPORT, share, seed)
    table = TextTable(data["captions"])
    validation, validation_table = held_out(VAE_EXPORT)
    print("data ready", flush=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WanTransformer(dim, layers, ffn_dim)
        initialise(model)
    average, read = Average(model, 0.998), reader(model)
    steppers = optimisers(model, read)
    peaks = [group["lr"] for optimiser in steppers for group in optimiser.param_groups]
    clock, step, curve = Clock(), 0, []
    if state := load_checkpoint(path):
        model.load_state_dict(state["model"])
        read.load_state_dict(state["reader"])
        average.model.load_state_dict(state["average"])
        for optimiser, saved in zip(steppers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        generator.set_state(state["generator"])
        average.updates = step = state["step"]
        clock, curve = Clock(state["spent"]), state["curve"]
    if compile_blocks:
        for block in model.blocks:  # one graph serves all blocks, so this costs seconds, not minutes
            block.compile(dynamic=False)
    recipe = {"recipe": "foresight.lab.training.train_dit", "date": today(), "torch": torch.__version__, "dim": dim,
              "layers": layers, "ffn_dim": ffn_dim, "seed": seed, "images": len(data["images"]),
              "clips": len(data["clips"])}
    running = None
    while step < steps:
        progress = step / steps
        groups = [group for optimiser in steppers for group in optimiser.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * trapezoid(progress, decay=0.5)
        images = progress < IMAGES_FIRST or torch.rand((), generator=generator) < IMAGES_MIXED
        count = IMAGE_BATCH if images else CLIP_BATCH
        kind = "images" if images else "clips"
        chosen = torch.randint(len(data[kind]), (count,), generator=generator)
        x0, contents = data[kind][chosen].float(), data[f"{kind}_contents"][chosen].float()
        chosen[torch.rand(count, generator=generator) < DROPOUT] = -1
        noise = torch.randn(x0.shape, generator=generator)
        hidden: list[Tensor] = []
        loss = velocity_loss(
            model, x0, table.batch(chosen.tolist()), draw_sigma(count, kind, generator), noise, hidden).mean()
        told = F.binary_cross_entropy_with_logits(read(hidden[layers // 2 - 1]), contents, reduction="none")
        told = told.sum(2).mean()
        for optimiser in steppers:
            optimiser.zero_grad(set_to_none=True)
        (loss + CONTENTS_WEIGHT * told).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in steppers:
            optimiser.step()
        average.update(model)
        step += 1
        if not images or progress < IMAGES_FIRST:
            now = torch.stack([loss, told]).detach()
            running = now if running is None else running.lerp(now, 0.02)
        if step % 250 == 0 or step == steps:
            held = validation_loss(average.model, validation, validation_table)
            curve.append([round(clock.minutes, 2), step, round(running[0].item(), 4), round(held, 4)])
            print(f"{clock.minutes:.1f} min step {step} loss {running[0]:.4f} contents {running[1]:.3f} "
                  f"validation {held:.4f}", flush=True)
            save_checkpoint(path, {
                "model": model.state_dict(), "reader": read.state_dict(),
                "average": average.model.state_dict(), "step": step, "curve": curve,
                "optimisers": [optimiser.state_dict() for optimiser in steppers],
                "generator": generator.get_state(), "spent": clock.minutes})
            write_weights(average.model, recipe | {"minutes": round(clock.minutes, 1), "steps": step}, export_path)
    export_path.with_suffix(".json").write_text(json.dumps(recipe | {
        "minutes": round(clock.minutes, 1), "steps": step, "curve": curve,
        "curve_columns": ["minutes", "step", "loss", "validation_loss"]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ffn-dim", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=float, default=1.0, help=DATA_HELP)
    parser.add_argument("--export", type=Path, default=EXPORT)
    parser.add_argument("--no-compile", action="store_true")
    a = parser.parse_args()
    train(a.steps, a.dim, a.layers, a.ffn_dim, a.seed, a.data, a.export, not a.no_compile)


if __name__ == "__main__":
    main()
