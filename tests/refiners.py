"""Noise refiners of the tiny random Wan, as files: whole, and as a LoRA with a head."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from foresight.sampling.refiner_file import (
    HEAD,
    LORA,
    MODEL,
    Described,
    RefinerSettings,
    lora_names,
    marks,
    set_name,
)

RANK = 4


def weights(network, silent=False, seed=5):
    """(by layer: down and up; the head's weight and bias) of a random LoRA; silent: with a head of zeros."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, weight in network.state_dict().items():
        if name.startswith("blocks.") and weight.ndim == 2:
            down = torch.randn(RANK, weight.shape[1], generator=generator) * 0.1
            layers[name.removesuffix(".weight")] = down, torch.randn(len(weight), RANK, generator=generator) * 0.1
    head = [torch.randn(network.get_parameter(f"{HEAD}.{part}").shape, generator=generator) * 0.05 * (not silent)
            for part in ("weight", "bias")]  # fmt: skip
    return layers, head


def described(network, kind, **settings):
    sizes = len(network.blocks), network.dim
    return Described("tiny", kind, *sizes, marks(network), "tiny_wan", RefinerSettings(**settings))


def tensors(network, kind, silent=False):
    layers, head = weights(network, silent)
    if kind == MODEL:
        state = {name: weight.clone() for name, weight in network.state_dict().items()}
        for name, (down, up) in layers.items():
            state[f"{name}.weight"] += up @ down
        return state | {f"{HEAD}.weight": head[0], f"{HEAD}.bias": head[1]}
    state = {}
    for name, (down, up) in layers.items():
        state |= dict(zip(lora_names(name), (down, up, torch.tensor(float(RANK))), strict=True))
    return state | {set_name(f"{HEAD}.weight"): head[0], set_name(f"{HEAD}.bias"): head[1]}


def written(path, network, kind=LORA, silent=False, **settings):
    metadata = described(network, kind, **settings).as_metadata()
    metadata["config"] = json.dumps({"transformer": {"causal_ar": True}} if kind == MODEL else {})
    save_file(tensors(network, kind, silent), path, metadata)
    return path
