"""A stream through the stock Wan network: equal to a block-causal mask over the whole clip, with a window or none."""

from __future__ import annotations

import comfy.model_management
import comfy.patcher_extension
import pytest
import tiny_wan
import torch
from block_causal import seen, transformer, velocity
from streams import SIGMAS, largest, sampled, streamed

import foresight.sampling.stream_sampler as stream_sampler
from foresight.sampling.stream_cache import KVCache


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


def recorded(patcher):
    """A clone of the model, and what its network is asked: (x, sigma, first frame, velocity) by call."""
    asked, clone = [], patcher.clone()

    def wrapper(execute, x, timestep, context, *args, **kwargs):
        options = next(each for each in (*args, *kwargs.values()) if isinstance(each, dict))
        out = execute(x, timestep, context, *args, **kwargs)
        asked.append((x.clone(), float(timestep[0]) / 1000, int(options["rope_options"]["shift_t"]), out.clone()))
        return out

    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    return clone, asked


@pytest.mark.parametrize("chunk, frames, window, sink", [
    (1, 5, 0, 0), (2, 6, 0, 0), (3, 7, 0, 0), (1, 8, 3, 0), (2, 9, 4, 1), (1, 9, 5, 2), (3, 10, 6, 3),
])  # fmt: skip
def test_every_forward_equals_the_whole_clip_under_a_mask(patcher, chunk, frames, window, sink):
    clone, asked = recorded(patcher)
    clip, _ = streamed(clone, frames, settings={"chunk": chunk, "window": window, "sink": sink})
    clip = patcher.model.process_latent_in(clip)
    network, context = transformer(patcher), tiny_wan.conditioning(1)[0][0]
    ends = [*range(chunk, frames, chunk), frames]
    assert len(asked) == 4 * len(ends) + len(ends) - 1
    for x, sigma, start, found in asked:
        end = start + x.shape[2]
        whole = torch.cat([clip[:, :, :start], x], 2)
        levels = torch.tensor([0.0] * start + [sigma] * x.shape[2])
        mask = seen(end, [e for e in ends if e <= end], window, sink)
        expected = velocity(network, whole, levels, context, mask)[:, :, start:]
        assert largest(found, expected) < 2e-5


def test_guidance_runs_through_two_caches(patcher, monkeypatch):
    """With cfg, the stream equals one that is put together from the whole clip's conditional and unconditional parts;
    and ComfyUI may evaluate both at once or, when memory is short, in turn."""
    clone, asked = recorded(patcher)
    clip, _ = streamed(clone, 4, cfg=3.0)
    model_space = patcher.model.process_latent_in(clip)
    network = transformer(patcher)
    texts = torch.cat([tiny_wan.conditioning(2)[0][0], tiny_wan.conditioning(1)[0][0]])
    for x, sigma, start, found in asked:
        assert len(x) == 2
        levels, mask = torch.tensor([0.0] * start + [sigma]), seen(start + 1, list(range(1, start + 2)))
        for item in range(2):
            whole = torch.cat([model_space[:, :, :start], x[item : item + 1]], 2)
            parts = [velocity(network, whole, levels, texts[i : i + 1], mask)[:, :, start:] for i in range(2)]
            assert min(largest(found[item : item + 1], part) for part in parts) < 2e-5
    monkeypatch.setattr(patcher.model, "memory_required", lambda *_, **__: 2**60)
    in_turn, _ = streamed(clone, 4, cfg=3.0)
    assert len(asked[-1][0]) == 1 and largest(in_turn, clip) < 1e-5


def test_memory_that_runs_low_on_the_way_changes_nothing(patcher, monkeypatch):
    clip, _ = streamed(patcher, 4, cfg=3.0)
    calls = [0]

    def required(*_, **__):
        calls[0] += 1
        return 0 if calls[0] % 3 else 2**60

    monkeypatch.setattr(patcher.model, "memory_required", required)
    assert largest(streamed(patcher, 4, cfg=3.0)[0], clip) < 1e-5


def test_a_window_changes_nothing_before_it_forgets(patcher):
    whole, _ = streamed(patcher, 8)
    windowed, _ = streamed(patcher, 8, settings={"window": 5, "sink": 1})
    assert torch.equal(whole[:, :, :5], windowed[:, :, :5]) and not torch.equal(whole[:, :, 5:], windowed[:, :, 5:])


@pytest.fixture
def caches(monkeypatch):
    """The caches that are made, which outlive their runs here."""
    made = []

    class Kept(KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(stream_sampler, "KVCache", Kept)
    return made


def test_two_hundred_chunks_in_constant_memory(patcher, caches, monkeypatch):
    places = set()

    def commit(cache, before=KVCache.commit):
        places.add((cache.bytes, *(k.data_ptr() for store in cache._stores for k in store.k)))
        before(cache)

    monkeypatch.setattr(KVCache, "commit", commit)
    diagonal = {"preset": "Diagonal Distillation", "chunk": 1, "window": 4, "sink": 1}
    clip, sampler = streamed(patcher, 200, settings=diagonal)
    assert torch.isfinite(clip).all() and len(places) == 1
    told = sampler.result
    assert told["nfe"] == told["nfe_plain"] == sum([4, 3, 2, 2, 2, 2, 2] * 28) + 4 + 3 + 2 + 2
    assert told["cache_bytes"] == told["cache_bytes_expected"] == 2 * 2 * 4 * 4 * 128 * 4
    assert caches[0].bytes == 0  # and freed


@pytest.mark.parametrize("frames, at", [(4, n) for n in range(1, 20, 3)])
def test_a_cancel_frees_the_cache_in_every_phase(patcher, caches, frames, at):
    calls = [0]
    clone = patcher.clone()

    def wrapper(execute, *args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            comfy.model_management.interrupt_current_processing()
        return execute(*args, **kwargs)

    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    start = torch.zeros(1, 16, 1, 4, 4)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        streamed(clone, frames + 1, start=start)
    assert calls[0] == at and caches[0].bytes == 0
    comfy.model_management.interrupt_current_processing(False)
    streamed(patcher, frames)


def test_an_error_frees_the_cache(patcher, caches):
    def failing(*_):
        raise RuntimeError("the preview broke")

    with pytest.raises(RuntimeError, match="preview broke"):
        streamed(patcher, 3, callback=failing)
    assert caches[0].bytes == 0


def test_what_is_in_the_models_path_stays_alive(patcher):
    """Another pack's attention, its block patches and its rope are called, and change what they would."""
    seen_by = {"attention": 0, "block": 0}
    plain, _ = streamed(patcher, 3)

    def attention(func, *args, **kwargs):
        seen_by["attention"] += 1
        return func(*args, **kwargs)

    def block(args, extra):
        seen_by["block"] += 1
        return extra["original_block"](args)

    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = attention
    clone.set_model_patch_replace(block, "dit", "double_block", 1)
    assert torch.equal(streamed(clone, 3)[0], plain)
    forwards = 4 * 3 + 2
    assert seen_by == {"attention": forwards * 2 * 2, "block": forwards}
    options = clone.model_options["transformer_options"]
    assert options["optimized_attention_override"] is attention and "foresight_stream" not in options
    clone.model_options["transformer_options"]["rope_options"] = {"shift_t": 4.0, "scale_y": 2.0}
    assert not torch.equal(streamed(clone, 3)[0], plain)


def test_a_lora_reaches_a_stream(patcher):
    plain, _ = streamed(patcher, 3)
    clone = patcher.clone()
    weight = patcher.model.diffusion_model.blocks[0].self_attn.k.weight
    clone.add_patches({"diffusion_model.blocks.0.self_attn.k.weight": ("diff", (torch.ones_like(weight),))}, 0.1)
    changed, _ = streamed(clone, 3)
    assert not torch.equal(changed, plain)
    assert torch.equal(streamed(patcher, 3)[0], plain)


def test_far_positions_are_exact_in_bfloat16(patcher):
    """Core counts positions in the network's type, where 257 is 256: from there on the hooks count in float32."""
    from foresight.sampling.stream_model import CausalHooks

    network, cache = patcher.model.diffusion_model, KVCache(2, 4, 2)
    cache.position = 300
    cache.open(2)
    hooks = CausalHooks(network, cache, {}, "test")
    hooks.begin((4, 4))
    given = {"img": torch.zeros(1, 8, 128, dtype=torch.bfloat16), "pe": None,
             "transformer_options": hooks.options["transformer_options"]}  # fmt: skip
    found = hooks._positions(given)
    expected = network.rope_encode(302, 4, 4, dtype=torch.float32)[:, -8:]
    assert largest(found, expected) < 1e-4
    rounded = network.rope_encode(
        2, 4, 4, dtype=torch.bfloat16, transformer_options=hooks.options["transformer_options"]
    )
    assert largest(rounded, expected) > 0.1


def test_a_batch_is_streamed_together(patcher):
    clip, sampler = streamed(patcher, 5, batch=2, settings={"window": 3})
    assert clip.shape[0] == 2 and not torch.equal(clip[0], clip[1])
    assert sampler.result["cache_bytes"] == sampler.result["cache_bytes_expected"]


def test_seeds_share_no_noise(patcher):
    from foresight.sampling.stream_noise import drawn

    like = torch.zeros(1, 16, 1, 4, 4)
    places = [(seed, frame, step, 0) for seed in (0, 1, 1000, 2000) for frame in (0, 1) for step in (1, 2)]
    draws = [drawn(like, *place) for place in places]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    state = torch.random.get_rng_state()
    assert torch.equal(drawn(like, 5, 0, 1, 0), drawn(like, 5, 0, 1, 0))
    streamed(patcher, 3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_progress_is_the_clip_so_far(patcher):
    shown = []
    clip, _ = streamed(patcher, 3, callback=lambda step, x0, x, total: shown.append((step, x0.clone(), total)))
    assert [step for step, _, _ in shown] == list(range(12)) and {total for *_, total in shown} == {12}
    assert [x0.shape[2] for _, x0, _ in shown] == [1] * 4 + [2] * 4 + [3] * 4
    assert torch.equal(patcher.model.process_latent_out(shown[-1][1]), clip)


def test_core_nodes_sample_it(patcher):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    sampler = stream_sampler.StreamSampler(stream_sampler.StreamSettings("Self-Forcing", chunk=2))
    latent = {"samples": torch.zeros(1, 16, 5, 4, 4)}
    out, x0 = SamplerCustomAdvanced.execute(
        Noise_RandomNoise(4), tiny_wan.guided(patcher, 1.0), sampler, SIGMAS, latent
    ).result
    assert torch.equal(out["samples"], x0["samples"]) and out["samples"].shape == (1, 16, 5, 4, 4)
    expected = sampled(patcher, sampler, 5, seed=4, noise=Noise_RandomNoise(4).generate_noise(latent))
    assert torch.equal(out["samples"], expected)
