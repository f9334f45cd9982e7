"""A vision-language model's answer: read, repaired where that is safe, and held against the prompt it rewrites.

The answer is text from outside. It is used for one thing only, as a prompt, and only when it looks like one: anything
else is refused, and the run goes on with the prompt that the user wrote. It may be a megabyte of anything, so what
reads it takes time by its length and no more: no pattern that looks twice at a place, and length before the rest.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..scoring.words import plain
from .base import Rewording, RewordingError, RewordingRequest
from .template import NEGATIVES


@dataclass(frozen=True)
class AnswerRules:
    """What a reworded prompt may be. The paper only asks for "concise" and for the same meaning; the numbers are ours.

    floor: least cosine of the scorer's text features of both prompts. The demo's scorer puts rewordings above 0.95,
    other captions of its world at 0.46 in the median, nine tenths of them below 0.64.
    """

    most_characters: int = 1500  # T5 encoders of video models read about 512 tokens
    most_growth: float = 4.0  # times the length of the prompt, and always room for a sentence more:
    sentence: int = 200
    negative_words: int = 6
    floor: float = 0.6


Similarity = Callable[[str, str], float]
# Markup, dynamic prompts ({a|b}), embeddings and LoRA tags: none of it belongs into a sentence.
_MARKUP = re.compile(
    r"[<>{}\[\]`|\\~^*_#@=]|://|www\.|\bembedding:|\blora:|^\s*[-•]\s|"
    # Control characters, those that cannot be seen, and half characters, which no encoder takes.
    r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\ufeff\ud800-\udfff]",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(r"(?:no|not|avoid|without|do not|don't|remove|exclude|never)\b", re.IGNORECASE)


def rewording_of(
    text: str, request: RewordingRequest, similar: Similarity | None, rules: AnswerRules | None = None
) -> Rewording:
    """The rewording that an answer holds. similar(a, b): cosine of two texts; None leaves that test out.

    RewordingError: the answer cannot be used, with the reason in words that hold nothing of the answer itself.
    """
    rules = rules or AnswerRules()
    answer = read_object(text)
    prompt, negative, reasoning = (answer.get(key) for key in ("refined_prompt", "negative_prompt", "reasoning"))
    if isinstance(negative, list) and all(isinstance(item, str) for item in negative):
        negative = ", ".join(negative)
    for key, value, needed in (("refined_prompt", prompt, True), ("negative_prompt", negative, False)):
        if not isinstance(value, str) and (needed or value is not None):
            raise RewordingError(f"the answer's {key} is {_kind(value)}, not text")
    original = plain(request.prompt)
    most = max(rules.most_growth * len(original), len(original) + rules.sentence)
    prompt = _checked("refined_prompt", prompt, min(most, max(rules.most_characters, len(original))))
    _check_language(prompt, original)
    additions = _negatives(negative or "", request, original, rules)
    if prompt == original and not additions:
        raise RewordingError("the answer leaves the prompt as it is")
    evidence = ()
    if similar is not None and prompt != original:
        similarity = similar(request.prompt, prompt)
        if not similarity >= rules.floor:  # also when it is not a number
            raise RewordingError(f"the refined prompt says something else (similarity {similarity:.2f})")
        evidence = ({"similarity": similarity},)
    return Rewording(
        prompt=request.prompt if prompt == original else prompt,
        negative=", ".join(part for part in (request.negative.strip().rstrip(","), *additions) if part),
        reasoning=_sentence(reasoning),
        evidence=evidence,
    )


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in an answer: as it is, in a code fence, after a chain of thought, or among other words. Of an
    object that breaks off, the texts that are complete. RewordingError where there is none."""
    text = text.rpartition("</think>")[2].strip().lstrip("\ufeff")
    fenced = text.partition("```")[2].partition("```")[0].lstrip(string.ascii_letters)
    begin = text.find("{")
    for candidate in (text, fenced, text[begin : text.rfind("}") + 1] if begin >= 0 else ""):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):  # the latter from thousands of brackets
            continue
        if not isinstance(value, dict):
            raise RewordingError(f"the answer is {_kind(value)}, not a JSON object")
        return value
    # What a cut or careless answer still says completely: "key": "text".
    pairs = re.findall(r'"(refined_prompt|negative_prompt|reasoning)"\s*:\s*("(?:[^"\\\n]|\\.)*")', text)
    texts = {}
    for key, value in pairs:
        with suppress(ValueError):
            texts[key] = json.loads(value)
    if "refined_prompt" not in texts:
        raise RewordingError("the answer holds no refined prompt")
    return texts


def scripts(text: str) -> Counter[str]:
    """How many letters are of each script, e.g. {"LATIN": 12, "CJK": 3}."""
    return Counter(unicodedata.name(c, "UNKNOWN").split(" ")[0] for c in text if c.isalpha())


def _checked(key: str, text: str, most: float) -> str:
    text = " ".join(text.split())
    if len(text) > most:
        raise RewordingError(f"the answer's {key} has {len(text)} characters, and at most {most:.0f} are taken")
    text = unicodedata.normalize("NFC", text)  # takes time by the square of its length where that is hostile
    if not any(c.isalnum() for c in text):
        raise RewordingError(f"the answer's {key} is empty")
    if _MARKUP.search(text):
        raise RewordingError(f"the answer's {key} holds markup")
    if "(" in text or ")" in text:
        raise RewordingError(f"the answer's {key} holds weights")
    return text


def _check_language(prompt: str, original: str) -> None:
    """By script: a tenth of the letters may be of scripts that the original does not use (a name, a quoted sign)."""
    before, after = scripts(original), scripts(prompt)
    foreign = {name: count for name, count in after.items() if name not in before}
    if before and 10 * sum(foreign.values()) > after.total():
        raise RewordingError(f"the refined prompt is in another language: it has {', '.join(foreign)} letters")


def _negatives(negative: str, request: RewordingRequest, original: str, rules: AnswerRules) -> list[str]:
    """At most NEGATIVES noun phrases that are new. Items that ask ("no text") or that the prompt wants are left out."""
    if not negative.strip():
        return []
    _checked("negative_prompt", negative, rules.most_characters)
    there = {plain(item).lower() for item in request.negative.split(",")}
    asked_for = set(_words(original))
    items: list[str] = []
    for item in (" ".join(part.split()).strip(" .;") for part in re.split("[,，、;]", negative)):
        if not item or item.lower() in there or _INSTRUCTION.match(item) or set(_words(item)) <= asked_for:
            continue
        if len(item.split()) > rules.negative_words or len(item) > 60:
            raise RewordingError("the answer's negative_prompt holds more than short phrases")
        there.add(item.lower())
        items.append(item)
    return items[:NEGATIVES]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _sentence(reasoning: Any) -> str:
    """For people: one line of bounded length, whatever came."""
    text = " ".join(reasoning.split()) if isinstance(reasoning, str) else ""
    printable = "".join(c for c in text if c.isprintable())
    return printable if len(printable) <= 500 else printable[:499] + "…"


def _kind(value: Any) -> str:
    names = {type(None): "missing", str: "text", bool: "a truth value", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
