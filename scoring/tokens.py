"""CLIP's tokens, whatever else is installed: the original's cleaning of text and its byte pairs.

transformers' CLIPTokenizer cleans by the libraries that it finds (ftfy or not), each of its versions in its own way.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from html.entities import html5
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

START, END = 49406, 49407
MOST = 10_000  # characters that are read: prompts are shorter, what a node has put there by mistake may be a book
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_ENTITY = re.compile(r"&(#?)[0-9A-Za-z]{1,24};")
_TERMINAL = re.compile("\x1b\\[[\\d;]*[a-zA-Z]")


def _replacements() -> dict[int, str | None]:
    """Character by character what ftfy.fix_text does, which CLIP's tokenizer calls: no control characters, those of
    Windows-1252 as what they stand for, plain quotes, no ligatures, letters of ordinary width."""
    removed = [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
    table: dict[int, str | None] = {
        code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)
    }
    compatible = (0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07), 0x3000)
    for code in (*compatible, *range(0xFF01, 0xFFF0)):
        table[code] = unicodedata.normalize("NFKC", chr(code))
    table |= {0x149: "'n", 0xFB05: "\u017ft"}
    table |= dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
    return table | dict.fromkeys(removed)


_REPLACEMENTS = _replacements()


def clean_text(text: str) -> str:
    """What CLIP's tokenizer does before it splits words: ftfy's repairs, no HTML entities, single spaces, lower case.
    ftfy also repairs text that was decoded wrongly (as "cafÃ©"), which is left as it is here. Of very long texts the
    beginning."""
    text = text[:MOST].encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no half characters
    for _ in range(2):  # an entity may stand for one of an entity, or for a curly quote
        if "<" not in text:
            text = _ENTITY.sub(_character, text)
        text = unicodedata.normalize("NFC", _TERMINAL.sub("", text).translate(_REPLACEMENTS))
    with suppress(ValueError):  # a number of thousands of digits
        text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0]) if entity[1] else html5.get(entity[0][1:], entity[0])


def clip_tokenizer(folder: str | Path) -> Callable[[str], list[int]]:
    """Text of clean_text to ids with start and end. folder: has CLIP's vocab.json and merges.txt, as ComfyUI's
    comfy/sd1_tokenizer."""
    files = (str(Path(folder, name)) for name in ("vocab.json", "merges.txt"))
    tokenizer = Tokenizer(models.BPE.from_file(*files, end_of_word_suffix="</w>"))
    words = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return lambda text: [START, *tokenizer.encode(text).ids, END]


def context_ids(ids: Sequence[int], context: int) -> list[int]:
    """CLIP ids with start and end, cut to the context (the last is then the end) and padded with zeros."""
    if len(ids) > context:
        ids = [*ids[: context - 1], END]
    return [*ids, *[0] * (context - len(ids))]
