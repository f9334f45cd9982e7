"""What a stream costs, in ratios: ``python -m foresight.lab.benchmarks.streaming``.

A small causal Wan of random weights (times do not depend on what they hold) through ComfyUI's own loader and guider:
how the cost of a chunk goes once the window is full, what the cache saves against seeing the whole clip anew, and what
the hooks cost beside core's own class and sampler (ComfyUI 0.33). Ratios of neighbouring runs, because a machine's
speed drifts by more than what is measured. Writes docs/results/streaming.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...demo.wan_dit import WanTransformer
from ...evaluation.comfyui import load_comfyui
from ...evaluation.results import environment
from ...trials.stream import StreamSettings

ROOT = Path(__file__).resolve().parents[2]
SIGMAS = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])


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


def run(patcher, sampler, frames: int, size: int, callback: Callable | None = None) -> float:
    """Seconds of a clip of `frames` latents of size x size."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    generator = torch.Generator().manual_seed(1)
    guider.set_conds([[torch.randn(1, 32, 4096, generator=generator), {}]], [])
    latent = torch.zeros(1, 16, frames, size, size)
    noise = torch.randn(latent.shape, generator=generator)
    begin = time.perf_counter()
    with torch.inference_mode():
        guider.sample(noise, latent, sampler, SIGMAS, callback=callback, disable_pbar=True, seed=1)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def stream(**settings: Any):
    from ...sampling.stream_sampler import StreamSampler

    return StreamSampler(StreamSettings(**{"preset": "sigmas", "chunk": 1, **settings}))


def quartiles(ratios: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def by_chunk(patcher, size: int, chunks: int, window: int) -> list[float]:
    """Seconds of each chunk of one stream."""
    times = []
    run(patcher, stream(window=window, sink=1), chunks, size, lambda *_: times.append(time.perf_counter()))
    marks = times[3::4]  # the last step of each chunk; the pass for the cache belongs to the next
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def constant(patcher, size: int, chunks: int, window: int, repeat: int) -> dict[str, float]:
    """A late chunk's seconds against those right after the window is full."""
    ratios = []
    for _ in range(repeat):
        costs = by_chunk(patcher, size, chunks, window)[window:]
        third = len(costs) // 3
        ratios.append(statistics.median(costs[-third:]) / statistics.median(costs[:third]))
    return quartiles(ratios)


def cached(patcher, size: int, latents: int, repeat: int) -> dict[str, float]:
    """One forward of the last chunk over the cache, against one of the whole clip, which is what a chunk takes without:
    the network runs alone, as the hooks run it."""
    from ...sampling.stream_cache import KVCache
    from ...sampling.stream_model import CausalHooks, tokens_of

    network = patcher.model.diffusion_model
    shape = (1, 16, latents, size, size)
    clip, sigma, context = torch.randn(shape), torch.ones(1), torch.randn(1, 32, 4096)
    cache = KVCache(len(network.blocks), tokens_of(network, shape), latents)
    hooks = CausalHooks(network, cache, {}, "benchmark")

    def forward(x: torch.Tensor, options: dict) -> float:
        begin = time.perf_counter()
        network(x, 1000 * sigma, context, transformer_options=dict(options))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

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
    return quartiles(ratios)


def hooks_against_core(core, size: int, frames: int, repeat: int) -> dict[str, float]:
    """Seconds a forward, ours against core's sampler and class, on the same weights."""
    import comfy.samplers

    own, cores = stream(), comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 1})
    run(core, own, frames, size)
    run(core, cores, frames, size)
    ratios = []
    for at in range(repeat):
        first, second = (own, cores) if at % 2 else (cores, own)
        times = {first: run(core, first, frames, size)}
        times[second] = run(core, second, frames, size)
        ratios.append((times[own] / (5 * frames - 1)) / (times[cores] / (5 * frames)))
    return quartiles(ratios)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny network and few latents, to try the script")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "streaming.json")
    options = parser.parse_args(arguments)
    load_comfyui()
    from ...sampling.compat import CAUSAL_WAN

    sizes = {"dim": 128, "layers": 2, "ffn_dim": 128} if options.tiny else {"dim": 256, "layers": 4, "ffn_dim": 1024}
    size, chunks, window = (4, 12, 3) if options.tiny else (16, 24, 6)
    patcher, repeat = wan(sizes, False), max(2, options.repeat)
    run(patcher, stream(), 3, size)
    result: dict[str, Any] = {
        "network": sizes, "latent": [size, size], "window": window, "repeat": repeat,
        "late_chunk_against_first_of_full_window": constant(patcher, size, chunks, window, repeat),
        "whole_clip_against_cache": {
            str(latents): cached(patcher, size, latents, repeat)
            for latents in ((3, 5) if options.tiny else (7, 21, 63))
        },
        "hooks_against_core": None,
    }
    if CAUSAL_WAN:
        result["hooks_against_core"] = hooks_against_core(wan(sizes, True), size, 5 if options.tiny else 7, repeat)
    content = {"environment": environment("python -m foresight.lab.benchmarks.streaming"), **result}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
