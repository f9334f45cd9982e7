"""The most that the hierarchy can spend, held against every course of the trial plan."""

import itertools

import pytest

from foresight.trials.cost import Evaluations, worst_case_enhanced, worst_case_nfe
from foresight.trials.plan import Action, drive, ladder


def test_worst_case_is_the_whole_hierarchy_at_its_budgets():
    # 14 + 14 abandoned video steps and a whole video of 50, two probes of 30 single frames.
    assert worst_case_nfe(50, 14, 30) == Evaluations(video=78, single_frame=60)


@pytest.mark.parametrize("injection, rewording", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("steps, injection_start", [(1, 1), (2, 2), (8, 1), (20, 5), (50, 2), (50, 40)])
def test_no_course_of_the_trial_plan_exceeds_the_worst_case(steps, injection_start, injection, rewording):
    video_budget, single_frame_budget = max(1, round(0.28 * steps)), max(1, round(0.6 * steps))
    bound = worst_case_nfe(steps, video_budget, single_frame_budget)

    def spend(outcomes):
        answers, video, single_frame = iter(outcomes), 0, 0

        def do(step):
            nonlocal video, single_frame
            succeeded = next(answers)
            match step.action:
                case Action.SAMPLE:
                    video += steps if succeeded else video_budget
                case Action.PROBE:
                    single_frame += single_frame_budget
                case Action.INJECT:
                    video += steps - injection_start + 1
                case Action.PLAIN:
                    video += steps
            return succeeded

        drive(ladder(injection=injection, rewording=rewording), do)
        return video, single_frame

    courses = [spend(outcomes) for outcomes in itertools.product((True, False), repeat=8)]
    assert all(video <= bound.video and single <= bound.single_frame for video, single in courses)
    if rewording:
        assert max(video for video, _ in courses) == bound.video  # and the bound is tight


@pytest.mark.parametrize("video, candidate, most", [(60, 50, 280), (10, 4, 38), (7, 1, 23)])
def test_an_enhanced_hierarchy_is_three_whole_videos_and_two_probes(video, candidate, most):
    assert worst_case_enhanced(video, candidate) == most


def test_a_budget_longer_than_the_schedule_ends_with_it():
    assert worst_case_nfe(10, 14, 30) == Evaluations(video=30, single_frame=20)
