"""The detector as a function of its trace: which rule fires when, and what settings are refused."""

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.scoring.detector import Detector, DetectorSettings, reached

VIDEO = DetectorSettings.video()
FLOORS = replace(VIDEO, floors=(0.10, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16))


def run(trace, rules=VIDEO, steps=50, every=1):
    """The decision on a whole trace; trace[0] is the score of step 1."""
    detector = Detector(rules, steps)
    for step, score in enumerate(trace, 1):
        if step % every == 0 and (decision := detector.observe(step, score)):
            return decision
    return None


def steady(start, change, steps=50):
    return [start + change * step for step in range(steps)]


def test_windows_are_the_papers_at_50_steps():
    assert VIDEO.window(50) == (8, 14)
    assert DetectorSettings.single_frame().window(50) == (20, 30)


@pytest.mark.parametrize(("steps", "window"), [(1, (1, 1)), (2, (1, 1)), (4, (1, 2)), (8, (2, 3)), (20, (4, 6))])
def test_short_schedules_keep_a_window(steps, window):
    assert VIDEO.window(steps) == window
    first, last = DetectorSettings.single_frame(start=1.0, end=1.0).window(steps)
    assert first == last == steps


@pytest.mark.parametrize(
    ("trace", "rule", "step", "score", "accepted"),
    [
        (steady(0.18, 0.0), "early_reject", 11, 0.18, False),
        (steady(0.25, -0.005), "give_up", 11, 0.20, False),
        (steady(0.25, 0.002), "early_accept", 10, 0.266, True),
        (steady(0.22, 0.0), "stable_stop", 11, 0.22, True),
        (steady(0.21, 0.0), "stable_stop", 11, 0.21, False),
        ([0.0, 0.9, 0.1, 0.3] + [0.15, 0.2] * 23, "budget", 14, 0.3, True),  # the .9 of step 2 does not count
        ([0.1, 0.2] * 25, "budget", 14, 0.2, False),
    ],
)
def test_each_rule_fires_where_it_should_and_returns_its_score(trace, rule, step, score, accepted):
    decision = run(trace)
    assert (decision.rule, decision.step, decision.accepted) == (rule, step, accepted)
    assert decision.predicted_score == pytest.approx(score)


def test_low_and_flat_is_called_before_low_and_falling_and_before_stable():
    falling = steady(0.18, -0.003)  # flat within .004 a step, falling .009 in all
    assert run(falling).rule == "early_reject"
    assert run(falling, replace(VIDEO, reject_epsilon=0.002)).rule == "give_up"
    assert run(steady(0.18, 0.0), replace(VIDEO, reject_margin=0.1)).rule == "stable_stop"


def test_high_and_stable_is_an_accept_before_a_stable_stop():
    assert run(steady(0.27, 0.0), replace(VIDEO, accept_patience=3)).rule == "early_accept"


def test_single_frames_stop_at_24_as_in_table_s4():
    assert run(steady(0.2, 0.0), DetectorSettings.single_frame()).step == 24


def test_history_lets_trends_reach_back_before_the_window():
    assert run(steady(0.18, 0.0), replace(VIDEO, history=True)).step == 8


def test_scale_stretches_all_thresholds():
    wobble = [0.21, 0.22] * 25  # .01 apart: not stable for ViCLIP-L, stable for a scorer of three times its spread
    assert run(wobble).rule == "budget"
    assert run(wobble, replace(VIDEO, scale=3.0)).rule == "stable_stop"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_no_observations(bad):
    unseen = run([bad] * 50)
    assert (unseen.rule, unseen.accepted, unseen.step) == ("not_inspected", True, 14)
    hole = run([0.18] * 8 + [bad] + [0.18] * 41)
    assert (hole.rule, hole.step) == ("early_reject", 12)  # one step later than without the hole
    assert run([0.2] * 4 + [bad] * 46).rule == "budget"


def test_every_nth_step_ends_at_the_first_inspected_step_past_the_budget():
    assert run([0.1, 0.2, 0.3] * 16, every=5).step == 15
    assert run(steady(0.18, 0.0), every=2).step == 14  # 8, 10, 12, 14: four scores


def test_a_decision_stands():
    detector = Detector(VIDEO, 50)
    for step in range(1, 15):
        first = detector.observe(step, 0.18)
    assert detector.observe(20, 0.9) is first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tau": 1.2}, "tau is 1.2"),
        ({"tau": math.nan}, "tau is nan"),
        ({"tau": -1.1}, "tau is -1.1"),
        ({"start": 0.5, "end": 0.2}, "ends .*0.2.* before it begins .*0.5"),
        ({"end": 1.5}, "end is 1.5"),
        ({"start": -0.1}, "start is -0.1"),
        ({"patience": 0}, "patience is 0"),
        ({"accept_patience": 0}, "accept_patience is 0"),
        ({"scale": 0.0}, "scale is 0"),
        ({"reject_epsilon": math.inf}, "reject_epsilon is inf"),
        ({"accept_margin": 0.01}, "accept_margin"),
    ],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        DetectorSettings.video(**changes)


def test_bad_steps_are_named():
    with pytest.raises(ValueError, match="steps is 0"):
        Detector(VIDEO, 0)
    detector = Detector(VIDEO, 10)
    detector.observe(2, 0.2)
    for step in (2, 1, 11):
        with pytest.raises(ValueError, match=f"step {step} observed after step 2 of 10"):
            detector.observe(step, 0.2)
    with pytest.raises(ValueError, match="step 0 observed after step 0 of 10"):
        Detector(VIDEO, 10).observe(0, 0.2)


# Thresholds that floats hold exactly, so that a score can lie on one.
EXACT = DetectorSettings.video(
    tau=0.5, reject_margin=1 / 8, reject_epsilon=1 / 64, give_up_margin=1 / 16, give_up_drop=3 / 64,
    accept_margin=1 / 4, accept_epsilon=1 / 32, stable_range=2**-30,
)  # fmt: skip
STABLE = replace(EXACT, stable_range=1 / 64)
HALVES = {
    name: getattr(EXACT, name) / 2
    for name in ("reject_margin", "reject_epsilon", "give_up_margin", "give_up_drop", "accept_margin", "accept_epsilon",
                 "stable_range")
}  # fmt: skip
LITTLE = 2.0**-20


def within(*scores, rules=EXACT):
    """The decision on these scores of the window's first steps, which end before its budget."""
    return run([0.0] * 7 + list(scores), rules)


@pytest.mark.parametrize("rules", [EXACT, replace(EXACT, scale=2.0, **HALVES)], ids=["plain", "scaled"])
@pytest.mark.parametrize(
    ("scores", "rule", "score"),
    [
        ([0.375, 0.375 + 1 / 64, 0.375, 0.375], "early_reject", 0.375),
        ([0.375 + LITTLE, 0.375 + 1 / 64, 0.375, 0.375 + LITTLE], None, None),  # not as low as it must be
        ([0.375, 0.375 + 1 / 64 + LITTLE, 0.375, 0.375], None, None),  # wobbles too much
        ([0.4375 + 3 / 64, 0.4375 + 2 / 64, 0.4375 + 1 / 64, 0.4375], "give_up", 0.4375),
        ([0.4375 + 3 / 64 - LITTLE, 0.4375 + 2 / 64, 0.4375 + 1 / 64, 0.4375], None, None),  # falls too little
        ([0.4376 + 3 / 64, 0.4376 + 2 / 64, 0.4376 + 1 / 64, 0.4376], None, None),  # is not low enough
        ([0.5625, 0.5, 0.4375, 0.4375], None, None),  # has stopped falling
        ([0.75, 0.75 + 1 / 32, 0.75], "early_accept", 0.75 + 1 / 96),
        ([0.75, 0.75 + 1 / 32, 0.75 - LITTLE], None, None),
        ([0.75, 0.75 + 1 / 32 + LITTLE, 0.75], None, None),
        ([0.25, 0.75, 0.75 + 1 / 32, 0.75], "early_accept", 0.75 + 1 / 96),  # of the last three, not of all
        ([0.75 - LITTLE] * 3, None, None),
        ([0.75, 0.75], None, None),  # one change is no trend
        ([0.375, 0.375, 0.375], None, None),  # and two are none of three
    ],
)
def test_a_score_on_a_threshold_is_over_it(rules, scores, rule, score):
    found = within(*scores, rules=rules)
    assert (found and found.rule, found and found.predicted_score) == (rule, pytest.approx(score) if score else None)


@pytest.mark.parametrize("rules", [STABLE, replace(STABLE, scale=2.0, **HALVES | {"stable_range": 1 / 128})])
def test_a_stable_score_is_the_mean_of_its_last_three(rules):
    on = within(0.5, 0.5, 0.5 + 1 / 64, 0.5, rules=rules)
    assert (on.rule, on.accepted) == ("stable_stop", True)
    assert on.predicted_score == pytest.approx(0.5 + 1 / 192)
    assert within(0.5, 0.5, 0.5 + 1 / 64 + LITTLE, 0.5, rules=rules) is None
    later = within(0.6, 0.5, 0.5, 0.5 + 1 / 64, 0.5, rules=rules)  # what came before the trend is forgotten
    assert (later.step, later.predicted_score) == (12, on.predicted_score)


def test_tau_and_a_floor_are_passed_by_what_is_on_them():
    assert within(0.5, 0.5, 0.5, 0.5, rules=STABLE).accepted
    assert not within(0.5, 0.5, 0.5, 0.5, rules=replace(STABLE, tau=0.5 + LITTLE)).accepted
    on = [0.0] * 7 + list(FLOORS.floors)
    assert run(on, FLOORS).accepted and run(on, FLOORS).rule == "budget"
    assert run(on, FLOORS).predicted_score == FLOORS.floors[-1], "the last look's"
    on[-1] -= LITTLE
    assert (run(on, FLOORS).accepted, run(on, FLOORS).rule) == (False, "below_floor")


def test_floors_of_another_window_are_the_nearest():
    rules = replace(VIDEO, floors=(0.0, 0.1, 0.2, 0.3, 0.4))
    assert [rules.floor(step, 50) for step in range(8, 15)] == [0.0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.4]


@pytest.mark.parametrize(
    ("share", "steps", "step"),
    [(0.28, 50, 14), (0.281, 50, 15), (0.16, 50, 8), (0.0, 10, 1), (1.0, 10, 10), (0.5, 3, 2), (0.01, 50, 1)],
)
def test_a_share_of_the_schedule_is_rounded_up(share, steps, step):
    assert reached(share, steps) == step


def test_the_best_so_far_counts_from_its_step_on():
    assert run([0.0, 0.0, 0.9] + [0.1, 0.3] * 24).predicted_score == 0.9
    assert run([0.0, 0.9] + [0.1, 0.3] * 24).predicted_score == 0.3
    assert run([0.9, 0.1] + [math.nan] * 48).predicted_score == 0.9  # nothing else was seen


def test_the_window_ends_with_the_steps_that_are_run():
    short = Detector(VIDEO, 50, available=9)
    assert (short.first, short.last) == (8, 9)
    before = Detector(VIDEO, 50, available=5)
    assert (before.first, before.last) == (5, 5)
    decisions = [before.observe(step, 0.1 + step / 100) for step in range(1, 6)]
    assert decisions[:4] == [None] * 4 and decisions[4].rule == "budget"


@pytest.mark.parametrize(
    "changes",
    [
        {"tau": 1.0, "accept_margin": 0.5}, {"tau": -1.0}, {"start": 0.0}, {"end": 1.0}, {"best_from": 0.0},
        {"best_from": 1.0}, {"start": 0.28}, {"patience": 1}, {"accept_patience": 1}, {"stable_range": 1e-9},
    ],
)  # fmt: skip
def test_settings_on_their_bounds_are_taken(changes):
    assert DetectorSettings.video(**changes)


@pytest.mark.parametrize("name", sorted(HALVES) + ["scale"])
@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
def test_a_threshold_that_is_none_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        DetectorSettings.video(**{name: value})


def test_an_accept_can_never_lie_below_tau():
    with pytest.raises(ValueError, match="accept_margin"):
        replace(EXACT, accept_margin=1 / 16)  # two changes of 1/32: just on it
    assert replace(EXACT, accept_margin=1 / 16 + LITTLE)


# Time limits would make these tests fail on a busy machine and say nothing about the detector.
patient = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
scores = st.one_of(
    st.lists(st.floats(-1, 1), min_size=50, max_size=50),
    st.lists(st.sampled_from([0.17, 0.175, 0.18, 0.2, 0.22, 0.26, 0.265]), min_size=50, max_size=50),
    st.builds(steady, st.floats(0.1, 0.3), st.floats(-0.01, 0.01)),
)
broken = scores.flatmap(lambda s: st.lists(st.booleans(), min_size=50, max_size=50).map(
    lambda holes: [math.nan if hole else score for score, hole in zip(s, holes, strict=True)]
))
settings_ = st.builds(
    lambda start, length, patience, scale, history, tau: DetectorSettings(
        tau=tau, start=start, end=min(1.0, start + length), patience=patience, scale=scale, history=history),
    st.floats(0, 1), st.floats(0, 0.5), st.integers(1, 5), st.floats(0.5, 4), st.booleans(), st.floats(-0.5, 0.5),
)


@patient
@given(broken, settings_, st.integers(1, 50))
def test_decides_inside_the_window_and_always(trace, rules, steps):
    first, last = rules.window(steps)
    decision = run(trace[:steps], rules, steps)
    assert 1 <= first <= decision.step <= last <= steps
    if decision.rule == "not_inspected":
        assert decision.accepted
    else:
        assert decision.accepted == (decision.predicted_score >= rules.tau)


@patient
@given(broken, settings_, st.floats(0, 0.3))
def test_raising_tau_never_turns_a_rejection_into_an_acceptance(trace, rules, more):
    if not run(trace, rules).accepted:
        assert not run(trace, replace(rules, tau=rules.tau + more)).accepted


@patient
@given(scores, settings_)
def test_rules_keep_their_side_of_tau(trace, rules):
    decision = run(trace, rules)
    if decision.rule in ("early_reject", "give_up"):
        assert not decision.accepted
        assert decision.predicted_score == trace[decision.step - 1]
    if decision.rule == "early_accept":
        assert decision.accepted
    if decision.rule == "budget":
        assert decision.predicted_score in trace[: decision.step]
        assert decision.predicted_score >= max(trace[3: decision.step], default=-1)


def test_floors_take_the_place_of_the_rules():
    assert run(steady(0.18, 0.0), FLOORS).rule == "budget", "low and flat, but above every floor"
    passed = run([0.2] * 7 + [0.5] * 42, FLOORS)
    assert (passed.accepted, passed.step, passed.predicted_score) == (True, 14, 0.5)
    low = run([0.05] * 7 + [0.105, 0.105] + [0.5] * 41, FLOORS)  # before the window nothing is decided
    assert (low.accepted, low.rule, low.step, low.predicted_score) == (False, "below_floor", 9, 0.105)
    assert run(steady(0.17, 0.0), replace(FLOORS, tau=0.9)).accepted, "tau has no say"
    assert run([math.nan] * 50, FLOORS).rule == "not_inspected"


def test_floors_follow_the_window_on_other_schedules():
    assert [FLOORS.floor(step, 50) for step in (8, 11, 14)] == [0.10, 0.13, 0.16]
    assert [FLOORS.floor(step, 20) for step in (4, 5, 6)] == [0.10, 0.13, 0.16]
    assert FLOORS.floor(1, 1) == 0.16
    with pytest.raises(ValueError, match="floors"):
        replace(VIDEO, floors=(0.1, math.nan))
