"""Schedules, chunks and counts of streams: pure planning, without a model."""

from __future__ import annotations

import pytest

from foresight.trials.stream import (
    CUSTOM,
    PRESETS,
    SIGMAS,
    StreamSettings,
    parse_levels,
    pieces,
    split_sigmas,
    steps_by_chunk,
)
from foresight.trials.stream_work import Back, Keep, Seen, Step, Work, plain

SEVEN = {"chunk": 3, "window": 0, "sink": 0}


def chunks(frames=21, shift=5.0, sigmas=(), start=0, first=0, **settings):
    made = StreamSettings(**settings)
    return made, made.chunks(frames, shift, sigmas, start, first)


@pytest.mark.parametrize("digits, count, steps", [
    ("4322222", 7, [4, 3, 2, 2, 2, 2, 2]),
    ("4322222", 9, [4, 3, 2, 2, 2, 2, 2, 4, 3]),
    ("4", 3, [4, 4, 4]),
    ("42+", 4, [4, 2, 2, 2]),
    ("4, 3, 2", 4, [4, 3, 2, 4]),
])  # fmt: skip
def test_digits_are_the_steps_of_chunks(digits, count, steps):
    assert steps_by_chunk(digits, count) == steps
    assert steps_by_chunk(digits, count - 2, first=2) == steps[2:]


@pytest.mark.parametrize("digits", ["", "+", "4x2", "402", "-4", "4.2", "四", "4++", "²"])
def test_what_is_no_digits_is_refused(digits):
    with pytest.raises(ValueError, match="one digit from 1 to 9"):
        StreamSettings(digits=digits)


@pytest.mark.parametrize("preset, digits, kv, goes_on, forwards", [
    ("Diagonal Distillation", None, None, False, 17),
    ("Diagonal Distillation", None, None, True, 17),
    ("Self-Forcing", "4322222", None, True, 24),  # with the pass after the last chunk, as published
    ("Self-Forcing", "4322222", None, False, 23),
    ("Self-Forcing", None, None, True, 35),
    ("Self-Forcing", None, None, False, 34),
    ("Self-Forcing", None, "noisy", False, 34),
    ("Self-Forcing", None, "reuse last", False, 28),
    ("CausVid", None, None, False, 27),
])  # fmt: skip
def test_forwards_of_seven_chunks(preset, digits, kv, goes_on, forwards):
    window = {"window": 12} if goes_on else {}
    settings, made = chunks(preset=preset, digits=digits, kv=kv, goes_on=goes_on, **window)
    assert len(made) == 7 and settings.forwards(made) == forwards
    passes = [settings.passes(made, chunk) for chunk in made]
    assert Work(made, passes).plain == forwards


@pytest.mark.parametrize("preset, levels", [
    ("Self-Forcing", [[1, 0.9375, 0.8333, 0.625]] * 7),
    ("CausVid", [[1, 0.757, 0.522]] * 7),
    ("Causal-Forcing, 4 then 2", [[1, 0.9375, 0.8333, 0.625]] + [[1, 0.8333]] * 20),
    ("Diagonal Distillation", [[1, 0.9375, 0.8333, 0.3571], [1, 0.9375, 0.3571]] + [[1, 0.3571]] * 5),
])  # fmt: skip
def test_presets_are_the_published_levels(preset, levels):
    _, made = chunks(preset=preset)
    assert [pytest.approx(row, abs=1e-4) for row in levels] == [list(chunk.sigmas) for chunk in made]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", range(1, 10))
def test_any_number_of_steps_has_falling_levels(name, steps):
    levels = PRESETS[name].timesteps(steps)
    assert len(levels) == steps and levels[0] == 1000
    assert all(low < high for high, low in zip(levels, levels[1:], strict=False)) and levels[-1] > 0


def test_a_last_chunk_may_be_short():
    _, made = chunks(frames=8)
    assert [(chunk.index, chunk.start, chunk.frames) for chunk in made] == [(0, 0, 3), (1, 3, 3), (2, 6, 2)]
    _, made = chunks(frames=4, start=9, first=3, digits="4322")
    assert [(chunk.index, chunk.start, chunk.frames, chunk.steps) for chunk in made] == [(3, 9, 3, 2), (4, 12, 1, 4)]


def test_levels_of_ones_own():
    rows = parse_levels("1000, 750, 500, 250; 1000, 500;", 5.0)
    assert rows == [pytest.approx((1, 0.9375, 0.8333, 0.625), abs=1e-4), pytest.approx((1, 0.8333), abs=1e-4)]
    assert parse_levels("1, 0.5", 5.0) == [(1.0, 0.5)]
    _, made = chunks(preset=CUSTOM, levels="1, 0.9, 0.8; 1, 0.5")
    assert [chunk.steps for chunk in made] == [3, 2, 2, 2, 2, 2, 2]


def test_sigmas_are_split_where_they_reach_zero():
    assert split_sigmas([1, 0.5, 0]) == [(1.0, 0.5)]
    assert split_sigmas([1.0000001192092896, 0.5, 0]) == [(1.0000001192092896, 0.5)]  # as core gives it at shift 0.4
    assert split_sigmas([1, 0.5, 0.25, 0, 1, 0.5, 0]) == [(1.0, 0.5, 0.25), (1.0, 0.5)]
    _, made = chunks(preset=SIGMAS, sigmas=[1, 0.5, 0.25, 0, 1, 0.5, 0])
    assert [chunk.steps for chunk in made] == [3, 2, 2, 2, 2, 2, 2]
    for bad in ([1, 0.5], [], [0.0], [1, 0.5, 0, 1]):
        with pytest.raises(ValueError, match="do not end in 0"):
            split_sigmas(bad)


@pytest.mark.parametrize("settings, message", [
    ({"preset": "best"}, "preset is 'best': choose one of"),
    ({"kv": "cleanest"}, "kv is 'cleanest': choose one of"),
    ({"chunk": 0}, "chunk is 0"),
    ({"chunk": 3, "window": 2}, "window is 2 latents, but a chunk alone has 3"),
    ({"chunk": 3, "window": 6, "sink": 6}, "sink is 6 latents.*lower sink, or raise window"),
    ({"chunk": 3, "window": 6, "sink": 4}, "sink is 4"),
    ({"sink": -1}, "sink is -1"),
    ({"context_noise": 1.0}, "context_noise is 1.0"),
    ({"goes_on": True}, "window is 0"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        StreamSettings(**settings)


@pytest.mark.parametrize("levels", ["500, 1000", "1, 1", "1200, 500", "1000, 0", "1, nan", "1000; 500, 700"])
def test_levels_that_do_not_fall(levels):
    with pytest.raises(ValueError, match="levels do not fall"):
        chunks(preset=CUSTOM, levels=levels)


@pytest.mark.parametrize("levels", ["", "a, b", "1000,,500", ";"])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match="write falling timesteps"):
        chunks(preset=CUSTOM, levels=levels)


def test_nothing_to_make():
    with pytest.raises(ValueError, match="no frames left"):
        chunks(frames=0, start=3)


@pytest.mark.parametrize("frames, chunk, expected", [
    (0, 3, []), (1, 3, [(0, 1)]), (3, 3, [(0, 3)]), (7, 3, [(0, 1), (1, 3), (4, 3)]), (2, 1, [(0, 1), (1, 1)]),
])  # fmt: skip
def test_given_latents_go_in_by_pieces(frames, chunk, expected):
    assert pieces(frames, chunk) == expected


def walked(plan, scores=lambda step: ()):
    """The actions of a plan whose steps give candidates 0, 1, 2, ... of their chunk."""
    actions, count, answer = [], 0, None
    while True:
        try:
            action = plan.send(answer)
        except StopIteration:
            return actions
        actions.append(action)
        if isinstance(action, Step):
            answer, count = Seen(count, scores(action) if action.look else ()), count + 1
        else:
            answer, count = isinstance(action, Keep) or None, 0


def test_the_plain_plan_is_each_step_once():
    settings, made = chunks(frames=7)
    actions = walked(plain(Work(made, [1, 1, 0], items=2)))
    assert sum(isinstance(action, Step) for action in actions) == 12
    assert [action.chunk.index for action in actions if isinstance(action, Keep)] == [0, 1, 2]
    assert not any(isinstance(action, Back) or getattr(action, "look", False) for action in actions)
    assert [action.base for action in actions[:4]] == [(), (0, 0), (1, 1), (2, 2)]
