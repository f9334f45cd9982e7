"""The demo world's judge agrees with how a clip was drawn, and names what is wrong."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from foresight.demo.captions import prompts
from foresight.demo.judge import judge
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
    choose,
    draw,
    render,
)

PREVIEW = [0, 4, 8, 12, 16]


def scenes(count: int) -> list[Scene]:
    return [scene for difficulty in DIFFICULTIES for _, scene in prompts("validation", difficulty, count)]


def worn(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half the resolution and back, Gaussian blur and noise, about 27 dB: a stand-in for a VAE."""
    frames = F.avg_pool2d(clip.float().div(255).permute(0, 3, 1, 2), 2)
    frames = F.interpolate(frames, scale_factor=2, mode="bilinear")
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / 2)
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(3, 1, 7, 7)
    frames = F.conv2d(F.pad(frames, (3, 3, 3, 3), mode="replicate"), kernel, groups=3)
    frames += 0.03 * torch.randn(frames.shape, generator=generator)
    return frames.clamp(0, 1).permute(0, 2, 3, 1)


def one_changed(scene: Scene, generator: torch.Generator) -> tuple[str, Scene]:
    """The scene with one stated attribute changed."""
    k = choose(range(len(scene.objects)), generator)
    thing = scene.objects[k]
    stated = ["shape", "colour", "motion", "count"]
    stated += [name for name in ("relation", "background") if getattr(scene, name)] + ["size"] * bool(thing.size)
    name = choose(stated, generator)
    if name == "count":
        return name, replace(scene, objects=(thing,) * (3 - len(scene.objects)), relation=None)
    options = {
        "shape": SHAPES, "colour": COLOURS, "motion": MOTIONS, "size": SIZES,
        "relation": RELATIONS, "background": BACKGROUNDS,
    }[name]
    owner = scene if name in ("relation", "background") else thing
    changed = replace(owner, **{name: choose([o for o in options if o != getattr(owner, name)], generator)})
    if owner is scene:
        return name, changed
    return name, replace(scene, objects=(*scene.objects[:k], changed, *scene.objects[k + 1 :]))


def test_clips_and_previews_are_judged_right_and_one_changed_attribute_wrong():
    generator = torch.Generator().manual_seed(11)
    drawn = scenes(18)
    right, caught, right_previews = 0, 0, 0
    for i, scene in enumerate(drawn):
        clip = render(scene, generator=generator)
        clip = worn(clip, generator) if i % 2 else clip
        right += judge(clip, scene).right
        right_previews += judge(clip[PREVIEW], scene).right
        _, other = one_changed(scene, generator)
        caught += not judge(clip, other).right
    assert min(right, right_previews, caught) >= 0.99 * len(drawn), (right, right_previews, caught)


def test_each_stated_attribute_is_named():
    scene = Scene(
        (Thing("circle", "red", "big", "up"), Thing("ring", "cyan", "small", "up")), "left of", "white"
    )
    judgement = judge(render(scene), scene)
    per_object = {f"object {k} {name}" for k in (1, 2) for name in ("colour", "shape", "size", "direction")}
    assert set(judgement.attributes) == set(judgement.margins) == per_object | {"count", "relation", "background"}
    assert judgement.right and all(judgement.attributes.values()) and 0.5 < judgement.confidence <= 1
    open_scene = Scene((Thing("circle"), Thing("ring")))
    assert set(judge(render(scene), open_scene).attributes) == {"count", "object 1 shape", "object 2 shape"}


@pytest.mark.parametrize("name", ["shape", "colour", "size", "motion", "relation", "background"])
def test_only_the_wrong_attribute_fails(name):
    scene = Scene((Thing("square", "red", "big", "up"), Thing("ring", "cyan", "small", "up")), "left of", "white")
    clip = render(scene)
    if name in ("relation", "background"):
        wrong, key = replace(scene, **{name: {"relation": "above", "background": "gray"}[name]}), name
    else:
        value = {"shape": "triangle", "colour": "blue", "size": "small", "motion": "down"}[name]
        wrong = replace(scene, objects=(replace(scene.objects[0], **{name: value}), scene.objects[1]))
        key = f"object 1 {'direction' if name == 'motion' else name}"
    judgement = judge(clip, wrong)
    assert not judgement.right and [k for k, held in judgement.attributes.items() if not held] == [key]
    assert judgement.confidence == -judgement.margins[key]


def test_single_frames_are_judged_without_motion():
    for scene in scenes(8):
        judgement = judge(render(scene, frames=1), scene)
        assert judgement.right and not any("direction" in name for name in judgement.attributes)


def test_travel_is_the_way_that_the_prompt_states():
    scene = Scene((Thing("circle", "red", "big", "right"),), None, "white")
    clip = render(scene)
    assert judge(clip, scene).travel == (pytest.approx(16, abs=0.5),)
    back = replace(scene, objects=(replace(scene.objects[0], motion="left"),))
    assert judge(clip, back).travel == (pytest.approx(-16, abs=0.5),)
    for motion in ("still", None):
        assert judge(clip, replace(scene, objects=(replace(scene.objects[0], motion=motion),))).travel == ()
    assert judge(torch.full_like(clip, 255), scene).travel == (0.0,)


def test_uint8_and_float_give_the_same_judgement():
    scene = scenes(1)[-1]
    clip = render(scene)
    judgement = judge(clip, scene)
    other = judge(clip / 255, scene)
    assert judgement.attributes == other.attributes
    assert judgement.margins == pytest.approx(other.margins, abs=1e-3)


RED = Placed("circle", "red", 20.0, 20.0, 32.0, 0.0, 0.0)
SCENE = Scene((Thing("circle", "red", None, "still"),), None, "black")


def clip_of(*things: Placed) -> torch.Tensor:
    return draw([Layout(things, "black")])[0]


@pytest.mark.parametrize(
    ("clip", "failed"),
    [
        (clip_of(), "count"),
        (clip_of(RED, replace(RED, x=46.0)), "count"),
        (clip_of(RED, replace(RED, x=46.0, size=9.0)), "count"),
        (torch.cat([clip_of(RED)[:12], clip_of()[12:]]), "count"),
        (torch.cat([clip_of(RED)[:11], clip_of(replace(RED, colour="yellow"))[11:]]), "object 1 colour"),
        (torch.cat([clip_of(RED)[:11], clip_of(replace(RED, shape="square"))[11:]]), "object 1 shape"),
        (clip_of(replace(RED, travel_x=14.0)), "object 1 direction"),
        (torch.cat([(c := clip_of(replace(RED, travel_x=28.0)))[:9], c[:8].flip(0)]), "object 1 direction"),
        (torch.cat([clip_of(RED)[:9], draw([Layout((RED,), "brown")])[0, 9:]]), "background"),
        (torch.rand(17, 64, 64, 3, generator=torch.Generator().manual_seed(0)), "count"),
        (torch.full((17, 64, 64, 3), float("nan")), "count"),
    ],
    ids="missing doubled speck vanishes recoloured morphs drifts wanders ground noise nan".split(),
)
def test_gross_errors_are_caught(clip, failed):
    assert judge(clip_of(RED), SCENE).right
    judgement = judge(clip, SCENE)
    assert not judgement.right and not judgement.attributes[failed]


def test_objects_that_swap_attributes_are_caught():
    scene = Scene((Thing("square", "red"), Thing("circle", "blue")), "left of")
    swapped = Scene((Thing("circle", "red"), Thing("square", "blue")), "left of")
    assert not judge(render(swapped), scene).right
    twins = Scene((Thing("circle", "red"),) * 2, "above")
    assert judge(render(twins), twins).right


def test_what_is_not_a_clip_is_refused():
    with pytest.raises(ValueError, match=r"\[17, 3, 64, 64\]"):
        judge(torch.zeros(17, 3, 64, 64), SCENE)
    with pytest.raises(ValueError, match="int64"):
        judge(torch.zeros(1, 64, 64, 3, dtype=torch.int64), SCENE)
