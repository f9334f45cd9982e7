"""Promises 1 to 3 under samplers of other packs."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import copy_nested_dicts
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from foreign_samplers import BESIDE, DISOBEDIENT, GUIDERS, INDICES, UNCOUNTABLE, UNSEEN, asking, counting
from searches import Mean, Told, searching
from tiny_wan import CancellingScorer, Conditioned, Rewriter, ScriptedScorer, gate, inputs, model

from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.line import Steps
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch
from foresight.scoring.detector import DetectorSettings
from foresight.trials.observer import Decision, Observer
from foresight.trials.race import Candidate, Look, RaceSettings, Rules
from foresight.trials.report import run_report

Interrupt = comfy.model_management.InterruptProcessingException


@pytest.fixture(scope="module")
def patcher():
    return model()


def given(patcher, sampler, steps=10, **changes):
    return replace(inputs(patcher, steps=steps), sampler=sampler, noise=SeededNoise(7), **changes)


def core(own):
    result = SamplerCustomAdvanced.execute(own.noise, own.guider, own.sampler, own.sigmas, own.latent)
    return result.result[0]["samples"]


def state(guider):
    """What a run must leave as it was."""
    return guider.cfg, {name: [id(cond) for cond in conds] for name, conds in guider.original_conds.items()}


@pytest.mark.parametrize("name", [*GUIDERS, *BESIDE])
def test_a_sampler_gets_the_guider_itself_and_is_counted(patcher, name):
    own = given(patcher, asking(name))
    before, plain = state(own.guider), core(given(patcher, asking(name)))
    result = monitored_sample(own, gate(0.3))
    assert torch.equal(result.latent["samples"], plain)
    assert result.verdict.record.nfe_video == 10 and result.verdict.record.message is None
    stopped = monitored_sample(own, gate(0.1)).verdict
    assert not stopped.accepted and stopped.record.nfe_video == stopped.record.best.stop_step < 10
    assert state(own.guider) == before, "a cached guider is changed in place"
    watch = Watch(gate(0.3))
    assert torch.equal(core(given(watch.patch(patcher), asking(name))), plain)
    assert watch.verdict.record.nfe_video == 10


@pytest.mark.parametrize("name", UNSEEN)
def test_a_sampler_that_cannot_be_seen_to_ask_is_told_of(patcher, name):
    """Without model options there is no wrapper: neither its evaluations nor its steps are known."""
    own, plain = given(patcher, asking(name)), core(given(patcher, asking(name)))
    watch = Watch(gate(0.1))
    assert torch.equal(core(given(watch.patch(patcher), asking(name))), plain)
    raced = run_race(own, gate(0.1), Rules(RaceSettings(2, "off"), (Look(0.3, 0.2, 0.2),)))
    alone = monitored_sample(own, gate(0.1))
    assert torch.equal(raced.latent["samples"], plain) and torch.equal(alone.latent["samples"], plain)
    for verdict in (watch.verdict, raced.verdict, alone.verdict):
        assert any("evaluations are not counted" in note for note in run_report(verdict)["notes"])
    seen = run_report(monitored_sample(given(patcher, asking("sets cfg")), gate(0.3)).verdict)
    assert not any("not counted" in note for note in seen["notes"])


@pytest.mark.parametrize("name", [*GUIDERS, *BESIDE])
def test_candidates_of_such_samplers_go_on_exactly_within_the_bound(patcher, name):
    own = given(patcher, asking(name))
    plain, other = core(own), core(replace(given(patcher, asking(name)), noise=SeededNoise(Candidate(1).seed(7))))
    rules = Rules(RaceSettings(2, "off"), (Look(0.3, 0.2, 0.2),))
    for scores, clip in (((0.15, 0.1, 0.3), plain), ((0.1, 0.15, 0.3), other)):
        result = run_race(given(patcher, asking(name)), gate(*scores), rules)
        report = run_report(result.verdict)
        assert torch.equal(result.latent["samples"], clip)
        assert report["nfe"] == report["nfe_worst_case"] == (16 if name in BESIDE else 13)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("name", [*GUIDERS, *BESIDE])
def test_a_search_over_such_samplers(patcher, name, at_once):
    """What a sampler sets on the guider holds for its own call, so it is not asked about others in one."""
    options = {"method": "beam", "candidates": 3, "schedule": (0.3,), "at_once": at_once}
    search = searching(Told([0.0, 1.0, 0.0]), asking(name), **options)
    own = given(patcher, search)
    record = monitored_sample(own).verdict.record
    assert record.nfe_video == search.result["nfe"]
    if name in BESIDE:
        assert "nothing was searched" in search.result["notes"][0] and record.nfe_video == 10
        assert torch.equal(monitored_sample(own).latent["samples"], core(given(patcher, asking(name))))
        return
    alone = core(replace(given(patcher, asking(name)), noise=SeededNoise(8)))
    torch.testing.assert_close(monitored_sample(own).latent["samples"], alone, rtol=2e-3, atol=2e-3)
    assert record.nfe_video == 3 * 3 + 7


@pytest.mark.parametrize("name", INDICES)
def test_however_a_sampler_counts_its_steps_are_where_its_noise_is(patcher, name):
    own = given(patcher, counting(name), steps=50)
    judged, plain = monitored_sample(own, gate(0.1)), monitored_sample(inputs(patcher, steps=50), gate(0.1))
    assert judged.verdict.record.best.stop_step == plain.verdict.record.best.stop_step == 11
    passed = monitored_sample(own, gate(0.3), keep_steps=True)
    assert torch.equal(passed.latent["samples"], core(own)) and len(passed.steps_x0["samples"]) == 50
    assert passed.verdict.record.message is None
    watch = Watch(gate(0.1))
    assert torch.equal(core(given(watch.patch(patcher), counting(name), steps=50)), core(own))
    assert watch.verdict.record.items == judged.verdict.record.items


def without_callback(patcher, sampler):
    """Some packs call a guider themselves and bring no callback; core's own would fail on what is shown here."""
    own = given(patcher, sampler)
    return own.guider.sample(own.noise.generate_noise(own.latent), own.latent["samples"], sampler, own.sigmas, seed=7)


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_a_step_number_that_is_none_is_not_needed(patcher, name):
    watch = Watch(gate(0.1))
    clip = without_callback(watch.patch(patcher), counting(name))
    assert torch.equal(clip, without_callback(patcher, counting(name)))
    assert not watch.verdict.accepted and watch.verdict.record.best.trace[0][0] == 1


@pytest.mark.parametrize("shown", [lambda x0: x0[:, :, :1], lambda x0: None, lambda x0: x0.tolist()])
def test_what_is_no_x0_prediction_of_the_clip_is_not_inspected_and_the_report_says_so(patcher, shown):
    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for step in range(len(sigmas) - 1):
            denoised = model(x, sigmas[step] * x.new_ones(len(x)), **extra_args)
            if callback:
                callback({"x": x, "i": step, "denoised": shown(denoised)})
            x = x + (x - denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
        return x

    watch, sampler = Watch(gate(0.1)), comfy.samplers.KSAMPLER(sample)
    try:
        plain = without_callback(patcher, sampler)
    except AttributeError:
        pytest.skip("a log line of this ComfyUI's own reads the shape")
    assert torch.equal(without_callback(watch.patch(patcher), sampler), plain)
    assert watch.verdict.accepted
    assert watch.verdict.record.message == "not judged: the sampler has shown parts of the clip only"


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("sampler", ["dpm_adaptive", "dpm_fast"])
def test_samplers_that_choose_their_own_steps(patcher, sampler, steps):
    own = inputs(patcher, sampler, steps=steps)
    plain = core(own)
    for watched in (None, gate(0.3), gate(0.1, every=3)):
        result = monitored_sample(own, watched, stop="never")
        assert torch.equal(result.latent["samples"], plain)
        assert result.verdict.record.steps == steps
    watch = Watch(gate(0.1))
    assert torch.equal(core(inputs(watch.patch(patcher), sampler, steps=steps)), plain)
    assert watch.verdict.record.nfe_video == result.verdict.record.nfe_video >= steps


def test_a_run_that_does_not_come_by_the_whole_window_says_so(patcher):
    result = monitored_sample(inputs(patcher, "dpm_fast", steps=10), gate(0.1))
    assert result.verdict.accepted
    assert "not judged: the sampler has shown not all steps" in result.verdict.record.message


@pytest.mark.parametrize("name", DISOBEDIENT)
def test_a_stop_that_is_not_obeyed_holds_and_is_told(patcher, name):
    own = given(patcher, DISOBEDIENT[name], steps=50)
    asked = []
    counted = patcher.clone()
    counted.set_model_sampler_post_cfg_function(lambda args: asked.append(1) or args["denoised"])
    stopped = monitored_sample(replace(own, guider=inputs(counted).guider), gate(0.1))
    expected = monitored_sample(replace(inputs(patcher, steps=50), noise=SeededNoise(7)), gate(0.1))
    assert len(asked) == stopped.verdict.record.nfe_video == 11
    assert torch.equal(stopped.latent["samples"], expected.latent["samples"]), "the x0 prediction, as from any sampler"
    assert not stopped.verdict.accepted and "did not end when it was stopped" in stopped.verdict.record.message
    assert torch.equal(monitored_sample(own, gate(0.3)).latent["samples"], core(own))


@pytest.mark.parametrize("name", DISOBEDIENT)
def test_the_trials_stay_within_their_bound_under_it(patcher, name):
    result = run_hierarchy(
        given(patcher, DISOBEDIENT[name], steps=50), gate(0.1), Conditioned(patcher), negative="", reworder=Rewriter(),
        injection=InjectionSettings(),
    )  # fmt: skip
    report = run_report(result.verdict)
    assert [trial["kind"] for trial in report["trials"]] == ["sample", "probe", "refine", "sample", "probe", "inject"]
    assert report["nfe"] <= report["nfe_worst_case"]
    assert any("did not end when it was stopped" in note for note in report["notes"])


@pytest.mark.parametrize("name", DISOBEDIENT)
def test_a_cancel_that_is_caught_is_a_cancel_all_the_same(patcher, name):
    asked = []
    counted = patcher.clone()
    counted.set_model_sampler_post_cfg_function(lambda args: asked.append(1) or args["denoised"])
    own = replace(given(patcher, DISOBEDIENT[name]), guider=inputs(counted).guider)
    for run in (
        lambda scorer: monitored_sample(own, gate(scorer=scorer, video=DetectorSettings.video(start=0.8, end=1.0))),
        lambda scorer: core(replace(own, guider=inputs(Watch(
            gate(scorer=scorer, video=DetectorSettings.video(start=0.8, end=1.0))).patch(counted)).guider)),
    ):  # fmt: skip
        asked.clear()
        with pytest.raises(Interrupt):
            run(CancellingScorer(4, *[0.3, 0.35] * 10))
        assert len(asked) <= 5 and not comfy.model_management.processing_interrupted()


@pytest.mark.parametrize("name", DISOBEDIENT)
def test_candidates_and_searches_hold_over_it(patcher, name):
    own = given(patcher, DISOBEDIENT[name])
    rules = Rules(RaceSettings(3, "off"), (Look(0.3, 0.2, 0.2),))
    report = run_report((result := run_race(own, gate(0.1, 0.15, 0.05, 0.3), rules)).verdict)
    assert torch.equal(result.latent["samples"], core(replace(own, noise=SeededNoise(Candidate(1).seed(7)))))
    assert report["nfe"] == report["nfe_worst_case"] == 16
    for at_once in (1, 3):
        search = searching(Mean(), own.sampler, candidates=3, schedule=(0.3,), budget=16, at_once=at_once)
        record = monitored_sample(replace(own, sampler=search)).verdict.record
        assert record.nfe_video == search.result["nfe"] <= 16 and search.result["winner"] is not None


class Late(Observer):
    """Rejects each trial at these steps, by trial."""

    def __init__(self, **steps):
        self.steps, self.now, self.trial = steps, None, None

    def begin(self, trial, kind, **rest):
        self.trial = {"0": "base", "2": "second"}.get(trial, trial) if kind == "sample" else kind

    def step(self, step, score, frames=None):
        self.now = step

    def take(self):
        return Decision.REJECT if self.steps.get(self.trial) == self.now else None


@pytest.mark.parametrize("base", [15, 30, 45, 50])
@pytest.mark.parametrize("second", [5, 20, 49, 50])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_late_reject_now_stays_within_the_stated_bound(patcher, sampler, base, second):
    result = run_hierarchy(
        inputs(patcher, sampler, steps=50), gate(0.21, every=3), Conditioned(patcher), negative="", reworder=Rewriter(),
        injection=InjectionSettings(), observer=Late(base=base, second=second),
    )  # fmt: skip
    report = run_report(result.verdict)
    assert report["nfe"] <= report["nfe_worst_case"]
    assert report["trials"][0]["verdict"]["rule"] in ("user_reject", "stable_stop", "budget")
    assert torch.isfinite(result.latent["samples"]).all()


def test_a_sampler_with_steps_of_its_own_is_found_wherever_it_is_held(patcher):
    from foresight.sampling.self_refine import PRESETS, self_refining

    for name in ("dpm_adaptive", "dpm_fast"):
        refining = self_refining(comfy.samplers.sampler_object(name), PRESETS["light"].settings())
        with pytest.raises(ValueError, match="choose their own"):
            searching(Mean(), refining, budget=60)
        report = run_report(run_race(
            given(patcher, refining), gate(0.1), Rules(RaceSettings(3, "off"), (Look(0.3, 0.2, 0.2),))
        ).verdict)  # fmt: skip
        assert len(report["candidates"]) == 1 and "chooses its own steps" in report["notes"][0]
        watched = monitored_sample(given(patcher, refining), gate(0.3)).verdict.record
        assert watched.details["nfe_plain"] == (10 if name == "dpm_fast" else None)
        result = run_hierarchy(
            given(patcher, refining), gate(0.1), Conditioned(patcher), negative="", reworder=Rewriter(), injection=None
        )
        report = run_report(result.verdict)
        told = [report[key] for key in ("nfe_plain", "nfe_worst_case")]
        assert told == [None, None] if name == "dpm_adaptive" else told[0] == 10 and report["nfe"] <= told[1]


def test_a_sampler_whose_steps_depend_on_the_model_cannot_spend_more_than_the_budget_on_candidates(patcher):
    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for step in range(len(sigmas) - 1):
            sigma = sigmas[step] * x.new_ones(len(x))
            denoised = model(x, sigma, **extra_args)
            if step < 3 and denoised.abs().mean() < 100:  # what a dry run answers is larger
                for _ in range(5):
                    denoised = model(x, sigma, **extra_args)
            if callback:
                callback({"x": x, "i": step, "denoised": denoised})
            x = x + (x - denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
        return x

    search = searching(Mean(), comfy.samplers.KSAMPLER(sample), candidates=4, schedule=(0.3,), budget=22)
    record = monitored_sample(given(patcher, search)).verdict.record
    assert sum(len(each["rewards"]) for each in search.result["candidates"]) >= 1
    assert record.nfe_video == search.result["nfe"] <= 4 * 3 + 25
    assert any("more model evaluations than it showed" in note for note in search.result["notes"])


def test_steps_are_placed_by_noise_and_only_once():
    steps = Steps(torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]), torch.Size([1, 2]))
    x0 = torch.zeros(1, 2)
    at = lambda index, level, x0=x0: steps.place(index, x0, None if level is None else torch.tensor([level]))  # noqa: E731
    assert at(0, 0.9999) == 1, "flows are asked a little below 1 by samplers that cannot divide by 0"
    assert at(0, 1.0) is None and at(1, None) is None
    assert at(1, 0.75) == 2
    assert at(7, 0.2) == 4, "the index is out of the schedule"
    assert at(2, 0.5) is None, "never back"
    assert at(4, 0.0) is None and not steps.part
    assert at(3, 0.2, torch.zeros(1, 1)) is None and steps.part


def test_the_index_is_believed_within_a_step_of_the_level():
    """Samplers of several stages call back after the last of them, whose level may be nearer to the next step."""
    x0, levels = torch.zeros(1), torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    assert Steps(levels, x0.shape).place(0, x0, torch.tensor(0.81)) == 1
    assert Steps(levels, x0.shape).place(0, x0, torch.tensor(0.5)) == 3
    assert Steps(levels, x0.shape).place(2, x0, torch.tensor(0.7)) == 3
    assert Steps(levels, x0.shape).place(0, x0, torch.tensor(0.8)) == 2, "not against a level of the schedule"


def test_wrappers_of_other_packs_stay_where_they_were(patcher):
    """The line is set for the run only, and around what others have set."""
    asked = []

    def note(executor, *args, **kwargs):
        asked.append(1)
        return executor(*args, **kwargs)

    kinds = comfy.patcher_extension.WrappersMP
    own = patcher.clone()
    for kind in (kinds.PREDICT_NOISE, kinds.CALC_COND_BATCH):
        own.add_wrapper(kind, note)
    setup = inputs(own)
    before = copy_nested_dicts(setup.guider.model_options)
    assert monitored_sample(setup, gate(0.1)).verdict.record.nfe_video == 3
    monitored_sample(setup, gate(scorer=ScriptedScorer(RuntimeError("no"))))
    assert len(asked) == 2 * 3 + 2 * 10
    after = setup.guider.model_options
    assert after == before, "the user's own guider is changed in place"
