"""The live panel's server side: what it keeps, what it answers, and that it never touches a run unasked."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import numpy as np
import pytest
import torch
from panel_page import Page, record
from tiny_wan import Rewriter, ScriptedScorer, gate, inputs, model

from foresight.nodes import compat
from foresight.nodes import panel as nodes_panel
from foresight.panel import runs as panel_runs
from foresight.panel.pictures import SIDE, thumbnail
from foresight.panel.runs import Refused, RunStore
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.probe import single_frame_probe
from foresight.sampling.run import monitored_sample
from foresight.trials.observer import Decision
from foresight.trials.verdict import Verdict

PASS, FAIL = (0.3,), (0.1,)


@pytest.fixture(scope="module")
def patcher():
    return model()


@pytest.fixture
def page():
    return Page()


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
                trial |= {"verdict": data["verdict"], "step": data["step"], "decidable": False}
            case "wait":
                state["offered"]["left"] = data["seconds"]
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
    for looked_at, pictured in ((-1e9, 4), (1e9, 10)):  # the finished clip is, in any case
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


def test_thumbnails_are_small_and_keep_their_colours():
    frames = torch.tensor([0.2, 0.5, 1.0]).expand(2, 480, 832, 3)
    small = thumbnail(frames)
    assert small.shape == (2, 185, SIDE, 3) and small.dtype == np.uint8
    assert (small == np.array([51, 128, 255])).all()
    assert thumbnail(frames[:, :64, :64]).shape == (2, 64, 64, 3)  # small ones stay as they are
    levels = torch.arange(256) / 255
    for given, shown in ((levels, np.arange(256)), (torch.tensor([-0.3, 1.2]), np.array([0, 255]))):
        assert (thumbnail(given.view(1, 1, -1, 1).expand(1, 1, -1, 3))[0, 0, :, 0] == shown).all()
    assert thumbnail(torch.zeros(1, 2, 1000, 3)).shape == (1, 1, SIDE, 3) and SIDE == 320


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


def test_a_run_knows_its_graph_and_survives_what_a_graph_may_be_called(monkeypatch):
    """Node ids are the same in many graphs: a page shows a run on a node of its own graph only."""
    for extra, graph in (
        ({"extra_pnginfo": {"workflow": {"id": "a-b-c"}}}, "a-b-c"), ({"extra_pnginfo": None}, None), ({}, None),
        ({"extra_pnginfo": ["odd"]}, None), ({"extra_pnginfo": {"workflow": "odd"}}, None),
    ):  # fmt: skip
        queue = SimpleNamespace(currently_running={0: (1, "", {}, extra, [])})
        monkeypatch.setattr(compat, "prompt_server", lambda queue=queue: SimpleNamespace(prompt_queue=queue))
        with nodes_panel.running() as run:
            assert nodes_panel.STORE.state(run.id)["graph"] == graph


def test_a_record_ends_the_trial_of_its_name(page):
    with page.running() as run:
        run.begin("0", "sample", steps=10)
        for name in ("candidate 0", "candidate 1"):
            run.begin(name, "search", steps=10)
        run.step(4, 0.5, None, "candidate 0")
        run.conclude(replace(record(), trial="candidate 0", steps=4))
        run.step(4, None, None)  # of the last that is open
        run.conclude(replace(record(), trial="candidate 1", steps=4))
        run.step(7, 0.25)
    base, first, second = page.store.state(run.id)["trials"]
    assert (base["step"], base["trace"], base["verdict"]) == (7, [[7, 0.25]], None)
    assert (first["step"], first["trace"]) == (4, [[4, 0.5]]) and second["step"] == 4 and second["verdict"]
