"""The run report as a document, and the Run Report node: what is told is true, and telling it loses no clip."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_wan import MeanL2R, ScriptedScorer, gate, inputs, model

import foresight.nodes.report as node
from foresight.nodes.hierarchy import ForesightSampler
from foresight.nodes.inspection import FailureGate
from foresight.nodes.panel import STORE
from foresight.nodes.report import RunReport, told
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.trials.race import Rules
from foresight.trials.report import Report, run_report, safe, to_json, with_final_score
from foresight.trials.summary import report_text
from foresight.trials.verdict import ItemVerdict, TrialRecord, Verdict

CLIP = torch.full((5, 8, 8, 3), 0.5)
NAN, HALF = float("nan"), "a red \ud83d circle"


@pytest.fixture(scope="module")
def patcher():
    return model()


def verdict(prompt="a red circle", **settings):
    items = (ItemVerdict(True, 0.3, 10, "early_accept", ((10, 0.3),)),)
    record = TrialRecord("0", "sample", items, nfe_video=50, steps=50)
    return Verdict((record,), {"prompt": prompt, "tau": 0.22} | settings)


@pytest.mark.parametrize(
    "value, plain",
    [
        (NAN, None), (-np.inf, None), (np.float32("nan"), None), (np.float64(0.5), 0.5), (np.int64(3), 3),
        (torch.tensor(0.25), 0.25), (True, True), (2**64 - 1, 2**64 - 1), ((1, (NAN, "x")), [1, [None, "x"]]),
        ({1: {"a": NAN}}, {"1": {"a": None}}), ("half \ud83d", "half \ufffd"), ("\ud83d\ude00 两", "\U0001f600 两"),
        ({"\udc00": 1}, {"\ufffd": 1}), (None, None), (OSError("gone"), "gone"),
    ],
)  # fmt: skip
def test_any_value_is_made_plain_json(value, plain):
    made = safe(value)
    assert made == plain and type(made) is type(plain)
    json.dumps(made, allow_nan=False, ensure_ascii=False).encode()


def test_a_report_stays_safe_whatever_is_added_to_it():
    report = run_report(verdict(HALF, final_score=NAN)) | {"final_score": NAN, "more": {"notes": [HALF]}}
    assert type(report) is Report and report["final_score"] is None
    assert to_json(report).encode() and report_text(report).encode()
    assert type(with_final_score(report, NAN)) is Report


@pytest.mark.parametrize("prompt", ["a red circle", HALF, "(x:nan)"])
@pytest.mark.parametrize("clip, score", [(CLIP * NAN, NAN), (CLIP, 0.3)])
def test_no_clip_and_no_prompt_breaks_the_report(tmp_path, monkeypatch, prompt, clip, score):
    monkeypatch.setattr("folder_paths.output_directory", str(tmp_path))
    monkeypatch.setattr(RunReport, "hidden", None, raising=False)
    out = RunReport.execute(verdict=verdict(prompt), images=clip, scorer=ScriptedScorer(score), save=True)
    picture, text, document = out.args
    assert picture.shape == (1, 800, 1200, 3) and text.encode()
    found = json.loads(document, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    json.dumps(out.ui, allow_nan=False, ensure_ascii=False, default=str).encode()
    assert found["final_score"] == (None if np.isnan(score) else score)
    assert ("Note: the finished clip's score is not a number" in text) == np.isnan(score)
    (kept,) = tmp_path.rglob("*.json")
    assert json.loads(kept.read_text(encoding="utf-8")) == found


def test_no_memory_for_the_scorer_costs_the_score_only():
    short = ScriptedScorer(torch.OutOfMemoryError("no memory for ViCLIP"))
    picture, text, document = RunReport.execute(verdict=verdict(final_score=0.25), images=CLIP, scorer=short).args
    assert picture.shape == (1, 800, 1200, 3)
    assert "Note: the finished clip was not scored: OutOfMemoryError: no memory for ViCLIP" in text
    assert json.loads(document)["final_score"] == 0.25  # the preview's, which still stands


def test_no_memory_to_load_the_scorer_is_the_same(monkeypatch):
    def no_memory(scorer):
        raise torch.OutOfMemoryError("it does not fit")

    monkeypatch.setattr("foresight.nodes.inspection.on_device", no_memory)
    text = RunReport.execute(verdict=verdict(), images=CLIP, scorer=ScriptedScorer(0.3)).args[1]
    assert "Note: the finished clip was not scored: OutOfMemoryError: it does not fit" in text


def test_a_picture_or_a_file_that_cannot_be_made_costs_only_itself(monkeypatch):
    def broken(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(node, "keep", broken)
    picture, text, document = RunReport.execute(verdict=verdict(), images=CLIP, save=True).args
    assert "Note: the report could not be kept: OSError: no space" in text and json.loads(document)
    monkeypatch.setattr(node, "report_figure", broken)
    picture, text, document = RunReport.execute(verdict=verdict(), images=CLIP, save=True).args
    assert picture.message is None and "Note: the picture could not be drawn" in text
    assert json.loads(document)["notes"] == [line.removeprefix("Note: ") for line in text.splitlines()[-1:]]
    monkeypatch.setattr(node, "run_report", broken)
    assert "could not be reported: OSError" in RunReport.execute(verdict=verdict()).args[1]
    assert "could not be reported: OSError" in told(verdict())


def test_what_was_ahead_is_told_anew_when_the_frames_are_scored():
    left = TrialRecord("0", "sample", (ItemVerdict(False, 0.18, 11, "early_reject"),), accepted=False)
    report = run_report(Verdict((left, TrialRecord("1", "inject", finals=(0.17,))), {"tau": 0.22}))
    assert report["closer"] == {"trial": "0", "score": 0.18}
    assert with_final_score(report, 0.25)["closer"] is None
    assert with_final_score(report, 0.1796)["closer"] is None, "told as the same number"
    assert with_final_score(with_final_score(report, 0.25), 0.1)["closer"] == {"trial": "0", "score": 0.18}


def test_the_final_score_reaches_the_panel():
    with STORE.running(None, "prompt", "7", None) as run:
        run.finish(verdict())
    RunReport.execute(verdict=replace(verdict(), run=run.id), images=CLIP, scorer=ScriptedScorer(0.19))
    shown = STORE.state(run.id)["report"]
    assert (shown["final_score"], shown["final_score_of"]) == (0.19, "frames")


def raced(patcher, *scores):
    result = run_race(inputs(patcher), gate(*scores), Rules.ranks(0.0, "off"))
    return run_report(result.verdict)


def test_how_a_run_was_decided_is_told(patcher):
    assert (run_report(verdict())["accepted"], run_report(verdict())["decided_by"]) == (True, "detector")
    unseen = TrialRecord("0", "sample", (ItemVerdict(True, None, None, "not_inspected"),))
    for records in ((unseen,), (TrialRecord("0", "plain"),)):
        report = run_report(Verdict(records))
        assert (report["accepted"], report["decided_by"]) == (True, "nothing")
    by_hand = TrialRecord("0", "sample", (ItemVerdict(False, 0.3, 4, "user_reject"),), accepted=False)
    assert run_report(Verdict((by_hand,)))["decided_by"] == "hand"
    judged = TrialRecord("2", "sample", (ItemVerdict(True, 0.3, 9, "early_accept"),))
    assert run_report(Verdict((replace(by_hand, accepted=False), judged)))["decided_by"] == "detector", "the last one"
    assert run_report(Verdict((replace(judged, accepted=False), by_hand)))["decided_by"] == "hand"


def test_of_several_judgements_the_last_counts():
    low, high = (ItemVerdict(passed, score, 11, "budget") for passed, score in ((False, 0.1), (True, 0.3)))
    first, second = TrialRecord("0", "sample", (low,), accepted=False), TrialRecord("2", "sample", (high,))
    for records, score, accepted in (((first, second), 0.3, True), ((second, first), 0.1, False)):
        report = run_report(Verdict(records))
        assert (report["predicted_score"], report["accepted"]) == (score, accepted)


def test_a_run_that_has_made_no_step_costs_what_its_schedule_says():
    unprobed = TrialRecord("1", "probe", accepted=False, message="no frame to probe")
    report = run_report(Verdict((unprobed,), {"steps": 50, "worst_case": 138}))
    assert (report["nfe"], report["nfe_plain"], report["nfe_worst_case"]) == (0, 50, 138)
    assert report["seconds_plain_estimate"] is None


def test_what_a_plain_run_costs_is_taken_from_the_evaluations_of_a_step():
    short = TrialRecord("0", "sample", accepted=False, nfe_video=15, steps=10, seconds={"sampling": 5.0})
    report = run_report(Verdict((short,), {"steps": 50, "worst_case": 138}))
    assert (report["nfe"], report["nfe_plain"], report["nfe_worst_case"]) == (15, 75, 207)
    assert report["seconds_plain_estimate"] == 25.0


@pytest.mark.parametrize(
    "look, decided",
    [
        ({"score": None}, (True, "nothing")), ({"score": 0.2}, (True, "floor")), ({"score": 0.19}, (False, "floor")),
        ({"by_hand": "rejected"}, (False, "hand")), ({"by_hand": "accepted", "score": 0.1}, (True, "hand")),
    ],
)  # fmt: skip
def test_a_race_is_judged_by_its_floor_or_a_person_whatever_its_clip_scores(look, decided):
    row = {"candidate": 1, "state": "delivered", "floor": 0.2, "score": 0.3, "by_hand": None} | look
    records = (TrialRecord("candidate 1", "candidate", nfe_video=50, steps=50),)
    report = run_report(Verdict(records, {"tau": 0.22, "raced": [row], "final_score": 0.1}))
    for each in (report, with_final_score(report, 0.9)):
        assert (each["accepted"], each["decided_by"]) == decided


def test_ranks_alone_accept_nothing(patcher):
    failing = torch.OutOfMemoryError("no memory")
    report = raced(patcher, failing)
    assert (report["accepted"], report["decided_by"]) == (None, "ranks")
    assert "whether it matches its prompt is not known" in report_text(report).splitlines()[0]
    scored = with_final_score(report, 0.22)
    assert (scored["accepted"], scored["decided_by"]) == (True, "final score")  # tau itself passes
    assert with_final_score(report, 0.2199)["accepted"] is False
    assert with_final_score(scored, NAN)["accepted"] is None


def test_a_report_shows_the_best_items_preview(patcher):
    batch = inputs(patcher, batch=2)
    own = gate(0.1, 0.3)
    own.scorer.scores = [0.1, 0.3] * 20
    found = monitored_sample(batch, own, keep_steps=True)
    record = found.verdict.record
    assert record.items.index(record.best) == 1
    step = record.items[0].trace[-1][0]
    x0 = patcher.model.process_latent_in(found.steps_x0["samples"][2 * (step - 1) : 2 * step])
    seen = [own.decode(item) for item in x0.split(1)]
    assert torch.allclose(record.preview, seen[1], atol=1e-5) and not torch.allclose(record.preview, seen[0], atol=1e-3)


@pytest.mark.parametrize("delta", [0.0, 0.31])
def test_the_delta_widget_is_the_margin(delta):
    widgets = {
        each.id: each.default for each in FailureGate.define_schema().inputs
        if each.id not in ("l2r", "scorer", "prompt", "preset", "delta")
    }  # fmt: skip
    made = FailureGate.execute(MeanL2R(), ScriptedScorer(0.3), "a red circle", delta=delta, **widgets).args[0]
    assert made.delta == delta
    assert "delta" in {each.id for each in ForesightSampler.define_schema().inputs}
