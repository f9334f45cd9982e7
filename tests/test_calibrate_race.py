"""Calibration for yield: what is chosen lies within the budget, and is told on prompts that it was not chosen on."""

from __future__ import annotations

import made_evidence
import numpy as np
import pytest

from foresight.evaluation.bench import BASE, LIGHT
from foresight.evaluation.calibrate import main
from foresight.evaluation.calibrate_race import Log, all_rules
from foresight.evaluation.store import Store
from foresight.scoring.detector import reached
from foresight.scoring.race_preset import FittedRace, RacePreset, load_race_preset, save_race_preset
from foresight.trials.race import RANKS, Look

SETTINGS = {"scorer": "viclip-l", "model": "WAN21", "steps": 50, "tau": 0.22, "scale": 1.0}


def write(path, prompts=20, seeds=4, light=True):
    """Candidates whose score at every step tells good from bad; self-refined ones are good more often."""
    generator = np.random.default_rng(0)
    rows = []
    for prompt in range(prompts):
        for seed in range(seeds):
            for method, share in ((BASE, 0.4), (LIGHT, 0.6))[: 1 + light]:
                right = bool(generator.random() < share)
                trace = [[step, 0.3 * right + float(generator.normal(0, 0.05)), 0.5] for step in range(1, 51)]
                passes = {"3": 1, "4": 1, "5": 1, "6": 1, "7": 1} if method == LIGHT else {}
                report = {"settings": SETTINGS, "trials": [{"details": {"self_refine": {"passes": passes}}}]}
                row = made_evidence.base_row(generator, prompt, seed, True)
                rows.append(row | {"method": method, "right": right, "trace": trace, "report": report,
                                   "nfe": 50 + len(passes), "clip": None})  # fmt: skip
    with Store(path, write=True) as store:
        meta = store.begin("typed", "m", {}, made_evidence.SETTINGS | {"fingerprint": "abc123"})
        store.add(rows, meta)
    return path


def test_the_preset_spends_its_budget_well(tmp_path, capsys):
    out = tmp_path / "race.json"
    main([str(write(tmp_path / "runs.sqlite")), "--objective", "yield", "--out", str(out), "--folds", "4"])
    preset = load_race_preset(out)
    assert (preset.scorer, preset.model, preset.steps) == ("viclip-l", "WAN21", 50)
    assert set(preset.races) == {"off", "later", "all"}
    for races in preset.races.values():
        budgets = [race.budget for race in races]
        assert budgets == sorted(budgets) and all(race.budget <= race.most for race in races)
    held_out = {(row["self_refine"], row["budget"]): row for row in preset.fitted["held_out"]}
    assert held_out["off", 0.5]["good"]["value"] > preset.fitted["plain"]["value"] + 0.2
    assert preset.race("off", 0.5).budget <= 0.5 and preset.race("off", 0.0) is None
    assert "had not seen" in capsys.readouterr().out


def test_without_self_refined_candidates_only_plain_races_are_fitted(tmp_path):
    main([str(write(tmp_path / "runs.sqlite", light=False)), "--objective", "yield", "--out", str(tmp_path / "a.json")])
    assert set(load_race_preset(tmp_path / "a.json").races) == {"off"}


def test_too_few_candidates_are_told(tmp_path):
    with pytest.raises(SystemExit, match="run more prompts, with --seeds 4"):
        main([str(write(tmp_path / "runs.sqlite", seeds=1)), "--objective", "yield", "--out", str(tmp_path / "a.json")])


def test_floors_come_from_the_step_that_a_race_looks_at():
    """On 25 steps a look at .1 is step 3, where rounding would take step 2."""
    trace = [[step, step / 100, 0.5] for step in range(1, 26)]
    rows = {seed: {"trace": trace} for seed in range(2)}
    log = Log({0: {BASE: rows}}, 25, good=None)
    floors = {rules.looks[0].floor for rules in all_rules(log, "off") if rules.looks[0].share == 0.1} - {RANKS}
    assert floors == {reached(0.1, 25) / 100} == {0.03}


GOOD = {"budget": 0.2, "most": 0.5, "candidates": 3, "looks": (Look(0.12, 0.1, 0.1),)}


@pytest.mark.parametrize("change, said", [
    ({"looks": (Look(0, 0.1, 0.1),)}, "looks are at .0."), ({"candidates": 0}, "candidates is 0"),
    ({"candidates": 2.5}, "candidates is 2.5"), ({"budget": 0.9}, "budget is 0.9 and most 0.5"),
    ({"looks": (Look(0.12, float("nan"), 0.1),)}, "floor is nan"), ({"looks": ()}, "looks are at"),
    ({"looks": (Look(0.2, 0.1, 0.1), Look(0.1, 0.1, 0.1))}, "the earliest first"),
    ({"looks": (Look(0.12, "high", 0.1),)}, "floor is 'high'"), ({"most": True}, "most is True"),
])  # fmt: skip
def test_a_wrong_setting_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        FittedRace(**GOOD | change)


@pytest.mark.parametrize("text, said", [
    ("", "broken.json is no race preset"), ("[]", "broken.json is no race preset"),
    ('{"schema": "foresight.race_preset", "version": 9}', "version 9"),
    ('{"schema": "foresight.race_preset", "version": 2}', "cannot be used: 'races'"),
    ('{"schema": "foresight.race_preset", "version": 2, "races": {"some": []}}', "races has 'some'"),
    ('{"schema": "foresight.race_preset", "version": 2, "races": {"off": [{"colour": 1}]}}', "know: colour"),
    ('{"schema": "foresight.race_preset", "version": 2, "races": {"off": [3]}}', "cannot be used"),
])  # fmt: skip
def test_a_broken_preset_names_file_and_reason(tmp_path, text, said):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_race_preset(path)


def test_a_preset_comes_back_as_it_was_written(tmp_path):
    preset = RacePreset("s", "WAN21", 50, {"off": (FittedRace(**GOOD),)}, {"date": "today"})
    save_race_preset(preset, tmp_path / "a.json")
    assert load_race_preset(tmp_path / "a.json") == preset
