"""The hook for noise refiners: where it is asked, what it sees, what it costs, and that it leaves no trace."""

from __future__ import annotations

import pytest
import tiny_wan
import torch
from block_causal import transformer, velocity
from streams import largest, streamed


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


class Reflecting:
    """Looks at noise with the x0 prediction before it in view, and gives `change` of what the model makes of it."""

    def __init__(self, change=0.0):
        self.change, self.seen = change, []

    def attach(self, engine):
        self.engine = engine
        return self

    def __call__(self, noise, before, cache, chunk, step):
        made = self.engine.reflect(chunk, before, noise, 0.5)
        self.seen.append((chunk, step, before, noise, made))
        return noise + self.change * (made - noise)


@pytest.mark.parametrize("settings", [{"kv": "clean"}, {"kv": "reuse last", "chunk": 2, "window": 4, "sink": 1}])
def test_a_refiner_that_changes_nothing_leaves_no_trace(patcher, settings):
    plain, told = streamed(patcher, 7, settings=settings)
    refiner = Reflecting()
    clip, sampler = streamed(patcher, 7, refine=refiner, settings=settings)
    chunks = len(sampler.result["schedule"])
    assert torch.equal(clip, plain) and len(refiner.seen) == 3 * chunks  # the first noise of a chunk is its own
    assert sampler.result["nfe"] == told.result["nfe"] + 3 * chunks
    assert [(chunk.index, step) for chunk, step, *_ in refiner.seen][:4] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert sampler.result["cache_bytes"] == sampler.result["cache_bytes_expected"] > told.result["cache_bytes"]


def test_refined_noise_is_what_is_sampled(patcher):
    plain, _ = streamed(patcher, 3)
    clip, _ = streamed(patcher, 3, refine=Reflecting(0.1))
    assert not torch.equal(clip, plain)
    bare, sampler = streamed(patcher, 3, refine=lambda noise, before, cache, chunk, step: noise)
    assert torch.equal(bare, plain) and sampler.result["nfe"] == sampler.result["nfe_plain"]


def test_noise_sees_its_prediction_at_its_own_positions(patcher):
    """Against plain torch over history, prediction and noise, where the last two lie at the same places."""
    refiner = Reflecting()
    clip, _ = streamed(patcher, 4, refine=refiner)
    clip, network = patcher.model.process_latent_in(clip), transformer(patcher)
    for chunk, _, before, noise, made in refiner.seen:
        start = chunk.start
        whole = torch.cat([clip[:, :, :start], before, noise], 2)
        mask = torch.ones(start + 2, start + 2).tril().bool()
        levels = torch.tensor([0.0] * (start + 1) + [0.5])
        found = velocity(
            network, whole, levels, tiny_wan.conditioning(1)[0][0], mask, [*range(start + 1), start]
        )[:, :, -1:]
        assert largest(noise - 0.5 * found, made) < 2e-5


def test_a_chunk_gate_draws_refined_noise_again(patcher):
    from test_stream_gate import ruled

    scores = iter([0.9, 0.1] + [0.9] * 20)
    refiner = Reflecting(0.1)
    made = ruled(lambda _: next(scores), looks="last", budget=1.0)
    _, sampler = streamed(patcher, 3, refine=refiner, gate=made)
    assert sampler.result["redraws"] == 1 and len(refiner.seen) == 4 * 3
