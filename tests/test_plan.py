"""The trial plan: the paper's order (Figure 4), always ending, never dearer than its bound."""

from __future__ import annotations

import itertools

import pytest

from foresight.trials.plan import drive, ladder


def walk(outcomes, **switches):
    """The steps a plan takes when each is answered by the next outcome; StopIteration where it asks for more."""
    answers, steps = iter(outcomes), []

    def do(step):
        steps.append((step.trial, step.action.value))
        return next(answers)

    drive(ladder(**switches), do)
    return steps


def test_an_accepted_base_run_is_all():
    assert walk([True]) == [("0", "sample")]


def test_a_better_single_frame_is_injected_and_ends_it():
    assert walk([False, True, True]) == [("0", "sample"), ("1", "probe"), ("1", "inject")]


def test_otherwise_the_prompt_is_refined_and_sampled_again():
    assert walk([False, False, True, True]) == [("0", "sample"), ("1", "probe"), ("2", "refine"), ("2", "sample")]


def test_a_refined_run_that_fails_is_probed_and_injected_without_a_margin_test():
    assert walk([False, False, True, False, True, True])[-2:] == [("2->1", "probe"), ("2->1", "inject")]


def test_a_refiner_that_fails_leaves_the_plain_run():
    assert walk([False, False, False, True])[-1] == ("0", "plain")


def test_a_second_probe_without_an_anchor_leaves_the_refined_run():
    assert walk([False, False, True, False, False, True])[-1] == ("2", "plain")


def test_trials_can_be_left_out():
    assert walk([False, True, True], injection=False) == [("0", "sample"), ("2", "refine"), ("2", "sample")]
    assert walk([False, True, False, True], injection=False)[-1] == ("2", "plain")
    assert walk([False, False, True], rewording=False) == [("0", "sample"), ("1", "probe"), ("0", "plain")]
    assert walk([False, True], injection=False, rewording=False) == [("0", "sample"), ("0", "plain")]


@pytest.mark.parametrize("switches", [{}, {"injection": False}, {"rewording": False}])
def test_it_ends_whatever_happens_with_at_most_two_monitored_runs_and_one_full_one(switches):
    for outcomes in itertools.product([True, False], repeat=8):
        steps = [action for _, action in walk(outcomes, **switches)]
        assert steps.count("sample") <= 2 and steps.count("probe") <= 2 and steps.count("refine") <= 1
        assert steps.count("inject") + steps.count("plain") <= 1


def test_what_a_plan_returns_is_what_driving_it_gives():
    def plan():
        first = yield "a"
        second = yield "b"
        return first, second

    assert drive(plan(), str.upper) == ("A", "B")
