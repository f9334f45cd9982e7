"""How a scorer reads a text that may be longer than its network takes: in pieces or cut, and what to tell of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..trials.foreign import quoted
from .tokens import MOST

# Where a text is parted, the coarsest first: after sentences, after clauses, between words. Full stops of numbers
# ("3.5 mm") have no space after them; signs of Chinese and Japanese need none.
_SENTENCES, *_FINER = map(re.compile, (
    r"(?<=[.!?…])\s+|(?<=[.!?…][\"')\]])\s+|(?<=[。！？])\s*",
    r"(?<=[,;:])\s+|\s+(?=[—–-]\s)|(?<=[，；：、])\s*",
    r"\s+",
))  # fmt: skip
# Tokens beyond the context up to which a text is cut, as VBench cuts it, so that scores are VBench's for 945 of its 946
# prompts, and what was measured with the demo's longest captions stays true. It loses a few words, which is told.
OVERHANG = 8
_UNITS = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")  # each about one token in English
_FEW = 6  # words that say nothing of a language: they may be names
_MANY = 2.0  # tokens a word: VBench's prompts of more than _FEW words have 1.5 at most, German has about 2.4

# How near a prompt's score is to that of its best piece, for a scorer of ViCLIP-L's spread. Not 0, which is the mean:
# sentences on mood and camera, which fit every clip as badly, drown the others in it. Not the best piece alone either,
# beside which the others are not heard. Measured on validation prompts of the demo (docs/results/long_prompts.md): the
# least, the mean and the mean feature tell little there; from 10 on AUC is about the same, and 40 moves scores least.
SHARPNESS = 40.0


@dataclass(frozen=True)
class Reading:
    """pieces: of the text, none where it has no words. ids: of each, with start and end, to be cut to the context.
    notes: what a user is to be told of it, a line each."""

    pieces: tuple[str, ...] = ()
    ids: tuple[Sequence[int], ...] = ()
    notes: tuple[str, ...] = ()


def read(text: str, tokenize: Callable[[str], Sequence[int]], context: int) -> Reading:
    """text: of clean_text. tokenize: to ids with start and end; context: how many of them the network takes."""
    if not text:
        return Reading()
    tokenize = lru_cache(maxsize=None)(tokenize)
    whole = len(tokenize(text))
    found = [text] if whole <= context + OVERHANG else parted(text, lambda part: len(tokenize(part)) <= context)
    notes = [f"the prompt is scored in {len(found)} pieces of at most {context} tokens"] if len(found) > 1 else []
    for piece in found:
        if len(tokenize(piece)) > context:
            fits = _split(piece, _FINER[-1], lambda part: len(tokenize(part)) <= context)[0]
            rest = piece[len(fits) :].strip() or piece
            notes.append(f"the scorer reads {context} tokens of {len(tokenize(piece))} here; cut: {quoted(rest)}")
    if len(text) >= MOST:
        notes.append(f"the scorer reads the first {MOST:,} characters of the prompt")
    return Reading(tuple(found), tuple(map(tokenize, found)), (*notes, *_foreign(text, whole)))


def together(features: Tensor, reading: Reading) -> Tensor:
    """The text feature, of the L2-normalised features [P, D] of a reading's pieces: [D] of one, or of several [P, D],
    each as long as its share of the text."""
    if len(features) == 1:
        return features[0]
    tokens = features.new_tensor([len(ids) - 2 for ids in reading.ids])
    return features * (tokens / tokens.sum())[:, None]


def aligned(features: Tensor, text: Tensor, scale: float) -> Tensor:
    """[...]: the soft maximum of the cosines of L2-normalised features [..., D] and pieces [P, D] of `together`, each
    counted by its length; where all are equal, what they are. scale: the scorer's."""
    shares, sharpness = text.norm(dim=-1), SHARPNESS / scale
    return (features @ text.T / shares * sharpness + shares.log()).logsumexp(-1) / sharpness


def parted(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in order: its sentences, and of those that do not fit as few groups of clauses, else of words, as do. A
    word that does not fit alone stays whole."""
    return [piece for sentence in _SENTENCES.split(text) if sentence for piece in _fitting(sentence, fits, *_FINER)]


def _fitting(text: str, fits: Callable[[str], bool], *gaps: re.Pattern[str]) -> list[str]:
    if not gaps or fits(text):
        return [text]
    return [piece for group in _split(text, gaps[0], fits) for piece in _fitting(group, fits, *gaps[1:])]


def _split(text: str, gap: re.Pattern[str], fits: Callable[[str], bool]) -> list[str]:
    """Parts between gaps, neighbours together while they fit."""
    groups: list[str] = []
    for part in filter(None, gap.split(text)):
        if groups and fits(both := f"{groups[-1]} {part}"):
            groups[-1] = both
        else:
            groups.append(part)
    return groups


def _foreign(text: str, tokens: int) -> list[str]:
    letters = [char for char in text if char.isalpha()]
    if sum(char > "\u024f" for char in letters) * 2 > len(letters):
        return ["most of the prompt is not in Latin letters; the scorer knows English, so its scores say little"]
    units = len(_UNITS.findall(text))
    if units > _FEW and tokens - 2 > _MANY * units:
        return ["the prompt does not read like English, which is all that the scorer knows: its scores say little"]
    return []
