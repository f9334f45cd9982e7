"""Text from outside (prompts, file names, a model's or a server's words) in messages and log lines.

ComfyUI's console raises on what its encoding lacks, which ends the prompt worker: a Chinese prompt on a Windows console
(cp1252), half an emoji on any. So log lines go out through `logger`, which no module makes for itself, and what a
message repeats goes through `quoted` or `printable`.
"""

from __future__ import annotations

import logging
import reprlib
import sys
from collections.abc import Iterable


class _Short(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        try:
            return super().repr_int(number, level)
        except ValueError:  # Python writes no integers of thousands of digits
            return f"<an integer of {number.bit_length()} bits>"


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 100
_short.maxlevel = 2  # a value may nest so deep that repr itself runs out of stack


def writable(text: str) -> str:
    """The text, with an escape for each character that a console or log of this process cannot write."""
    streams = [sys.stdout, sys.stderr, *(getattr(handler, "stream", None) for handler in logging.root.handlers)]
    for encoding in ("utf-8", *(getattr(stream, "encoding", None) or "utf-8" for stream in streams)):
        try:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        except (LookupError, TypeError, UnicodeError):  # a console of somebody else's making
            text = text.encode("ascii", "backslashreplace").decode()
    return text


def printable(text: str, most: int = 200) -> str:
    """Foreign words in a message: on one line, at most about `most` characters, and writable."""
    text = text if len(text) <= most else text[: most - 20] + "..." + text[-15:]
    return writable("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


def quoted(value: object) -> str:
    """A foreign value in a message, as Python writes it, cut to about 100 characters, and writable."""
    return writable(_short.repr(value))


def check_choice(name: str, value: object, options: Iterable[str]) -> None:
    """ValueError where a setting's value is none of its options: in ComfyUI 0.3.75 a combo may hold anything."""
    if value not in (options := tuple(options)):
        raise ValueError(f"{name} is {quoted(value)}: choose one of {writable(', '.join(options))}.")


class _Writable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = writable(record.getMessage()), None
        return True


logger = logging.getLogger("foresight")
if not logger.filters:  # the pack may be imported twice in one process: as a node pack, and as a package
    logger.addFilter(_Writable())
