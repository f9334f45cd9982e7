"""Gates of demo students: the plans of the pack in plain torch, on streams that are else what they were."""

import math
from types import SimpleNamespace

import pytest
import tiny_wan
import torch
from streams import streamed

from foresight.demo.script import LATENTS
from foresight.demo.stream import Stream, sample_stream
from foresight.demo.wan_dit import WanTransformer
from foresight.evaluation.suites import load_suite
from foresight.lab.experiments import stream_gate
from foresight.lab.experiments.stream_gate import SPENDINGS, Engine, Spending, floor_for, gated, made
from foresight.lab.training.common import SCORER
from foresight.lab.training.scorer_data import network_frames
from foresight.lab.training.streams import How, Streams, schedule_of
from foresight.sampling.stream_gate import ChunkGate
from foresight.sampling.stream_guider import StreamingGuider
from foresight.sampling.stream_noise import drawn
from foresight.scoring.viclip import load_viclip
from foresight.trials.plan import drive
from foresight.trials.stream_plans import BEST, GATE, PATH, RESEED, GateSettings

HOWS = pytest.mark.parametrize("how", [How("2"), How("3222222", 100.0, None)], ids=["clean", "last"])
ITEM = load_suite("demo_validation", 1).items[0]


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanTransformer(layers=1, ffn_dim=128).requires_grad_(False)


class Scores:
    """Stands for the scorer: what `rule` says of each look, which it counts; seen: latents of each, shown: with those
    before them."""

    def __init__(self, rule):
        self.rule, self.seen, self.shown = rule, [], []

    def texts(self, prompts):
        return torch.ones(len(prompts), 1)

    def look(self, x0, last):
        assert x0.shape[3] >= last
        self.seen.append(last)
        self.shown.append(x0.shape[3])
        return torch.full((1, 1, 1), float(self.rule(len(self.seen) - 1)))


@pytest.fixture
def scores(monkeypatch):
    def use(rule):
        made = Scores(rule)
        monkeypatch.setattr(stream_gate, "scored", lambda: made)
        return made

    return use


def plain(model, streams, how):
    """The stream without a gate, of the same noise, and its forwards."""
    schedule = schedule_of(how.digits, LATENTS, how.last)
    noise = iter([drawn(torch.empty(1, 16, 1, 8, 8), 7, at, step, 0)
                  for at, sigmas in enumerate(schedule) for step in range(len(sigmas))])  # fmt: skip
    stream = Stream(model, streams.context, streams.which)
    return sample_stream(stream, schedule, lambda: next(noise), how.context_noise), stream.forwards


def run(model, how, spending, floor=0.5, streams=None):
    streams = streams or Streams([ITEM])
    texts = stream_gate.scored().texts(streams.scripts[0].prompts)
    return made(model, streams, 0, how, texts, 7, spending, floor)


@HOWS
@pytest.mark.parametrize("plan", [Spending(), Spending(GATE, 2.0, 3, 2), Spending(RESEED, 2.0, 3, 6)])
def test_a_stream_that_passes_is_the_plain_one(model, scores, how, plan):
    scores(lambda _: 0.9)
    clip, forwards, _ = run(model, how, plan)
    expected, count = plain(model, Streams([ITEM]), how)
    assert torch.equal(clip, expected) and forwards == count


@HOWS
def test_what_was_taken_back_in_vain_comes_back(model, scores, how, monkeypatch):
    monkeypatch.setattr(stream_gate, "MOST", 20.0)
    scores(lambda _: 0.1)
    clip, forwards, lines = run(model, how, Spending(GATE, 2.0, 2, 2))
    expected, count = plain(model, Streams([ITEM]), how)
    assert torch.equal(clip, expected) and forwards > 3 * count
    assert any(line.get("restored") for line in lines)


@HOWS
def test_what_is_seen_of_a_chunk_is_the_draw_that_was_kept(model, scores, how):
    """Best of 2, where the draw that was made last is the better one at chunk 3 alone."""
    scores(lambda look: float(look % 2 == (look // 2 == 3)))
    clip, _, _ = run(model, how, Spending(BEST, 9.0, 2))
    expected, _ = plain(model, Streams([ITEM]), how)
    same = [torch.equal(clip[:, :, at], expected[:, :, at]) for at in range(LATENTS)]
    assert same == [True] * 3 + [False] * 4


@HOWS
def test_no_plan_spends_more_than_it_may(model, scores, how):
    _, count = plain(model, Streams([ITEM]), how)
    for name, spending in SPENDINGS.items():
        scores(lambda look: math.sin(look))
        _, forwards, _ = run(model, how, spending)
        most = 3 if spending.has_floor else spending.times
        assert count <= forwards <= most * count, name
        assert spending.plan not in (BEST, PATH) or forwards > 0.8 * most * count


def test_only_what_was_made_for_a_prompt_is_held_against_it(model, scores):
    asked = scores(lambda _: 0.9)
    run(model, How("1"), Spending(), streams=Streams([ITEM], turns=True))
    assert asked.seen == [1, 2, 3, 4, 1, 2, 3] and asked.shown == [1, 2, 3, 4, 5, 6, 7]


def test_a_look_at_some_latents_is_that_of_these_after_the_ones_before():
    scored, x0 = stream_gate.scored(), torch.randn(1, 1, 16, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    frames = scored.l2r(x0[0])[:, -3:]
    expected = scored.viclip.encode_vision(network_frames(frames, scored.viclip.config.frames))
    assert torch.equal(scored.look(x0, 3)[0], torch.nn.functional.normalize(expected, dim=-1))
    assert torch.equal(scored.look(x0, 9), scored.look(x0)) and not torch.equal(scored.look(x0, 3), scored.look(x0))


@pytest.mark.parametrize(("preset", "how"), [
    ("Self-Forcing", How(window=4, sink=1)), ("Diagonal Distillation", How("4322222", 100.0, None, window=3)),
])  # fmt: skip
def test_gated_streams_are_those_that_comfyui_makes(scores, preset, how):
    """Two prompts, chunks that are drawn again and taken back over what the window has forgotten: the node's clip, the
    same draws, forwards and latents in view."""
    patcher, plain = tiny_wan.model(), WanTransformer(layers=2, ffn_dim=128).eval()
    plain.load_state_dict(patcher.model.diffusion_model.state_dict())
    patcher.model.model_sampling.set_parameters(shift=5.0)
    prompts = [(begin, tiny_wan.conditioning(10 + begin)) for begin in (0, 5)]
    guider = StreamingGuider(patcher, prompts, None, 1.0, recache=False)
    settings, frames = GateSettings(0.5, tries=2, depth=2, budget=3.0), []

    def score(look):
        return round(8 * math.sin(look)) / 8

    class Scorer(tiny_wan.ScriptedScorer):
        def score(self, shown, text):
            frames.append(len(shown))
            return score(len(frames) - 1)

    gate = ChunkGate(tiny_wan.gate(prompt="a\n5: b", scorer=Scorer()), settings)
    asked = scores(score)
    streams = SimpleNamespace(which=torch.tensor([[0] * 5 + [1] * 5]),
                              context=torch.stack([text[0][0].float() for _, text in prompts], 1))  # fmt: skip
    engine, lines = Engine(plain, streams, 0, how, torch.ones(2, 1), 7), []
    with torch.no_grad():
        drive(settings.make(engine.work, lines), engine.do)
    noise = torch.cat([drawn(torch.empty(1, 16, 1, 8, 8), 7, at, 0, 0) for at in range(10)], 2)
    widgets = {"preset": preset, "chunk": 1, "window": how.window, "sink": how.sink}
    clip, sampler = streamed(patcher, 10, gate=gate, guider=guider, settings=widgets, size=(8, 8), noise=noise, seed=7)
    assert sampler.result["draws"] == lines and sampler.result["nfe"] == engine.stream.forwards > 2 * engine.work.plain
    assert frames == asked.seen and any(line.get("taken_back") == 2 for line in lines)
    found, expected = patcher.model.process_latent_in(clip), torch.cat(engine.clip, 2)
    assert (found - expected).abs().max() < 2e-5 * max(1, expected.abs().max())


def test_the_nodes_defaults_are_told_with_the_tau_that_the_node_takes():
    assert load_viclip(SCORER).config.tau == stream_gate.TAU


def test_the_best_of_whole_clips_is_the_one_that_scores_highest(model, scores):
    asked = scores(lambda look: 0.9 if look >= LATENTS else 0.1)
    best, forwards, _ = run(model, How("1"), SPENDINGS["best of 2 whole clips, 2"])
    expected, count = plain(model, Streams([ITEM]), How("1"))
    assert forwards == 2 * count and not torch.equal(best, expected) and len(asked.seen) == 2 * LATENTS


def test_floors_rise_with_what_is_to_be_spent(model, scores):
    scores(lambda look: math.sin(look))
    items = load_suite("demo_validation", 2).items
    floors, means = stream_gate.spent(model, items, How("2"), Spending(GATE, 2.0, 5))
    assert floors == sorted(floors) and means == sorted(means) and means[0] == 1
    assert floors[-2] < floor_for((means[-2] + means[-1]) / 2, floors, means) < floors[-1]
    assert means[-2] < means[-1] and floor_for(99.0, floors, means) == floors[-1]
    _, clips, forwards, _ = gated(model, items, How("2"), Spending(GATE, 2.0, 5), floors[0])
    assert clips.shape == (2, 16, LATENTS, 8, 8) and len(set(forwards)) == 1
