"""Noise refiners in plain torch (AutoRefiner, arXiv 2512.11203): the network, and rollouts in which one refines.

What `sampling/noise_refiner.py` does through ComfyUI, for whole batches and with gradients (tests compare them).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...demo.stream import Stream, renoised
from ...demo.wan_dit import WanTransformer
from ...sampling.refiner_file import HEAD, NOISE, RefinerSettings, lora_names, set_name
from .streams import Streams, schedule_of

Draw = Callable[[], Tensor]


class LoRALinear(nn.Module):
    """A frozen layer and what is learned beside it: up(down(x)) alpha / rank, with alpha = rank as in the paper."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(F.linear(x, self.down), self.up)


def with_lora(base: WanTransformer, rank: int, seed: int, silent: bool) -> WanTransformer:
    """A copy of a transformer that learns by LoRA on every linear layer of its blocks. silent: with a head of zeros,
    which is learned whole, so that it begins as no change of a noise; else the head stays the base's."""
    network = copy.deepcopy(base).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for block in network.blocks:
            for part in (block.self_attn, block.cross_attn, block.ffn):
                for name, layer in list(part.named_children()):
                    if isinstance(layer, nn.Linear):
                        setattr(part, name, LoRALinear(layer, rank))
    if silent:
        head = network.get_submodule(HEAD).requires_grad_()
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return network


@torch.no_grad()
def merged(network: WanTransformer, base: WanTransformer) -> WanTransformer:
    """A network of `with_lora` of this base as a plain one."""
    state = {name.replace(".layer.", "."): weight.clone() for name, weight in network.state_dict().items()
             if not name.endswith((".down", ".up"))}  # fmt: skip
    for name, part in network.named_modules():
        if isinstance(part, LoRALinear):
            state[f"{name}.weight"] += part.up @ part.down
    plain = copy.deepcopy(base)
    plain.load_state_dict(state)
    return plain


def as_lora(network: WanTransformer) -> dict[str, Tensor]:
    """The same as a LoRA with a head, by the names that ComfyUI's loader reads."""
    state = {}
    for name, part in network.named_modules():
        if isinstance(part, LoRALinear):
            alpha = torch.tensor(float(len(part.down)))
            state |= dict(zip(lora_names(name), (part.down.data, part.up.data, alpha), strict=True))
    head = network.get_submodule(HEAD)
    return state | {set_name(f"{HEAD}.{part}"): getattr(head, part).data for part in ("weight", "bias")}


class Refiner:
    """A network that refines the noise of one batch of streams. context: as the stream's. changes: what it has given,
    in their order."""

    def __init__(self, network: WanTransformer, context: Tensor, how: RefinerSettings):
        self.network, self.how, self.words = network, how, network.read(context)
        self.changes: list[Tensor] = []

    def __call__(self, stream: Stream, noise: Tensor, before: Tensor | None, sigma: float) -> Tensor:
        """noise of the stream's open chunk [B, 16, chunk, h, w], changed. before: the x0 prediction that it is mixed
        with; sigma: of the step that follows."""
        level = 1000 * (1.0 if self.how.level == NOISE else sigma)
        x, places, mask, frames = noise, stream.places, None, noise.shape[2]
        levels = torch.full([len(noise), frames], level)
        if self.how.prediction and before is not None:
            x, places = torch.cat([before, noise], 2), places.repeat(2)
            levels = torch.cat([torch.zeros_like(levels), levels], 1)
            past = stream.memory[0].past if self.how.history else None
            own = noise[0, 0].numel() // 4  # tokens
            mask = torch.ones(2 * own, (0 if past is None else past[0].shape[2]) + 2 * own, dtype=torch.bool)
            mask[:own, -own:] = False  # the prediction does not see the noise
        change = self.network(
            x, levels, self.words, which=stream.which[:, places], times=places,
            memory=stream.memory if self.how.history else None, mask=mask,
        )[:, :, -frames:]  # fmt: skip
        stream.forwards += 1
        self.changes.append(change)
        return noise + change


PATH, START, WEIGHTS = "path", "start", "weights"


def refined_rollout(
    stream: Stream, schedule: Sequence[Sequence[float]], draw: Draw, refiner: Refiner | None = None,
    initial: bool = False, stop: int | None = None, gradient: bool = False,
) -> Tensor:
    """The x0 predictions [B, 16, latents, h, w] of each chunk's step `stop` (0-based; None: its last), which is also
    what later chunks see of it, by a forward of its own (algorithm 1 of the paper; with `stop` None a plain run).

    initial: the refiner changes each chunk's first noise, and not those between steps. gradient: through the last
    refinement and the step that follows it alone; with `initial` through all steps, as the refinement is before the
    first; without a refiner through the last step. What is seen of other chunks and of the prediction before has none.
    """
    chunks = []
    for number, sigmas in enumerate(schedule):
        last = len(sigmas) - 1 if stop is None else min(stop, len(sigmas) - 1)
        before = None
        for step in range(last + 1):
            with torch.set_grad_enabled(gradient and (initial or step == last)):
                noise = draw()
                if refiner is not None and (step == 0 if initial else refiner.how.refines(step)):
                    noise = refiner(stream, noise, before, sigmas[step])
                x = noise if before is None else renoised(before, sigmas[step], noise)
                x0 = stream.predict(x, sigmas[step])
            before = x0
        chunks.append(x0)
        if number + 1 < len(schedule):
            with torch.no_grad():
                stream.predict(x0.detach(), 0.0)
            stream.keep()
    return torch.cat(chunks, 2)


@torch.no_grad()
def sampled(
    streams: Streams, base: WanTransformer, network: WanTransformer | None, how: RefinerSettings, what: str = PATH,
    digits: str = "4", seed: int = 0,
) -> tuple[Tensor, int, Tensor]:
    """Latents [B, 16, F, 8, 8] of streams from the noise of `Streams.sampled`, the forwards that one clip took, and the
    changes of the noise [B, 16, changes, 8, 8]. network: a refiner, or with WEIGHTS what samples instead of the base.
    """
    generator, chunks = torch.Generator().manual_seed(seed), streams.which.shape[1]
    shape = (len(streams.which), 16, 1, 8, 8)
    stream = Stream(network if what == WEIGHTS and network is not None else base, streams.context, streams.which)
    refiner = None if network is None or what == WEIGHTS else Refiner(network, streams.context, how)
    latents = refined_rollout(
        stream, schedule_of(digits, chunks), lambda: torch.randn(shape, generator=generator), refiner, what == START
    )
    return latents, stream.forwards, torch.cat(refiner.changes if refiner else [torch.zeros(shape)], 2)
