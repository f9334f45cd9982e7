"""Prompts by chunk, what becomes of the cache where one begins, and the memory that is asked for."""

from __future__ import annotations

import math

import comfy.patcher_extension
import pytest
import tiny_wan
import torch
from block_causal import seen, transformer, velocity
from streams import largest, sampled, streamed

from foresight.sampling.stream_guider import StreamingGuider
from foresight.sampling.stream_sampler import StreamSampler
from foresight.trials.stream import StreamSettings


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


def guider(patcher, begins=(0,), cfg=1.0, recache=True, negative=2):
    prompts = [(begin, tiny_wan.conditioning(10 + number)) for number, begin in enumerate(begins)]
    return StreamingGuider(patcher, prompts, negative and tiny_wan.conditioning(negative), cfg, recache)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_one_prompt_is_cores_guider(patcher, cfg):
    plain = tiny_wan.guided(patcher, cfg, prompt=10)
    assert torch.equal(
        streamed(patcher, 4, guider=guider(patcher, cfg=cfg))[0], streamed(patcher, 4, guider=plain)[0]
    )


def test_it_samples_without_a_stream_too(patcher):
    import comfy.samplers

    euler = comfy.samplers.sampler_object("euler")
    plain = tiny_wan.guided(patcher, 3.0, prompt=10)
    assert torch.equal(sampled(patcher, euler, guider=guider(patcher, cfg=3.0)), sampled(patcher, euler, guider=plain))


@pytest.mark.parametrize("recache", [True, False])
def test_prompts_begin_at_their_chunks(patcher, recache):
    """Against the whole clip under a mask: with the cache made anew, all that is seen was read under the new prompt;
    without, each latent under the prompt that it was made with."""
    asked, clone = [], patcher.clone()

    def wrapper(execute, x, timestep, context, *args, **kwargs):
        options = next(each for each in (*args, *kwargs.values()) if isinstance(each, dict))
        out = execute(x, timestep, context, *args, **kwargs)
        told = options["foresight_stream"]
        asked.append((told["chunk"], told["start"], x.clone(), float(timestep[0]) / 1000, out.clone()))
        return out

    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    clip, sampler = streamed(clone, 6, guider=guider(clone, (0, 2, 4), recache=recache))
    clip, network = patcher.model.process_latent_in(clip), transformer(patcher)
    texts = torch.cat([tiny_wan.conditioning(10 + number)[0][0] for number in range(3)])
    assert sampler.result["nfe"] == len(asked) == 6 * 4 + 5 + (2 + 4 if recache else 0)
    for chunk, start, x, sigma, found in asked:
        whole, levels = torch.cat([clip[:, :, :start], x], 2), torch.tensor([0.0] * start + [sigma])
        own = [chunk // 2 if recache else at // 2 for at in range(start + 1)]
        mask = seen(start + 1, list(range(1, start + 2)))
        expected = velocity(network, whole, levels, texts[own], mask)[:, :, start:]
        assert largest(found, expected) < 2e-5


def test_a_cache_is_made_anew_within_its_window(patcher):
    settings = {"window": 4, "sink": 1, "chunk": 1}
    kept, sampler = streamed(patcher, 8, guider=guider(patcher, (0, 6), recache=False), settings=settings)
    assert sampler.result["nfe"] == 8 * 4 + 7
    anew, sampler = streamed(patcher, 8, guider=guider(patcher, (0, 6)), settings=settings)
    assert sampler.result["nfe"] == 8 * 4 + 7 + 4  # the sink and the last three
    assert torch.equal(kept[:, :, :6], anew[:, :, :6]) and not torch.equal(kept[:, :, 6], anew[:, :, 6])
    one, _ = streamed(patcher, 8, guider=guider(patcher), settings=settings)
    assert torch.equal(one[:, :, :6], anew[:, :, :6]) and not torch.equal(one[:, :, 6], kept[:, :, 6])


def test_a_prompt_after_the_end_is_refused(patcher):
    with pytest.raises(ValueError, match="a prompt begins at chunk 9, but the last chunk of this clip is 5"):
        streamed(patcher, 6, guider=guider(patcher, (0, 9)))
    streamed(patcher, 6, guider=guider(patcher, (0, 9)), settings={"goes_on": True, "window": 4})


def test_cfg_without_a_negative_is_refused(patcher):
    with pytest.raises(ValueError, match="no negative is connected"):
        streamed(patcher, 3, guider=guider(patcher, cfg=2.0, negative=None))
    streamed(patcher, 3, guider=guider(patcher, negative=None))


def test_memory_is_asked_for_a_chunk_and_the_cache(patcher):
    """And not for the whole clip, for which ComfyUI would take the model off the card."""
    shapes, clone = [], patcher.clone()

    def wrapper(execute, model, noise_shape, *args, **kwargs):
        shapes.append(list(noise_shape))
        return execute(model, noise_shape, *args, **kwargs)

    made = guider(clone)
    made.model_patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "test", wrapper)
    sampler = StreamSampler(StreamSettings("sigmas", chunk=2, window=80))
    sampled(patcher, sampler, 100, guider=made)
    cache = sampler.cache_bytes(patcher.model, (1, 16, 100, 4, 4), False)
    one = patcher.model.memory_required([2, 16, 1, 4, 4])
    (shape,) = shapes
    assert shape[:2] == [1, 16] and shape[3:] == [4, 4] and 2 < shape[2] < 100
    assert cache > one, "so that it counts"
    assert shape[2] == 2 + math.ceil(cache / one)
    assert patcher.model.memory_required([2, *shape[1:]]) >= 2 * one + cache > 0
