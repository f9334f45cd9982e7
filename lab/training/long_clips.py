"""Latents of long rendered clips of training prompts, a part of which turn back, stop or set out on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...demo.captions import prompts
from ...demo.script import BACK, LATENTS, ON, STOP, Script, place, render
from ...demo.wan_vae import load_vae, to_model_space
from ...demo.world import DIFFICULTIES
from .chunks import make_chunks
from .common import STATE, VAE, part, to_network
from .latents import SHARES, TextTable

CLIPS = 2_000
CHUNK = 50
# How clips go on, and their relative shares. A turn has both its sides seen: no segment is shorter than two latents.
WAYS = {(ON,): 0.5, (ON, BACK): 0.25, (ON, STOP): 0.125, (STOP, ON): 0.125}


def draw_script(scene: Any, generator: torch.Generator) -> Script:
    """A clip of LATENTS latents, which may change its way at one of them."""
    ways = list(WAYS)
    way = ways[int(torch.multinomial(torch.tensor(list(WAYS.values())), 1, generator=generator))]
    variant = int(torch.randint(2**31, (), generator=generator))
    if len(way) == 1 or all(thing.motion in (None, "still") for thing in scene.objects):
        return Script(scene, ((LATENTS, ON),), variant)
    first = 3 + int(torch.randint(LATENTS - 4, (), generator=generator))
    return Script(scene, ((first, way[0]), (LATENTS - first, way[1])), variant)


@torch.no_grad()
def encode_scripts(scripts: Sequence[Script], seed: int) -> dict[str, Any]:
    """latents: model space, fp16 [clips, 16, LATENTS, 8, 8], of the scripts that there is room for; prompts and which:
    by clip, of its segments and the segment of each latent."""
    vae, generator = load_vae(VAE), torch.Generator().manual_seed(seed)
    fitting = [(script, layout) for script, layout in zip(scripts, place(scripts, generator), strict=True) if layout]
    scripts, layouts = zip(*fitting, strict=True)
    clips = render(scripts, layouts)
    latents = torch.cat([to_model_space(vae.encode(to_network(piece))).half() for piece in clips.split(8)])
    return {"latents": latents, "prompts": [script.prompts for script in scripts],
            "which": [script.which for script in scripts]}  # fmt: skip


def encode_chunk(scenes: Sequence[Any], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return encode_scripts([draw_script(scene, generator) for scene in scenes], seed)


class LongClips:
    """Rendered clips of LATENTS latents with the features of their prompts, made once and kept on disk.

    share: of CLIPS. latents [clips, 16, LATENTS, 8, 8] fp16; which [clips, LATENTS]: of the two prompts of each clip,
    which are the same where nothing changes; prompts: of each clip."""

    def __init__(self, share: float, seed: int):
        count = part(CLIPS, share)
        pairs = [pair for name in DIFFICULTIES for pair in prompts("train", name, round(count * SHARES[name]))]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
        scenes = [pairs[i][1] for i in order]
        digest = hashlib.sha256(VAE.read_bytes()).hexdigest()[:8]
        jobs = [(scenes[i : i + CHUNK], seed * 10**6 + i) for i in range(0, len(scenes), CHUNK)]
        chunks = make_chunks(STATE / f"long_{digest}_{len(scenes)}_{seed}", encode_chunk, jobs)
        self.latents = torch.cat([chunk["latents"] for chunk in chunks])
        self.which = torch.tensor([which for chunk in chunks for which in chunk["which"]])
        self.prompts = [prompts for chunk in chunks for prompts in chunk["prompts"]]
        self.table = TextTable([text for two in self.prompts for text in (two[0], two[-1])])

    def __len__(self) -> int:
        return len(self.latents)

    def texts(self, rows: Sequence[int]) -> Tensor:
        """[B, 2, TOKENS, WIDTH]; row -1 has the empty prompt."""
        flat = self.table.batch([2 * row + place if row >= 0 else -1 for row in rows for place in (0, 1)])
        return flat.unflatten(0, (-1, 2))
