"""The latent reward: what it reads, what its file promises, and when it is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats

from foresight.demo.captions import prompts
from foresight.demo.clip_quality import motion_quality, visual_quality
from foresight.demo.judge import Found, find_objects
from foresight.demo.world import FRAMES, arrange, draw
from foresight.evaluation.comfyui import ROOT
from foresight.lab.training.common import REWARD
from foresight.lab.training.latents import encode_scenes
from foresight.lab.training.reward import (
    MARGIN,
    Scored,
    accuracy_rows,
    fit_heads,
    follow_loss,
    markdown,
    rewards_of,
)
from foresight.lab.training.reward_data import Samples
from foresight.lab.training.scorer_samples import weights_digest
from foresight.scoring.latent_reward import (
    KEY,
    LatentReward,
    RewardConfig,
    RewardModel,
    below_bar,
    load_reward,
    pairs_within,
    pairwise_accuracy,
    save_reward,
)

CONFIG = RewardConfig(channels=4, frames=3, side=4, text_dim=8, width=32, heads=2, layers=1)


def tiny(seed=0, config=CONFIG, **metadata):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RewardModel(config, {"name": "tiny", "scorer": "words", **metadata})
        for parameter in model.tower.parameters():  # ViCLIP's own are zeros until weights are loaded
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
        torch.nn.init.normal_(model.sharpness)
    return model.eval()


def figures(*accuracies, steps=50):
    """Metadata with these accuracies at 10, 20, ... steps."""
    rows = [{"step": 10 * i, "latent_reward": value} for i, value in enumerate(accuracies, 1)]
    return {"name": "tiny", "scorer": "words", "steps": steps, "accuracy": rows}


class Words:
    name = "words"

    def encode_text(self, prompt):
        drawn = torch.randn(8, generator=torch.Generator().manual_seed(len(prompt)))
        return torch.nn.functional.normalize(drawn, dim=0)


LATENT = torch.randn(3, 4, 5, 6, 8, generator=torch.Generator().manual_seed(1))


def test_a_reward_survives_its_file(tmp_path):
    model = tiny()
    save_reward(model, tmp_path / "r.safetensors", figures(0.7, 0.8))
    state = torch.random.get_rng_state()
    again = load_reward(tmp_path / "r.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())
    text, sigma = torch.randn(3, 8), torch.tensor([0.2, 0.5, 0.9])
    assert torch.allclose(again(LATENT, sigma, text), model.half().float()(LATENT, sigma, text), atol=1e-6)
    assert again.config == CONFIG and again.metadata["accuracy"][1]["latent_reward"] == 0.8


@pytest.mark.parametrize("accuracies, problem", [
    ((0.55, 0.9), "55.0%"), ((0.7, 0.69), "69.0%"), ((0.7, math.nan), "nan%"), ((), "not measured"),
])
def test_a_reward_below_the_bar_is_refused(tmp_path, accuracies, problem):
    save_reward(tiny(), tmp_path / "poor.safetensors", figures(*accuracies))
    with pytest.raises(ValueError, match=f"poor.safetensors is not good enough.*{problem}.*docs/enhancers.md"):
        load_reward(tmp_path / "poor.safetensors")


def test_the_bar_is_a_share_of_the_schedule():
    assert below_bar(figures(0.6, 0.7)) is None
    assert "20%" in below_bar(figures(0.9, steps=25))  # the first figure is of 40 % of the schedule
    early = figures(0.7, 0.71, 0.5)  # of the steps after the last bar none is asked
    assert below_bar(early) is None


def test_other_files_are_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is no latent reward"):
        load_reward(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match="no whole safetensors"):
        load_reward(tmp_path / "cut.safetensors")
    path = tmp_path / "narrow.safetensors"
    save_reward(tiny(), path, figures(0.7, 0.8))
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()[KEY])
    described["config"]["width"] = 16
    save_file(load_file(path), path, {KEY: json.dumps(described)})
    with pytest.raises(ValueError, match="does not fit the layout"):
        load_reward(path)


def test_scores_are_of_single_items_and_weighted():
    model = tiny()
    reward = LatentReward(model, Words(), "a ring")
    together = reward.score(LATENT, 0.5, 10)
    assert together.shape == (3,) and together.dtype == torch.float32
    alone = torch.cat([reward.score(item, 0.5, 10) for item in LATENT.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)
    heads = [LatentReward(model, Words(), "a ring", weights).score(LATENT, 0.5, 10)
             for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert torch.allclose(sum(heads), together, atol=1e-5)
    assert not torch.allclose(together, reward.score(LATENT, 0.9, 10))  # the noise level is read
    # Quality is the latent's, alignment the text's too.
    other = [LatentReward(model, Words(), "another", weights).score(LATENT, 0.5, 10)
             for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert torch.equal(heads[0], other[0]) and torch.equal(heads[1], other[1]) and not torch.equal(heads[2], other[2])


def test_an_item_that_is_not_finite_has_no_reward():
    broken = LATENT.clone()
    broken[1, 0, 0, 0, 0] = math.nan
    found = LatentReward(tiny(), Words(), "a ring").score(broken, 0.5, 10)
    assert found[1].isnan() and torch.allclose(found[[0, 2]], LatentReward(tiny(), Words(), "a ring").score(
        LATENT[[0, 2]], 0.5, 10), atol=1e-5)


def test_an_image_models_latent_is_a_clip_of_one_frame():
    reward = LatentReward(tiny(), Words(), "a ring")
    assert torch.equal(reward.score(LATENT[:, :, 0], 0.5, 3), reward.score(LATENT[:, :, :1], 0.5, 3))


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="text features of letters, but the scorer is words"):
        LatentReward(tiny(scorer="letters"), Words(), "a ring")
    with pytest.raises(ValueError, match="prompt is empty"):
        LatentReward(tiny(), Words(), "  ")
    with pytest.raises(ValueError, match="weights"):
        LatentReward(tiny(), Words(), "a ring", (0, 0, 0))
    with pytest.raises(ValueError, match="4 channels, but this one has 16"):
        LatentReward(tiny(), Words(), "a ring").score(torch.zeros(1, 16, 5, 8, 8), 0.5, 3)


def test_levels_beyond_the_trained_ones_count_as_the_nearest():
    model = tiny(config=replace(CONFIG, sigmas=(0.2, 0.8)))
    reward = LatentReward(model, Words(), "a ring")
    assert torch.equal(reward.score(LATENT, 0.8, 3), reward.score(LATENT, 0.99, 3))
    assert not torch.equal(reward.score(LATENT, 0.8, 3), reward.score(LATENT, 0.7, 3))


def test_pairwise_accuracy_is_kendalls():
    """Without ties the share of rightly ranked pairs is (tau + 1) / 2."""
    generator = torch.Generator().manual_seed(3)
    values, targets = torch.randn(12, generator=generator), torch.randn(12, generator=generator)
    found = pairwise_accuracy(values, pairs_within(targets, torch.zeros(12), 0.0))
    assert found == pytest.approx((stats.kendalltau(values, targets).statistic + 1) / 2, abs=1e-6)
    assert pairwise_accuracy(torch.zeros(12), pairs_within(targets, torch.zeros(12), 0.0)) == 0.5


def test_pairs_are_of_one_prompt_and_apart():
    pairs = pairs_within(torch.tensor([0.0, 0.5, 0.05, 1.0]), torch.tensor([0, 0, 0, 1]), 0.1)
    assert sorted(pairs.tolist()) == [[1, 0], [1, 2]]


def samples(count=6, prompt_count=4):
    """Samples whose first channel's mean is their quality in all three respects."""
    texts, scenes = zip(*prompts("train", "easy", prompt_count), strict=True)
    generator = torch.Generator().manual_seed(5)
    good = torch.rand(count * prompt_count, generator=generator)
    x0 = torch.randn(count * prompt_count, 8, 16, 5, 8, 8, generator=generator) * 0.3
    x0[:, :, 0] += 2 * good[:, None, None, None, None] - 1
    prompt = torch.arange(len(good)) // count
    levels, targets = torch.linspace(0.9, 0.2, 8), good[:, None].expand(-1, 3)
    return Samples(list(texts), list(scenes), prompt, x0.half(), levels, targets)


def directions(*shape):
    """Unit features without a scorer."""
    return torch.nn.functional.normalize(torch.randn(*shape, 128, generator=torch.Generator().manual_seed(7)), dim=-1)


def test_the_heads_learn_to_rank_within_prompts_and_leave_the_tower_alone():
    train, held_out = samples(), samples(count=7)
    held_out.x0 = held_out.x0.flip(0)
    held_out.targets = held_out.targets.flip(0)
    model, said = tiny(config=RewardConfig(width=32, layers=1)), directions(4)
    before = {name: tensor.clone() for name, tensor in model.tower.state_dict().items()}
    fit_heads(model, said, train)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tower.state_dict().items())
    found = rewards_of(model, said, held_out)
    for k in range(2):
        pairs = pairs_within(held_out.targets[:, k], held_out.prompt, MARGIN)
        assert min(pairwise_accuracy(found[:, moment, k], pairs) for moment in range(8)) > 0.9


def test_how_much_the_text_counts_is_learned_too():
    """Where better clips look less like their captions, in all but one of ten prompts, alignment counts against."""
    class Mirror(RewardModel):
        def look(self, x0):
            return x0

    said, targets = directions(10), torch.tensor([0.0, 1.0]).repeat(10)[:, None].repeat(1, 3)
    targets[:2] = targets[:2].flip(0)
    x0 = torch.stack([said, -said], 1).flatten(0, 1)[:, None].expand(-1, 2, -1)
    shown = Samples([], [], torch.arange(20) // 2, x0, torch.tensor([0.9, 0.2]), targets)
    model = Mirror(RewardConfig(width=32, layers=1))
    fit_heads(model, said, shown)
    found = rewards_of(model, said, shown)[:, :, 2]
    assert (found[1::2] > found[::2]).all()


def test_the_tower_learns_to_see_what_the_scorer_sees():
    model, x0 = tiny(config=RewardConfig(width=32, layers=1)), samples().x0[:, 0]
    wanted = directions(len(x0))
    before = follow_loss(model, x0, wanted).item()
    optimiser = torch.optim.AdamW(model.tower.parameters(), 3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        follow_loss(model, x0, wanted).backward()
        optimiser.step()
    assert follow_loss(model, x0, wanted).item() < before - 0.3


def test_it_starts_as_the_scorer():
    """Before any training, features of latents are near to the scorer's of their previews, also of other latents."""
    scenes = [scene for _, scene in prompts("train", "medium", 90)]
    latents, _ = encode_scenes(scenes, 3, FRAMES)
    scored = Scored()
    model = scored.as_reward(latents[:80, None].half())
    rest = latents[80:].float()
    with torch.no_grad():
        found, wanted = model.look(rest), scored.look(rest[:, None])[:, 0]
    alike = torch.nn.functional.cosine_similarity(found, wanted).mean()
    other = torch.nn.functional.cosine_similarity(found, wanted.roll(1, 0)).mean()
    assert alike > 0.75 and alike > other + 0.3, (alike, other)


def test_the_shipped_reward_is_of_the_shipped_models_and_knows_their_world():
    """The file is of these weights, says what the published page says, and finds the clip that a caption describes."""
    model = load_reward(REWARD)
    published = json.loads((ROOT / "docs" / "results" / "reward.json").read_text(encoding="utf-8"))
    assert model.metadata["weights"] == weights_digest()
    assert [row["latent_reward"] for row in model.metadata["accuracy"]] == [
        row["latent_reward"] for row in published["accuracy"]]
    texts, scenes = zip(*prompts("test", "easy", 16), strict=True)
    latents, _ = encode_scenes(list(scenes), 4, FRAMES)
    said, levels = Scored().texts(list(texts)), torch.full((16,), 0.3)
    with torch.no_grad():
        seen = model.look(latents.float())
        alignment = torch.stack([model.read(seen, levels, text.expand(16, -1))[:, 2] for text in said])
    others = alignment[~torch.eye(16, dtype=torch.bool)].view(16, 15)
    assert (alignment.diagonal()[:, None] > others).float().mean() > 0.9


def test_the_page_holds_rewards_against_chance():
    held_out = samples()
    perfect = held_out.targets[:, None].expand(-1, 8, -1)
    rows = accuracy_rows(perfect, -held_out.targets[:, 2:].expand(-1, 8), held_out)
    assert all(row["latent_reward"] == 1 and row["training_free"] == 0 for row in rows)
    page = markdown({
        "environment": {"command": "x", "date": "d", "machine": "m", "torch": "t"}, "clips": 24, "prompts": 4,
        "steps": 1, "minutes": 1, "train_clips": 2, "train_prompts": 1, "refused": None, "accuracy": rows})  # fmt: skip
    assert page.count("1.000 (1.000 to 1.000) | 0.000 (0.000 to 0.000)") == 32 and page.endswith("met.\n")


def rendered(count=4):
    scenes = [scene for _, scene in prompts("train", "medium", count)]
    generator = torch.Generator().manual_seed(2)
    return draw([arrange(scene, generator) for scene in scenes], FRAMES)


def test_renders_are_of_perfect_quality():
    for clip in rendered():
        found = find_objects(clip)
        assert visual_quality(found, FRAMES) > 0.9 and motion_quality(found, FRAMES) == 1


def test_broken_motion_and_blurred_looks_cost():
    clip = rendered(1)[0]
    shuffled = clip[torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0))]
    vanishing = clip.clone()
    vanishing[8:] = clip[0, 0, 0]
    assert motion_quality(find_objects(vanishing), FRAMES) < 0.95
    assert visual_quality(find_objects(vanishing), FRAMES) < 0.6
    still = [Found(frame, "red", "ring", 20.0, 10.0, 10.0) for frame in range(5)]
    jump = [replace(thing, x=thing.x + 4 * (thing.frame == 2)) for thing in still]
    turned = [replace(thing, shape="cross" if thing.frame == 2 else "ring") for thing in still]
    assert motion_quality(still, 5) == 1
    assert motion_quality(jump, 5) == 0.5 and motion_quality(turned, 5) == 0.5
    assert motion_quality(find_objects(shuffled), FRAMES) < 1
    assert motion_quality([], 5) == visual_quality([], 5) == 0
