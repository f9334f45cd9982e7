"""The demo family's text encoder: deterministic and weight-free.

Each word has a fixed 4096-dim vector of random signs, taken from a hash of the word. A row mixes the word's own vector
with its neighbours' and with those of all words that speak of the same object, so that an attention layer that knows no
positions can still tell which colour belongs to which shape, and the first object from the second.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WIDTH = 4096  # the width of UMT5-XXL, which Wan's text embedding expects
TOKENS = 32

# Amplitudes of a row's parts; their squares sum to one, which leaves entries at unit variance.
_WORD, _TOPIC, _PREVIOUS, _NEXT, _INDEX = 0.7, 0.5, 0.3, 0.2, 0.36
_OPENERS = {"a", "an", "one", "two", "the", "another"}
GROUP_WORDS = {"both", "together", "they", "all"}
_GROUND_WORDS = {"background", "backdrop"}
_NOUNS = {
    "circle": ("circle", "disc", "disk", "dot", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
}
NOUNS = {
    noun + ending: shape
    for shape, nouns in _NOUNS.items()
    for noun in nouns
    for ending in ("", "es" if noun[-1] in "sx" else "s")
}


def split_words(text: str) -> list[str]:
    """Lower-cased words without punctuation."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def encode_text(text: str) -> Tensor:
    """[TOKENS, 4096] float32, zero rows after the last word; words after the 32nd are dropped."""
    rows = encode_words(split_words(text)[:TOKENS])
    return torch.cat([rows, rows.new_zeros(TOKENS - len(rows), WIDTH)])


def encode_words(words: list[str]) -> Tensor:
    """[len(words), 4096] float32, each row of mean square one."""
    if not words:
        return torch.zeros(0, WIDTH)
    own = np.stack([_signs(word) for word in words])
    topics = _topics(words)
    previous, following = np.roll(own, 1, 0), np.roll(own, -1, 0)
    previous[0] = following[-1] = 0
    # A neighbour's vector is rolled along its width, so that "red" before a word differs from the word "red".
    rows = _WORD * own + _PREVIOUS * np.roll(previous, 1, 1) + _NEXT * np.roll(following, 2, 1)
    for topic in set(topics):
        members = [i for i, other in enumerate(topics) if other == topic]
        bag = own[members].sum(0) / len(members) ** 0.5
        rows[members] += _TOPIC * bag + _INDEX * _signs(f"topic {topic}")
    rows /= np.sqrt((rows**2).mean(1, keepdims=True))
    return torch.from_numpy(rows)


@lru_cache(maxsize=4096)
def _signs(word: str) -> np.ndarray:
    # Hash bits rather than a seeded generator: the same on every platform and library version.
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(word.encode()).digest(WIDTH // 8), np.uint8))
    return bits.astype(np.float32) * 2 - 1


def _topics(words: list[str]) -> list[str]:
    """What each word speaks of: an object by order of first mention ("1", "2", ...), the "group" ("both ..."), the
    "ground", or nothing yet ("0"). An article opens a phrase; a phrase without a shape stays with the last object."""
    starts = [
        i for i, word in enumerate(words)
        if i == 0 or word in _OPENERS or word in GROUP_WORDS or words[i - 1] in _GROUND_WORDS
    ]
    topics: list[str] = []
    mentions: list[set[str]] = []
    current = "0"
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        phrase = words[start:end]
        if _GROUND_WORDS & set(phrase):
            topics += ["ground"] * len(phrase)
            continue
        head = next((i for i, word in enumerate(phrase) if word in NOUNS), None)
        if head is not None:
            noun = set(phrase[: head + 1]) - _OPENERS
            known = next((i for i, mention in enumerate(mentions) if noun <= mention), None)
            if known is None:
                known = len(mentions)
                mentions.append(noun)
            current = str(known + 1)
        elif phrase[0] in GROUP_WORDS:
            current = "group"
        topics += [current] * len(phrase)
    return topics
