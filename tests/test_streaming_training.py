"""The streaming family's world, network and recipes, against what was written elsewhere or has a known answer."""

import inspect
import itertools
import json
import math

import pytest
import tiny_recipes
import tiny_wan
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from streams import causal as core_causal
from streams import streamed
from tiny_recipes import CONTEXT, WHICH, noise

from foresight.demo.captions import prompts
from foresight.demo.judge import judge
from foresight.demo.script import (
    BACK,
    LATENTS,
    ON,
    STOP,
    Script,
    frames_of,
    judge_script,
    place,
    render,
    there_and_back,
)
from foresight.demo.stream import Stream, block_causal, renoised, sample_stream, teacher_forced
from foresight.demo.wan_dit import WanTransformer
from foresight.lab.training import causal, consistency, distil, long_clips, refiner, streams
from foresight.lab.training.__main__ import read
from foresight.lab.training.common import DIAGONAL, STATE, STREAMER, TRANSFORMER
from foresight.lab.training.flow_matching import FlowHead, flow_matching, frame_weights
from foresight.lab.training.loop import train
from foresight.sampling import stream_engine
from foresight.sampling.compat import CAUSAL_WAN

SCENES = [scene for name in ("easy", "medium", "hard") for _, scene in prompts("train", name, 4)]


@pytest.fixture(scope="module")
def network():
    return tiny_recipes.network()


def prompts_of(batch=2):
    return CONTEXT[:batch], WHICH[:batch]


@pytest.mark.parametrize("segments", [((7, ON),), ((4, ON), (3, BACK)), ((3, STOP), (4, ON)), ((4, ON), (3, STOP))])
def test_a_rendered_script_is_right_in_every_segment_and_wrong_in_another(segments):
    scripts = [Script(scene, segments) for scene in SCENES]
    scripts = [s for s, layout in zip(scripts, place(scripts, torch.Generator().manual_seed(0)), strict=True) if layout]
    layouts = [layout for layout in place(scripts, torch.Generator().manual_seed(0)) if layout]
    clips = render(scripts[: len(layouts)], layouts)
    assert clips.shape[1:] == (25, 64, 64, 3)
    for clip, script in zip(clips, scripts, strict=False):
        assert all(each.right for each in judge_script(clip, script)), script
        moving = any(thing.motion not in (None, "still") for thing in script.scene.objects)
        if len(segments) == 2 and moving:
            first, second = script.spans()
            assert not judge(clip[first], script.scenes[1]).right and not judge(clip[second], script.scenes[0]).right


def test_long_scripts_stay_where_there_is_room_and_change_at_their_chunks():
    script = there_and_back(SCENES[0], 56)
    assert [latents for latents, _ in script.segments] == [7, 6, 6, 6, 6, 6, 6, 6, 6, 1]
    assert len(script.times) == frames_of(56) and script.times.min() >= 0 and script.times.max() <= 1
    assert script.which[6:8] == [0, 1] and len(script.which) == 56
    assert script.times[24] == pytest.approx(1) and script.times[48] == pytest.approx(0, abs=1e-5)
    assert there_and_back(SCENES[0], LATENTS).segments == ((7, ON),)


@pytest.mark.parametrize(("window", "sink"), [(0, 0), (3, 0), (3, 1), (1, 0)])
def test_a_masked_forward_is_the_stream_chunk_by_chunk(network, window, sink):
    context, which = prompts_of()
    clean, x = noise(2, 2, 16, 7, 8, 8), noise(3, 2, 16, 7, 8, 8)
    sigma = torch.rand(2, 7, generator=torch.Generator().manual_seed(4)) * 0.9 + 0.1
    whole = teacher_forced(network, clean, x, sigma, context, which, block_causal(7, window, sink))
    stream, parts = Stream(network, context, which, window=window, sink=sink), []
    for at in range(7):
        x0 = stream.predict(x[:, :, at : at + 1], sigma[:, at])
        parts.append((x[:, :, at : at + 1] - x0) / sigma[:, at].view(-1, 1, 1, 1, 1))
        stream.predict(clean[:, :, at : at + 1], 0.0)
        stream.keep()
    # A windowed layer's memory holds what earlier layers saw through windows of their own, as the mask has it only for
    # the clean latents; the first chunks are free of that.
    assert (torch.cat(parts, 2) - whole).abs().max() < 2e-5


def test_forwards_are_those_of_the_papers_schedules_and_the_last_needs_no_memory(network):
    context, which = prompts_of(1)
    runs = (("4322222", 100.0, None, 17), ("4322222", None, 0.0, 23), ("4", None, 0.0, 34))
    for digits, last, level, forwards in runs:
        stream = Stream(network, context, which)
        schedule = streams.schedule_of(digits, 7, last)
        clip = sample_stream(stream, schedule, lambda: noise(5, 1, 16, 1, 8, 8), level)
        assert clip.shape == (1, 16, 7, 8, 8) and stream.forwards == forwards


def test_the_last_steps_own_keys_are_what_later_chunks_see(network):
    """Without a pass of its own a chunk is remembered as its last forward saw it."""
    context, which = prompts_of(1)
    stream = Stream(network, context, which)
    x = noise(6, 1, 16, 1, 8, 8)
    stream.predict(x, 0.5)
    own = stream.memory[0].own[0].clone()
    stream.keep()
    assert torch.equal(stream.memory[0].past[0], own)
    stream.predict(x, 0.9)
    assert torch.equal(stream.memory[0].past[0], own), "a forward that is not kept must leave no trace"


def test_matching_moves_one_gaussian_onto_another():
    """Scores of N(2, 1) as the clips' own, which the critic knows, and of N(-1, 1) as the teacher's."""
    def denoised(x, sigma, mean):  # the posterior mean of N(mean, 1) under x = (1 - s) x0 + s e
        gain = (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)
        return mean + gain * (x - (1 - sigma) * mean)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(256, 4, 2, generator=generator)
    shift = torch.full((), 2.0, requires_grad=True)
    optimiser = torch.optim.Adam([shift], 0.05)
    for _ in range(300):
        x = start + shift
        sigma = torch.rand(256, 1, 1, generator=generator) * 0.9 + 0.05
        noised = renoised(x.detach(), sigma, torch.randn(x.shape, generator=generator))
        direction = distil.matching_direction(
            x.detach(), denoised(noised, sigma, shift.detach()), denoised(noised, sigma, -1.0)
        )
        optimiser.zero_grad()
        distil.matching_loss(x, direction).backward()
        optimiser.step()
    assert shift.item() == pytest.approx(-1.0, abs=0.1)


def test_every_level_of_every_chunk_is_an_exit():
    schedule = streams.schedule_of("4322222", 7, 100.0)
    generator = torch.Generator().manual_seed(0)
    drawn = [distil.draw_exits(schedule, generator) for _ in range(100)]
    assert [{exits[chunk] for exits in drawn} for chunk in range(7)] == [set(range(4)), set(range(3)), *[{0, 1}] * 5]
    assert [len(sigmas) for sigmas in schedule] == [4, 3, 2, 2, 2, 2, 2]
    assert schedule[2] == pytest.approx((1.0, 0.35714), abs=1e-4)


@pytest.mark.parametrize("context_noise", [0.0, None, 0.357])
def test_the_gradient_goes_through_each_chunks_exit_alone(network, context_noise):
    """What a chunk's step takes from the history has none."""
    model = WanTransformer(layers=1, ffn_dim=128, text_dim=24)
    model.load_state_dict({k: v for k, v in network.state_dict().items() if k in model.state_dict()})
    context, which = prompts_of(1)
    schedule = streams.schedule_of("4322222", 7, 100.0)
    calls = []
    stream_predict = Stream.predict

    def watched(self, x, sigma):
        x0 = stream_predict(self, x, sigma)
        calls.append((self.at, x.requires_grad, x0.requires_grad, any(m.past and m.past[0].requires_grad
                                                                      for m in self.memory)))  # fmt: skip
        return x0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "predict", watched)
        x0 = distil.rollout(model, context, which, schedule, [2, 1, 0, 1, 0, 1, 1], noise(7, 5, 1, 16, 7, 8, 8),
                            context_noise, True)  # fmt: skip
    assert [at for at, _, gradient, _ in calls if gradient] == list(range(7))
    assert not any(enters or past for _, enters, _, past in calls)
    x0[:, :, 3].sum().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_a_rollout_that_leaves_at_the_end_is_the_stream_of_the_same_noise(network):
    """And one that leaves earlier begins with the same noise in every chunk."""
    context, which = prompts_of()
    schedule, drawn = streams.schedule_of("4322222", 7, 100.0), noise(13, 5, 2, 16, 7, 8, 8)
    last = [len(sigmas) - 1 for sigmas in schedule]
    for context_noise in (0.0, None, 0.357):
        order = iter([drawn[row, :, :, at : at + 1] for at, sigmas in enumerate(schedule)
                      for row in (*range(len(sigmas)), *[-1] * bool(context_noise and at < 6))])  # fmt: skip
        rolled = distil.rollout(network, context, which, schedule, last, drawn, context_noise, False)
        clip = sample_stream(Stream(network, context, which), schedule, lambda order=order: next(order), context_noise)
        assert torch.equal(rolled, clip)
    early = distil.rollout(network, context, which, schedule, [0, *last[1:]], drawn, 0.0, False)
    first = Stream(network, context, which).predict(drawn[0, :, :, :1], 1.0)
    assert torch.equal(early[:, :, :1], first) and not torch.equal(early, clip)


@pytest.mark.parametrize("kind", ["latent", "difference", "head"])
def test_regression_on_the_starts_own_clips_is_nothing_at_the_start(tiny, tmp_path, kind):
    """The student still is the start, makes the same of the same noise, and has nothing to regress to."""
    task = distil.diagonal(digits="4", last=0, history="clean", start=tiny, teacher=tiny, kind=kind,
                           export=tmp_path / "d.safetensors")  # fmt: skip
    context, which = prompts_of()
    drawn = noise(14, 5, 2, 16, 7, 8, 8)
    wanted = task._first_clips(context, which, drawn)
    rolled = distil.rollout(task.student.network, context, which, task.schedule, [3] * 7, drawn, 0.0, True)
    assert torch.equal(rolled, wanted)
    assert task._flow_regression(rolled, wanted) == 0
    assert task._flow_regression(rolled, wanted.roll(1, 2)) > 0


def test_motion_is_matched_on_differences_and_its_head_starts_as_nothing():
    head = FlowHead()
    flow = noise(8, 2, 16, 6, 8, 8)
    assert torch.equal(head(flow), flow)
    real = noise(9, 2, 16, 7, 8, 8)
    same = flow_matching(real, real, real, frame_weights(real, real + 1))
    assert same == 0, "a clip whose motion is the teacher's is left alone, whatever its latents are"
    x0 = (real + noise(10, 2, 16, 7, 8, 8)).requires_grad_()
    flow_matching(x0, x0.detach(), real, frame_weights(x0.detach(), real)).backward()
    moved = (x0 - 1e-1 * x0.grad * x0.numel()).detach()
    assert (moved.diff(dim=2) - real.diff(dim=2)).abs().mean() < (x0 - real).diff(dim=2).abs().mean()
    weights = frame_weights(x0.detach(), real)
    assert weights.shape == (2, 1, 6, 1, 1) and (weights.diff(dim=2) > 0).all(), "later differences count more"


def test_a_student_that_finds_the_end_of_the_teachers_path_has_nothing_to_learn(tiny, tmp_path, monkeypatch):
    """Velocities that all point from the noise to the clip, whose guidance changes nothing."""
    task = consistency.Consistency(start=tiny, export=tmp_path / "c.safetensors")
    clean, drawn = noise(15, 2, 16, 7, 8, 8), noise(16, 2, 16, 7, 8, 8)
    at = torch.tensor([[0, 3, 6, 9, 12, 15, 15]] * 2)
    off = {}

    def path(model, clean, noised, sigma, *_):
        # At level 0 there is no way left, and a velocity does not matter.
        return (noised - clean) / consistency._wide(sigma.clamp(min=1e-3)) + off.get(model, 0)

    monkeypatch.setattr(consistency, "teacher_forced", path)
    assert task.loss(clean, drawn, at, *prompts_of()) < 1e-8
    off[task.student.network] = 0.5
    wrong = task.loss(clean, drawn, at, *prompts_of())
    assert wrong == pytest.approx((0.5 * task.levels[at]).square().mean().item(), rel=1e-3)
    assert task.levels[::4].tolist() == pytest.approx([1, 0.9375, 0.8333333, 0.625, 0])


@pytest.fixture
def tiny(network, tmp_path, monkeypatch):
    return tiny_recipes.stand_in(monkeypatch, tmp_path / "start.safetensors", network)


def made(kind, start, out):
    if kind == "causal":
        return causal.Causal(start=start, export=out, compile=False)
    if kind == "teacher":
        return causal.Causal(start=start, export=out, compile=False, both_ways=True)
    if kind == "consistency":
        return consistency.Consistency(start=start, export=out)
    make = distil.diagonal if kind == "diagonal" else distil.self_forcing
    return make(start=start, teacher=start, export=out, critic_steps=2, both_ways=kind == "self_forcing")


def test_each_recipe_begins_with_what_the_one_before_has_written(tiny):
    """As `python dev.py train` runs them; of what is shipped only the result is written there."""
    makers = (causal.Causal, consistency.Consistency, distil.self_forcing, distil.diagonal)
    paths = [{name: each.default for name, each in inspect.signature(make).parameters.items()} for make in makers]
    for before, after in itertools.pairwise(paths):
        assert after["start"] == before["export"]
    assert [path["teacher"] for path in paths[2:]] == [paths[0]["export"]] * 2
    assert [path["export"] for path in paths[2:]] == [STREAMER, DIAGONAL]
    task = made("self_forcing", tiny, STREAMER)
    assert task.out == STREAMER and task.checkpoint == STATE / f"{STREAMER.stem}.pt"


@pytest.mark.parametrize("kind", ["causal", "teacher", "consistency", "self_forcing", "diagonal"])
def test_a_recipe_goes_on_after_a_stop_as_if_there_had_been_none(tiny, tmp_path, kind):
    whole = made(kind, tiny, tmp_path / "whole.safetensors")
    train(whole, 4, say=lambda _: None)
    parts = tmp_path / "parts.safetensors"
    train(made(kind, tiny, parts), 2, say=lambda _: None)
    train(made(kind, tiny, parts), 4, say=lambda _: None)
    one, two = load_file(whole.out), load_file(parts)
    assert one.keys() == load_file(tiny).keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    changed = load_file(tiny)
    assert any(not torch.equal(one[key], changed[key].half()) for key in one)
    with safe_open(parts, "pt") as file:
        assert ('"causal_ar": true' in file.metadata().get("config", "")) == (kind != "teacher")
    how = streams.How("4322222", 100.0, None) if kind == "diagonal" else streams.How()
    assert streams.trained_how(parts) == how


def test_the_recipes_run_in_a_row_from_what_is_shipped(tmp_path, monkeypatch):
    """By the command's own options, on a hundredth of the data; from the shipped transformer, each on the one before.
    Two small steps each: a hundredth of them, 28 whole ones, take two minutes of one core."""
    for module in (*tiny_recipes.RECIPES, refiner):
        monkeypatch.setattr(module, "BATCH", 2)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("causal", "consistency", "self_forcing", "diagonal")}
    paths["refined"] = tmp_path / "refined.safetensors"
    taught = ("--teacher", str(paths["causal"]), "--critic-steps", "2")
    commands = {
        "causal": ("causal", "--no-compile"), "consistency": ("consistency", "--start", str(paths["causal"])),
        "self_forcing": ("self_forcing", "--start", str(paths["consistency"]), *taught),
        "diagonal": ("diagonal", "--start", str(paths["self_forcing"]), *taught),
        "refined": ("refiner", "--start", str(paths["self_forcing"]), *taught),
    }  # fmt: skip
    for name, command in commands.items():
        make, options, _, scale = read([*command, "--scale", "0.01", "--export", str(paths[name])])
        assert scale == 0.01
        train(make(**options), 2, say=lambda _: None)
        recipe = json.loads(paths[name].with_suffix(".json").read_text())
        assert recipe["steps"] == 2 and all(map(math.isfinite, recipe["curve"][-1]))
    shipped = load_file(TRANSFORMER)
    for path in paths.values():
        weights = load_file(path)
        assert weights.keys() == shipped.keys() and all(each.isfinite().all() for each in weights.values())
    assert streams.trained_how(paths["diagonal"]) == streams.How("4322222", 100.0, None)


def test_the_head_of_motion_learns(tiny, tmp_path):
    task = made("diagonal", tiny, tmp_path / "d.safetensors")
    before = [p.clone() for p in task.head.network.parameters()]
    task.update(0, 10)
    task.update(1, 10)
    task.update(2, 10)
    assert any(not torch.equal(a, b) for a, b in zip(before, task.head.network.parameters(), strict=True))
    assert not math.isnan(task.update(3, 10)["critic"])


def test_clips_to_learn_from_turn_stop_and_go_on():
    generator = torch.Generator().manual_seed(0)
    drawn = [long_clips.draw_script(SCENES[i % 12], generator) for i in range(200)]
    assert all(script.latents == LATENTS for script in drawn)
    ways = {tuple(direction for _, direction in script.segments) for script in drawn}
    assert ways == set(long_clips.WAYS)
    assert min(latents for script in drawn for latents, _ in script.segments) >= 3 - 1


@pytest.mark.parametrize("kind", ["stock", *(["causal"] if CAUSAL_WAN else [])])
@pytest.mark.parametrize(("preset", "settings", "last"), [
    ("Self-Forcing", {}, None), ("Diagonal Distillation", {"window": 4, "sink": 1}, 100.0),
])  # fmt: skip
def test_plain_streams_are_those_that_comfyui_makes(monkeypatch, kind, preset, settings, last):
    """The stock network through our hooks, and core's causal class where there is one: what is trained in plain torch
    is what is sampled there."""
    patcher = tiny_wan.model()
    plain = WanTransformer(layers=2, ffn_dim=128).eval()
    plain.load_state_dict(patcher.model.diffusion_model.state_dict())
    if kind == "causal":
        patcher = core_causal(patcher)
    patcher.model.model_sampling.set_parameters(shift=5.0)
    draws = []

    def drawn(like, *place):
        draws.append(torch.randn(like.shape, generator=torch.Generator().manual_seed(len(draws))))
        return draws[-1]

    monkeypatch.setattr(stream_engine, "drawn", drawn)
    first = noise(21, 1, 16, 7, 8, 8)
    settings = {"preset": preset, "chunk": 1, **settings}
    found, sampler = streamed(patcher, 7, settings=settings, size=(8, 8), noise=first)
    fresh = iter(draws)
    context = tiny_wan.guided(patcher, 1.0).original_conds["positive"][0]["cross_attn"].float()
    levels = streams.schedule_of("4" if last is None else "4322222", 7, last)
    order = [draw for chunk, sigmas in enumerate(levels)
             for draw in (first[:, :, chunk : chunk + 1], *[None] * (len(sigmas) - 1))]  # fmt: skip
    order = iter([next(fresh) if draw is None else draw for draw in order])
    seen = {name: settings.get(name, 0) for name in ("window", "sink")}
    stream = Stream(plain, context[:, None], torch.zeros(1, 7, dtype=torch.long), **seen)
    with torch.no_grad():
        clip = sample_stream(stream, levels, lambda: next(order), 0.0 if last is None else None)
    found = patcher.model.process_latent_in(found)
    assert stream.forwards == sampler.result["nfe"]
    assert (clip - found).abs().max() < 1e-5 * max(1, clip.abs().max())
