"""The sampling room at its edges: what is told of a sampler's parts, runs without a seed, samplers that ask on."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from gaussians import Mixture, draw, sample
from searches import EULER, Mean, Told, searching
from tiny_wan import gate, inputs, model

from foresight.sampling.injection import Anchor, Injection
from foresight.sampling.monitor import MonitorSampler
from foresight.sampling.records import additions
from foresight.sampling.run import monitored_sample
from foresight.sampling.search_rules import parse_schedule
from foresight.sampling.self_refine import PRESETS, self_refining
from foresight.sampling.stream_sampler import StreamSampler
from foresight.sampling.watch import Watch
from foresight.scoring.inspector import Gate
from foresight.trials.verdict import TrialRecord, Verdict


def test_what_search_and_self_refinement_did_is_told_of_samplers_that_have_them():
    refined = self_refining(EULER, PRESETS["light"].settings())
    assert additions(EULER) == additions(comfy.samplers.ksampler("dpmpp_2m")) == {}
    search = searching(Mean())
    search.result = {"nfe": 7}
    assert additions(search) == {"search": {"nfe": 7}, "self_refine": None}
    assert additions(search)["search"] is not search.result, "the next run does not change what was told of this one"
    told = additions(refined)
    assert told["search"] is None and told["self_refine"]["nfe"] == 0
    both = searching(Mean(), refined)
    both.result = {"nfe": 9}
    assert additions(both) == {"search": {"nfe": 9}, "self_refine": told["self_refine"]}


def test_a_run_without_a_seed_is_searched_as_with_seed_0():
    """Callers of a guider may leave it out."""
    second = [0.0, 9.0, 0.0, 0.0]
    clips = [sample(searching(Told(second), method="beam"), Mixture(), 10, seed, draw(3)) for seed in (None, 0, 1)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])


@pytest.mark.parametrize("name, stages", [
    ("T2V", (40, {3: (2, 5), 1: (6, 13)})), ("I2V", (40, {3: (1, 5), 1: (6, 13)})), ("distilled", (8, {1: (1, 5)})),
    ("Cosmos", (35, {2: (3, 8), 1: (9, 15)})), ("light", (50, {1: (2, 6)})),
])  # fmt: skip
def test_presets_refine_the_same_share_of_any_schedule(name, stages):
    """Here of one 20 times as long as that for which the authors have written them."""
    settings, (steps, passes) = PRESETS[name].settings(), stages
    for count, (first, last) in passes.items():
        refined = [step for step in range(20 * steps) if settings.passes(step, 20 * steps) == count]
        assert refined == list(range(20 * first, 20 * (last + 1)))
    assert sum(settings.passes(step, steps) for step in range(steps)) == sum(
        count * (last + 1 - first) for count, (first, last) in passes.items()
    )


@pytest.mark.parametrize("asked, known", [(1, True), (100, True), (101, False)])
def test_a_dry_run_follows_a_hundred_evaluations_a_step(asked, known):
    """What takes more is taken to go on for as long as it is answered."""

    def many(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for step, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            for _ in range(asked):
                denoised = model(x, now * x.new_ones(len(x)), **extra_args)
            callback({"x": x, "i": step, "denoised": denoised})
            x = x + (x - denoised) / now * (then - now)
        return x

    search = searching(Mean(), comfy.samplers.KSAMPLER(many), candidates=2, schedule=(0.4,))
    sample(search, Mixture(), 3, callback=lambda *_: None)
    assert search.result["nfe_plain"] == (3 * asked if known else None)


def test_a_schedule_names_the_steps_that_there_are():
    assert parse_schedule("0, 9", 10) == (0.1, 1.0)
    for text in ("10", "", "1.5", "-1"):
        with pytest.raises(ValueError, match="enter steps from 0 to 9, for example"):
            parse_schedule(text, 10)


def test_samplers_are_themselves_and_nothing_else():
    """Caches and wrappers of other packs keep what they know of a sampler by the object."""
    settings = PRESETS["light"].settings()
    makers = (
        lambda: MonitorSampler(EULER), lambda: searching(Mean()), lambda: self_refining(EULER, settings),
        lambda: StreamSampler(),
    )  # fmt: skip
    for make in makers:
        one, other = make(), make()
        assert one == one and one != other and len({one, other}) == 2


def test_a_look_knows_the_noise_level_of_its_step(monkeypatch):
    made, patcher = [], model()
    inspector = Gate.inspector
    monkeypatch.setattr(Gate, "inspector", lambda *given: made.append(inspector(*given)) or made[-1])
    own = inputs(patcher, steps=50)
    monitored_sample(own, gate(0.1), stop="never")
    watched = inputs(Watch(gate(0.1)).patch(patcher), steps=50)
    SamplerCustomAdvanced.execute(watched.noise, watched.guider, watched.sampler, watched.sigmas, watched.latent)
    assert len(made) == 2
    for each in made:
        assert each.last.step > 1 and each.last.sigma == pytest.approx(float(own.sigmas[each.last.step - 1]))


@pytest.mark.parametrize("refined, trial", [(None, "1"), (False, "1"), (True, "2->1")])
def test_a_run_from_a_frame_is_of_the_trial_that_it_answers(refined, trial):
    rewording = () if refined is None else (TrialRecord("2", "refine", accepted=refined),)
    previous = Verdict((TrialRecord("0", "sample", accepted=False), *rewording, TrialRecord("1", "probe")))
    anchor = Anchor(torch.zeros(1, 16, 1, 4, 4), previous)
    record = monitored_sample(inputs(model(), steps=3), injection=Injection(anchor)).verdict.record
    assert (record.trial, record.kind) == (trial, "inject")
