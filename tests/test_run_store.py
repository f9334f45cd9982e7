"""What the panel's store keeps and gives out: the newest runs within bounds, and JSON that any page can read."""

from __future__ import annotations

import json
from dataclasses import replace

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
