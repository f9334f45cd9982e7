"""Prompts as phrases: where they part, what is left without one, and how one is weighted or stated first.

Weights use ComfyUI's syntax: `(red ball:1.2)` sets a weight, bare parentheses multiply by 1.1, `\\(` is a letter.
The parting is by rule, for English: punctuation, prepositions, "and" before a new noun, and common verbs of motion. A
prompt in another language still parts at its punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..scoring.words import SYNTAX

_PUNCTUATION = re.compile(r"\s*(?:(?<!\d),|,(?!\d)|[;!?\n，。；！？、]|\.(?=\s|$))[\s,.;!?]*")
_SENTENCE_END = re.compile(r"[.!?。！？\n]")
_WORD = re.compile(r"[^\W\d_]\w*(?:['’-]\w+)*|\d\S*|_+")
_DETERMINERS = "a an the one two three four five six some another many several his her its their my your".split()
_REFERRING = "both all each every it its he she they the this these that those which who".split()
_PREPOSITIONS = (
    "to the left of|on the left of|left of|to the right of|on the right of|right of|in front of|on top of|next to|"
    "above|across|against|along|among|around|at|behind|below|beneath|beside|between|beyond|by|during|from|inside|in|"
    "into|near|onto|on|outside|over|through|towards|toward|under|underneath|with|while|when"
)
_VERBS = (
    "(?:mov|slid|glid|danc|driv|rid|chas|ris|rotat)(?:es?|ing)|(?:drift|stay|stand|walk|jump|turn|fall|play|look|hold|"
    "wear|eat|fly)(?:s|ing)?|flies|(?:run|swim|spin|sit)(?:s|[nmt]ing)?"
)
_LEAD = re.compile(
    rf"(?<![\w'’-])(?:(?P<preposition>{_PREPOSITIONS})(?=\s+\S)"
    rf"|(?P<coordinator>and)(?=\s+(?:{'|'.join(_DETERMINERS)})\s)"
    rf"|(?P<verb>(?:(?:that|which|who|is|are|does|do|not|both)\s+)*(?:{_VERBS}))(?![\w'’-]))",
    re.IGNORECASE,
)
_FUNCTION_WORDS = {
    *_DETERMINERS, *_REFERRING, *_PREPOSITIONS.split("|"), *"and or but of to is are do does not".split()
}


@dataclass(frozen=True)
class Phrase:
    """text: as the user wrote it. before: what parts it from the phrase before it, e.g. ", " or " and ". lead: why it
    starts here, one of "start", "punctuation", "preposition", "coordinator", "verb"."""

    text: str
    before: str
    lead: str


def weighted_parts(text: str, weight: float = 1.0) -> list[tuple[str, float]]:
    """The parts of a prompt with their weights, as ComfyUI reads them; escapes are kept."""
    parts, position = [], 0
    for start, end in _groups(text):
        if start > position:
            parts.append((text[position:start], weight))
        body, position = text[start:end], end
        if body.endswith(")") and not body.endswith("\\)"):
            inner, colon, number = body[1:-1].rpartition(":")
            explicit = _number(number) if colon and inner else None
            parts += weighted_parts(body[1:-1], weight * 1.1) if explicit is None else weighted_parts(inner, explicit)
        else:
            parts.append((body, weight))
    return [*parts, (text[position:], weight)] if position < len(text) else parts


def split_phrases(prompt: str, limit: int) -> list[Phrase]:
    """The phrases of a prompt, at most `limit` (neighbours are joined, shortest first). Weighted groups stay whole.

    A prompt of one phrase parts into its content words, so that "a red circle" can still be asked about. join() of the
    result is the prompt without punctuation at its ends.
    """
    prompt = prompt.strip()
    masked = _masked(prompt)
    if not _WORD.search(masked):
        return []
    phrases, begin, before, lead = [], 0, "", "start"
    for gap in [*_PUNCTUATION.finditer(masked), None]:
        end = gap.start() if gap else len(masked)
        for start, kind, text_start in _leads(masked, begin, end):
            text = prompt[begin:start].rstrip()
            phrases.append(Phrase(text, before, lead))
            begin, before, lead = text_start, prompt[begin + len(text):text_start], kind
        if begin < end:
            phrases.append(Phrase(prompt[begin:end], before, lead))
        if gap:
            begin = gap.end()
            before, lead = (prompt[gap.start():begin], "punctuation") if phrases else ("", "start")
    if len(phrases) == 1:
        phrases = _words(phrases[0])
    while len(phrases) > limit:
        sizes = [len(a.text) + len(b.text) for a, b in zip(phrases, phrases[1:], strict=False)]
        i = sizes.index(min(sizes))
        phrases[i : i + 2] = [replace(phrases[i], text=join(phrases[i : i + 2]).removeprefix(phrases[i].before))]
    return phrases


def join(phrases: Sequence[Phrase]) -> str:
    return "".join(phrase.before + phrase.text for phrase in phrases)


def without(phrases: Sequence[Phrase], index: int) -> str:
    """The prompt with one phrase left out."""
    rest = [*phrases[:index], *phrases[index + 1 :]]
    if index == 0:
        rest[0] = replace(rest[0], before="")
    elif index < len(rest) and phrases[index].lead == "punctuation" != rest[index].lead:
        rest[index] = replace(rest[index], before=phrases[index].before)
    return join(rest)


def emphasise(phrases: Sequence[Phrase], index: int, weight: float, most: float, first: bool) -> str:
    """The prompt with one phrase weighted, and stated first where it can be without changing what it belongs to.

    Weights that the phrase already has are multiplied, up to `most`; higher ones stay.
    """
    phrase = phrases[index]
    heavier = "".join(_weigh(part, max(old, min(old * weight, most))) for part, old in weighted_parts(phrase.text))
    if first and _can_lead(phrases, index):
        start = max((i for i in range(index) if _SENTENCE_END.search(phrases[i].before)), default=0)
        rest = without(phrases, index)
        head = join(phrases[:start]) + (phrases[start].before if start else "")
        return f"{head}{heavier}, {rest[len(head):]}"
    return join([*phrases[:index], replace(phrase, text=heavier), *phrases[index + 1 :]])


def _weigh(part: str, weight: float) -> str:
    """Part with a weight; spaces at its ends stay outside."""
    body = part.strip()
    return part.replace(body, f"({body}:{round(weight, 2):g})", 1) if body else part


def _can_lead(phrases: Sequence[Phrase], index: int) -> bool:
    """Whether a phrase may move to the start of its sentence.

    A clause between commas may, unless it refers back ("both", "it", "the"). A prepositional phrase of the first clause
    may when it ends that clause or another follows it, and the clause holds one noun that it can belong to: with "on a
    chair" moved in "a cat and a dog on a chair", the cat would sit there too.
    """
    begin = max(i for i in range(index + 1) if phrases[i].lead in ("start", "punctuation"))
    ends = [i for i in range(index + 1, len(phrases)) if phrases[i].lead == "punctuation"]
    clause = phrases[begin : ends[0] if ends else len(phrases)]
    opens_sentence = begin == 0 or bool(_SENTENCE_END.search(phrases[begin].before))
    if _first_word(clause[0].text) in _REFERRING:
        return False
    if index == begin:
        return len(clause) == 1 and not opens_sentence
    following = phrases[index + 1].lead if phrases[index] is not clause[-1] else "punctuation"
    alone = all(phrase.lead != "coordinator" for phrase in clause)
    leads = phrases[index].lead == "preposition" and following in ("preposition", "punctuation")
    return leads and alone and opens_sentence


def _groups(text: str) -> list[tuple[int, int]]:
    """Spans of the outermost parentheses; one that is never closed reaches to the end."""
    groups, depth, start = [], 0, 0
    for match in re.finditer(r"\\[()]|[()]", text):
        if match[0] == "(":
            start, depth = (match.start() if depth == 0 else start), depth + 1
        elif match[0] == ")" and depth:
            depth -= 1
            if depth == 0:
                groups.append((start, match.end()))
    return groups if depth == 0 else [*groups, (start, len(text))]


def _masked(prompt: str) -> str:
    """The prompt with groups, escapes and other syntax as underscores of the same length, so that nothing parts inside
    them."""
    masked = SYNTAX.sub(lambda found: "_" * len(found[0]), prompt)
    for start, end in _groups(prompt):
        masked = masked[:start] + "_" * (end - start) + masked[end:]
    return masked.replace("\\(", "__").replace("\\)", "__")


def _leads(masked: str, begin: int, end: int) -> list[tuple[int, str, int]]:
    """Where phrases part inside one clause, why, and where the next one's text starts. Each has a content word."""
    leads = []
    for match in _LEAD.finditer(masked, begin, end):
        words = [word.lower() for word in _WORD.findall(masked, begin, match.start())]
        if all(word in _FUNCTION_WORDS for word in words):
            continue
        if match.lastgroup == "verb" and words[-1] in _DETERMINERS:  # "the run", "a flying bird"
            continue
        begin = match.end() + 1 if match.lastgroup == "coordinator" else match.start()
        leads.append((match.start(), match.lastgroup, begin))
    # A phrase at the clause's end must have content as well: "moves on" is one phrase.
    while leads and all(word.lower() in _FUNCTION_WORDS for word in _WORD.findall(masked, leads[-1][0], end)):
        leads.pop()
    return leads


def _words(phrase: Phrase) -> list[Phrase]:
    """A phrase parted after each content word."""
    parts, begin, masked = [], 0, _masked(phrase.text)
    ends = [match.end() for match in _WORD.finditer(masked) if match[0].lower() not in _FUNCTION_WORDS]
    for end in [*ends[:-1], len(masked)]:
        text = phrase.text[begin:end]
        gap = text[: len(text) - len(text.lstrip())]
        parts.append(Phrase(text.lstrip(), gap, "verb" if begin else "start"))
        begin = end
    return parts


def _first_word(text: str) -> str:
    match = _WORD.search(text)
    return match[0].lower() if match else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
