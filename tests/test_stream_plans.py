"""Plans of a stream's gate against made-up scores: what they draw again, take back, keep, and what they may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.trials.plan import drive
from foresight.trials.stream import StreamSettings, parse_prompts
from foresight.trials.stream_drift import Drift
from foresight.trials.stream_plans import BEST, GATE, PATH, RESEED, GateSettings
from foresight.trials.stream_work import Back, Keep, Seen, Step, Work


@dataclass
class Made:
    """Stands for the engine: keeps the order that it would insist on, and counts forwards as it does."""

    work: Work
    score: object  # (chunk, step, draw, item) -> a score
    depth: int
    forwards: int = 0
    kept: list = field(default_factory=list)
    steps: list = field(default_factory=list)
    candidates: list = field(default_factory=list)
    last: int = -1

    def do(self, action):
        if isinstance(action, Back):
            assert 0 < action.chunks <= min(self.depth, len(self.kept))
            del self.kept[-action.chunks :]
            self.candidates = []
            return None
        assert action.chunk is self.work.chunks[len(self.kept)]
        if isinstance(action, Step):
            done = [self.candidates[pick][0] for pick in action.base] or [0]
            assert len(action.base) in (0, self.work.items) and set(done) == {action.step}
            self.forwards += 1
            self.steps.append((action.chunk.index, action.step, action.draw))
            self.candidates.append((action.step + 1, action.draw))
            self.last = len(self.candidates) - 1
            where = action.chunk.index, action.step, action.draw
            scores = tuple(self.score(*where, item) for item in range(self.work.items)) if action.look else ()
            return Seen(self.last, scores)
        assert isinstance(action, Keep) and {self.candidates[pick][0] for pick in action.picks} == {action.chunk.steps}
        self.forwards += self.work.passes[len(self.kept)]
        self.forwards += self.work.replays and set(action.picks) != {self.last}
        self.kept.append(tuple(self.candidates[pick][1] for pick in action.picks))
        self.candidates = []
        return True


def run(score, chunks=7, items=1, kv="clean", barriers=(), digits="4", first=0, **settings):
    made = StreamSettings(chunk=1, digits=digits, kv=kv)
    parts = made.chunks(chunks, 5.0, start=first, first=first)
    passes = [made.passes(parts, chunk) for chunk in parts]
    work = Work(parts, passes, items, frozenset(barriers), int(kv == "reuse last"))
    told: list = []
    chosen = GateSettings(0.5, **settings)
    engine = Made(work, score, chosen.depth)
    drive(chosen.make(work, told), engine.do)
    assert len(engine.kept) == chunks and engine.forwards <= work.plain + int(chosen.budget * work.plain)
    return engine, told


def test_a_passing_stream_is_the_plain_one():
    engine, told = run(lambda *_: 0.9, tries=5, depth=3)
    assert engine.kept == [(0,)] * 7 and engine.forwards == engine.work.plain == 34
    assert [line["draw"] for line in told] == [0] * 7


@pytest.mark.parametrize("step, forwards", [(1, 34 + 2), (3, 34 + 4)])
def test_a_chunk_that_fails_is_drawn_again(step, forwards):
    """From the step at which it failed: the rest of the draw is not paid."""
    engine, _ = run(lambda chunk, at, draw, _: 0.1 if (chunk, draw) == (2, 0) and at >= step else 0.9)
    assert engine.kept == [(0,), (0,), (1,), (0,), (0,), (0,), (0,)] and engine.forwards == forwards


def test_the_best_draw_is_kept_and_finished_where_none_passes():
    scores = {0: 0.3, 1: 0.4, 2: 0.2}
    engine, told = run(lambda chunk, _, draw, __: scores[draw] if chunk == 2 else 0.9, depth=0, budget=2.0)
    assert engine.kept[2] == (1,) and engine.steps.count((2, 3, 1)) == 1 and (2, 3, 0) not in engine.steps
    assert engine.forwards == 34 + 2 + 4  # two steps of the first draw, four of the last; the second was finished
    assert next(line for line in told if line["chunk"] == 2 and line["draw"] == 1)["steps"] == 4


def test_keys_of_a_draw_that_was_not_the_last_are_made_again():
    scores = {0: 0.4, 1: 0.3}
    engine, _ = run(lambda chunk, _, draw, __: scores[draw] if chunk == 2 else 0.9, kv="reuse last", tries=2, depth=0)
    # The first draw, left half way, is finished after the second, so that its keys are there.
    assert engine.kept[2] == (0,) and engine.forwards == engine.work.plain + 4
    engine, _ = run(
        lambda chunk, at, draw, _: scores[draw] if chunk == 2 and at == 3 else 0.9, kv="reuse last", tries=2, depth=0
    )
    assert engine.kept[2] == (0,) and engine.forwards == engine.work.plain + 4 + 1


def test_the_chunk_before_is_taken_back_where_a_chunk_stays_bad():
    """With other draws of the chunk before, the bad one is good."""
    state = {}

    def score(chunk, step, draw, item):
        state[chunk] = draw
        return 0.9 if chunk != 3 or state[2] > 0 else 0.1

    engine, told = run(score, budget=1.0, tries=2)
    assert engine.kept == [(0,), (0,), (1,), (2,), (0,), (0,), (0,)]
    assert {"chunk": 3, "taken_back": 1} in told and not any(line.get("restored") for line in told)


def test_what_was_better_before_is_restored():
    engine, told = run(lambda chunk, _, draw, __: 0.9 if chunk != 3 else 0.4 - draw / 10, budget=2.0, tries=2, depth=2)
    assert engine.kept == [(0,)] * 7
    assert [line["taken_back"] for line in told if line.get("restored")] == [1, 2]


def test_the_first_chunk_can_be_taken_back_too():
    state = {}

    def score(chunk, step, draw, item):
        state[chunk] = draw
        return 0.9 if chunk != 1 or state[0] > 0 else 0.1

    engine, told = run(score, budget=1.0, tries=2, depth=3)
    assert engine.kept[:2] == [(1,), (2,)] and {"chunk": 1, "taken_back": 1} in told
    _, told = run(lambda chunk, *_: 0.9 if chunk else 0.1, budget=1.0, tries=2, depth=3)
    assert not any("taken_back" in line for line in told), "there is nothing before it"


@pytest.mark.parametrize("barriers, backs", [((), 1), ((3,), 0), ((2,), 1), ((4,), 1)])
@pytest.mark.parametrize("first", [0, 20])  # a stream that goes on counts on
def test_nothing_is_taken_back_over_a_cache_that_was_made_anew(barriers, backs, first):
    settings = {"first": first, "barriers": [first + barrier for barrier in barriers]}

    def score(chunk, *_):
        return 0.9 if chunk != first + 3 else 0.1

    _, told = run(score, budget=2.0, **settings)
    assert len([line for line in told if line.get("taken_back") and not line.get("restored")]) == backs
    clips, _ = run(score, budget=4.0, plan=RESEED, depth=3, **settings)
    assert (clips.forwards > clips.work.plain) == (barriers in ((), (4,)))


def test_a_batch_keeps_the_items_that_pass():
    engine, _ = run(lambda chunk, _, draw, item: 0.1 if (chunk, draw, item) == (2, 0, 1) else 0.9, items=2)
    assert engine.kept == [(0, 0)] * 2 + [(0, 1)] + [(0, 0)] * 4


def test_a_score_that_failed_passes():
    engine, _ = run(lambda *_: math.nan, tries=5)
    assert engine.forwards == engine.work.plain


@pytest.mark.parametrize("plan", [BEST, PATH])
def test_the_rivals_cost_what_their_papers_say(plan):
    """N = 5 over 7 chunks of 4 steps: 112 forwards more."""
    engine, _ = run(lambda chunk, step, draw, _: draw % 3 / 3, plan=plan, tries=5, budget=4.0)
    assert engine.forwards == engine.work.plain + 112
    assert engine.kept == [(2,)] * 7


def test_best_of_n_within_a_budget():
    engine, told = run(lambda *_: 0.1, plan=BEST, tries=5, budget=0.5)
    assert engine.forwards == 34 + 16  # the first chunk five times, then nothing is left
    assert [line["chunk"] for line in told][:5] == [0] * 5


def clip_of(engine):
    """The draw of each chunk's one item."""
    return [draw for (draw,) in engine.kept]


@pytest.mark.parametrize("step, forwards", [(1, 2), (3, 4)])
def test_a_clip_whose_first_chunk_fails_is_begun_again_with_other_noise(step, forwards):
    engine, told = run(lambda chunk, at, draw, _: 0.1 if draw == 0 and at >= step else 0.9, plan=RESEED, budget=2.0)
    assert clip_of(engine) == [1] * 7 and engine.forwards == 34 + forwards
    assert [(line["chunk"], line["draw"]) for line in told] == [(0, 0), (0, 1), (1, 1)], "later chunks are looked at"


def test_a_clip_is_taken_back_as_a_whole():
    settings = {"plan": RESEED, "budget": 2.0}
    engine, told = run(lambda chunk, _, draw, __: 0.1 if (chunk, draw) == (2, 0) else 0.9, depth=2, **settings)
    assert clip_of(engine) == [1] * 7 and {"chunk": 2, "taken_back": 2} in told
    assert engine.forwards == 34 + 5 + 5 + 2  # two chunks with their passes, and two steps of the third
    engine, told = run(lambda chunk, *_: 0.1 if chunk == 2 else 0.9, depth=1, **settings)
    assert clip_of(engine) == [0] * 7 and engine.forwards == 34, "the third chunk is none of the first two"


@pytest.mark.parametrize("scores, best", [((0.1, 0.3, 0.2), 1), ((0.1, 0.2, 0.3), 2), ((0.3, 0.3, 0.3), 0)])
def test_the_clip_that_came_furthest_goes_on_where_all_fail(scores, best):
    engine, told = run(lambda _, __, draw, ___: scores[draw], plan=RESEED, budget=4.0)
    assert clip_of(engine) == [best] * 7
    # A chunk of draw 0 passes, so that it came further than better ones that did not.
    passed = {(0, 0): 0.9}
    further, _ = run(lambda chunk, _, draw, __: passed.get((chunk, draw), scores[draw]), plan=RESEED, budget=4.0)
    assert clip_of(further) == [0] * 7


def test_without_a_budget_the_first_clip_is_kept():
    engine, _ = run(lambda *_: 0.1, plan=RESEED, budget=0.3, tries=9)
    assert clip_of(engine) == [0] * 7 and engine.forwards == engine.work.plain, "the way back would not be paid"


def test_a_passing_clip_is_not_begun_again():
    engine, told = run(lambda *_: 0.9, plan=RESEED, depth=6, budget=4.0)
    assert clip_of(engine) == [0] * 7 and engine.forwards == engine.work.plain
    assert not any("taken_back" in line for line in told)


def test_search_over_path_chooses_by_item():
    engine, _ = run(lambda chunk, step, draw, item: float(draw == item), plan=PATH, tries=2, budget=4.0, items=2)
    assert engine.kept == [(0, 1)] * 7


@given(
    st.integers(0, 2**32), st.sampled_from([GATE, BEST, PATH, RESEED]), st.integers(1, 4), st.integers(0, 3),
    st.floats(0, 3), st.integers(1, 2), st.sampled_from(["clean", "reuse last"]),
    st.sampled_from(["4322222", "1", "3"]), st.sampled_from(["1", "last", "2, last", "1, 9"]),
    st.sets(st.integers(0, 6), max_size=2),
)  # fmt: skip
def test_no_plan_spends_more_than_its_bound(seed, plan, tries, depth, budget, items, kv, digits, looks, barriers):
    def score(*where):
        value = hash((seed, *where)) % 1000 / 1000
        return math.nan if value < 0.02 else value

    run(score, 7, items, kv, barriers, digits, plan=plan, tries=tries, depth=depth, budget=budget, looks=looks)


@pytest.mark.parametrize("settings, message", [
    ({"plan": "all"}, "plan is 'all': choose one of gate"), ({"tries": 0}, "tries is 0"), ({"depth": -1}, "depth -1"),
    ({"budget": -0.1}, "budget is -0.1"), ({"budget": math.nan}, "budget is nan"), ({"drift": 1.0}, "drift 1.0"),
    ({"looks": ""}, "looks is ''"), ({"looks": "0"}, "looks is '0'"), ({"looks": "first"}, "write steps from 1 on"),
])  # fmt: skip
def test_gates_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        GateSettings(0.2, **settings)


def test_drift_is_a_factor_from_the_first_two_chunks():
    drift, same = Drift(1.5), {"saturation": 0.2, "contrast": 0.1, "motion": 0.01}
    assert [drift.observe(n, **same) for n in range(3)] == [None] * 3
    assert "chunk 3 has saturation 0.31, and the first two had 0.2" in drift.observe(3, **same | {"saturation": 0.31})
    assert "contrast" in drift.observe(4, **same | {"contrast": 0.06})
    assert drift.observe(5, **same | {"motion": 0.03}) is None and "motion" in drift.observe(6, **same | {"motion": 0})
    drift.take_back(6)
    assert [row["chunk"] for row in drift.rows] == [0] and drift.observe(1, **same | {"contrast": 9.0}) is None


@pytest.mark.parametrize("text, prompts", [
    ("a cat", [(0, "a cat")]),
    ("a cat\nwalks\n5: it turns\n 12 : it sits", [(0, "a cat\nwalks"), (5, "it turns"), (12, "it sits")]),
    ("0: at 5: a clock", [(0, "at 5: a clock")]),
    ("a title: a cat", [(0, "a title: a cat")]),
])  # fmt: skip
def test_prompts_by_chunk(text, prompts):
    assert parse_prompts(text) == prompts


@pytest.mark.parametrize("text, message", [
    ("", "empty prompt"), ("  \n ", "empty prompt"), ("0:", "empty prompt"), ("a\n3:\n5: b", "empty prompt"),
    ("2: a cat", "begin at chunks"), ("a\n5: b\n5: c", "begin at chunks"), ("a\n5: b\n3: c", "begin at chunks"),
])  # fmt: skip
def test_prompts_that_make_no_sense(text, message):
    with pytest.raises(ValueError, match=message):
        parse_prompts(text)
