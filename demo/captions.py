"""Captions of the demo world in several wordings, prompt splits disjoint by composition, and captions read back."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from .text import GROUP_WORDS, NOUNS, split_words
from .world import BACKGROUNDS, COLOURS, OPPOSITE, Scene, Thing, choose, sample_scene

SPLITS = ("train", "validation", "test")
# Chosen so that in every split the easy prompts show each shape, colour and motion at least twice.
_SALT = 27

_RELATION_WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_SIZE_WORDINGS = {"small": ("small", "little"), "big": ("big", "large")}
_DIRECTIONS = {
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
# Finite singular, finite plural, participle.
_VERBS = (
    ("moves", "move", "moving"),
    ("slides", "slide", "sliding"),
    ("drifts", "drift", "drifting"),
    ("glides", "glide", "gliding"),
)
_RESTS = (
    ("stays still", "stay still", "staying still"),
    ("stands still", "stand still", "standing still"),
    ("does not move", "do not move", "not moving"),
)


def caption(scene: Scene, variant: torch.Generator | int = 0) -> str:
    """States everything the scene states, nothing else, in one of several wordings drawn from `variant` (a generator,
    or a seed). At most 32 words for the scenes of `sample_scene`."""
    generator = variant if isinstance(variant, torch.Generator) else torch.Generator().manual_seed(variant)

    def noun(thing: Thing, article: str) -> str:
        size = choose(_SIZE_WORDINGS[thing.size], generator) if thing.size and article != "the" else None
        return " ".join(word for word in (article, size, thing.colour, thing.shape) if word)

    def moves(motion: str | None, form: int) -> str:
        if motion is None:
            return ""
        if motion == "still":
            return choose(_RESTS, generator)[form]
        return f"{choose(_VERBS, generator)[form]} {choose(_DIRECTIONS[motion], generator)}"

    ground = f"{choose(('on', 'against'), generator)} a {scene.background} background" if scene.background else ""
    opening = f"{ground}, " if ground else ""
    film = choose(("a video of", "a clip of"), generator)
    first = scene.objects[0]
    if len(scene.objects) == 1:
        a = noun(first, choose(("a", "one"), generator))
        wordings = (
            f"{a} {moves(first.motion, 0)} {ground}",
            f"{a} {moves(first.motion, 2)} {ground}",
            f"{opening}{a} {moves(first.motion, 0)}",
            f"{film} {a} {moves(first.motion, 2)} {ground}",
        )
        return _tidy(choose(wordings, generator))

    second = scene.objects[1]
    if first == second and scene.relation is None:
        plural = noun(first, choose(("two", "a pair of"), generator)) + ("es" if first.shape.endswith("s") else "s")
        wordings = (
            f"{plural} {moves(first.motion, 1)} {ground}",
            f"{plural} {moves(first.motion, 2)} {ground}",
            f"{opening}{plural} {moves(first.motion, 1)}",
            f"{film} {plural} {moves(first.motion, 2)} {ground}",
        )
        return _tidy(choose(wordings, generator))

    a, b = noun(first, "a"), noun(second, "a")
    the_a, the_b = noun(first, "the"), noun(second, "the")
    relation = choose(_RELATION_WORDINGS[scene.relation], generator) if scene.relation else "and"
    between = f", {the_a} {relation} {the_b}" if scene.relation else ""
    if first.motion == second.motion:
        both = f"both {moves(first.motion, choose((1, 2), generator))}" if first.motion else ""
        wordings = (
            f"{a} {relation} {b}, {both} {ground}",
            f"{a} and {b} {moves(first.motion, 1)} {ground}{between}",
            f"{opening}{a} {relation} {b}, {both}",
            f"{film} {a} {relation} {b}, {both} {ground}",
        )
    else:
        wordings = (
            f"{a} {moves(first.motion, 2)} {relation} {b} {moves(second.motion, 2)} {ground}",
            f"{a} {relation} {b}, {the_a} {moves(first.motion, 0)}, {the_b} {moves(second.motion, 0)} {ground}",
            f"{opening}{a} {moves(first.motion, 2)} and {b} {moves(second.motion, 2)}{between}",
            f"{film} {a} that {moves(first.motion, 0)} {relation} {b} that {moves(second.motion, 0)} {ground}",
        )
    return _tidy(choose(wordings, generator))


def _tidy(text: str) -> str:
    return " ".join(text.split()).replace(" ,", ",").strip(" ,")


def split_of(scene: Scene) -> str:
    """The split that owns a scene's composition: shapes, colours, motions and relation. "A left of B" and "B right of
    A" are one composition; sizes and backgrounds do not count."""
    objects, relation = scene.objects, scene.relation
    if relation in ("right of", "below"):
        objects, relation = objects[::-1], OPPOSITE[relation]
    composition = [relation, *((thing.shape, thing.colour, thing.motion) for thing in objects)]
    digest = hashlib.sha256(f"{_SALT} {composition}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return "train" if share < 0.75 else "validation" if share < 0.85 else "test"


def prompt(split: str, difficulty: str, index: int) -> tuple[str, Scene]:
    """The index-th prompt of a split: its caption and its scene. Always the same for the same arguments."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    seed = hashlib.sha256(f"{split} {difficulty} {index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
    while True:
        scene = sample_scene(generator, difficulty)
        if split_of(scene) == split:
            return caption(scene, generator), scene


def prompts(split: str, difficulty: str, count: int) -> list[tuple[str, Scene]]:
    """The first `count` prompts of a split. Splits are disjoint by composition; within one, compositions may recur."""
    return [prompt(split, difficulty, index) for index in range(count)]


_COLOUR_WORDS = {**{name: name for name in COLOURS}, "violet": "purple", "turquoise": "cyan"}
_GROUND_WORDS = {**{name: name for name in BACKGROUNDS}, "grey": "gray"}
_SIZE_WORDS = {"small": "small", "little": "small", "tiny": "small", "big": "big", "large": "big", "huge": "big"}
_MOTION_WORDS = {
    word: motion
    for motion, words in {
        "left": ("left", "leftward", "leftwards"),
        "right": ("right", "rightward", "rightwards"),
        "up": ("up", "upward", "upwards", "rises", "rising"),
        "down": ("down", "downward", "downwards", "falls", "falling"),
        "still": ("still", "not", "motionless", "stationary", "static"),
    }.items()
    for word in words
}
_RELATION_WORDS = {"above": "above", "over": "above", "below": "below", "under": "below", "beneath": "below"}
_PLURAL_WORDS = GROUP_WORDS | {forms[1].split()[0] for forms in _VERBS + _RESTS}


def parse_caption(text: str) -> Scene | None:
    """Reads the world's vocabulary out of free-form text; what the text does not say stays None. Returns None when it
    names no coloured shape. A motion belongs to the object named last before it, or to all after a plural ("both",
    "move")."""
    words = split_words(text)
    things: list[Thing] = []
    motions: dict[int, str] = {}
    named: list[int] = []  # the objects of the last mention
    open_relation: tuple[str, int] | None = None
    relation = background = None
    pending: dict[str, str] = {}
    everyone = False
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        if word in NOUNS:
            mention = Thing(NOUNS[word], pending.get("colour"), pending.get("size"))
            named = [] if "more" in pending else [k for k, thing in enumerate(things) if _refers(mention, thing)]
            if not named:
                named = [len(things) + k for k in range(2 if "two" in pending else 1)]
                things += [mention] * len(named)
            if open_relation and open_relation[1] != named[0]:
                name, subject = open_relation
                if {subject, named[0]} == {0, 1}:
                    relation = relation or (name if subject == 0 else OPPOSITE[name])
                open_relation = None
            pending, everyone = {}, False
        elif word in _COLOUR_WORDS:
            pending["colour"] = _COLOUR_WORDS[word]
        elif word in _SIZE_WORDS:
            pending["size"] = _SIZE_WORDS[word]
        elif word in ("two", "2", "pair"):
            pending["two"] = word
        elif word == "another":
            pending["more"] = word
        elif word in _GROUND_WORDS and following not in NOUNS:
            background = _GROUND_WORDS[word]
        elif named and (word in _RELATION_WORDS or (word in ("left", "right") and following == "of")):
            open_relation = _RELATION_WORDS.get(word, f"{word} of"), named[0]
        elif word in _PLURAL_WORDS and words[max(0, i - 2) : i] != ["does", "not"]:
            everyone = True
        elif word in _MOTION_WORDS:
            for k in range(len(things)) if everyone else named:
                motions.setdefault(k, _MOTION_WORDS[word])
    if not any(thing.colour for thing in things):
        return None
    objects = tuple(replace(thing, motion=motions.get(k)) for k, thing in enumerate(things))
    return Scene(objects, relation, background)


def _refers(mention: Thing, thing: Thing) -> bool:
    stated = ((mention.colour, thing.colour), (mention.size, thing.size))
    return mention.shape == thing.shape and all(said in (None, known) for said, known in stated)
