"""What a stream costs, in ratios: ``python -m foresight.lab.benchmarks.streaming``.

A small causal Wan of random weights (times do not depend on what they hold) through ComfyUI's own loader and guider:
how the cost of a chunk goes once the window is full, what the cache saves against seeing the whole clip anew, and what
the hooks cost beside core's own class and sampler (ComfyUI 0.33). Ratios of neighbouring runs, because a machine's
speed drifts by more than what is measured; and on a CPU the time that one thread was at work, because others may be at
work as well. Writes docs/results/streaming.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...demo.wan_dit import WanTransformer
from ...evaluation.comfyui import load_comfyui
from ...evaluation.results import environment
from ...trials.stream import StreamSettings

ROOT = Path(__file__).resolve().parents[2]
SIGMAS = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])
# As in Wan 1.3B at 480p: its feed-forward is 5.8 times as wide as it is, and a text has a third of a latent's tokens.
WIDER, WORDS = 5.8, 1 / 3


def wan(sizes: dict[str, int], causal: bool):
    """A ModelPatcher; causal: core's own class (ComfyUI 0.33)."""
    import comfy.sd

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WanTransformer(**sizes)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    metadata = {"metadata": {"config": json.dumps({"transformer": {"causal_ar": True}})}} if causal else {}
    return comfy.sd.load_diffusion_model_state_dict(network.state_dict(), **metadata)


def clock() -> float:
    """Seconds: of this thread's work, or with a GPU of the clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def run(patcher, sampler, frames: int, size: int, callback: Callable | None = None) -> float:
    """Seconds of a clip of `frames` latents of size x size."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, round(WORDS * size * size / 4), 4096, generator=generator)
    guider.set_conds([[text, {}]], [])
    latent = torch.zeros(1, 16, frames, size, size)
    noise = torch.randn(latent.shape, generator=generator)
    begin = clock()
    with torch.inference_mode():
        guider.sample(noise, latent, sampler, SIGMAS, callback=callback, disable_pbar=True, seed=1)
    return clock() - begin


def stream(**settings: Any):
    from ...sampling.stream_sampler import StreamSampler

    return StreamSampler(StreamSettings(**{"preset": "sigmas", "chunk": 1, **settings}))


def median(ratios: Sequence[float]) -> dict[str, float]:
    """With the interval in which the median of ever more pairs lies with a certainty of 95 % (by ranks)."""
    ranked, count = sorted(ratios), len(ratios)
    away = 0.98 * math.sqrt(count)
    low, high = ranked[max(0, math.floor(count / 2 - away))], ranked[min(count - 1, math.ceil(count / 2 + away))]
    return {"ratio": round(statistics.median(ranked), 4), "low": round(low, 4), "high": round(high, 4)}


def paired(first: Callable[[], float], second: Callable[[], float], repeat: int) -> dict[str, float]:
    """What `first` takes against `second`, in pairs of which either begins every other time."""
    ratios = []
    for at in range(repeat):
        if at % 2:
            over, under = second(), first()
            ratios.append(under / over)
        else:
            ratios.append(first() / second())
    return median(ratios)


def by_chunk(patcher, size: int, chunks: int, window: int) -> list[float]:
    """Seconds of each chunk of one stream."""
    times = []
    run(patcher, stream(window=window, sink=1), chunks, size, lambda *_: times.append(clock()))
    marks = times[3::4]  # the last step of each chunk; the pass for the cache belongs to the next
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def constant(patcher, size: int, chunks: int, window: int, repeat: int) -> dict[str, float]:
    """A late chunk's seconds against those right after the window is full."""
    ratios = []
    for _ in range(repeat):
        costs = by_chunk(patcher, size, chunks, window)[window:]
        third = len(costs) // 3
        ratios.append(statistics.median(costs[-third:]) / statistics.median(costs[:third]))
    return median(ratios)


def cached(patcher, size: int, latents: int, repeat: int) -> dict[str, float]:
    """One forward of the last chunk over the cache, against one of the whole clip, which is what a chunk takes without:
    the network runs alone, as the hooks run it."""
    from ...sampling.stream_cache import KVCache
    from ...sampling.stream_model import CausalHooks, tokens_of

    network = patcher.model.diffusion_model
    shape = (1, 16, latents, size, size)
    clip, sigma, context = torch.randn(shape), torch.ones(1), torch.randn(1, round(WORDS * size * size / 4), 4096)
    cache = KVCache(len(network.blocks), tokens_of(network, shape), latents)
    hooks = CausalHooks(network, cache, {}, "benchmark")

    def forward(x: torch.Tensor, options: dict) -> float:
        begin = clock()
        network(x, 1000 * sigma, context, transformer_options=dict(options))
        return clock() - begin

    ratios = []
    with torch.inference_mode():
        for at in range(latents):
            cache.open(1)
            hooks.begin((size, size))
            forward(clip[:, :, at : at + 1], hooks.options["transformer_options"])
            if at < latents - 1:
                cache.commit()
        for _ in range(repeat):
            hooks.begin((size, size))
            over_cache = forward(clip[:, :, -1:], hooks.options["transformer_options"])
            ratios.append(forward(clip, {}) / over_cache)
    cache.free()
    return median(ratios)


def hooks_against_core(core, size: int, chunk: int, frames: int, repeat: int) -> tuple[dict[str, float], ...]:
    """Ours against core's sampler and class on the same weights and as many forwards (a stream that goes on caches its
    last chunk too, as core does); and ours against itself, which says what such a ratio is worth."""
    import comfy.samplers

    own = stream(goes_on=True, window=frames, chunk=chunk)
    cores = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": chunk})
    for sampler in (own, cores):
        run(core, sampler, frames, size)
    return tuple(
        paired(lambda: run(core, own, frames, size), lambda other=other: run(core, other, frames, size), repeat)
        for other in (cores, own)
    )


def measured(tiny: bool, repeat: int) -> dict[str, Any]:
    from ...sampling.compat import CAUSAL_WAN

    sizes = {"dim": 128, "layers": 2} if tiny else {"dim": 256, "layers": 4}
    sizes["ffn_dim"] = round(WIDER * sizes["dim"])
    size, chunks, window = (4, 12, 3) if tiny else (16, 24, 6)
    patcher = wan(sizes, False)
    run(patcher, stream(), 3, size)
    result: dict[str, Any] = {
        "network": sizes, "latent": [size, size], "window": window, "repeat": repeat,
        "late_chunk_against_first_of_full_window": constant(patcher, size, chunks, window, repeat),
        "whole_clip_against_cache": {
            str(latents): cached(patcher, size, latents, repeat) for latents in ((3, 5) if tiny else (7, 21, 63))
        },
        "hooks_against_core": {}, "hooks_against_themselves": {},
    }  # fmt: skip
    for chunk in (1, 3) if CAUSAL_WAN else ():  # over the published length
        against = hooks_against_core(wan(sizes, True), size, chunk, 3 if tiny else 21, repeat)
        result["hooks_against_core"][str(chunk)], result["hooks_against_themselves"][str(chunk)] = against
    return result


@contextmanager
def one_thread() -> Iterator[None]:
    """So that this thread's work is all there is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny network and few latents, to try the script")
    parser.add_argument("--repeat", type=int, default=40, help="pairs of runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "streaming.json")
    options = parser.parse_args(arguments)
    load_comfyui()
    with one_thread():
        result = measured(options.tiny, max(2, options.repeat))
    content = {"environment": environment("python -m foresight.lab.benchmarks.streaming"), **result}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
