"""The training loop: every recipe, stopped at any moment, goes on as if it had not been."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foresight.demo.captions import prompts
from foresight.demo.world import FRAMES
from foresight.l2r.learner import Learner
from foresight.lab.training import converter, dit, l2r, reward, scorer, scorer_batches, vae
from foresight.lab.training.chunks import make_chunks
from foresight.lab.training.common import random_clips, random_scenes
from foresight.lab.training.latents import encode_scenes
from foresight.lab.training.loop import Task, load_checkpoint, save_checkpoint, train
from foresight.lab.training.reward_data import Samples


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Distilled(Task):
    """A student that learns from a teacher through a critic: the critic steps each time, the student every third."""

    every = 4

    def __init__(self, folder):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.teacher, student, critic = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(1, 1)
        self.generator = generator(1)
        self.student, self.critic = (
            Learner(network, torch.optim.AdamW(network.parameters(), 0.05), decay=0.9) for network in (student, critic))
        self.parts = {"student": self.student, "critic": self.critic, "generator": self.generator}
        self.checkpoint, self.out = folder / "distilled.pt", folder / "student.pt"

    def update(self, step, steps):
        x = torch.randn(8, 3, generator=self.generator)
        wrong = (self.student.network(x) - self.teacher(x)).square()
        self.critic.step((self.critic.network(self.student.network(x).detach()) - wrong.detach()).square().mean())
        if step % 3 == 0:
            self.student.step(wrong.mean(), 1 - step / steps)
        return {"loss": wrong.mean()}

    def export(self, record):
        torch.save(self.student.result.state_dict(), self.out)


def whole_vae(folder):
    clips = random_clips(generator(1), 4)
    return vae.WholeVAE(clips, clips[:2], 4, 1, folder / "vae.safetensors", compile=False)


def decoder(folder):
    task = whole_vae(folder)
    save_file(task.vae.state_dict(), task.out)
    (folder / "vae.json").write_text("{}")
    return vae.Decoder(1, folder / "vae.safetensors", compile=False)


def transformer(folder):
    return dit.Transformer(128, 2, 64, export=folder / "dit.safetensors", compile=False)


def converter_of(architecture):
    def make(folder):
        pairs = [(torch.randn(1, 4, 3, 8, 8, generator=generator(n)), torch.full((1, 3, 16, 16, 3), n / 9))
                 for n in range(9)]  # fmt: skip

        def draw(clips):
            while True:
                yield pairs[int(torch.randint(9, (), generator=clips))]

        return converter.Converter(lambda pair: pair, draw, pairs[:1], folder / "made.safetensors", seed=0,
                                   architecture=architecture, metadata={}, crop=8)  # fmt: skip

    return make


RECIPES = {
    "several learners": Distilled, "vae": whole_vae, "decoder": decoder, "dit": transformer,
    "l2r": lambda folder: l2r.DemoL2R(scale=0.01, export=folder / "l2r.safetensors"),
    "scorer": lambda folder: scorer.Scorer(export=folder / "scorer.safetensors"),
    "reward": lambda folder: reward.Reward(export=folder / "reward.safetensors", results=folder),
    "converter, paper": converter_of("paper"), "converter, subpixel": converter_of("subpixel"),
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Recipes with as little data as they can be tried on."""
    scenes = [scene for _, scene in prompts("train", "easy", 4)]
    data = {"captions": [text for text, _ in prompts("train", "easy", 4)]}
    for kind, frames in (("images", 1), ("clips", FRAMES)):
        data[kind], data[f"{kind}_contents"] = encode_scenes(scenes, 1, frames)
    monkeypatch.setattr(dit, "training_data", lambda share, seed: data)
    drawn = generator(2)
    samples = Samples(
        data["captions"], scenes, torch.arange(8) // 2, torch.randn(8, 8, 16, 5, 8, 8, generator=drawn).half(),
        torch.linspace(0.9, 0.2, 8), torch.rand(8, 3, generator=drawn))  # fmt: skip
    monkeypatch.setattr(reward, "make_samples", lambda clips, share: replace(samples))
    monkeypatch.setattr(reward, "make_guesses", lambda levels, share: samples.x0[:4, :4])
    # Least squares differ in their last digits each time, so all begin with one solution.
    start = reward.Scored().as_reward(samples.x0[:4, :4])
    monkeypatch.setattr(reward.Scored, "as_reward", lambda self, guesses: copy.deepcopy(start))
    monkeypatch.setattr(scorer_batches, "random_scenes", lambda clips, count, shares: random_scenes(clips, 12, shares))
    monkeypatch.setattr(l2r, "random_clips", lambda clips, count: random_clips(clips, 4))
    for module, values in {
        dit: {"CLIP_BATCH": 4, "IMAGE_BATCH": 4, "HELD_OUT": 3}, scorer: {"POOL": 4, "HELD_OUT": 2},
        scorer_batches: {"PAIRS": 2}, reward: {"BATCH": 8}, converter: {"POOL": 3},
        vae: {"HELD_OUT": 2, "DECODER_CLIPS": 4, "IMAGE_BATCH": 4, "CLIP_BATCH": 2, "DECODER_BATCH": 2},
    }.items():  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    for task in (vae.WholeVAE, vae.Decoder, dit.Transformer, l2r.DemoL2R, scorer.Scorer, reward.Reward,
                 converter.Converter):  # fmt: skip
        monkeypatch.setattr(task, "every", 4)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or bool(one.isnan().all() and other.isnan().all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_goes_on_exactly_after_a_stop(recipe, small, tmp_path, monkeypatch):
    def make(folder):
        folder.mkdir(exist_ok=True)
        for module in (vae, dit, l2r, scorer, reward):
            monkeypatch.setattr(module, "STATE", folder)
        task = RECIPES[recipe](folder)
        monkeypatch.setattr(task, "export", lambda record: task.out.write_bytes(b"weights"))
        return task

    whole = make(tmp_path / "whole")
    curve = train(whole, 10).curve
    stopped = make(tmp_path / "stopped")
    update = stopped.update

    def stop(step, steps):
        if step == 7:
            raise KeyboardInterrupt
        return update(step, steps)

    monkeypatch.setattr(stopped, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, 10)
    said: list[str] = []
    again = make(tmp_path / "stopped")
    record = train(again, 10, said.append)
    assert said[0] == "going on from step 4"
    assert same(whole.state_dict(), again.state_dict())
    assert [row[1:] for row in record.curve] == [row[1:] for row in curve]


def test_time_adds_up_over_stops_and_what_is_finished_is_passed_over(tmp_path, monkeypatch):
    first = train(Distilled(tmp_path), 4)
    state = load_checkpoint(tmp_path / "distilled.pt")
    save_checkpoint(tmp_path / "distilled.pt", state | {"record": state["record"] | {"minutes": 30.0}})
    assert 30 < train(Distilled(tmp_path), 8).minutes < 31 and first.minutes < 1
    finished = Distilled(tmp_path)
    monkeypatch.setattr(finished, "update", None)
    written = (tmp_path / "student.pt").read_bytes()
    assert train(finished, 8).step == 8 and (tmp_path / "student.pt").read_bytes() == written
    (tmp_path / "student.pt").unlink()
    train(finished, 8)
    assert (tmp_path / "student.pt").exists()


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", {"step": 1})

    def killed(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a.pt", {"step": 2})
    assert load_checkpoint(tmp_path / "a.pt") == {"step": 1}


def test_a_checkpoint_of_an_older_command_is_named(tmp_path):
    save_checkpoint(tmp_path / "distilled.pt", {"model": {}, "step": 3})
    with pytest.raises(SystemExit, match="distilled.pt is of an older training command"):
        train(Distilled(tmp_path), 4)


def numbered(number, word):
    return {"number": number, "word": word}


def test_chunks_are_made_once_and_only_those_that_are_missing(tmp_path):
    jobs = [(number, "first") for number in range(3)]
    assert [chunk["number"] for chunk in make_chunks(tmp_path / "data", numbered, jobs)] == [0, 1, 2]
    (tmp_path / "data" / "1.pt").unlink()
    again = make_chunks(tmp_path / "data", numbered, [(number, "second") for number in range(3)])
    assert [chunk["word"] for chunk in again] == ["first", "second", "first"]
