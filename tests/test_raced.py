"""The race over finished candidates says what a live one does."""

from __future__ import annotations

import pytest

from foresight.demo.captions import prompt
from foresight.evaluation.backend import InProcess, demo_judge
from foresight.evaluation.bench import BASE, LIGHT, Bench, MethodError
from foresight.evaluation.demo_family import DemoFamily
from foresight.evaluation.methods import load_method
from foresight.evaluation.raced import OPTIONS, Replay, outdated, rules_of
from foresight.evaluation.suites import Item
from foresight.sampling.race import run_race
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report

STEPS = 20
RULES = ("look=3,candidates=4,floor=0.14", "look=4,candidates=3,self_refine=all,floor=0.2",
         "look=3,candidates=3,self_refine=off", "look=3+6,candidates=4,floor=0.1+0.17",
         "budget=0.5,preset=none.json")  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    text, scene = prompt("validation", "hard", 3)
    item = Item(0, text, "hard", scene)
    return Bench(InProcess(DemoFamily(steps=STEPS)), item, demo_judge, {}, keep_clips=False)


@pytest.mark.parametrize("options", RULES[:4])
def test_a_replayed_race_is_the_live_one(bench, options):
    method = load_method(f"race@{options}", STEPS)
    row = bench.row(method, 5)
    family, text = bench.backend.family, bench.item.prompt
    rules = rules_of(dict(_read(options)), "foresight-demo-viclip", "WAN21", STEPS)
    report = run_report(run_race(family.inputs(text, 5), family.gate(text), rules).verdict)
    assert row["nfe"] == report["nfe"]
    delivered = next(each for each in report["candidates"] if each["state"] == "delivered")
    assert row["predicted_score"] == pytest.approx(delivered["score"], abs=1e-6)
    tries = [trial for trial in report["trials"] if trial["kind"] == "candidate"]
    assert row["inspections"] == sum(len(trial["verdict"]["trace"]) for trial in tries)
    assert row["stop_step"] == delivered["look_step"]


def test_seconds_are_of_what_was_sampled_and_of_its_looks():
    plain = {"method": BASE, "nfe": 50, "nfe_plain": 50, "seconds": 10.0, "seconds_plain": 10.0,
             "seconds_inspection": 5.0, "inspections": 50, "trace": [[6, 0.1, 0.9]], "final_score": 0.2,
             "report": None}  # fmt: skip
    light = plain | {"method": LIGHT, "nfe": 55, "seconds": 12.0, "seconds_inspection": 1.0, "inspections": 10,
                     "trace": [[6, 0.3, 0.9]]}  # fmt: skip
    rules = Rules(RaceSettings(2, "later"), (Look(0.12, 0.2, 0.2),))
    replay = Replay(rules, 50, lambda candidate: light if candidate.self_refined else plain)
    assert replay.run().number == 1 and replay.purse.spent == 6 + 55
    assert replay.seconds == pytest.approx(10 * (6 + 55) / 50 + 2 * 0.1)  # at the plain clip's pace


def _read(options):
    for part in options.split(","):
        name, _, value = part.partition("=")
        yield name, OPTIONS[name](value)


def test_candidates_are_made_once_for_all_races(bench):
    made = len(bench.added)
    bench.row(load_method("race@look=4,candidates=2,self_refine=off,floor=0.1", STEPS), 5)
    assert len(bench.added) == made + 1  # the race's own row


def test_rows_of_other_presets_are_outdated_and_no_others(bench, monkeypatch, tmp_path):
    row = bench.row(load_method("race@budget=0.5", STEPS), 5)
    assert not outdated(row) and not outdated(bench.base(5))
    monkeypatch.setattr("foresight.evaluation.raced.RACES", tmp_path)
    assert outdated(row) and not outdated(bench.base(5))


@pytest.mark.parametrize("name, said", [
    ("race@look=2.5", "'look=2.5' is no option"), ("race@self_refine=some", "self_refine is one of"),
    ("race@look=3+6,floor=0.2", "as many floors as looks"), ("race@floor=0.2", "own rules need a look"),
    ("race@colour=red", "options are budget"),
])  # fmt: skip
def test_a_wrong_name_is_told(name, said):
    with pytest.raises(MethodError, match=said):
        load_method(name, STEPS)
