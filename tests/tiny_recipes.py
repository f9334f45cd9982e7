"""What the recipes of the streaming family are tried on: a small random network, and a few random clips that nobody
decodes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from foresight.demo.wan_dit import WanTransformer
from foresight.lab.training import causal, consistency, distil

RECIPES = causal, consistency, distil
WHICH = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7])


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CONTEXT = noise(1, 2, 2, 5, 24)


def network():
    """Two layers, the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WanTransformer(layers=2, ffn_dim=128, text_dim=24).eval().requires_grad_(False)
        torch.nn.init.normal_(model.head.head.weight, std=0.1)
        for block in model.blocks:
            torch.nn.init.normal_(block.self_attn.q.bias, std=0.1)
    return model


class Clips:
    latents, which = noise(11, 8, 16, 7, 8, 8).half(), WHICH.repeat(4, 1)
    prompts = [["one", "two"]] * 8

    def __init__(self, *_):
        pass

    def __len__(self):
        return 8

    def texts(self, rows):
        return noise(12, len(rows), 2, 5, 24)


class Measure:
    context, which, vae = CONTEXT, WHICH, None
    scripts = [SimpleNamespace(prompts=["one"])] * 2

    def __init__(self, *_):
        pass

    def right(self, *_, **__):
        return 0.5

    def judged(self, _):
        return [[SimpleNamespace(right=True)]] * 2


def stand_in(monkeypatch, path, start):
    """Has the recipes learn from these, two clips at a time, and begin with the network `start`, written to `path`."""
    for module in RECIPES:
        monkeypatch.setattr(module, "LongClips", Clips)
        monkeypatch.setattr(module, "Measure", Measure)
        monkeypatch.setattr(module, "BATCH", 2)
    for recipe in (causal.Causal, consistency.Consistency, distil.Distil):
        monkeypatch.setattr(recipe, "every", 2)
    save_file({key: value.half().contiguous() for key, value in start.state_dict().items()}, path)
    return path
