"""Streams that start from something: an image, a clip to extend, or what an earlier call has made."""

from __future__ import annotations

import pytest
import tiny_wan
import torch
from streams import largest, sampled, streamed

from foresight.sampling.stream_sampler import StreamSampler
from foresight.trials.stream import StreamSettings

ENDLESS = {"preset": "Self-Forcing", "chunk": 2, "window": 4, "sink": 1, "goes_on": True}


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


def image(frames=1, batch=1):
    return torch.randn(batch, 16, frames, 4, 4, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames, passes", [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_a_clip_begins_with_what_is_given(patcher, frames, passes):
    clip, sampler = streamed(patcher, frames + 6, start=image(frames), settings={"chunk": 3})
    assert largest(clip[:, :, :frames], image(frames)) < 1e-5
    assert sampler.result["nfe"] == passes + 4 * 2 + 1 and sampler.result["made"] == 6
    other, _ = streamed(patcher, frames + 6, start=image(frames) + 1, settings={"chunk": 3})
    assert not torch.equal(clip[:, :, frames:], other[:, :, frames:])


def test_one_image_starts_every_clip_of_a_batch(patcher):
    clip, _ = streamed(patcher, 4, start=image(), batch=2)
    assert torch.equal(clip[0, :, 0], clip[1, :, 0]) and not torch.equal(clip[0], clip[1])


def calls(patcher, lengths, tail=None, **settings):
    """A stream in several calls; each starts from the last `tail` latents of the clip (None: all)."""
    chosen = StreamSettings(**{**ENDLESS, **settings})
    sampler = StreamSampler(chosen)
    clip = sampled(patcher, sampler, lengths[0])
    forwards = sampler.result["nfe"]
    for length in lengths[1:]:
        start = clip if tail is None else clip[:, :, -tail:]
        sampler = StreamSampler(chosen, start, sampler)
        more = sampled(patcher, sampler, start.shape[2] + length)
        clip = torch.cat([clip, more[:, :, start.shape[2] :]], 2)
        forwards += sampler.result["nfe"]
    return clip, forwards


@pytest.mark.parametrize("kv", ["clean", "reuse last", "noisy"])
@pytest.mark.parametrize("tail", [None, 1, 3])
def test_calls_join_to_the_last_bit(patcher, tail, kv):
    whole, forwards = calls(patcher, [12], kv=kv)
    parts, in_parts = calls(patcher, [4, 2, 6], tail, kv=kv)
    assert torch.equal(parts, whole) and in_parts == forwards


def test_schedules_go_on_over_calls(patcher):
    diagonal = {"preset": "Diagonal Distillation", "chunk": 1, "window": 4, "sink": 1}
    whole, forwards = calls(patcher, [9], **diagonal)
    parts, in_parts = calls(patcher, [3, 6], **diagonal)
    assert torch.equal(parts, whole) and forwards == in_parts == 17 + 4 + 3


def ended(patcher):
    """A stream of four latents that may go on, and its clip."""
    sampler = StreamSampler(StreamSettings(**ENDLESS))
    return sampler, sampled(patcher, sampler, 4)


def test_a_call_can_be_made_again(patcher):
    """As a graph does whose later nodes have changed: the stream before is still there."""
    sampler, clip = ended(patcher)
    last = StreamSampler(StreamSettings(**ENDLESS), clip, sampler)
    assert torch.equal(sampled(patcher, last, 6), sampled(patcher, last, 6)) and last.result["nfe"] == 5


@pytest.mark.parametrize("change", ["clip", "model", "window"])
def test_what_is_not_this_streams_end_is_read_anew(patcher, change):
    sampler, clip = ended(patcher)
    start = clip + 0.5 if change == "clip" else clip
    settings = StreamSettings(**(ENDLESS | ({"window": 5} if change == "window" else {})))
    model = tiny_wan.model(seed=1) if change == "model" else patcher
    on, fresh = StreamSampler(settings, start, sampler), StreamSampler(settings, start)
    assert torch.equal(sampled(model, on, 6), sampled(model, fresh, 6))
    assert on.result["nfe"] == 2 + 5  # two passes over what was given


def test_only_a_stream_that_goes_on_keeps_its_cache(patcher):
    _, sampler = streamed(patcher, 4)
    assert sampler._state is None


@pytest.mark.parametrize("start, message", [
    (torch.zeros(1, 16, 1, 4, 6), "encode the image or clip at the clip's own width and height"),
    (torch.zeros(1, 4, 1, 4, 4), "encode the image"),
    (torch.zeros(1, 16, 4, 4), "start is"),
    (torch.zeros(1, 16, 7, 4, 4), "make the clip longer"),
    (torch.zeros(3, 16, 1, 4, 4), "start holds 3 clips"),
])  # fmt: skip
def test_starts_that_do_not_fit(patcher, start, message):
    with pytest.raises(ValueError, match=f"Streaming Sampler: .*{message}"):
        streamed(patcher, 7, start=start, batch=2)


def test_what_a_stream_cannot_be_is_said(patcher):
    with pytest.raises(ValueError, match="Remove the noise mask"):
        streamed(patcher, 3, mask=torch.ones(1, 1, 3, 4, 4))
    guider = tiny_wan.guided(patcher, 4.0)
    del guider.original_conds["negative"]
    with pytest.raises(ValueError, match="CFG is 4.0, but no negative"):
        streamed(patcher, 3, guider=guider)
    for kind in ("2.1 I2V", "2.2 14B I2V"):
        with pytest.raises(ValueError, match="text-to-video model"):
            streamed(tiny_wan.model(kind), 3)
    with pytest.raises(ValueError, match="sigmas do not end in 0"):
        streamed(patcher, 3, sigmas=torch.tensor([1.0, 0.5]))
    combined = tiny_wan.guided(patcher, 1.0)
    combined.set_conds(tiny_wan.conditioning(1) + tiny_wan.conditioning(4), tiny_wan.conditioning(2))
    with pytest.raises(ValueError, match="positive conditioning was evaluated twice"):
        streamed(patcher, 3, guider=combined)


def test_what_skips_the_model_is_refused(patcher):
    import comfy_extras.nodes_context_windows as windows
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(patcher, 0.2, 0.15, 0.95, False).args[0]
    with pytest.raises(ValueError, match="Streaming Sampler does not work with EasyCache"):
        streamed(cached, 3)
    windowed = patcher.clone()
    windowed.model_options["context_handler"] = object()
    assert windows  # core's node sets this very key
    with pytest.raises(ValueError, match="cannot run inside context windows"):
        streamed(windowed, 3)

    def skip(args, extra):
        return {"img": args["img"]}

    holed = patcher.clone()
    holed.model_options["model_function_wrapper"] = lambda apply, args: args["input"]
    with pytest.raises(ValueError, match="no block of it ran"):
        streamed(holed, 3)


def test_another_family_is_refused():
    class Other(torch.nn.Module):
        pass

    from foresight.sampling.stream_model import require_streamable

    for network in (Other(), None):
        model = torch.nn.Module()
        model.diffusion_model = network
        with pytest.raises(ValueError, match="runs Wan 2.1 text-to-video models that were made causal"):
            require_streamable(model, {}, (1, 16, 3, 4, 4), "Streaming Sampler")


@pytest.mark.parametrize("shape", [(1, 16, 4, 4), (1, 48, 3, 4, 4)])
def test_latents_of_another_kind_are_refused(patcher, shape):
    from foresight.sampling.stream_model import require_streamable

    with pytest.raises(ValueError, match="needs a video latent"):
        require_streamable(patcher.model, {}, shape, "Streaming Sampler")
