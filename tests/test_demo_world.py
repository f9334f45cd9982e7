"""The demo world: its scenes, how they are drawn, and that drawing repeats."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.demo.captions import SPLITS, caption, parse_caption, prompt, prompts, split_of
from foresight.demo.text import TOKENS, split_words
from foresight.demo.world import (
    BACKGROUNDS,
    COLOURS,
    DIFFICULTIES,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Layout,
    Placed,
    Scene,
    Thing,
    arrange,
    draw,
    render,
    render_batch,
    sample_scene,
    signed_distance,
)
from foresight.lab.training.token_contents import CONTENTS, token_contents


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stray(clip: torch.Tensor, background: str) -> torch.Tensor:
    """Pixels of a uint8 clip that are not plain background."""
    return (clip.int() - torch.tensor(BACKGROUNDS[background])).abs().sum(-1) > 3


def test_colours_keep_their_distance():
    table = [torch.tensor(rgb, dtype=torch.float32) for rgb in (*COLOURS.values(), *BACKGROUNDS.values())]
    assert min((a - b).norm() for i, a in enumerate(table) for b in table[:i]) >= 110


@given(st.integers(0, 10**6), st.sampled_from(DIFFICULTIES))
@settings(max_examples=150)
def test_objects_stay_apart_inside_and_in_relation(seed, difficulty):
    generator = seeded(seed)
    scene = sample_scene(generator, difficulty)
    layout = arrange(scene, generator)
    clip = draw([layout])[0]
    assert clip.dtype == torch.uint8 and clip.shape == (17, 64, 64, 3)
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not stray(clip, layout.background)[:, border].any()
    for thing in layout.objects:  # the centre of a latent cell, and two cells further at the end
        assert thing.x % 8 == thing.y % 8 == 4
        assert {abs(thing.travel_x), abs(thing.travel_y)} <= {0, 16}
    if len(layout.objects) == 1:
        return
    a, b = layout.objects
    alone = [stray(draw([type(layout)((thing,), layout.background)])[0], layout.background) for thing in (a, b)]
    assert not (alone[0] & alone[1]).any()
    for time in (0, 0.5, 1):
        dx = b.x + b.travel_x * time - a.x - a.travel_x * time
        dy = b.y + b.travel_y * time - a.y - a.travel_y * time
        if scene.relation:
            step_x, step_y = RELATIONS[scene.relation]
            along, across = dx * step_x + dy * step_y, abs(dx * step_y + dy * step_x)
            assert along > 15 and across < 0.85 * along


def test_token_contents_follow_the_objects():
    things = Placed("circle", "red", 26.0, 20.0, 20.0, 16.0, 0.0), Placed("cross", "cyan", 18.0, 20.0, 52.0, 0.0, 0.0)
    layout = Layout(things, "black")
    held = token_contents([layout], 17)[0].view(5, 4, 4, len(CONTENTS))
    names = {name for name, most in zip(CONTENTS, held.amax((0, 1, 2)), strict=True) if most > 0}
    assert names == {"red circle", "cyan cross", "red right", "cyan still", "small", "big"}
    circle = held[..., CONTENTS.index("red circle")]
    where = torch.arange(4.0) * 16 + 8
    x = (circle.sum(1) * where).sum(1) / circle.sum((1, 2))
    assert (x.diff() > 1).all()
    assert circle[0, 1, 1] == 1  # centred at 20, 20 and 26 wide: the token from 16 to 32 is mostly covered
    assert circle[:, 3].max() == 0
    torch.testing.assert_close(token_contents([layout], 1)[0], held[0].flatten(0, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_centred_and_of_like_area(shape):
    grid = torch.linspace(-20, 20, 401)
    inside = signed_distance(shape, grid[None, :], grid[:, None], 26.0) > 0
    assert 0.5 * 26**2 < inside.sum() * 0.01 < 0.85 * 26**2
    x, y = (grid[None, :].expand_as(inside)[inside].mean(), grid[:, None].expand_as(inside)[inside].mean())
    assert abs(x) < 0.1 and abs(y) < 0.1


def test_motion_and_colour_are_drawn_as_stated():
    for motion, step in MOTIONS.items():
        clip = render(Scene((Thing("circle", "red", "big", motion),), None, "black")).float()
        mass = clip[..., 0] - 20
        x = (mass.sum(1) * torch.arange(64.0)).sum(1) / mass.sum((1, 2))
        y = (mass.sum(2) * torch.arange(64.0)).sum(1) / mass.sum((1, 2))
        moved = torch.stack([x[-1] - x[0], y[-1] - y[0]])
        assert (moved - torch.tensor(step) * moved.norm()).norm() < 0.5 and (moved.norm() > 11) == (motion != "still")
        assert clip.amax((0, 1, 2)).tolist() == list(map(float, COLOURS["red"]))


def test_rendering_repeats_and_leaves_global_random_state_alone():
    state = torch.get_rng_state()
    scenes = [scene for _, scene in prompts("train", "hard", 4)]
    assert torch.equal(render_batch(scenes, seeded(5)), render_batch(scenes, seeded(5)))
    assert torch.equal(render(scenes[0]), render(scenes[0]))
    assert torch.equal(render(scenes[0], frames=1), render(scenes[0])[:1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scene_that_does_not_fit_says_so():
    circle = Thing("circle", "red")
    with pytest.raises(ValueError, match="3 objects"):
        render(Scene((circle,) * 3))
    with pytest.raises(ValueError, match="no room"):
        render(Scene((Thing("cross", "red", "big", "left"), Thing("cross", "blue", "big", "right")), "left of"))
    with pytest.raises(ValueError, match="'extreme'"):
        sample_scene(seeded(0), "extreme")
    with pytest.raises(ValueError, match="'dev'"):
        prompt("dev", "easy", 0)


def test_captions_say_everything_in_several_wordings():
    for difficulty in DIFFICULTIES:
        for text, scene in prompts("train", difficulty, 100):
            assert parse_caption(text) == scene, text
            wordings = {caption(scene, seed) for seed in range(40)}
            assert len(wordings) >= 8
            for wording in wordings:
                assert len(split_words(wording)) <= TOKENS and parse_caption(wording) == scene, wording


def test_splits_are_disjoint_and_each_shows_every_attribute():
    seen = {split: [] for split in SPLITS}
    for shape, colour, motion in product(SHAPES, COLOURS, MOTIONS):
        seen[split_of(Scene((Thing(shape, colour, None, motion),)))].append((shape, colour, motion))
    for rows in seen.values():
        assert [set(column) for column in zip(*rows, strict=True)] == [set(SHAPES), set(COLOURS), set(MOTIONS)]
    assert len(seen["train"]) > 3 * len(seen["test"]) > 50
    for split, difficulty in product(SPLITS, DIFFICULTIES):
        drawn = prompts(split, difficulty, 20)
        assert all(split_of(scene) == split for _, scene in drawn)
        assert drawn[:7] == prompts(split, difficulty, 7) and drawn[7] == prompt(split, difficulty, 7)


def test_the_same_composition_said_backwards_is_in_the_same_split():
    mirror = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}
    for _, scene in prompts("train", "medium", 30):
        sized = tuple(Thing(t.shape, t.colour, "big", t.motion) for t in scene.objects)
        assert split_of(Scene(sized[::-1], mirror[scene.relation])) == "train"


def test_hard_scenes_have_two_motions_counts_or_sizes():
    scenes = [scene for _, scene in prompts("train", "hard", 120)]
    kinds = [
        "count" if a == b else "motions" if a.motion != b.motion else "sizes" for a, b in (s.objects for s in scenes)
    ]
    assert min(map(kinds.count, ("count", "motions", "sizes"))) > 15
    assert {thing.size for scene in scenes for thing in scene.objects} == {None, *SIZES}


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("a cat on a sofa", None),
        ("", None),
        ("a circle moves left", None),
        ("A red circle.", Scene((Thing("circle", "red"),))),
        ("red ball, moving UP on grey", Scene((Thing("circle", "red", None, "up"),), None, "gray")),
        ("two tiny blue boxes falling", Scene((Thing("square", "blue", "small", "down"),) * 2)),
        (
            "violet hoop beneath a large green plus; they drift to the left",
            Scene((Thing("ring", "purple", None, "left"), Thing("cross", "green", "big", "left")), "below"),
        ),
        ("a red circle and another red circle", Scene((Thing("circle", "red"),) * 2)),
    ],
)
def test_free_text_is_read(text, scene):
    assert parse_caption(text) == scene
