"""Whoever watches a run decides nothing: what fails in showing it leaves it as it is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from panel_page import Page
from tiny_wan import Rewriter, gate, guided, inputs, model

from foresight.panel import runs as panel_runs
from foresight.sampling.audition import hold_audition
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch
from foresight.trials.observer import SILENT, Observer
from foresight.trials.race import Rules

PASS, FAIL = (0.3,), (0.1,)


@pytest.fixture(scope="module")
def patcher():
    return model()


@pytest.fixture
def page():
    return Page()


@pytest.mark.parametrize("scores", [PASS, FAIL])
def test_a_picture_that_cannot_be_made_decides_nothing(page, patcher, monkeypatch, scores):
    def no_memory(frames):
        raise torch.OutOfMemoryError("no memory for a thumbnail")

    alone = monitored_sample(inputs(patcher), gate(*scores)).verdict.record
    monkeypatch.setattr(panel_runs, "thumbnail", no_memory)
    page.store.looked_at = 1e9
    with page.running() as run:
        seen = monitored_sample(inputs(patcher), gate(*scores), observer=run).verdict.record
    assert (seen.items, seen.message) == (alone.items, None)
    shown = page.store.state(run.id)["trials"][0]
    assert not shown["pictures"] and shown["trace"] == [list(point) for point in seen.best.trace]


class Broken(Observer):
    """Whatever it is told, it fails: what a plan decides must not depend on it."""

    def _fail(self, *args, **kwargs):
        raise MemoryError("nothing can be shown")

    begin = step = conclude = finish = wants_picture = somebody_looks = take = offer = waits = _fail


def test_an_observer_that_fails_everywhere_decides_nothing(patcher):
    def hierarchy(observer):
        found = run_hierarchy(
            inputs(patcher), gate(*FAIL), lambda positive, negative: inputs(patcher).guider, negative="",
            reworder=Rewriter(), injection=InjectionSettings(), observer=observer,
        )  # fmt: skip
        observer.finish(found.verdict)
        return found

    def raced(observer):
        return run_race(inputs(patcher, steps=10), gate(*FAIL), Rules.ranks(1.0, "later"), observer=observer)

    def auditioned(observer):
        made = partial(replace, inputs(patcher, steps=10))
        return hold_audition(
            lambda seed: made(noise=SeededNoise(seed)), gate(0.1, 0.2), (1, 2), keep=1, fraction=0.2,
            observer=observer, wait=5,
        )  # fmt: skip

    for method in (hierarchy, raced, auditioned):
        silent, broken = method(SILENT), method(Broken())
        assert torch.equal(silent.latent["samples"], broken.latent["samples"]), method.__name__
        if method is not auditioned:
            told = [[(each.kind, each.items, each.message) for each in run.verdict.history] for run in (silent, broken)]
            assert told[0] == told[1]


def test_a_watch_that_cannot_be_shown_still_judges(patcher):
    watch = Watch(gate(*FAIL), running=lambda: nullcontext(Broken()))
    setup = inputs(patcher)
    noise = setup.noise.generate_noise(setup.latent)
    guided(watch.patch(patcher)).sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas, seed=3)
    assert not watch.verdict.accepted and watch.verdict.record.message is None


def test_only_the_users_cancel_comes_out_of_an_observer():
    class Cancelling(Broken):
        cancelled = MemoryError

    assert Broken().take() is None
    with pytest.raises(MemoryError):
        Cancelling().take()


def test_nobody_has_to_watch(patcher):
    result = monitored_sample(inputs(patcher), gate(*PASS))
    assert result.verdict.accepted and result.verdict.run is None
    assert vars(SILENT) == {}, "the observer that all runs share remembers none of them"
