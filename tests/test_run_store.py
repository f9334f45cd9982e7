"""What the panel's store keeps and gives out: the newest runs within bounds, and JSON that any page can read."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from panel_page import Page, picture, record

from foresight.panel import runs as panel_runs
from foresight.trials.verdict import Verdict


@pytest.fixture
def page():
    return Page()


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


def held(run, megabytes):
    """Pictures that count so much, and take up none of it."""
    run.begin("0", "sample", steps=1000)
    run.trials[-1].pictures = {n: np.broadcast_to(np.uint8(0), (1, 1024, 1024, 1)) for n in range(megabytes)}


def test_24_runs_and_192_megabytes_are_kept(page):
    ended = []
    for _ in range(30):
        with page.running() as run:
            ended.append(run.id)
    assert [each["id"] for each in page.store.runs()] == ended[:5:-1]
    with page.running(ended[-1]) as run, page.running(ended[-2]) as other:
        held(run, 190)
        held(other, 2)
        page.store.fit()
        assert page.store.bytes == 192 << 20 and len(page.store.runs()) == 24, "just within the bound"
        held(other, 1)
        page.store.fit()
        assert [each["id"] for each in page.store.runs()] == [ended[-1], ended[-2]], "what is live stays"
        assert sorted(run.trials[-1].pictures) == list(range(1, 190, 2)), "every other picture, but not the last"
        assert len(other.trials[0].pictures) == len(other.trials[1].pictures) == 1


def test_pictures_are_asked_for_once_a_second_and_ten_seconds_after_somebody_looked(page, monkeypatch):
    now = SimpleNamespace(time=lambda: 0.0, monotonic=lambda: now.seconds, seconds=100.0)
    monkeypatch.setattr(panel_runs, "time", now)
    with page.running() as run:
        run.begin("0", "sample", steps=50)
        assert not run.wants_picture(), "nobody has looked"
        page.store.looked_at = 100.0
        assert run.wants_picture()
        run.step(1, None, picture())
        for seconds, wanted in ((100.5, False), (101.0, False), (101.1, True), (109.9, True), (110.0, False)):
            now.seconds = seconds
            assert run.wants_picture() is wanted


def test_steps_without_a_score_are_told_five_times_a_second(page, monkeypatch):
    now = SimpleNamespace(time=lambda: 0.0, monotonic=lambda: now.seconds, seconds=100.0)
    monkeypatch.setattr(panel_runs, "time", now)
    with page.running() as run:
        run.begin("0", "sample", steps=9)
        assert page.store.state(run.id)["trials"][0]["step"] == 0, "nothing is done yet"
        given = [(100.0, None), (100.1, None), (100.15, 0.3), (100.3, None), (100.4, None), (100.5, None)]
        for step, (now.seconds, score) in enumerate(given, 1):
            run.step(step, score)
        run.step(9, None)
    assert [data["step"] for data in page.told("step")] == [1, 3, 5, 9], "scores and the last step always"
