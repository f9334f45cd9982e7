"""Hostile inputs made from good ones: bytes, JSON and safetensors files, broken as an adversary or a bad disk does."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

HOSTILE: list[Any] = [
    None, True, "", "high", "\ud83d", "\x00", "x" * 5000, "../../etc/passwd", "NaN", -1, 0, 2.5, 10**6, 2**63, 10**30,
    1e308, float("inf"), float("nan"), [], [[]], {}, {"a": {}}, [None] * 300, "(a:1e9)", "\u202e\u2028",
]  # fmt: skip
RAW = [b"", b"\x00", b"\xff\xfe", b"[" * 5000, b"{" * 50, b"9" * 5000, b"NaN", b"1e999", b'"', b"\\ud83d", b"\r\n\r\n"]


def scrambled(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut off, doubled or put in."""
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0 if out:
                out[min(at, len(out) - 1)] = chance.randrange(256)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = chance.choice(RAW)
            case 3:
                out[at:at] = out[at : at + chance.randrange(200)]
            case _:
                del out[at : at + chance.randrange(1, 20)]
    return bytes(out)


def spoiled(document: Any, chance: random.Random) -> Any:
    """JSON with one entry, somewhere in it, made absurd, taken out or doubled under another name."""
    if not isinstance(document, (dict, list)) or not document or chance.random() < 0.05:
        return chance.choice(HOSTILE)
    copy: Any = document.copy()
    at = chance.choice(list(copy)) if isinstance(copy, dict) else chance.randrange(len(copy))
    match chance.randrange(10):
        case 0:
            del copy[at]
        case 1 if isinstance(copy, dict):
            copy[chance.choice(("more", "\ud83d", "x" * 3000, "__class__"))] = copy[at]
        case _:
            copy[at] = spoiled(copy[at], chance)
    return copy


def broken_json(content: bytes, chance: random.Random) -> bytes:
    document = json.loads(content)
    for _ in range(chance.choice((1, 1, 3))):
        document = spoiled(document, chance)
    text = json.dumps(document).encode()
    return scrambled(text, chance) if chance.random() < 0.2 else text


def broken_weights(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another description or header, or scrambled."""
    if chance.random() < 0.2:
        return scrambled(content, chance)
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    about = header["__metadata__"]
    (key,) = about
    match chance.randrange(4):
        case 0:
            header = spoiled(header, chance)
        case 1:
            about[key] = scrambled(about[key].encode(), chance).decode("utf-8", "replace")
        case _:
            about[key] = json.dumps(spoiled(json.loads(about[key]), chance))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
