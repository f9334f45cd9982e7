"""Calibration: the conformal bound by simulation, the fit against what is known to be right, and the command."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import made_evidence
import numpy as np
import pytest

from foresight.evaluation.calibrate import FIELDS, Fit, all_candidates, compare, folds_of, main, parts
from foresight.evaluation.conformal import conformal_floors, needed
from foresight.evaluation.evidence import load
from foresight.evaluation.store import Store
from foresight.scoring.detector import Detector, DetectorSettings
from foresight.scoring.preset import load_preset


def good_runs(generator, prompts: int, seeds: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Traces that share much within a prompt and are far from normal: prompts differ in level and in spread."""
    level = generator.exponential(0.03, prompts).repeat(seeds)
    spread = generator.choice([0.002, 0.03], prompts).repeat(seeds)
    walk = generator.standard_t(3, (prompts * seeds, window)).cumsum(1) * 0.1
    return 0.3 - level[:, None] + spread[:, None] * walk, np.arange(prompts).repeat(seeds)


@pytest.mark.parametrize("rate, prompts", [(0.1, 60), (0.2, 40), (0.05, 41)])
def test_good_runs_of_new_prompts_are_rejected_no_more_often_than_promised(rate, prompts):
    generator = np.random.default_rng(7)
    rejected = []
    for trial in range(400):
        traces, groups = good_runs(generator, prompts, 4, 7)
        found = conformal_floors(traces, groups, rate, seed=trial)
        assert found.bound <= rate
        new, _ = good_runs(generator, 200, 1, 7)
        rejected.append((new < np.asarray(found.floors)).any(1).mean())
    error = np.std(rejected) / np.sqrt(len(rejected))
    assert np.mean(rejected) <= rate + 3 * error
    assert np.mean(rejected) >= found.bound - 1 / (prompts / 2 + 1) - 3 * error, "and no more cautious than it must be"


def test_the_detector_rejects_by_those_floors():
    generator = np.random.default_rng(1)
    traces, groups = good_runs(generator, 60, 4, 7)
    floors = conformal_floors(traces, groups, 0.1).floors
    settings = DetectorSettings.video(floors=floors)  # steps 8 to 14 of 50
    for trace in good_runs(generator, 100, 1, 7)[0]:
        detector = Detector(settings, 50)
        for step in range(1, 8):
            assert detector.observe(step, -1.0) is None
        decision = next(d for step, score in enumerate(trace, 8) if (d := detector.observe(step, score)))
        assert decision.accepted == (not (trace < np.asarray(floors)).any())


def test_steps_without_a_score_and_too_few_prompts():
    generator = np.random.default_rng(2)
    traces, groups = good_runs(generator, 60, 2, 7)
    traces[::3, 2] = np.nan
    traces[5] = np.nan
    assert np.isfinite(conformal_floors(traces, groups, 0.1).floors).all()
    assert (needed(0.1), needed(0.05), needed(0.3)) == (9, 19, 3)
    few = groups < 16
    with pytest.raises(ValueError, match="16 prompts.*9 or more"):
        conformal_floors(traces[few], groups[few], 0.1)
    with pytest.raises(ValueError, match="rate is 1.5"):
        conformal_floors(traces, groups, 1.5)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return made_evidence.write(tmp_path_factory.mktemp("runs") / "evidence.sqlite", 40, 2, ("base",))


@pytest.fixture(scope="module")
def evidence(database):
    return load(database)


def test_replays_give_the_decisions_that_were_logged(evidence):
    logged = list(evidence.rows["base"].values())
    again = evidence.base.replay(evidence.detector)
    assert again.step.tolist() == [row["stop_step"] for row in logged]
    assert again.accepted.tolist() == [row["accepted"] for row in logged]


def test_the_best_setting_is_chosen_and_keeps_to_the_false_reject_rate(evidence):
    base, own = evidence.base, evidence.detector
    tried = [own, *(replace(own, tau=tau) for tau in (0.10, 0.20, 0.21, 0.23, 0.30))]
    fit, everything = Fit(base, tried, 14.0), np.ones(len(base), bool)
    wrongly = [(base.replay(s).rejected & ~base.failed).sum() / (~base.failed).sum() for s in tried]
    caught = [(base.replay(s).rejected & base.failed).sum() for s in tried]
    for rate in (0.0, 0.1, 0.4):
        best, allowed = fit.choose("caught", rate, everything), [k for k in range(6) if wrongly[k] <= rate]
        assert best in allowed and caught[best] == max(caught[k] for k in allowed)
    assert wrongly[5] > 0.4 > wrongly[3] >= 0 == wrongly[1], "or the rates above are no choice"
    errors = [np.abs(base.replay(s).predicted - base.score).mean() for s in tried]
    assert errors[fit.choose("error", 0.1, everything)] == min(errors)


def test_no_prompt_is_in_two_folds_and_held_out_runs_never_see_their_own_fold(evidence):
    base = evidence.base
    folds = folds_of(base, 5)
    assert all(len(set(folds[base.prompt == prompt])) == 1 for prompt in set(base.prompt))
    outcome, held_out = base.replay(evidence.detector), []
    joined = parts(base, folds, lambda among: held_out.append(set(base.prompt[~among])) or outcome)
    assert len(held_out) == 5 and set.union(*held_out) == set(base.prompt) and sum(map(len, held_out)) == 40
    assert all(np.array_equal(getattr(joined, name), getattr(outcome, name)) for name in FIELDS)


def test_compares_detectors_at_nearly_equal_mean_stop_steps(evidence):
    rows = compare(evidence, all_candidates(evidence, "caught"), 0.1)
    stops = [row["mean_stop"] for row in rows.values()]
    assert len(rows) == 5 and max(stops) <= stops[0] + 0.5 and min(stops) > stops[0] - 3, stops
    default, conformal = rows["rule-based (default)"], rows["conformal, at most 10 %"]
    assert default["caught_more"]["value"] == 0
    assert conformal["good_rejected"]["low"] <= 0.1 and conformal["auc_within"]["value"] > 0.7


@pytest.mark.parametrize("mode", ["rules", "conformal"])
def test_the_command_writes_a_preset_that_loads(database, tmp_path, capsys, mode):
    main([str(database), "--out", str(tmp_path / "mine.json"), "--mode", mode])
    preset = load_preset(tmp_path / "mine.json")
    assert (preset.scorer, preset.steps) == ("viclip-l", 50)
    assert bool(preset.video.floors) == (mode == "conformal")
    assert preset.fitted["runs"] == 80 and 0 < preset.fitted["held_out"]["caught"]["value"] <= 1
    assert "| rule-based, calibrated |" in capsys.readouterr().out


def test_says_what_is_missing(tmp_path, database):
    def failing(path, *more):
        with pytest.raises(SystemExit) as raised:
            main([str(path), "--out", str(tmp_path / "x.json"), *more])
        return str(raised.value)

    assert "there is no database" in failing(tmp_path / "none.sqlite")
    Store(tmp_path / "empty.sqlite", write=True).close()
    assert "no finished run yet" in failing(tmp_path / "empty.sqlite")
    made_evidence.write(tmp_path / "other.sqlite", 3, 1, ("efdi",))
    assert "no finished run of the method base" in failing(tmp_path / "other.sqlite")
    made_evidence.write(tmp_path / "few.sqlite", 6, 2, ("base",))
    assert "6 prompts are too few" in failing(tmp_path / "few.sqlite")
    assert "settings nope" in failing(database, "--settings", "nope")
    assert "9 or more" in failing(database, "--false-reject", "0.01").replace("99", "9")
    with sqlite3.connect(tmp_path / "few.sqlite") as changed:
        changed.execute("PRAGMA user_version = 9")
    assert "version 9" in failing(tmp_path / "few.sqlite")
