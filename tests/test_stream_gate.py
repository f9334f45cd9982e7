"""The Chunk Gate on a model: a passing stream is untouched, taking back leaves no trace, nothing breaks a stream."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import tiny_wan
import torch
from streams import largest, streamed
from tiny_wan import CancellingScorer, ScriptedScorer

from foresight.l2r.model import L2R
from foresight.sampling.stream_gate import MEMORY, ChunkGate, measures
from foresight.trials.observer import Decision, Observer
from foresight.trials.report import Report, run_report
from foresight.trials.stream_plans import BEST, GATE, PATH, RESEED, GateSettings


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


def gate(*scores, floor=0.5, prompt="a red circle", **settings):
    return ChunkGate(tiny_wan.gate(*scores, prompt=prompt), GateSettings(floor, **settings))


class ByDraw(ScriptedScorer):
    """Scores a chunk's draws as `rule(number of the score)` says, and keeps the frames that it saw."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.frames = rule, []

    def score(self, frames, text):
        self.frames.append(frames)
        self.calls += 1
        return self.rule(self.calls - 1)


def ruled(rule, **settings):
    made = gate(0.0, **settings)
    return replace(made, gate=replace(made.gate, scorer=ByDraw(rule)))


KV = pytest.mark.parametrize("kv", ["clean", "reuse last", "noisy"])
WINDOWS = pytest.mark.parametrize("settings", [{"chunk": 1}, {"chunk": 2, "window": 4, "sink": 1}])


@KV
@WINDOWS
@pytest.mark.parametrize("plan", [GATE, RESEED])
def test_a_passing_stream_is_untouched(patcher, kv, settings, plan):
    plain, _ = streamed(patcher, 9, settings={**settings, "kv": kv})
    watched, sampler = streamed(patcher, 9, gate=gate(0.9, plan=plan, depth=3), settings={**settings, "kv": kv})
    assert torch.equal(watched, plain) and sampler.result["nfe"] == sampler.result["nfe_plain"]
    assert sampler.result["redraws"] == sampler.result["taken_back"] == 0


@KV
@WINDOWS
def test_what_was_taken_back_leaves_no_trace(patcher, kv, settings):
    """Chunk 3 fails whatever is tried, its neighbours before are taken back over evictions, and since nothing was
    better, the first draws are restored: the clip is the plain one to the last bit, after four times the forwards."""
    plain, _ = streamed(patcher, 9, settings={**settings, "kv": kv})
    made = ruled(lambda _: 0.1, looks="last", tries=2, depth=2, budget=20.0)
    watched, sampler = streamed(patcher, 9, gate=made, settings={**settings, "kv": kv})
    told = sampler.result
    assert torch.equal(watched, plain) and told["nfe"] > 3 * told["nfe_plain"]
    assert told["below"] == [row["chunk"] for row in told["chunks"]]
    assert told["taken_back"] > 10 and any(line.get("restored") for line in told["draws"])


@KV
def test_a_redrawn_chunk_is_another_and_the_rest_follows_from_it(patcher, kv):
    """The second draw of chunk 2 is kept; what comes after equals a stream in which it was the only one."""
    settings = {"chunk": 1, "window": 4, "sink": 1, "kv": kv}
    plain, _ = streamed(patcher, 6, settings=settings)
    fails = [2]
    made = ruled(lambda n: 0.1 if n in fails else 0.9, looks="last")
    first, sampler = streamed(patcher, 6, gate=made, settings=settings)
    assert torch.equal(first[:, :, :2], plain[:, :, :2]) and not torch.equal(first[:, :, 2], plain[:, :, 2])
    assert sampler.result["redraws"] == 1 and sampler.result["nfe"] == sampler.result["nfe_plain"] + 4
    # By way of a look at another step, and of a draw that was left half way.
    early = ruled(lambda n: 0.1 if n == 4 else 0.9, looks="2, last")
    second, sampler = streamed(patcher, 6, gate=early, settings=settings)
    assert torch.equal(first, second) and sampler.result["nfe"] == sampler.result["nfe_plain"] + 2


def test_an_item_that_passes_is_kept_where_another_is_drawn_again(patcher):
    plain, _ = streamed(patcher, 4, batch=2)
    scores = iter([0.9, 0.9, 0.9, 0.1] + [0.9] * 20)  # two items a chunk: the second of chunk 1 fails
    made = ruled(lambda _: next(scores), looks="last")
    watched, sampler = streamed(patcher, 4, gate=made, batch=2)
    assert sampler.result["redraws"] == 1
    assert torch.equal(watched[0, :, :2], plain[0, :, :2]) and torch.equal(watched[1, :, 0], plain[1, :, 0])
    assert not torch.equal(watched[1, :, 1], plain[1, :, 1])
    assert largest(watched[0], plain[0]) < 1e-5  # its chunks go on from its own history


@pytest.mark.parametrize("plan, more", [(BEST, 4 * 7 * 4), (PATH, 4 * 7 * 4)])
@pytest.mark.parametrize("kv", ["clean", "reuse last"])
def test_the_rivals_are_plans_of_the_same_engine(patcher, plan, more, kv):
    made = ruled(lambda n: float(n % 5 == 0), plan=plan, tries=5, budget=5.0)  # the first draw is always the best
    clip, sampler = streamed(patcher, 7, gate=made, settings={"kv": kv})
    plain, _ = streamed(patcher, 7, settings={"kv": kv})
    replays = 6 if kv == "reuse last" else 0
    assert sampler.result["nfe"] == sampler.result["nfe_plain"] + more + replays and torch.equal(clip, plain)


@KV
@WINDOWS
def test_a_clip_that_is_begun_again_leaves_no_trace(patcher, kv, settings):
    """All of three clips fail at their third chunk, and the first was best: it comes back as the plain one."""
    plain, _ = streamed(patcher, 9, settings={**settings, "kv": kv})
    scores = iter([0.9, 0.9, 0.3, 0.9, 0.9, 0.2, 0.9, 0.9, 0.1])
    made = ruled(lambda _: next(scores), plan=RESEED, looks="last", depth=2, budget=9.0)
    clip, sampler = streamed(patcher, 9, gate=made, settings={**settings, "kv": kv})
    told = sampler.result
    assert torch.equal(clip, plain) and told["taken_back"] == 6 and made.gate.scorer.calls == 9
    assert [line for line in told["draws"] if "taken_back" in line][-1]["restored"]
    passes = 0 if kv == "reuse last" else 2
    assert told["nfe"] == told["nfe_plain"] + 3 * (3 * 4 + passes)


def test_a_clip_from_other_noise_is_another_from_its_first_chunk_on(patcher):
    plain, _ = streamed(patcher, 6)
    scores = iter([0.9, 0.1, 0.9, 0.9])
    clip, sampler = streamed(patcher, 6, gate=ruled(lambda _: next(scores), plan=RESEED, looks="last", budget=2.0))
    assert not torch.equal(clip[:, :, 0], plain[:, :, 0]) and sampler.result["taken_back"] == 1
    assert sampler.result["nfe"] == sampler.result["nfe_plain"] + 5 + 4 and sampler.result["below"] == []


@pytest.mark.parametrize("score", [RuntimeError("no"), torch.OutOfMemoryError("full"), float("nan")])
def test_a_scorer_that_breaks_leaves_the_plain_stream(patcher, score):
    plain, _ = streamed(patcher, 5)
    clip, sampler = streamed(patcher, 5, gate=gate(score))
    assert torch.equal(clip, plain) and sampler.result["nfe"] == sampler.result["nfe_plain"]
    assert len(sampler.result["notes"]) == (0 if score != score else 10)
    json.dumps(Report(sampler.result), allow_nan=False)


@pytest.mark.parametrize("at", [1, 3, 8])
def test_the_users_cancel_stops_it(patcher, at):
    import comfy.model_management

    made = gate(0.9)
    made = replace(made, gate=replace(made.gate, scorer=CancellingScorer(at, 0.9)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        streamed(patcher, 6, gate=made)
    comfy.model_management.interrupt_current_processing(False)


def test_previews_have_memory_of_the_chunk_before(patcher):
    """Looked at by chunks, a causal converter shows the same frames as of the whole clip."""
    torch.manual_seed(0)
    l2r = L2R().eval()
    scorer = ByDraw(lambda _: 0.9)
    made = ChunkGate(replace(tiny_wan.gate(0.9), l2r=l2r, scorer=scorer), GateSettings(0.5, looks="last"))
    frames = 40
    clip, _ = streamed(patcher, frames, gate=made)
    whole = l2r(patcher.model.process_latent_in(clip).float())[0].detach()
    assert len(scorer.frames) == frames
    for end, shown in enumerate(scorer.frames, 1):
        assert largest(shown, whole[max(0, end - 21) : end]) < 1e-5
    alone = l2r(patcher.model.process_latent_in(clip)[:, :, -21:].float())[0].detach()
    assert largest(alone, whole[-21:]) > 1e-3 and MEMORY >= 5


def test_each_prompt_is_held_against_what_was_made_for_it(patcher):
    made = ruled(lambda _: 0.9, prompt="a cat\n3: a dog", looks="last")
    streamed(patcher, 5, gate=made)
    scorer = made.gate.scorer
    assert scorer.prompts == ["a cat", "a dog"] and [len(frames) for frames in scorer.frames] == [1, 2, 3, 1, 2]
    with pytest.raises(ValueError, match="prompts begin at chunks"):
        ruled(lambda _: 0.9, prompt="2: a cat")


def test_a_stream_that_drifts_is_told_and_can_be_ended(patcher, monkeypatch):
    import foresight.sampling.stream_gate as stream_gate

    rows = iter([0.2, 0.2, 0.2, 0.5, 0.5, 0.5] * 2)
    monkeypatch.setattr(
        stream_gate, "measures", lambda _: {"saturation": next(rows), "contrast": 0.1, "motion": 0.1}
    )
    clip, sampler = streamed(patcher, 6, gate=gate(0.9))
    assert clip.shape[2] == 6 and len(sampler.result["chunks"]) == 6
    assert "chunk 3 has saturation 0.5" in sampler.result["notes"][0]
    clip, sampler = streamed(patcher, 6, gate=gate(0.9, stop=True))
    assert clip.shape[2] == sampler.result["made"] == 4


def test_a_stream_that_was_ended_goes_on_from_there(patcher, monkeypatch):
    import foresight.sampling.stream_gate as stream_gate

    settings = {"goes_on": True, "window": 4}
    rows = iter([0.2, 0.2, 0.9])
    monkeypatch.setattr(stream_gate, "measures", lambda _: {"saturation": next(rows), "contrast": 0.1, "motion": 0.1})
    clip, sampler = streamed(patcher, 6, gate=gate(0.9, stop=True), settings=settings)
    more, _ = streamed(patcher, 6, start=clip, previous=sampler, settings=settings)
    whole, _ = streamed(patcher, 6, settings=settings)
    assert clip.shape[2] == 3 and torch.equal(more[:, :, 3:], whole[:, :, 3:])


def test_measures_of_frames():
    still = torch.zeros(3, 4, 4, 3)
    assert measures(still) == {"saturation": 0.0, "contrast": 0.0, "motion": 0.0}
    red = still.clone()
    red[..., 0] = 1
    assert measures(red)["saturation"] == 1.0
    red[1] = 0
    assert measures(red)["motion"] == pytest.approx(1 / 3, abs=1e-5)
    assert measures(still[:1])["motion"] == 0.0


class Watching(Observer):
    """Keeps what it is told, and decides at these steps of these draws."""

    id = "run"

    def __init__(self, decisions=()):
        self.told, self.decisions, self.at = [], dict(decisions), None

    def begin(self, trial, kind, **about):
        assert kind == "chunk" and about["decidable"]
        self.at = trial
        self.told.append(("begin", trial, about["steps"]))

    def step(self, step, score, frames=None):
        self.told.append(("step", self.at, step, score, None if frames is None else len(frames)))

    def conclude(self, record):
        assert record.trial == self.at
        self.told.append(("end", record.trial, record.accepted, record.nfe_video))

    def take(self):
        return self.decisions.pop((self.at, self.told[-1][2]), None)

    def finish(self, verdict):
        self.verdict = verdict


def watched(patcher, observer, *scores, **settings):
    made = replace(gate(*scores, **settings), running=lambda: nullcontext(observer))
    return streamed(patcher, 3, gate=made)


def test_whoever_watches_sees_chunks_come_and_go(patcher):
    observer = Watching()
    _, sampler = watched(patcher, observer, 0.9, 0.8, 0.1, 0.9, 0.7, 0.9, 0.6, budget=2.0)
    assert [line for line in observer.told if line[0] != "step"] == [
        ("begin", "chunk 0, draw 0", 4), ("end", "chunk 0, draw 0", True, 4),
        ("begin", "chunk 1, draw 0", 4), ("end", "chunk 1, draw 0", False, 2),
        ("begin", "chunk 1, draw 1", 4), ("end", "chunk 1, draw 1", True, 4),
        ("begin", "chunk 2, draw 0", 4), ("end", "chunk 2, draw 0", True, 4),
    ]  # fmt: skip
    first = [line[2:] for line in observer.told if line[:2] == ("step", "chunk 0, draw 0")]
    assert first == [(1, None, None), (2, 0.9, 1), (3, None, None), (4, 0.8, 1)]
    report = run_report(observer.verdict)
    assert report["nfe"] == 14
    assert [part["trial"][6:] for part in report["trials"]] == ["0, draw 0", "1, draw 0", "1, draw 1", "2, draw 0"]
    json.dumps(report, allow_nan=False)


def test_a_person_decides_instead_of_the_score(patcher):
    plain, _ = streamed(patcher, 3)
    observer = Watching({("chunk 1, draw 0", 1): Decision.REJECT}.items())
    clip, sampler = watched(patcher, observer, 0.9, budget=2.0)
    assert sampler.result["redraws"] == 1 and sampler.result["nfe"] == sampler.result["nfe_plain"] + 1
    assert not torch.equal(clip[:, :, 1], plain[:, :, 1])
    observer = Watching({("chunk 1, draw 0", 4): Decision.ACCEPT, ("chunk 2, draw 0", 2): Decision.ACCEPT}.items())
    clip, sampler = watched(patcher, observer, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1)
    assert torch.equal(clip, plain) and sampler.result["redraws"] == 0


def test_a_person_stops_a_stream(patcher):
    import comfy.model_management

    observer = Watching({("chunk 1, draw 0", 3): Decision.STOP}.items())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        watched(patcher, observer, 0.9)
    assert observer.told[-1] == ("end", "chunk 1, draw 0", False, 3)


def test_a_watcher_that_breaks_leaves_the_plain_stream(patcher):
    class Broken(Watching):
        def begin(self, trial, kind, **about):
            raise RuntimeError("the page is gone")

        def finish(self, verdict):
            raise RuntimeError("still gone")

    plain, _ = streamed(patcher, 3)
    assert torch.equal(watched(patcher, Broken(), 0.9)[0], plain)
