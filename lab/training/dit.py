"""The recipe of the demo family's Wan transformer: as real text-to-video models, images first, then clips with images
mixed in.

``python -m foresight.lab.experiments.family_figures`` measures the shipped weights on held-out prompts.
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...demo.captions import prompts
from ...demo.wan_dit import HEAD_DIM, Attention, WanTransformer, rope_angles
from ...demo.world import DIFFICULTIES, FRAMES
from ...l2r.learner import Learner
from .common import STATE, TRANSFORMER
from .latents import TextTable, encode_scenes, training_data
from .loop import Record, Task, trapezoid
from .muon import Muon
from .token_contents import CONTENTS

HELD_OUT = 96  # clips
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
def validation_loss(model, x0: Tensor, table: TextTable) -> float:
    """On clips of held-out captions, always at the same noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator)
    sigma = draw_sigma(len(x0), "clips", generator)
    return velocity_loss(model, x0, table.batch(range(len(x0))), sigma, noise).mean().item()


class Transformer(Task):
    """scale: share of the data."""

    steps, every, columns, usable_early = 18_750, 250, ("loss", "validation"), True

    def __init__(
        self, dim: int = 128, layers: int = 8, ffn_dim: int = 512, seed: int = 1, scale: float = 1.0,
        export: Path = TRANSFORMER, compile: bool = True,
    ):
        self.out, self.checkpoint = export, STATE / f"dit_{dim}_{layers}_{ffn_dim}_{seed}.pt"
        self.data = training_data(scale, seed)
        self.table = TextTable(self.data["captions"])
        self.settings = {"dim": dim, "layers": layers, "ffn_dim": ffn_dim, "seed": seed,
                         "images": len(self.data["images"]), "clips": len(self.data["clips"])}  # fmt: skip
        pairs = [pair for name in DIFFICULTIES for pair in prompts("validation", name, HELD_OUT // 3)]
        self.held_out = encode_scenes([scene for _, scene in pairs], 1, FRAMES)[0].float()
        self.held_out_table = TextTable([text for text, _ in pairs])
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = WanTransformer(dim, layers, ffn_dim)
            initialise(model)
        self.model, self.reader = model, reader(model)
        # Muon for the blocks' matrices, AdamW for the rest, its widest matrix at a lower rate.
        named = dict(model.named_parameters())
        matrices = [p for k, p in named.items() if k.startswith("blocks.") and p.ndim == 2]
        widest = named.pop("text_embedding.0.weight")
        rest = [p for k, p in named.items() if not (k.startswith("blocks.") and p.ndim == 2)]
        groups = [{"params": [*rest, *self.reader.parameters()], "lr": LR}, {"params": [widest], "lr": TEXT_LR}]
        adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
        self.learner = Learner(model, Muon(matrices, MUON_LR), adam, decay=0.998)
        self.running = torch.full((2,), torch.nan)  # means of the losses on clips, once there are any
        self.parts = {"transformer": self.learner, "reader": self.reader, "generator": self.generator}
        if compile:
            for block in model.blocks:  # one graph serves all blocks, so this costs seconds, not minutes
                block.compile(dynamic=False)

    def update(self, step: int, steps: int) -> dict[str, Any]:
        generator, first = self.generator, step / steps < IMAGES_FIRST
        images = first or torch.rand((), generator=generator) < IMAGES_MIXED
        kind, count = ("images", IMAGE_BATCH) if images else ("clips", CLIP_BATCH)
        rows = torch.randint(len(self.data[kind]), (count,), generator=generator)
        x0, contents = self.data[kind][rows].float(), self.data[f"{kind}_contents"][rows].float()
        rows[torch.rand(count, generator=generator) < DROPOUT] = -1
        noise = torch.randn(x0.shape, generator=generator)
        hidden: list[Tensor] = []
        sigma = draw_sigma(count, kind, generator)
        loss = velocity_loss(self.model, x0, self.table.batch(rows.tolist()), sigma, noise, hidden).mean()
        logits = self.reader(hidden[len(self.model.blocks) // 2 - 1])
        read = F.binary_cross_entropy_with_logits(logits, contents, reduction="none").sum(2).mean()
        self.learner.step(loss + CONTENTS_WEIGHT * read, trapezoid(step / steps, decay=0.5))
        if first or not images:
            now = torch.stack([loss, read]).detach()
            self.running = now if self.running.isnan().all() else self.running.lerp(now, 0.02)
        return dict(zip(("loss", "contents"), self.running, strict=True))

    def measure(self) -> dict[str, float]:
        return {"validation": validation_loss(self.learner.result, self.held_out, self.held_out_table)}

    def export(self, record: Record) -> None:
        recipe = record.described("dit") | self.settings
        self.out.parent.mkdir(parents=True, exist_ok=True)
        state = {k: v.half().contiguous() for k, v in self.learner.result.state_dict().items()}
        save_file(state, self.out, {k: str(v) for k, v in recipe.items()})
        recipe |= {"curve": record.curve, "curve_columns": ["minutes", "step", "loss", "validation_loss"]}
        self.out.with_suffix(".json").write_text(json.dumps(recipe, indent=1) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.running = state["running"]
