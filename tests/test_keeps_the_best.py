"""Promise 7: what is delivered is scored at its end, whichever way it came about, and what is below is said to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_wan import Conditioned, Rewriter, ScriptedScorer, gate, guided, inputs, model

from foresight.nodes.drop_in import ForesightKSampler
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.watch import Watch
from foresight.trials.race import Rules
from foresight.trials.report import run_report
from foresight.trials.summary import report_text

STILL = "still below tau 1.000"


@pytest.fixture(scope="module")
def patcher():
    return model()


class Brightness(ScriptedScorer):
    """A clip's score is its own: the mean of what is seen."""

    def __init__(self):
        super().__init__(0.0)

    def score(self, frames, text):
        return float(frames.mean())


def forced(scorer, **changes):
    """A gate that nothing passes."""
    made = gate(scorer=scorer, **changes)
    return replace(made, video=replace(made.video, tau=1.0), single_frame=replace(made.single_frame, tau=1.0))


def told(verdict):
    report = run_report(verdict)
    assert STILL in report_text(report).splitlines()[0]
    assert report["final_score"] is not None and report["accepted"] is False
    return report


def test_a_race_delivers_the_best_of_what_was_seen_and_says_that_it_is_below(patcher):
    result = run_race(inputs(patcher), forced(Brightness()), Rules.ranks(1.0, "off"))
    report = told(result.verdict)
    best = max(report["candidates"], key=lambda row: row["score"])
    assert len(report["candidates"]) > 2 and best["state"] == "delivered"
    record = result.verdict.record
    assert report["final_score"] == pytest.approx(float(record.clips[0].mean()))


@pytest.mark.parametrize(
    "injection, reworder", [(InjectionSettings(), Rewriter()), (InjectionSettings(), None), (None, Rewriter())]
)
def test_the_papers_plan_is_scored_at_its_end(patcher, injection, reworder):
    setup = inputs(patcher, steps=50)
    found = run_hierarchy(
        setup, forced(Brightness()), Conditioned(patcher), negative="", reworder=reworder, injection=injection
    )
    report = told(found.verdict)
    assert report["trials"][-1]["kind"] in ("inject", "plain") and report["decided_by"] == "final score"


@pytest.mark.parametrize("first, second, kept", [(0.3, 0.2, "0"), (0.2, 0.3, "2")])
def test_without_a_frame_the_prompt_that_came_closer_is_finished(patcher, first, second, kept):
    scorer = ScriptedScorer(*[first] * 11, *[second] * 11, 0.25)
    setup = inputs(patcher, steps=50)
    found = run_hierarchy(
        setup, forced(scorer), Conditioned(patcher), negative="", reworder=Rewriter(), injection=None
    )
    report = told(found.verdict)
    assert report["trials"][-1]["trial"] == kept
    assert report["closer"] is None or report["closer"]["score"] > 0.25
    alone = guided(patcher).sample(
        setup.noise.generate_noise(setup.latent), setup.latent["samples"], setup.sampler, setup.sigmas, seed=3
    )
    assert torch.equal(found.latent["samples"], alone) == (kept == "0")


def test_a_clip_that_ends_below_one_that_was_left_says_so(patcher):
    scorer = ScriptedScorer(*[0.3] * 11, 0.1)
    found = run_hierarchy(
        inputs(patcher, steps=50), forced(scorer), Conditioned(patcher), negative="", reworder=None, injection=None
    )
    assert found.verdict.record.finals == (0.1,), "only watched, and finished"

    class Stills(ScriptedScorer):
        """Likes a single frame, and its clip less than the one before."""

        def score(self, frames, text):
            return 0.9 if len(frames) == 1 else super().score(frames, text)

    scorer = Stills(*[0.3] * 11, 0.1)
    setup = inputs(patcher, steps=50)
    found = run_hierarchy(
        setup, forced(scorer), Conditioned(patcher), negative="", reworder=None, injection=InjectionSettings()
    )
    report = told(found.verdict)
    assert report["trials"][-1]["trial"] == "1" and report["closer"] == {"trial": "0", "score": 0.3}
    assert "below the 0.300 of Trial 0, which was left" in report_text(report).splitlines()[0]


def test_the_drop_in_says_it_in_its_title(patcher):
    positive, negative = [[torch.zeros(1, 8, 4096), {}]], [[torch.ones(1, 8, 4096), {}]]
    latent = {"samples": torch.zeros(1, 16, 3, 4, 4)}
    out = ForesightKSampler.execute(
        patcher, 3, 10, 4.0, "euler", "simple", positive, negative, latent, 1.0, budget=1.0, self_refine="off",
        prompt="a red circle", gate=forced(Brightness()),
    )  # fmt: skip
    assert STILL in out.ui["text"][0].splitlines()[0]
    told(out.args[1])


@pytest.mark.parametrize("batch", [1, 2])
def test_each_item_of_a_batch_is_scored_at_the_end(patcher, batch):
    """However it is sampled: watched, monitored or raced."""
    setup = inputs(patcher, batch=batch)
    noise = setup.noise.generate_noise(setup.latent)
    watch = Watch(forced(Brightness()))
    guided(watch.patch(patcher)).sample(noise, setup.latent["samples"], setup.sampler, setup.sigmas, seed=3)
    raced = run_race(setup, forced(Brightness()), Rules.ranks(0.0, "off")).verdict
    monitored = monitored_sample(setup, forced(Brightness()), stop="never").verdict
    for verdict in (watch.verdict, raced, monitored):
        report = told(verdict)
        assert len(report["final_scores"]) == batch == len(set(report["final_scores"]))
        assert report["final_score"] == max(report["final_scores"])


def test_a_score_that_cannot_be_taken_costs_no_clip(patcher):
    own = gate(*[0.3] * 3, torch.OutOfMemoryError("no memory"))
    found = monitored_sample(inputs(patcher), own)
    alone = monitored_sample(inputs(patcher))
    assert torch.equal(found.latent["samples"], alone.latent["samples"])
    assert "the finished clip was not scored: OutOfMemoryError" in found.verdict.record.message
    assert run_report(found.verdict)["final_score"] is None


def test_what_was_stopped_has_no_final_score(patcher):
    stopped = monitored_sample(inputs(patcher, steps=50), gate(0.1)).verdict
    assert stopped.record.finals == () and run_report(stopped)["final_scores"] == []
