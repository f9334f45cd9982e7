"""JSON files: read within limits, and replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..trials.foreign import printable
from .fields import Fields, FileError, file_name

MOST_BYTES = 1 << 20  # a hundred times what any of ours has


def parsed(text: str | bytes) -> Any:
    """JSON, or ValueError whatever is wrong with it: an integer of thousands of digits, a thousand brackets."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def checked(path: Path, most: int, what: str, way_out: str) -> None:
    """Raises FileError unless there is a file, and no larger one: pipes and devices would be read without end."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:
        raise unreadable(path, error, way_out) from None
    if size is None:
        raise FileError(f"{file_name(path)} is not there, or no file. {way_out}")
    if size > most:
        raise FileError(f"{file_name(path)} is no {what}: it has {size} bytes, and at most {most} are read. {way_out}")


def unreadable(path: Path, error: Exception, way_out: str) -> FileError:
    """Says so without the error's own words where those repeat the whole path."""
    why = getattr(error, "strerror", None) or type(error).__name__
    return FileError(f"{file_name(path)} cannot be read: {why}. {way_out}")


def read_json(path: Path, what: str, way_out: str) -> Any:
    """Whatever JSON a file of at most MOST_BYTES holds. Raises FileError, which repeats nothing of the content."""
    checked(path, MOST_BYTES, what, way_out)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES)
    except OSError as error:
        raise unreadable(path, error, way_out) from None
    try:
        return parsed(content.decode("utf-8-sig"))  # editors may put a mark in front
    except ValueError as error:
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else printable(str(error))
        raise FileError(f"{file_name(path)} is no {what}: it is not JSON ({place}). {way_out}") from None


def read_document(path: Path, schema: str, version: int, what: str, command: str) -> Fields:
    """The entries of a JSON file of ours, `schema` and `version` checked. command: what writes such files."""
    way_out = f"Write it again ({command}), or take it out of its folder."
    document = read_json(path, what, way_out)
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise FileError(f"{file_name(path)} is no {what}: it does not name the schema {schema}. {way_out}")
    fields = Fields(document, file_name(path), way_out)
    if (found := document.get("version")) != version:
        fields.whole("version", 1, 1_000_000)
        raise fields.wrong(f"it is a {what} of version {found}, and this pack reads version {version}")
    return fields


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Raises OSError, and ValueError for numbers that are not finite; what was there before then stays."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Puts in place what `write` writes to the path that it is given, once that is whole: a full disk, or a process
    that is killed, leaves what was there before."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
