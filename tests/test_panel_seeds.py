"""What a page reads of a seed is the seed, of whatever size: JavaScript's numbers are exact up to 2^53 only."""

from __future__ import annotations

import json

import pytest
from tiny_wan import gate, inputs, model

from foresight.panel.runs import RunStore, for_page
from foresight.refiner.restart import SEED_STEP, RestartReworder
from foresight.sampling.hierarchy import run_hierarchy
from foresight.trials.report import run_report


def shown(value):
    """As JavaScript reads and writes it: every number is a double."""
    return json.loads(json.dumps(value), parse_int=lambda digits: str(int(float(digits))))


@pytest.mark.parametrize("seed", [0, 7, 2**53, 2**53 + 1, 2**63 + 3, 2**64 - 1])
def test_every_seed_is_shown_whole(seed):
    events = []
    store = RunStore(lambda event, data, client: events.append(data))
    start = inputs(model(), steps=8, seed=seed)
    with store.running(None, "prompt", "7", "tab") as run:
        result = run_hierarchy(
            start, gate(0.1), lambda *_: start.guider, negative="", reworder=RestartReworder(), injection=None,
            observer=run,
        )  # fmt: skip
        run.finish(result.verdict)
    other = (seed + SEED_STEP) % 2**64
    state, (summary,) = shown(store.state(run.id)), shown(store.runs())
    assert state["settings"]["seed"] == summary["seed"] == state["report"]["seed"] == str(seed)
    assert state["trials"][1]["verdict"]["details"]["seed"] == state["report"]["final_seed"] == str(other)
    told = [shown(data) for data in events]
    assert {data["settings"]["seed"] for data in told if "settings" in data} == {str(seed)}
    assert run_report(result.verdict)["seed"] == seed, "the report's own document keeps numbers"


def test_only_whole_numbers_that_would_be_rounded_become_text():
    value = {"a": [2**53, -(2**53), 2**53 + 1, -(2**64)], "b": True, "c": 1e300, "d": "1" * 30, "e": None}
    assert for_page(value) == {
        "a": [2**53, -(2**53), str(2**53 + 1), str(-(2**64))], "b": True, "c": 1e300, "d": "1" * 30, "e": None,
    }  # fmt: skip
