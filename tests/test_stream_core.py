"""Streams against core's own sampler for causal Wan (ComfyUI 0.33): the same clip, the same forwards, and more."""

from __future__ import annotations

import pytest
import tiny_wan
import torch
from streams import SIGMAS, causal, core_noise, core_streamed, largest, sampled, streamed

from foresight.sampling.compat import CAUSAL_WAN

pytestmark = pytest.mark.skipif(
    not CAUSAL_WAN, reason="this ComfyUI has no sampler for causal Wan"
)


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


@pytest.fixture(scope="module")
def core(patcher):
    return causal(patcher)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("block, frames, bound", [(1, 7, 0.0), (2, 7, 1e-5), (3, 7, 1e-5), (3, 9, 1e-5), (7, 7, 1e-5)])
def test_the_clip_is_cores(patcher, core, monkeypatch, block, frames, bound, batch):
    """To the last bit by frames. Core embeds the level once for each frame of a block, and the stock network once."""
    expected = core_streamed(core, frames, block, batch=batch)
    with core_noise(monkeypatch) as noise:
        noise.block = lambda frame: frame // block
        for model in (patcher, core):
            found, _ = streamed(model, frames, settings={"chunk": block}, batch=batch)
            assert largest(found, expected) <= bound


def test_forwards_are_cores_but_for_the_pass_that_nobody_reads(core):
    network, count = core.model.diffusion_model, [0]
    handle = network.head.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    try:
        core_streamed(core, 7)
        assert count == [35]
        _, sampler = streamed(core, 7)
        assert count == [35 + 34] and sampler.result["nfe"] == 34
        _, sampler = streamed(core, 7, settings={"goes_on": True, "window": 7})
        assert count == [35 + 34 + 35] and sampler.result["nfe"] == 35
    finally:
        handle.remove()


def test_an_image_that_core_starts_from(patcher, core, monkeypatch):
    """Core's node for image to video leaves its latent in the model's options; it is found there."""
    image = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    clones = [each.clone() for each in (patcher, core)]
    for clone in clones:
        clone.model_options.setdefault("transformer_options", {})["ar_config"] = {"initial_latent": image}
    expected = core_streamed(clones[1], 6)
    with core_noise(monkeypatch) as noise:
        noise.block = lambda frame: frame - 1
        # Core's noise is that of the whole latent, whose first frame it does not use up: blocks begin behind it.
        for clone in clones:
            assert largest(streamed(clone, 6)[0], expected) == 0
        assert largest(streamed(patcher, 6, start=image)[0], expected) == 0


def test_half_precision_is_cores(patcher, monkeypatch):
    """In bfloat16, as real models run: to the last bit by frames."""
    half = causal(patcher, dtype=torch.bfloat16)
    half.model.manual_cast_dtype = None  # on a CPU core would compute in float32, and its own cache would not fit
    expected = core_streamed(half, 5)
    with core_noise(monkeypatch):
        found, sampler = streamed(half, 5)
    assert torch.equal(found, expected)
    assert sampler.result["cache_bytes"] == sampler.result["cache_bytes_expected"] == 2 * 2 * 5 * 4 * 128 * 2


def test_what_core_cannot_do(core):
    """Guidance, and schedules by chunk, which core's sampler ends with errors or does not have."""
    guided, _ = streamed(core, 4, cfg=4.0)
    plain, _ = streamed(core, 4)
    assert torch.isfinite(guided).all() and not torch.equal(guided, plain)
    diagonal, sampler = streamed(core, 7, settings={"preset": "Diagonal Distillation"} | {"chunk": 1})
    assert sampler.result["nfe"] == 17 and torch.isfinite(diagonal).all()


def test_core_nodes_feed_it(core):
    from comfy_extras.nodes_ar_video import EmptyARVideoLatent

    from foresight.sampling.stream_sampler import StreamSampler
    from foresight.trials.stream import StreamSettings

    latent = EmptyARVideoLatent.execute(32, 32, 25, 1).args[0]["samples"]
    clip = sampled(core, StreamSampler(StreamSettings("Causal-Forcing")), latent=latent, sigmas=SIGMAS)
    assert clip.shape == (1, 16, 7, 4, 4)
