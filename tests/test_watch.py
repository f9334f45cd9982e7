"""Foresight Watch: a patched MODEL reports under any sampler node and changes nothing."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode
from tiny_wan import CancellingScorer, conditioning, gate, guided, inputs, model

from foresight.nodes.report import RunReport
from foresight.nodes.watch import ForesightWatch
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch

STEPS = 20


@pytest.fixture(scope="module")
def patcher():
    return model()


def ksampler(patcher, sampler):
    """What KSampler calls."""
    setup = inputs(patcher, sampler, STEPS)
    return comfy.sample.sample(
        patcher, setup.noise.generate_noise(setup.latent), STEPS, 4.0, sampler, "simple",
        conditioning(1), conditioning(2), setup.latent["samples"], seed=3,
    )  # fmt: skip


def advanced(patcher, sampler):
    setup = inputs(patcher, sampler, STEPS)
    result = SamplerCustomAdvanced.execute(setup.noise, setup.guider, setup.sampler, setup.sigmas, setup.latent)
    return result.result[0]["samples"]


def without_callback(patcher, sampler):
    """Some packs call a guider themselves and bring no callback."""
    setup = inputs(patcher, sampler, STEPS)
    noise = setup.noise.generate_noise(setup.latent)
    return setup.guider.sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas, seed=3)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "heun", "euler_ancestral"])
@pytest.mark.parametrize("node", [ksampler, advanced, without_callback])
def test_every_sampler_node_gives_the_same_and_is_reported(patcher, node, sampler):
    plain = node(patcher, sampler)
    watch = Watch(gate(0.1))
    assert torch.equal(node(watch.patch(patcher), sampler), plain)
    record = watch.verdict.record
    assert not watch.verdict.accepted and record.steps == STEPS
    assert record.nfe_video == (2 * STEPS - 1 if sampler == "heun" else STEPS)
    judged = monitored_sample(inputs(patcher, sampler, STEPS), gate(0.1), stop="never").verdict
    assert record.items == judged.record.items and watch.verdict.settings == judged.settings


def test_patches_of_core_work_beside_it(patcher):
    cached = EasyCacheNode.execute(patcher, 0.5, 0.1, 0.9, False).args[0]
    watch = Watch(gate(0.3))
    assert torch.equal(advanced(watch.patch(cached), "euler"), advanced(cached, "euler"))
    assert watch.verdict.accepted
    assert not torch.equal(advanced(cached, "euler"), advanced(patcher, "euler"))


def test_the_model_itself_stays_unwatched(patcher):
    watch = Watch(gate(0.1))
    watch.patch(patcher)
    advanced(patcher, "euler")
    assert watch.verdict is None


def test_a_model_is_watched_by_its_last_watch(patcher):
    first, second = Watch(gate(0.1)), Watch(gate(0.3))
    advanced(second.patch(first.patch(patcher)), "euler")
    assert first.verdict is None and second.verdict.accepted


def test_whatever_breaks_inspection_leaves_the_clip_and_a_reason(patcher):
    watch = Watch(gate(RuntimeError("no such kernel")), on_verdict=lambda verdict: 1 / 0)
    assert torch.equal(advanced(watch.patch(patcher), "euler"), advanced(patcher, "euler"))
    assert "no such kernel" in watch.verdict.record.message and watch.verdict.accepted


def test_cancel_gets_through(patcher):
    watch = Watch(gate(0.1, scorer=CancellingScorer(2, 0.1)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        advanced(watch.patch(patcher), "euler")
    assert watch.verdict.record.steps <= 3


def test_samplings_of_one_queued_prompt_are_one_history(patcher):
    watch = Watch(gate(0.1))
    watched = watch.patch(patcher)
    with CurrentNodeContext("first", "1"):
        advanced(watched, "euler")
        advanced(watched, "euler")
    assert len(watch.verdict.history) == 2
    with CurrentNodeContext("second", "1"):
        advanced(watched, "euler")
    assert len(watch.verdict.history) == 1


def test_the_first_part_of_a_schedule_is_judged_by_shares_of_the_whole(patcher):
    setup = inputs(patcher, "euler", 50)
    watch = Watch(gate(0.1), schedule_steps=50)
    guider = guided(watch.patch(patcher))
    noise = setup.noise.generate_noise(setup.latent)
    guider.sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas[:26], seed=3)
    assert watch.verdict.record.best.stop_step == 11  # as in test_monitor, of 50 steps
    guider.sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas[:10], seed=3)
    best = watch.verdict.record.best
    assert (best.rule, best.stop_step) == ("budget", 9)  # the window 8..14 ends with the steps there are


def test_a_run_that_starts_late_says_so(patcher):
    setup = inputs(patcher, "euler", STEPS)
    watch = Watch(gate(0.1))
    noise = setup.noise.generate_noise(setup.latent)
    guided(watch.patch(patcher)).sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas[18:], seed=3)
    assert "sampling starts at sigma" in watch.verdict.record.message


def test_the_report_of_a_watch_waits_for_the_clip(patcher):
    watch = Watch(gate(0.1))
    advanced(watch.patch(patcher), "euler")
    with pytest.raises(ValueError, match="connect the decoded clip to images"):
        RunReport.execute(watch=watch)
    with pytest.raises(ValueError, match="connect a verdict"):
        RunReport.execute()
    images = torch.zeros(5, 8, 8, 3)
    _, text, _ = RunReport.execute(watch=watch, images=images).args
    assert "rejected" in text


@pytest.mark.parametrize("watch", [None, Watch(gate(0.1))], ids=["bypassed", "with another model"])
def test_a_clip_that_nobody_has_watched_is_not_lost_to_its_report(watch):
    picture, text, document = RunReport.execute(watch=watch, images=torch.zeros(5, 8, 8, 3)).args
    assert "No run to tell of" in text
    assert picture.message is None and document.message is None  # nothing to show, and no error either


def test_a_watch_that_is_switched_off_gives_the_model_and_a_report_of_nothing(patcher):
    model, watch = ForesightWatch.execute(patcher, gate(0.1), enabled=False).args
    assert model is patcher
    assert "No run to tell of" in RunReport.execute(watch=watch, images=torch.zeros(5, 8, 8, 3)).args[1]
