"""The parts of the scorer's recipe that its figures rest on."""

import pytest
import torch

from foresight.demo.captions import caption, parse_caption, split_of
from foresight.demo.judge import find_objects, judge
from foresight.demo.wan_dit import load_transformer
from foresight.demo.world import FRAMES, MOTIONS, Layout, Placed, Scene, Thing, arrange, draw, seen
from foresight.l2r.checkpoint import load_l2r
from foresight.lab.training import scorer_batches
from foresight.lab.training.common import CONVERTER, TRANSFORMER, random_scenes
from foresight.lab.training.latents import encode_scenes
from foresight.lab.training.scorer import CONFIG, Trainer, add_previews, calibrated, detect
from foresight.lab.training.scorer_batches import NEAR, Source, guess, samples_batch, spoilt_clips
from foresight.lab.training.scorer_data import (
    STATEMENTS,
    Captions,
    mirrored,
    near_miss,
    network_frames,
    scene_pairs,
    statements,
)
from foresight.lab.training.scorer_samples import Samples
from foresight.lab.training.token_contents import CONTENTS, TOKEN, contents, found_contents, full
from foresight.scoring.detector import DetectorSettings
from foresight.scoring.preprocess import vbench_frames

SHARES = {"easy": 0.3, "medium": 0.3, "hard": 0.4}


def scenes(count, seed=0):
    return random_scenes(torch.Generator().manual_seed(seed), count, SHARES)


def test_statements_say_what_the_scene_says():
    scene = Scene((Thing("ring", "red", "big", "left"), Thing("cross", "blue", None, "up")), "right of", "black")
    said = {name for name, on in zip(STATEMENTS, statements(scene), strict=True) if on}
    assert said == {"two", "red ring", "red left", "ring left", "big red", "blue cross", "blue up", "cross up",
                    "blue left of red", "background black"}


def test_mirrored_relations_are_one_statement():
    a, b = Thing("ring", "red", None, "up"), Thing("cross", "blue", None, "up")
    assert torch.equal(statements(Scene((a, b), "above", None)), statements(Scene((b, a), "below", None)))


def test_a_near_miss_states_something_else():
    generator = torch.Generator().manual_seed(1)
    for scene in scenes(150):
        missed = near_miss(scene, generator)
        assert not torch.equal(statements(scene), statements(missed)), (scene, missed)
        assert split_of(missed) in ("train", split_of(scene))
        assert parse_caption(caption(missed, generator)) is not None


def test_a_still_near_miss_needs_no_time_to_see():
    generator = torch.Generator().manual_seed(2)
    for scene in scenes(100):
        missed = near_miss(scene, generator, still=True)
        if len(missed.objects) == len(scene.objects):
            assert [t.motion for t in missed.objects] == [t.motion for t in scene.objects]


def test_clips_show_all_their_scene_states():
    generator = torch.Generator().manual_seed(3)
    for scene in scenes(60):
        shown = statements(seen(scene, arrange(scene, generator)))
        assert (shown >= statements(scene)).all()


def test_pairs_stay_in_their_split():
    found = [scene for scene in scenes(60) if split_of(scene) == "validation"]
    both, layouts = scene_pairs(found, torch.Generator().manual_seed(4), "validation")
    assert len(both) >= 2 and set(both[::2]) <= set(found)  # a scene without a near miss in the split is left out
    assert all(split_of(scene) == "validation" for scene in both)
    for scene, layout in zip(both, layouts, strict=True):
        assert (statements(seen(scene, layout)) >= statements(scene)).all()


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_the_batched_preprocessing_is_the_scorers(frames):
    clips = torch.rand(2, frames, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    expected = torch.stack([vbench_frames(clip, 64, 3) for clip in clips])
    assert torch.equal(network_frames(clips, 3), expected)


def test_contents_say_what_each_token_holds():
    layout = Layout((Placed("square", "red", 18.0, 24.0, 8.0, 16.0, 0.0),), "black")
    held = contents([layout], [0, 16], TOKEN)[0]
    kinds = [CONTENTS.index(name) for name in ("red square", "red right", "small")]
    for frame, columns in ((0, (1,)), (1, (2,))):  # it crosses one token
        full = held[frame, 0, :, kinds] > 0.9
        assert full.sum(0).tolist() == [1, 1, 1] and full[columns].all()
    assert held[..., [i for i in range(len(CONTENTS)) if i not in kinds]].max() == 0


def test_what_is_found_in_a_clip_is_what_was_drawn():
    layouts = [arrange(scene, torch.Generator().manual_seed(20)) for scene in scenes(12, 21)]
    frames = range(0, FRAMES, 4)
    moves = torch.tensor([name.split()[-1] in MOTIONS for name in CONTENTS])
    for layout, clip in zip(layouts, draw(layouts), strict=True):
        found = full(found_contents(find_objects(clip), frames, TOKEN))
        assert found[..., moves].isnan().all()
        assert (found - full(contents([layout], frames, TOKEN))[0])[..., ~moves].abs().max() < 0.05


def test_a_bent_outline_has_a_colour_but_no_shape():
    clip = torch.full((1, 64, 64, 3), 20, dtype=torch.uint8)
    clip[:, 20:26, 10:50] = torch.tensor([225, 35, 35], dtype=torch.uint8)  # a long bar
    (thing,) = find_objects(clip)
    assert (thing.colour, thing.shape, thing.frame) == ("red", None, 0)
    assert (thing.x, thing.y) == pytest.approx((30, 23), abs=0.5)


def test_spoilt_clips_fail_what_their_scene_states():
    found, generator = scenes(40, 22), torch.Generator().manual_seed(23)
    layouts = [arrange(scene, generator) for scene in found]
    clips, held = spoilt_clips(layouts, range(FRAMES), generator)
    assert held.shape == (40, FRAMES, 4, 4, len(CONTENTS))
    verdicts = [judge(clip, scene).right for clip, scene in zip(clips, found, strict=True)]
    assert sum(verdicts) <= 2  # a colour that no caption states may turn


def test_a_mirrored_clip_shows_the_mirrored_scene():
    for scene in scenes(30, 24):
        clip = draw([arrange(scene, torch.Generator().manual_seed(25))])[0]
        turned = mirrored(scene)
        assert judge(clip.flip(2), turned).right and mirrored(turned) == scene


def test_guesses_from_little_noise_are_previews_of_the_clips(monkeypatch):
    monkeypatch.setattr(scorer_batches, "SIGMAS", (0.02, 0.04))
    generator, l2r = torch.Generator().manual_seed(8), load_l2r(CONVERTER)
    found = scenes(3, 9)
    latents, held = encode_scenes(found, 10, 17)
    guessed = guess(load_transformer(TRANSFORMER), l2r, found, latents, held, 2, generator)
    with torch.no_grad():
        shown = l2r(latents.float())[:, [1, 3]]
    assert (guessed.frames.float() / 255 - shown).abs().mean() < 0.03
    assert guessed.scenes == found and all(a != b for a, b in zip(found, guessed.near, strict=True))
    assert guessed.contents.shape == (3, 2, 4, 4, len(CONTENTS))


def test_one_step_of_the_recipe_learns_from_renders_and_guesses(monkeypatch):
    monkeypatch.setattr(scorer_batches, "PAIRS", 2)
    monkeypatch.setattr(scorer_batches, "GUESSES", 4)
    generator = torch.Generator().manual_seed(11)
    captions = Captions(lambda text: [49406, *(1000 + sum(map(ord, word)) for word in text.split()), 49407], 32)
    source = Source(captions, generator, CONFIG.frames, 4)
    found = scenes(4, 12)
    data = {}
    for kind, frames in (("clips", 17), ("images", 1)):
        data[kind], data[f"{kind}_contents"] = encode_scenes(found, 13, frames)
    add_previews(source, found, data)
    monkeypatch.setattr(scorer_batches, "PREVIEWS", 0.5)
    batches = [source.batch() for _ in range(12)]
    assert {batch.shown is None for batch in batches} == {True, False}
    trainer = Trainer().initialise(generator)
    for batch in (next(b for b in batches if b.shown is None), next(b for b in batches if len(b.frames) == 6)):
        clips, known = len(batch.frames), batch.known
        assert batch.frames.shape == (clips, CONFIG.frames, 3, 64, 64) and len(batch.ids) == (1 + NEAR) * known == 16
        assert batch.truth.sum() == known and batch.truth.diagonal()[:known].all() and batch.weight.min() > 0
        trainer.zero_grad()
        loss, parts = trainer.loss(batch)
        loss.backward()
        assert torch.isfinite(loss) and parts["held"] > 0
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.patch_head.parameters())


def made_samples():
    """Two prompts, each with a right and a wrong clip of noise, whose motion nobody knows."""
    found = [scene for scene in scenes(40, 26) if split_of(scene) == split_of(mirrored(scene)) == "train"][:2]
    held = torch.rand(4, CONFIG.frames, 4, 4, len(CONTENTS))
    held[..., [name.split()[-1] in MOTIONS for name in CONTENTS]] = torch.nan
    right = torch.tensor([True, False, True, False])
    clips = torch.randint(256, (4, 1, CONFIG.frames, 64, 64, 3), dtype=torch.uint8)
    return Samples(["", ""], found, torch.tensor([0, 0, 1, 1]), right, right.float(), clips, held)


CAPTIONS = Captions(lambda text: [49406, 1000 + len(text), 49407], 32)


def test_samples_teach_what_the_judge_said_and_near_misses_of_right_ones_only():
    batch = samples_batch(made_samples(), [0, 1, 2, 3], 0, CAPTIONS, torch.Generator().manual_seed(27))
    assert batch.truth.diagonal().tolist() == [1, 0, 1, 0] and batch.truth.sum() == 2
    assert batch.weight.diagonal().tolist() == [1] * 4
    others = batch.weight.clone().fill_diagonal_(0)
    assert others[[1, 3]].sum() == 0 and (others[[0, 2], [4, 6]] > 0).all()


def test_mirrored_samples_are_mirrored_in_all_that_is_said_of_them():
    made, seen_both = made_samples(), set()
    plain = network_frames(made.previews[:, 0], CONFIG.frames)
    for seed in range(8):
        batch = samples_batch(made, [0, 1, 2, 3], 0, CAPTIONS, torch.Generator().manual_seed(seed))
        turned = not torch.equal(batch.frames, plain)
        expected = [mirrored(scene) if turned else scene for scene in made.scenes for _ in range(2)]
        assert torch.equal(batch.frames, plain.flip(-1) if turned else plain)
        held = made.contents.flip(3) if turned else made.contents
        assert torch.equal(batch.contents.nan_to_num(), held.nan_to_num())
        assert torch.equal(batch.stated[:4], torch.stack([statements(scene) for scene in expected]))
        seen_both.add(turned)
    assert seen_both == {False, True}


def test_what_nobody_knows_of_a_sample_teaches_nothing():
    trainer = Trainer().initialise(torch.Generator().manual_seed(28))
    loss, _ = trainer.samples_loss(made_samples(), torch.Generator().manual_seed(29), CAPTIONS)
    loss.backward()
    unknown = torch.tensor([name.split()[-1] in MOTIONS for name in CONTENTS])
    gradient = trainer.patch_head.weight.grad.abs().sum(1)
    assert torch.isfinite(loss) and (gradient[unknown] == 0).all() and (gradient[~unknown] > 0).all()


def test_tau_is_where_the_detector_tells_right_clips_from_wrong_ones():
    right = torch.arange(40) % 2 == 0
    level = torch.where(right, 0.31, 0.23) + 0.01 * torch.rand(40, generator=torch.Generator().manual_seed(14))
    traces = level[:, None].expand(-1, 15).clone()
    traces[1, 4] = 0.4  # a peak the detector takes no part of the clip for, once the score has settled
    config = calibrated(traces, right)
    settings = DetectorSettings.video(tau=config.tau, scale=config.scale)
    assert [detect(row[:-1], settings).accepted for row in traces] == right.tolist()
    assert "40 clips of validation prompts, 20 of them right" in config.tau_from
    assert config.scale == pytest.approx(1, abs=0.1) and config.delta == pytest.approx(0.05 * config.scale, abs=1e-4)


@pytest.mark.parametrize("right", [0, 1])
def test_tau_stays_where_it_is_when_there_is_nothing_to_tell_apart(right):
    """As when the recipe is tried out with little data."""
    assert calibrated(torch.rand(6, 15), torch.full((6,), right)) == CONFIG


def samples(prompt, right):
    right = torch.tensor(right)
    return Samples([], [], torch.tensor(prompt), right, right.float(), torch.zeros(len(right), 0),
                   torch.zeros(len(right), 0))


def test_samples_are_ranked_within_their_prompt():
    pairs = samples([0] * 4 + [1] * 4 + [2] * 4, [True] * 4 + [False] * 4 + [True, True, False, False]).ranked
    assert pairs == [(8, 10), (8, 11), (9, 10), (9, 11)]


def test_a_trace_that_ends_before_the_window_is_refused():
    with pytest.raises(ValueError, match="5 steps do not reach"):
        detect(torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1]), DetectorSettings.video())
