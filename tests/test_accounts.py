"""What a run leaves behind: its accounts (evaluations, seconds), and everything else as it was."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import comfy.model_management
import comfy.samplers
import comfy.utils
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from gaussians import Mixture, draw
from searches import Mean, searching
from tiny_models import FAMILIES
from tiny_wan import Conditioned, MeanL2R, Rewriter, ScriptedScorer, gate, inputs, model

from foresight.panel.runs import Refused, RunStore
from foresight.sampling.audition import hold_audition
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import Anchor, Injection, InjectionSettings
from foresight.sampling.line import video_latent
from foresight.sampling.monitor import MonitorSampler
from foresight.sampling.noise import SeededNoise
from foresight.sampling.probe import single_frame_probe
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.self_refine import SelfRefineSettings, parse_plan, self_refining
from foresight.sampling.watch import Watch
from foresight.trials.observer import Decision
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report

STEPS = 10
RULES = Rules(RaceSettings(3, "off"), (Look(0.3, 0.2, 0.2),))
ANCHOR = Anchor(torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(5)))


@pytest.fixture(scope="module")
def patcher():
    return model()


def refined(own):
    return replace(own, sampler=self_refining(own.sampler, SelfRefineSettings(parse_plan("1-2:2", STEPS), 0.0)))


def searched(own, at_once=1):
    return replace(own, sampler=searching(Mean(), own.sampler, schedule=(0.3,), candidates=3, at_once=at_once))


def ladder(own, patcher):
    return run_hierarchy(
        own, gate(0.1), Conditioned(patcher), negative="", reworder=Rewriter(), injection=InjectionSettings()
    )


def rejected(own):
    return monitored_sample(own, gate(0.1)).verdict


# Every way to sample: what it does with the inputs, and the model (for guiders of its own).
WAYS = {
    "monitored": lambda own, _: monitored_sample(own, gate(0.3)),
    "stopped": lambda own, _: monitored_sample(own, gate(0.1)),
    "injected": lambda own, _: monitored_sample(
        own, injection=Injection(ANCHOR, InjectionSettings(noise="fresh", strength=0.5))
    ),
    "probed": lambda own, _: single_frame_probe(own, gate(0.1), rejected(own)),
    "self-refined": lambda own, _: monitored_sample(refined(own), gate(0.3)),
    "searched": lambda own, _: monitored_sample(searched(own), gate(0.3)),
    "searched at once": lambda own, _: monitored_sample(searched(own, 3), gate(0.3)),
    "raced": lambda own, _: run_race(own, gate(0.1, 0.15, 0.05, 0.3), RULES),
    "all trials": ladder,
    "auditioned": lambda own, _: hold_audition(
        lambda seed: replace(own, noise=SeededNoise(seed)), gate(0.1, 0.2), (5, 6), keep=1, fraction=0.3
    ),
    "watched": lambda own, patcher: SamplerCustomAdvanced.execute(
        own.noise, inputs(Watch(gate(0.1)).patch(patcher)).guider, own.sampler, own.sigmas, own.latent
    ),
}  # fmt: skip


def randomness():
    python, numpy = random.getstate(), np.random.get_state()
    return python, numpy[1].tolist(), numpy[2:], torch.random.get_rng_state().tolist()


def frozen(own):
    """All that a user may hold in a cache of his graph, by identity and value."""
    guider, noise, sampler = own.guider, own.noise, own.sampler
    patcher = guider.model_patcher
    return {
        "guider": {name: (id(value), repr(value)) for name, value in vars(guider).items() if name != "original_conds"},
        "conds": {name: [(id(each), sorted(each), id(each["cross_attn"])) for each in conds]
                  for name, conds in guider.original_conds.items()},
        "words": [each["cross_attn"].clone() for conds in guider.original_conds.values() for each in conds],
        "options": repr(patcher.model_options), "beside": dict(patcher.additional_models),
        "noise": dict(vars(noise)), "sampler": {name: id(value) for name, value in vars(sampler).items()},
        "extra": dict(sampler.extra_options), "sigmas": own.sigmas.clone(),
        "latent": {name: (id(value), value.clone()) for name, value in own.latent.items()},
    }  # fmt: skip


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
@pytest.mark.parametrize("way", WAYS)
def test_no_generator_of_the_process_is_read_or_written(patcher, way, sampler):
    own = replace(inputs(patcher, sampler, steps=STEPS), noise=SeededNoise(7))
    random.seed(11)
    np.random.seed(12)
    torch.manual_seed(13)
    before = randomness()
    WAYS[way](own, patcher)
    assert randomness() == before


@pytest.mark.parametrize("way", WAYS)
def test_what_the_user_holds_stays_as_it_was(patcher, way):
    own = replace(inputs(patcher, steps=STEPS), noise=SeededNoise(7))
    before = frozen(own)
    WAYS[way](own, patcher)
    assert equal(frozen(own), before)


def test_a_scorer_with_weights_comes_along_on_a_copy_of_the_guider(patcher):
    own = inputs(patcher, steps=STEPS)
    scorer = ScriptedScorer(0.3)
    scorer.patcher = model("2.1 T2V", 1)
    before = frozen(own)
    monitored_sample(own, gate(scorer=scorer))
    run_race(replace(own, noise=SeededNoise(7)), gate(scorer=scorer), RULES)
    assert equal(frozen(own), before) and not patcher.additional_models


@pytest.mark.parametrize("way", ["monitored", "stopped", "probed", "raced", "searched"])
def test_both_experts_of_a_guider_stay_as_they_were(way):
    own = replace(FAMILIES["Wan 2.2 14B T2V, two experts"].inputs(steps=STEPS), noise=SeededNoise(7))
    before, low = frozen(own), dict(vars(own.guider.low))
    WAYS[way](own, own.guider.model_patcher)
    assert equal(frozen(own), before) and dict(vars(own.guider.low)) == low


class Clock:
    """A time that passes only where something is done: 100 an evaluation, 1 a score, 7 a decoded preview."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def model(self, patcher):
        timed = patcher.clone()
        timed.set_model_sampler_post_cfg_function(lambda args: self.passes(100) or args["denoised"])
        return timed

    def passes(self, seconds):
        self.now += seconds

    def gate(self, *scores):
        clock = self

        class Timed(ScriptedScorer):
            def score(self, frames, text):
                clock.passes(1)
                return super().score(frames, text)

        class Decoder(MeanL2R):
            def forward(self, latent, frames=None):
                clock.passes(7)
                return super().forward(latent, frames)

        return gate(scorer=Timed(*scores), l2r=Decoder())


@pytest.mark.parametrize("scores, looks, evaluations", [((0.3,), 2, STEPS), ((0.1,), 3, 3)])
def test_seconds_are_told_once(patcher, monkeypatch, scores, looks, evaluations):
    clock = Clock(monkeypatch)
    own = inputs(clock.model(patcher), steps=STEPS)
    record = monitored_sample(own, clock.gate(*scores)).verdict.record
    looks = len(record.best.trace) + len(record.finals)  # and one at the finished clip
    assert record.seconds == {"sampling": 100 * record.nfe_video, "inspection": 8 * looks}
    assert sum(record.seconds.values()) == clock.now and record.nfe_video == evaluations
    watch = Watch(clock.gate(*scores))
    start = clock.now
    SamplerCustomAdvanced.execute(own.noise, inputs(watch.patch(own.guider.model_patcher)).guider, own.sampler,
                                  own.sigmas, own.latent)  # fmt: skip
    assert sum(watch.verdict.record.seconds.values()) == clock.now - start


def test_seconds_of_a_race_are_told_once_and_in_all(patcher, monkeypatch):
    clock = Clock(monkeypatch)
    own = replace(inputs(clock.model(patcher), steps=STEPS), noise=SeededNoise(7))
    report = run_report(run_race(own, clock.gate(0.1, 0.15, 0.05, 0.3), RULES).verdict)
    seconds = [trial["seconds"] for trial in report["trials"]]
    assert sum(each["sampling"] for each in seconds) == 100 * report["nfe"] == 100 * (3 * 3 + 7)
    assert sum(each["inspection"] for each in seconds) == 8 * 4  # three looks, and one at the finished clip
    assert report["seconds"] == clock.now


@pytest.mark.parametrize("sampler, whole, looked", [("euler", 10, 3), ("heun", 19, 5), ("dpm_2", 19, 5)])
@pytest.mark.parametrize("trial", ["sample", "probe", "watch", "race"])
def test_evaluations_are_counted_and_not_steps(patcher, sampler, whole, looked, trial):
    own = replace(inputs(patcher, sampler, steps=STEPS), noise=SeededNoise(7))
    if trial == "sample":
        assert monitored_sample(own, gate(0.3)).verdict.record.nfe_video == whole
        stopped = rejected(own).record
        assert (stopped.steps, stopped.nfe_video, stopped.nfe_single_frame) == (3, looked, 0)
    elif trial == "probe":
        record = single_frame_probe(own, gate(0.1), rejected(own))[1].record
        assert record.steps == record.best.stop_step and record.nfe_video == 0
        assert record.nfe_single_frame == (2 * record.steps - 1 if whole == 19 else record.steps)
    elif trial == "watch":
        watch = Watch(gate(0.1))
        SamplerCustomAdvanced.execute(own.noise, inputs(watch.patch(patcher)).guider, own.sampler, own.sigmas,
                                      own.latent)  # fmt: skip
        assert (watch.verdict.record.steps, watch.verdict.record.nfe_video) == (STEPS, whole)
    else:
        report = run_report(run_race(own, gate(0.1, 0.15, 0.05, 0.3), RULES).verdict)
        assert report["nfe"] == 3 * looked + whole - looked


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_several_candidates_in_one_call_are_as_many_evaluations(patcher, at_once):
    own = searched(inputs(patcher, steps=STEPS), at_once)
    rows = []
    counted = patcher.clone()
    counted.set_model_sampler_post_cfg_function(lambda args: rows.append(len(args["denoised"])) or args["denoised"])
    record = monitored_sample(replace(own, guider=inputs(counted).guider)).verdict.record
    assert sum(rows) == record.nfe_video == own.sampler.result["nfe"] == 3 * 3 + 7
    assert (max(rows) == at_once) and record.details["nfe_most"] == 16
    batch = inputs(patcher, steps=STEPS, batch=3)
    assert monitored_sample(batch).verdict.record.nfe_video == STEPS, "a batch is one evaluation"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_cancel_is_looked_for_at_every_evaluation(patcher, monkeypatch, way, share):
    """Also where nobody shows progress, in which core looks for it."""
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    asked, at = [], 0

    def count(args):
        asked.append(1)
        if len(asked) == at:
            comfy.model_management.interrupt_current_processing()
        return args["denoised"]

    counted = patcher.clone()
    counted.set_model_sampler_post_cfg_function(count)
    own = replace(inputs(counted, steps=STEPS), noise=SeededNoise(7))
    WAYS[way](own, counted)
    at = max(1, round(share * len(asked)))
    asked.clear()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        WAYS[way](own, counted)
    assert len(asked) == at and not comfy.model_management.processing_interrupted()


VIDEO, SOUND = (1, 16, 3, 4, 4), (1, 8, 5)


class AudioVideo(Mixture):
    """A model of picture and sound in one flat row, as LTX-2 is sampled."""

    latent_shapes = [VIDEO, SOUND]


def audio_video(scorer, **options):
    row = draw(1).new_zeros(1, 1, 16 * 3 * 4 * 4 + 8 * 5)
    noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(3))
    t = torch.linspace(1, 0, 11)
    monitor = MonitorSampler(comfy.samplers.ksampler("euler"), gate(scorer=scorer).inspector(10), **options)
    samples = monitor.sample(AudioVideo(), t, {"model_options": {}, "seed": 0}, None, noise, row, None, True)
    return monitor, samples, noise


def test_a_stopped_audio_video_run_gives_both_parts():
    monitor, samples, noise = audio_video(ScriptedScorer(0.1))
    assert monitor.stopped and samples.shape == noise.shape
    video, sound = comfy.utils.unpack_latents(samples, AudioVideo.latent_shapes)
    assert torch.equal(video, monitor.x0) and video.shape == VIDEO and sound.shape == SOUND and sound.any()
    passed, clip, _ = audio_video(ScriptedScorer(0.3))
    assert not passed.stopped and clip.shape == noise.shape
    torch.testing.assert_close(passed.x0, video_latent(clip, AudioVideo))


def test_what_is_decided_for_one_trial_is_not_taken_by_the_next():
    store = RunStore(lambda event, data, client: None, comfy.model_management.InterruptProcessingException)
    with store.running(None, "", "", None) as run:
        run.begin("0", "sample", steps=10, window=(2, 3), decidable=True)
        run.decide(Decision.REJECT)
        run.begin("1", "probe", steps=10, window=(4, 6), decidable=True)
        assert run.take() is None
        run.decide(Decision.ACCEPT)
        assert run.take() is Decision.ACCEPT and run.take() is None
        run.begin("1", "inject", steps=10)
        with pytest.raises(Refused):
            run.decide(Decision.REJECT)
