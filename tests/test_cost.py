"""The cost model of the trials against the paper's tables, and the bound of the hierarchy."""

import itertools

import pytest

from foresight.trials.cost import (
    BRANCHES,
    Evaluations,
    PrimitiveTimes,
    branch_cost,
    branch_counts,
    branch_overhead,
    overall_overhead,
    worst_case_nfe,
)
from foresight.trials.plan import Action, TrialPlan

# Table S3: seconds of each primitive, mean stop steps. Table S4: samples, run times and overheads of each branch.
COGVIDEOX = PrimitiveTimes(4.343, 0.0392, 0.405, 0.0218, 8.541)
WAN = PrimitiveTimes(1.460, 0.0392, 0.103, 0.0218, 8.541)
TABLE_S4 = [
    pytest.param(
        COGVIDEOX,
        11.05,
        dict(zip(BRANCHES, (562, 91, 125, 168), strict=True)),
        ("217.58", "271.47", "284.36", "338.68"),
        ("0.20", "25.02", "30.95", "55.97"),
        "16.55",
        id="CogVideoX-5B",
    ),
    pytest.param(
        WAN,
        10.33,
        dict(zip(BRANCHES, (509, 106, 151, 180), strict=True)),
        ("73.40", "90.02", "100.02", "117.04"),
        ("0.55", "23.32", "37.02", "60.34"),
        "20.30",
        id="Wan2.1-1.3B",
    ),
]


@pytest.mark.parametrize("times, video_stop, samples, seconds, overheads, overall", TABLE_S4)
def test_reproduces_table_s4_to_the_printed_digit(times, video_stop, samples, seconds, overheads, overall):
    run = (times, 50, video_stop, 24.0)
    assert tuple(f"{branch_cost(branch, *run):.2f}" for branch in BRANCHES) == seconds
    assert tuple(f"{100 * branch_overhead(branch, *run):.2f}" for branch in BRANCHES) == overheads
    assert f"{100 * overall_overhead(samples, *run):.2f}" == overall


def test_unknown_branch_and_empty_average_are_named():
    with pytest.raises(ValueError, match="'3'.*2->1"):
        branch_counts("3", 50, 11, 24)
    with pytest.raises(ValueError, match="no runs"):
        overall_overhead({"0": 0}, WAN, 50, 11, 24)


def test_worst_case_is_the_whole_hierarchy_at_its_budgets():
    # 14 + 14 abandoned video steps and a whole video of 50, two probes of 30 single frames.
    assert worst_case_nfe(50, 14, 30) == Evaluations(video=78, single_frame=60)


@pytest.mark.parametrize("injection, rewording", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("steps, injection_start", [(1, 1), (2, 2), (8, 1), (20, 5), (50, 2), (50, 40)])
def test_no_course_of_the_trial_plan_exceeds_the_worst_case(steps, injection_start, injection, rewording):
    video_budget, single_frame_budget = max(1, round(0.28 * steps)), max(1, round(0.6 * steps))
    bound = worst_case_nfe(steps, video_budget, single_frame_budget)

    def spend(outcomes):
        plan, video, single_frame = TrialPlan(injection=injection, rewording=rewording), 0, 0
        for succeeded in outcomes:
            match plan.current.action:
                case Action.SAMPLE:
                    video += steps if succeeded else video_budget
                case Action.PROBE:
                    single_frame += single_frame_budget
                case Action.INJECT:
                    video += steps - injection_start + 1
                case Action.PLAIN:
                    video += steps
                case Action.FINISH:
                    return video, single_frame
            plan.next(succeeded)
        raise AssertionError("the plan did not end")

    courses = [spend(outcomes) for outcomes in itertools.product((True, False), repeat=8)]
    assert all(video <= bound.video and single <= bound.single_frame for video, single in courses)
    if rewording:
        assert max(video for video, _ in courses) == bound.video  # and the bound is tight
