"""A prompt's words, as a scorer is to read them: without what is meant for the video model's encoder alone."""

from __future__ import annotations

import re

# One left-to-right pass each, so that a megabyte of any text takes milliseconds.
SYNTAX = re.compile(
    r"/\*.*?(?:\*/|\Z)|//[^\n]*"  # comments, as ComfyUI's page takes them out of dynamic prompts
    r"|<\w+:[^<>]*>"  # <lora:name:0.8> and its like
    r"|(?<![^\s,(){}|])embedding:(?:\\[()]|[^\s,()|{}])*"
    r"|__[\w./*-]+?__"  # the name of a file of wildcards
    r"|\bBREAK\b"
    r"|(?<=[{|])\s*\d+(?:\.\d+)?(?:::|\$\$)"  # how likely a choice is, or how many are taken
    r"|(?<!\\)[{}|]",  # choices {a|b} that nothing has made: the encoder reads all of them too
    re.DOTALL,
)
_PARENTHESES = re.compile(r"(\\[()]|[()])")
_ESCAPE = re.compile(r"\\([(){}|])")
_GAPS = re.compile(r"(?: ?,){2,}")


def plain(prompt: str) -> str:
    """The words alone, single-spaced: no weights, escapes, embeddings, LoRA tags, BREAK, comments or wildcards. Empty
    where nothing else is there."""
    text, found = SYNTAX.subn(" ", prompt)
    words = " ".join(_ESCAPE.sub(r"\1", _unweighted(text)).split())
    return _GAPS.sub(",", words).strip(" ,") if found else words  # a tag between commas leaves both of them


def _unweighted(text: str) -> str:
    """Without groups' parentheses and weights; one that is not closed is a letter, as for ComfyUI."""
    pieces: list[str] = []
    opened: list[int] = []  # places of parentheses in `pieces`
    for piece in _PARENTHESES.split(text):
        if piece == "(":
            opened.append(len(pieces))
        elif piece == ")" and opened:
            pieces[opened.pop()] = piece = ""
            head, _, number = pieces[-1].rpartition(":")
            pieces[-1] = head if _is_number(number) else pieces[-1]
        pieces.append(piece)
    return "".join(pieces)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
