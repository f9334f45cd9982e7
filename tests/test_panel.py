"""The live panel's server side: what it keeps, what it answers, and that it never touches a run unasked."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import comfy.model_management
import numpy as np
import pytest
import torch
from tiny_wan import Rewriter, ScriptedScorer, gate, guided, inputs, model

from foresight.panel import runs as panel_runs
from foresight.panel.pictures import SIDE, thumbnail
from foresight.panel.runs import Refused, RunStore
from foresight.sampling.audition import hold_audition
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.noise import SeededNoise
from foresight.sampling.probe import single_frame_probe
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch
from foresight.trials.observer import SILENT, Decision, Observer
from foresight.trials.race import Rules
from foresight.trials.verdict import ItemVerdict, TrialRecord, Verdict

PASS, FAIL = (0.3,), (0.1,)


@pytest.fixture(scope="module")
def patcher():
    return model()


class Page:
    """A store, and what a page is told of it."""

    def __init__(self):
        self.events = []
        self.store = RunStore(self.hear, comfy.model_management.InterruptProcessingException)

    def hear(self, event, data, client):
        self.events.append((event, json.loads(json.dumps(data)), client))

    def running(self, known=None):
        return self.store.running(known, "prompt", "7", "tab")

    def told(self, event):
        return [data for name, data, _ in self.events if name == f"foresight.{event}"]


@pytest.fixture
def page():
    return Page()


def record():
    return TrialRecord("0", "sample", (ItemVerdict(True, 0.3, 10, "early_accept", ((10, 0.3),)),))


def picture(side=8):
    return torch.zeros(5, side, side, 3, dtype=torch.uint8)


def follow(events):
    """What a page makes of the events alone; must be what a page gets that asks for the state."""
    state = None
    for event, data in events:
        match event.removeprefix("foresight."):
            case "start":
                state = data["state"]
            case "trial":
                state["trials"].append(data["trial"])
                state["settings"] = data["settings"]
            case "step":
                trial = state["trials"][data["index"]]
                trial["step"] = data["step"]
                if data["scored"]:
                    trial["trace"].append([data["step"], data["score"]])
                if data["pictured"]:
                    trial["pictures"].append(data["step"])
                    trial["size"] = trial["size"] or data["size"]
            case "verdict":
                trial = state["trials"][data["index"]]
                trial |= {"verdict": data["verdict"], "decidable": False}
            case "end":
                state |= {"live": False, "message": data["message"], "report": data["report"]}
        state["sequence"] = data["sequence"]
    return state


def test_a_page_can_follow_by_events_alone(page, patcher):
    setup = inputs(patcher, steps=50)
    with page.running() as run:
        result = run_hierarchy(
            setup, gate(*FAIL), lambda *_: setup.guider, negative="", reworder=Rewriter(),
            injection=InjectionSettings(), observer=run,
        )
        run.finish(result.verdict)
    state = json.loads(json.dumps(page.store.state(run.id)))
    assert follow([(event, data) for event, data, _ in page.events]) == state
    assert {client for _, _, client in page.events} == {"tab"}
    assert [(trial["trial"], trial["kind"]) for trial in state["trials"]] == [
        (record.trial, record.kind) for record in result.verdict.history
    ]
    base = state["trials"][0]
    assert base["window"] == [8, 14] and [step for step, _ in base["trace"]] == list(range(1, 12)) == base["pictures"]
    assert base["verdict"]["rule"] == "early_reject" and base["size"] == [3, 4, 4]
    assert state["report"]["trials"][-1]["trial"] == state["trials"][-1]["trial"]
    assert state["settings"]["prompt"] == "a red circle" and not state["live"]


def test_watching_changes_nothing(page, patcher):
    alone = monitored_sample(inputs(patcher), gate(*PASS))
    page.store.looked_at = 1e9  # somebody looks at every step
    with page.running() as run:
        watched = monitored_sample(inputs(patcher), gate(*PASS), observer=run)
    assert torch.equal(alone.latent["samples"], watched.latent["samples"])
    assert alone.verdict.record.items == watched.verdict.record.items


def test_steps_that_are_not_inspected_are_pictured_only_when_somebody_looks(page, patcher, monkeypatch):
    monkeypatch.setattr(panel_runs, "PICTURE_EVERY", 0.0)
    for looked_at, pictured in ((-1e9, 3), (1e9, 10)):
        page.store.looked_at = looked_at
        with page.running() as run:
            monitored_sample(inputs(patcher, steps=10), gate(*PASS), observer=run)
        trial = page.store.state(run.id)["trials"][0]
        assert (len(trial["pictures"]), len(trial["trace"])) == (pictured, 3)


def test_later_nodes_of_a_graph_go_on_with_the_same_run(page, patcher):
    with page.running() as run:
        rejected = monitored_sample(inputs(patcher, steps=50), gate(*FAIL), observer=run).verdict
        run.finish(rejected)
    assert not page.store.state(run.id)["live"]
    with page.running(rejected.run) as again:
        _, probed = single_frame_probe(inputs(patcher, steps=50), gate(*PASS), rejected, again)
    assert again is run and probed.run == run.id
    assert [trial["kind"] for trial in page.store.state(run.id)["trials"]] == ["sample", "probe"]
    with page.running("dropped long ago") as other:
        pass
    assert other is not run


class Deciding(ScriptedScorer):
    """At its n-th call a person decides."""

    def __init__(self, run, decision, at, *scores):
        super().__init__(*scores)
        self.run, self.decision, self.at = run, decision, at

    def score(self, frames, text):
        if self.calls + 1 == self.at:
            self.run.decide(self.decision)
        return super().score(frames, text)


def test_reject_now_goes_to_the_next_trial(page, patcher):
    setup = inputs(patcher, steps=50)
    with page.running() as run:
        scorer = Deciding(run, Decision.REJECT, 3, *PASS)
        result = run_hierarchy(
            setup, gate(scorer=scorer), lambda *_: setup.guider, negative="", reworder=Rewriter(),
            injection=InjectionSettings(), observer=run,
        )
    first, second, *_ = result.verdict.history
    assert (first.best.rule, first.best.stop_step, first.steps, first.accepted) == ("user_reject", 3, 3, False)
    assert second.kind == "probe"


def test_reject_now_also_works_after_the_detector_has_accepted(page, patcher):
    with page.running() as run:
        steps = []

        def late(event, data, client):
            if event == "foresight.step" and data["step"] == 30 and not steps:
                steps.append(30)
                run.decide(Decision.REJECT)

        page.store._tell = late
        panel_runs_every, panel_runs.EVENT_EVERY = panel_runs.EVENT_EVERY, 0.0
        try:
            result = monitored_sample(inputs(patcher, steps=50), gate(*PASS), observer=run)
        finally:
            panel_runs.EVENT_EVERY = panel_runs_every
    assert not result.verdict.accepted and result.verdict.record.steps == 30
    assert result.verdict.record.best.rule == "user_reject"


def test_accept_now_keeps_a_failing_clip(page, patcher):
    plain = monitored_sample(inputs(patcher, steps=50), None)
    with page.running() as run:
        checked = gate(scorer=Deciding(run, Decision.ACCEPT, 5, *FAIL))
        kept = monitored_sample(inputs(patcher, steps=50), checked, observer=run)
    assert kept.verdict.accepted and kept.verdict.record.best.rule == "user_accept"
    assert torch.equal(kept.latent["samples"], plain.latent["samples"])


def test_accept_now_injects_a_probe_that_is_not_better(page, patcher):
    rejected = monitored_sample(inputs(patcher, steps=50), gate(*FAIL)).verdict
    with page.running() as run:
        checked = gate(scorer=Deciding(run, Decision.ACCEPT, 2, *FAIL))
        anchor, probed = single_frame_probe(inputs(patcher, steps=50), checked, rejected, run)
    assert probed.accepted and anchor is not None and probed.record.steps == 2


def test_stop_is_the_users_cancel(page, patcher):
    with pytest.raises(comfy.model_management.InterruptProcessingException), page.running() as run:
        monitored_sample(inputs(patcher, steps=50), gate(scorer=Deciding(run, Decision.STOP, 2, *PASS)), observer=run)
    state = page.store.state(run.id)
    assert not state["live"] and state["message"] == page.told("end")[0]["message"] == "stopped"


def test_decisions_that_cannot_be_taken_are_refused(page):
    with page.running() as run:
        with pytest.raises(Refused, match="only be stopped"):
            run.decide(Decision.ACCEPT)
        run.begin("0", "sample", steps=50, window=(8, 14), decidable=True)
        run.decide(Decision.REJECT)
        with pytest.raises(Refused, match="'reject' was asked for"):
            run.decide(Decision.ACCEPT)
        assert run.take() is Decision.REJECT and run.take() is None
        run.conclude(record())
        with pytest.raises(Refused, match="only be stopped"):
            run.decide(Decision.REJECT)
    with pytest.raises(Refused, match="has ended"):
        run.decide(Decision.STOP)


def test_a_failed_run_says_why(page):
    with pytest.raises(RuntimeError), page.running() as run:
        raise RuntimeError("out of luck")
    assert page.store.state(run.id)["message"] == "RuntimeError: out of luck"


def test_a_page_that_cannot_be_told_ends_nothing(patcher):
    def broken(event, data, client):
        raise ConnectionError("the page is gone")

    with RunStore(broken).running(None, "", "", None) as run:
        result = monitored_sample(inputs(patcher), gate(*PASS), observer=run)
    assert result.verdict.record.message is None


@pytest.mark.parametrize("scores", [PASS, FAIL])
def test_a_picture_that_cannot_be_made_decides_nothing(page, patcher, monkeypatch, scores):
    def no_memory(frames):
        raise torch.OutOfMemoryError("no memory for a thumbnail")

    alone = monitored_sample(inputs(patcher), gate(*scores)).verdict.record
    monkeypatch.setattr(panel_runs, "thumbnail", no_memory)
    page.store.looked_at = 1e9
    with page.running() as run:
        seen = monitored_sample(inputs(patcher), gate(*scores), observer=run).verdict.record
    assert (seen.items, seen.message) == (alone.items, None)
    shown = page.store.state(run.id)["trials"][0]
    assert not shown["pictures"] and shown["trace"] == [list(point) for point in seen.best.trace]


class Broken(Observer):
    """Whatever it is told, it fails: what a plan decides must not depend on it."""

    def _fail(self, *args, **kwargs):
        raise MemoryError("nothing can be shown")

    begin = step = conclude = finish = wants_picture = somebody_looks = take = offer = _fail


def test_an_observer_that_fails_everywhere_decides_nothing(patcher):
    def hierarchy(observer):
        found = run_hierarchy(
            inputs(patcher), gate(*FAIL), lambda positive, negative: inputs(patcher).guider, negative="",
            reworder=Rewriter(), injection=InjectionSettings(), observer=observer,
        )  # fmt: skip
        observer.finish(found.verdict)
        return found

    def raced(observer):
        return run_race(inputs(patcher, steps=10), gate(*FAIL), Rules.ranks(1.0, "later"), observer=observer)

    def auditioned(observer):
        made = partial(replace, inputs(patcher, steps=10))
        return hold_audition(
            lambda seed: made(noise=SeededNoise(seed)), gate(0.1, 0.2), (1, 2), keep=1, fraction=0.2,
            observer=observer, wait=5,
        )  # fmt: skip

    for method in (hierarchy, raced, auditioned):
        silent, broken = method(SILENT), method(Broken())
        assert torch.equal(silent.latent["samples"], broken.latent["samples"]), method.__name__
        if method is not auditioned:
            told = [[(each.kind, each.items, each.message) for each in run.verdict.history] for run in (silent, broken)]
            assert told[0] == told[1]


def test_a_watch_that_cannot_be_shown_still_judges(patcher):
    watch = Watch(gate(*FAIL), running=lambda: nullcontext(Broken()))
    setup = inputs(patcher)
    noise = setup.noise.generate_noise(setup.latent)
    guided(watch.patch(patcher)).sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas, seed=3)
    assert not watch.verdict.accepted and watch.verdict.record.message is None


def test_only_the_users_cancel_comes_out_of_an_observer():
    class Cancelling(Broken):
        cancelled = MemoryError

    assert Broken().take() is None
    with pytest.raises(MemoryError):
        Cancelling().take()


def test_hundreds_of_runs_stay_within_the_bound(page, monkeypatch):
    monkeypatch.setattr(panel_runs, "MAX_BYTES", 10 * picture().nbytes)
    for _ in range(500):
        with page.running() as run:
            run.begin("0", "sample", steps=50)
            for step in (1, 2, 3):
                run.step(step, 0.3, picture())
            run.conclude(record())
            run.finish(Verdict((record(),)))
        assert page.store.bytes <= panel_runs.MAX_BYTES and len(page.store.runs()) <= panel_runs.MAX_RUNS
    assert page.store.runs()[0]["id"] == run.id
    assert len(page.store.runs()) == 3


def test_the_oldest_runs_go_first_and_a_live_one_stays(page, monkeypatch):
    monkeypatch.setattr(panel_runs, "MAX_RUNS", 3)
    with page.running() as live:
        ended = []
        for _ in range(5):
            with page.running() as run:
                ended.append(run.id)
        assert [each["id"] for each in page.store.runs()] == [ended[4], ended[3], live.id]
        with page.running(ended[3]):  # gone on with, it is not begun anew
            pass
        assert [each["id"] for each in page.store.runs()] == [ended[4], ended[3], live.id]


def test_pictures_of_the_oldest_run_make_room_first(page, monkeypatch):
    monkeypatch.setattr(panel_runs, "MAX_BYTES", 3 * picture().nbytes)
    kept = []
    for _ in range(3):
        with page.running() as run:
            run.begin("0", "sample", steps=2)
            run.step(1, 0.3, picture())
            kept.append(run.id)
    assert [each["id"] for each in page.store.runs()] == kept[::-1]  # just within the bound
    with page.running() as run:
        run.begin("0", "sample", steps=2)
        run.step(1, 0.3, picture())
    assert [each["id"] for each in page.store.runs()] == [run.id, kept[2], kept[1]]


def test_a_decision_is_of_the_trial_it_was_made_in(page):
    with page.running() as run:
        run.begin("0", "sample", steps=50, window=(8, 14), decidable=True)
        run.decide(Decision.REJECT)
        run.begin("1", "probe", steps=50, window=(20, 30), decidable=True)
        assert run.take() is None
        run.decide(Decision.ACCEPT)
        assert (run.take(), run.take()) == (Decision.ACCEPT, None)
        run.decide(Decision.STOP)
    with page.running(run.id) as again:
        assert again is run and run.take() is None


def test_one_run_of_thousands_of_steps_is_thinned_out(page, monkeypatch):
    monkeypatch.setattr(panel_runs, "MAX_BYTES", 10 * picture().nbytes)
    with page.running() as run:
        run.begin("0", "sample", steps=5000)
        for step in range(1, 5001):
            run.step(step, 0.3, picture())
            assert page.store.bytes <= panel_runs.MAX_BYTES
        kept = page.store.state(run.id)["trials"][0]["pictures"]
    assert kept[-1] == 5000 and len(kept) >= 5


def test_scores_that_are_no_numbers_are_valid_json(page):
    with page.running() as run:
        run.begin("0", "sample", steps=50, settings={"tau": 0.2})
        run.step(1, float("nan"))
    assert page.store.state(run.id)["trials"][0]["trace"] == [[1, None]]
    json.dumps([page.events, page.store.state(run.id)], allow_nan=False)


def test_nothing_that_a_run_is_told_can_spoil_the_pages_json(page):
    nan, half = float("nan"), "half an emoji \ud83d"
    with page.running() as run:
        told = {"prompt": half, "tau": np.float32(nan)}
        run.begin("0", "sample", steps=50, settings=told, details={"seed": np.int64(3)})
        run.step(1, float("inf"))
        run.conclude(replace(record(), message=half, details={"price": nan, 1: (nan,)}))
        run.finish(Verdict((record(),), {"prompt": half, "final_score": nan}))
    page.store.amend(run.id, run.report | {"final_score": nan, "notes": [half]})
    shown = [page.events, page.store.state(run.id), page.store.runs(), page.store.run(run.id).report]
    for each in shown:
        assert "\ud83d" not in json.dumps(each, allow_nan=False, ensure_ascii=False)
    assert page.store.state(run.id)["trials"][0]["details"] == {"seed": 3}


def test_nobody_has_to_watch(patcher):
    result = monitored_sample(inputs(patcher), gate(*PASS))
    assert result.verdict.accepted and result.verdict.run is None
    assert vars(SILENT) == {}, "the observer that all runs share remembers none of them"


def test_thumbnails_are_small_and_keep_their_colours():
    frames = torch.tensor([0.2, 0.5, 1.0]).expand(2, 480, 832, 3)
    small = thumbnail(frames)
    assert small.shape == (2, 185, SIDE, 3) and small.dtype == np.uint8
    assert (small == np.array([51, 128, 255])).all()
    assert thumbnail(frames[:, :64, :64]).shape == (2, 64, 64, 3)  # small ones stay as they are


def test_a_final_score_reaches_the_page_after_the_end(page):
    with page.running() as run:
        run.finish(Verdict((record(),)))
    page.store.amend(run.id, {"final_score": 0.3})
    page.store.amend("gone", {"final_score": 0.3})
    assert follow([(event, data) for event, data, _ in page.events])["report"] == {"final_score": 0.3}
    assert page.store.state(run.id)["report"] == {"final_score": 0.3}


def test_two_decisions_at_once_are_one(page):
    refused, barrier = [], threading.Barrier(8)

    def press():
        barrier.wait()
        try:
            run.decide(Decision.REJECT)
        except Refused:
            refused.append(1)

    with page.running() as run:
        run.begin("0", "sample", steps=50, window=(8, 14), decidable=True)
        threads = [threading.Thread(target=press) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 7
