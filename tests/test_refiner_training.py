"""Recipes of noise refiners: where they begin, what has a gradient, what is written, and that they learn."""

from __future__ import annotations

import json

import pytest
import tiny_recipes
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_recipes import CONTEXT, WHICH, noise

from foresight.demo.script import LATENTS
from foresight.demo.stream import Stream, sample_stream
from foresight.demo.wan_dit import load_transformer
from foresight.lab.training import refiner, refining
from foresight.lab.training.loop import train
from foresight.lab.training.refining import Refiner, refined_rollout, with_lora
from foresight.lab.training.streams import schedule_of
from foresight.sampling.refiner_file import HEAD, LORA, MODEL, RefinerSettings, describe, same

SCHEDULE = schedule_of("4", LATENTS)


def drawing(seed=5, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(batch, 16, 1, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def base():
    return tiny_recipes.network()


def stream_of(base):
    return Stream(base, CONTEXT, WHICH)


@pytest.mark.parametrize("initial", [False, True])
def test_a_refiner_begins_as_no_change_of_the_clip(base, initial):
    """To the last bit; its forwards are chunks times intermediate steps."""
    network, plain = with_lora(base, 4, 1, silent=True), stream_of(base)
    clip = sample_stream(plain, SCHEDULE, drawing())
    stream, own = stream_of(base), Refiner(network, CONTEXT, RefinerSettings())
    with torch.no_grad():
        found = refined_rollout(stream, SCHEDULE, drawing(), own, initial)
    assert torch.equal(found, clip)
    assert stream.forwards - plain.forwards == len(own.changes) == (7 if initial else 21)
    with torch.no_grad():
        tuned = refined_rollout(Stream(with_lora(base, 4, 1, silent=False), CONTEXT, WHICH), SCHEDULE, drawing())
    assert torch.equal(tuned, clip)


@pytest.fixture
def network(base):
    """One that changes something."""
    network = with_lora(base, 4, 1, silent=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * noise(len(name), *parameter.shape))
    return network


def watched(monkeypatch):
    """Of each forward of the base: whether its input, its output, and what it sees of other chunks have a gradient."""
    calls, predict = [], Stream.predict

    def seen(self, x, sigma):
        past = any(memory.past is not None and memory.past[0].requires_grad for memory in self.memory)
        x0 = predict(self, x, sigma)
        calls.append((self.at, x.requires_grad, x0.requires_grad, past))
        return x0

    monkeypatch.setattr(Stream, "predict", seen)
    return calls


@pytest.mark.parametrize("stop", [1, 3])
def test_the_gradient_goes_through_the_last_refinement_and_its_step_alone(base, network, monkeypatch, stop):
    calls, own = watched(monkeypatch), Refiner(network, CONTEXT, RefinerSettings())
    x0 = refined_rollout(stream_of(base), SCHEDULE, drawing(), own, stop=stop, gradient=True)
    assert [at for at, entered, left, _ in calls if entered or left] == list(range(LATENTS))
    assert all(entered for _, entered, left, _ in calls if left) and not any(past for *_, past in calls)
    learned = [change for change in own.changes if change.requires_grad]
    assert len(own.changes) == stop * LATENTS and len(learned) == LATENTS
    reached = torch.autograd.grad(x0[:, :, 3].sum(), learned, retain_graph=True)
    assert [bool(gradient.any()) for gradient in reached] == [chunk == 3 for chunk in range(LATENTS)]
    x0.sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_a_start_refiners_gradient_goes_through_every_step(base, network, monkeypatch):
    calls, own = watched(monkeypatch), Refiner(network, CONTEXT, RefinerSettings())
    x0 = refined_rollout(stream_of(base), SCHEDULE[:2], drawing(), own, initial=True, stop=2, gradient=True)
    assert [entered for _, entered, *_ in calls] == [True, True, True, False, True, True, True]
    (reached,) = torch.autograd.grad(x0[:, :, 1].sum(), own.changes[1:], retain_graph=True)
    assert reached.abs().sum() > 0 and len(own.changes) == 2


def test_the_prediction_and_the_history_are_seen_and_nothing_else(base, network):
    def change(before, past, **how):
        stream = stream_of(base)
        with torch.no_grad():
            stream.predict(past, 0.0)
            stream.keep()
            return Refiner(network, CONTEXT, RefinerSettings(**how))(stream, noise(2, 2, 16, 1, 8, 8), before, 0.9)

    first, others = noise(3, 2, 16, 1, 8, 8), noise(4, 2, 16, 1, 8, 8)
    whole = change(first, first)
    assert not torch.equal(whole, change(others, first)) and not torch.equal(whole, change(first, others))
    assert torch.equal(change(first, first, prediction=False), change(others, first, prediction=False))
    assert torch.equal(change(first, first, history=False), change(first, others, history=False))
    assert not torch.equal(whole, change(first, first, level="step"))


def test_a_merged_network_is_the_one_with_its_lora(base, network):
    x, level = noise(6, 1, 16, 2, 8, 8), torch.tensor([700.0])
    with torch.no_grad():
        one, other = (each(x, level, CONTEXT[:1, 0]) for each in (network, refining.merged(network, base)))
    assert (one - other).abs().max() < 1e-5 and not torch.equal(other, base(x, level, CONTEXT[:1, 0]))


class Judge:
    """Likes bright latents."""

    def __call__(self, x0, sigma, texts):
        assert 0.5 < sigma <= 1 and len(texts) == len(x0)
        return x0.mean((1, 2, 3, 4))

    def texts(self, prompts):
        return torch.zeros(len(prompts), 4)


@pytest.fixture
def tiny(base, tmp_path, monkeypatch):
    for name, stub in {"LatentJudge": Judge, "BATCH": 2, "decode": lambda *_: None}.items():
        monkeypatch.setattr(refiner, name, stub)
    path = tiny_recipes.stand_in(monkeypatch, tmp_path / "start.safetensors", base)

    def make(name, **options):
        return refiner.Refine(start=path, teacher=path, export=tmp_path / f"{name}.safetensors", rank=4,
                              **{"critic_steps": 2, **options})  # fmt: skip

    return make


RECIPES = [("path", "dmd"), ("path", "reward"), ("start", "dmd"), ("weights", "reward")]


@pytest.mark.parametrize(("what", "mode"), RECIPES)
def test_a_recipe_goes_on_after_a_stop_and_writes_what_is_loaded(tiny, tmp_path, what, mode):
    whole = tiny("whole", what=what, mode=mode)
    record = train(whole, 4, say=lambda _: None)
    for steps in (2, 4):
        train(tiny("parts", what=what, mode=mode), steps, say=lambda _: None)
    one, two = load_file(whole.out), load_file(tmp_path / "parts.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one) and len(record.curve) == 2
    start = load_transformer(tmp_path / "start.safetensors")
    assert one.keys() == start.state_dict().keys()
    assert any(not torch.equal(one[name], weight.half()) for name, weight in start.state_dict().items())
    with safe_open(whole.out, "pt") as file:
        told = file.metadata()
    assert '"causal_ar": true' in told["config"] and told["what"] == what and told["mode"] == mode
    assert json.loads(whole.out.with_suffix(".json").read_text())["curve_columns"][2:5] == ["right", "reward", "change"]
    if what == "weights":
        return
    described = describe(whole.out)
    assert described.kind == MODEL and same(described.base, start) and described.made_for == "start.safetensors"
    lora = whole.out.with_name("whole_lora.safetensors")
    assert lora.exists() == (what == "path")
    if what == "path":
        assert describe(lora).kind == LORA
        part, prefix = load_file(lora), "diffusion_model.blocks.1.ffn.0"
        low = part[f"{prefix}.lora_up.weight"].float() @ part[f"{prefix}.lora_down.weight"].float()
        found = one["blocks.1.ffn.0.weight"].float() - start.blocks[1].ffn[0].weight
        assert (found - low).abs().max() < 2e-3
        assert torch.equal(part[f"diffusion_model.{HEAD}.set_weight"], one[f"{HEAD}.weight"])


def test_a_reward_is_raised_within_its_bound(tiny):
    def trained(strength):
        task = tiny("reward", mode="reward", rate=1e-2, strength=strength)
        before = task.measure()
        assert before["change"] == 0
        for step in range(6):
            figures = task.update(step, 6)
        assert figures["bound"] > 0
        task.student.average.module.load_state_dict(task.student.network.state_dict())
        return before["reward"], task.measure()

    before, weak = trained(1.0)
    _, strong = trained(3000.0)
    assert strong["reward"] > before + 0.01 and strong["change"] > 3 * weak["change"]


def test_matching_has_no_bound_and_its_critic_learns_at_every_step(tiny):
    task = tiny("dmd")
    learners = [(name, part) for name, part in task.parts.items() if name != "generator"]
    begun = {name: [p.clone() for p in part.network.parameters()] for name, part in learners}
    assert "bound" not in task.update(0, 4) and "bound" not in task.update(1, 4)
    for name, before in begun.items():
        now = list(task.parts[name].network.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)), name
    before = [p.clone() for p in task.student.network.parameters()]
    task.update(3, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, task.student.network.parameters(), strict=True))


def test_every_chunk_of_an_iteration_stops_at_one_step_that_is_refined(tiny):
    task, stops = tiny("stops"), set()
    assert len(task.roll(CONTEXT, WHICH, True)[2]) == LATENTS
    for _ in range(10):
        stops.add(task.roll(CONTEXT, WHICH, False)[1])
    assert stops == {1, 2, 3}
    task = tiny("one", refined="2")
    assert {task.roll(CONTEXT, WHICH, False)[1] for _ in range(4)} == {2}
    tuned = tiny("weights", what="weights")
    assert {tuned.roll(CONTEXT, WHICH, False)[1] for _ in range(12)} == {0, 1, 2, 3}
