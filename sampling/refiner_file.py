"""Files of noise refiners (AutoRefiner, arXiv 2512.11203): what one says of itself, and which network it belongs to.

A file is either the whole network, which stock loaders read as any causal Wan (LoRA merged, its head the one that gives
the change of the noise), or a LoRA in the names that ComfyUI's own loader reads, with that head as `set_weight`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files.fields import Fields, FileError
from ..files.weights import open_weights

KEY = "foresight.noise_refiner"
MODEL, LORA = KINDS = ("model", "lora")
NOISE, _STEP = LEVELS = ("noise", "step")
HEAD = "head.head"
WAY_OUT = "Take a file that foresight.lab.training refiner has written (docs/streaming.md)."
MOST_BYTES = 64 << 30
MARKS = 64  # numbers that tell one network's weights from another's


@dataclass(frozen=True)
class RefinerSettings:
    """How a refiner's network is asked, which is as it was trained.

    level: the noise level that it is told. NOISE: 1, because what it is given is pure noise, of which the base knows
    that level alone; "step": that of the step to come, so that it knows the step. prediction: whether it reads the x0
    prediction before, as clean, in its own forward: written at a noise level its keys and values would be of another
    latent. history: whether it sees the keys and values of the chunks before. They are the base's: its own would take a
    forward more for each chunk. steps: before which (0-based, from 1 on) noise is refined; none: before all.
    """

    level: str = NOISE
    prediction: bool = True
    history: bool = True
    steps: tuple[int, ...] = ()

    def refines(self, step: int) -> bool:
        return step in self.steps if self.steps else step > 0


@dataclass(frozen=True)
class Described:
    """What a file says of itself. layers, width: of its base; base: the marks of that; made_for: its name."""

    name: str
    kind: str
    layers: int
    width: int
    base: tuple[float, ...]
    made_for: str
    settings: RefinerSettings

    def as_metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(asdict(self))}

    def require(self, network: nn.Module, node: str) -> None:
        """ValueError where a WanModel is not the one that it was trained on."""
        own, other = (self.layers, self.width), (len(network.blocks), network.dim)
        load = f"Load {self.made_for} with Load Diffusion Model, or take the refiner of the connected model."
        if own != other:
            raise ValueError(
                f"{node}: {self.name} was trained for another model, of {own[0]} blocks and width {own[1]}; the "
                f"connected one has {other[0]} and {other[1]}. {load}"
            )
        if not same(self.base, network):
            raise ValueError(
                f"{node}: {self.name} was trained for other weights of this architecture ({self.made_for}), and a "
                f"noise that is good for one model is none for another. {load}"
            )


def _biases(network: nn.Module) -> Tensor:
    """Numbers that LoRAs leave alone."""
    return torch.cat([block.self_attn.q.bias.detach().flatten() for block in network.blocks])


def marks(network: nn.Module) -> tuple[float, ...]:
    """Numbers of a network, of core's class or in plain torch, by which `same` knows it."""
    biases = _biases(network)
    at = torch.linspace(0, len(biases) - 1, MARKS).long()
    return tuple(round(value, 6) for value in biases[at.to(biases.device)].float().tolist())


def same(base: Sequence[float], network: nn.Module) -> bool:
    """Whether a network has these marks, in whatever precision it was saved and loaded."""
    dtype = _biases(network).dtype
    rounding = [torch.finfo(each) for each in (torch.bfloat16, dtype)]
    share, least = max(each.eps for each in rounding), max(each.smallest_normal for each in rounding)
    there = zip(base, marks(network), strict=True)
    return all(abs(one - other) <= share * abs(one) + least + 2e-6 for one, other in there)


def describe(path: Path) -> Described:
    """Of a refiner's file. FileError for what is none, before any weight is read."""
    with open_weights(path, KEY, "a noise refiner", WAY_OUT, MOST_BYTES) as file:
        told = file.description
        if told is None:
            raise FileError(f"{file.file} is no noise refiner: it does not say what it was trained for. {WAY_OUT}")
        described = _described(told)
        wrong = wrong_names(described, file.shapes)
        if wrong:
            raise told.wrong(f"it has no or other weights at '{wrong[0]}'")
        return described


def _described(told: Fields) -> Described:
    how = told.inner("settings")
    how.only(RefinerSettings.__dataclass_fields__)
    steps = how.numbers("steps", range(100), 1, 99, default=())
    settings = RefinerSettings(
        how.choice("level", LEVELS), how.flag("prediction"), how.flag("history"), tuple(map(int, steps))
    )
    return Described(
        told.text("name", most=100), told.choice("kind", KINDS), told.whole("layers", 1, 1000),
        told.whole("width", 1, 100_000), told.numbers("base", range(MARKS, MARKS + 1), -1e9, 1e9),
        told.text("made_for", most=100), settings,
    )  # fmt: skip


def lora_names(name: str) -> tuple[str, str, str]:
    """Down, up and alpha of a layer, as ComfyUI's loader reads them."""
    return tuple(f"diffusion_model.{name}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha"))


def set_name(name: str) -> str:
    """Of a weight that takes the place of the base's."""
    return f"diffusion_model.{name.removesuffix('.weight')}.set_weight"


def wrong_names(described: Described, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors that a file of this kind has to have and does not, or has and must not."""
    if described.kind == MODEL:
        return [name for name in (f"{HEAD}.weight", f"blocks.{described.layers - 1}.self_attn.q.weight")
                if name not in shapes]  # fmt: skip
    wanted = {set_name(f"{HEAD}.{part}") for part in ("weight", "bias")}
    layers = {name.rsplit(".", 2)[0] if name.endswith("weight") else name.rsplit(".", 1)[0]
              for name in shapes if name.startswith("diffusion_model.") and name not in wanted}  # fmt: skip
    wanted |= {name for layer in layers for name in lora_names(layer.removeprefix("diffusion_model."))}
    return sorted(wanted ^ shapes.keys())
