"""The entries of a file, checked one by one as they are taken: what comes out is in range, and a refusal names file,
entry, value and way out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..trials.foreign import printable, quoted

_REQUIRED: Any = object()


class FileError(ValueError):
    """A file that cannot be used. Its message names the file and the way out, and can be written to any console."""


def file_name(path: Path) -> str:
    """The name of a file in a message, whatever bytes it has."""
    return printable(path.name)


class Fields:
    """The entries of a JSON object in a file.

    file: how it is named in messages. way_out: what to do about a wrong one. where: the object's place in the file, as
    "video." (the whole file: ""). All methods raise FileError for what is missing, of another type, or out of range; an
    entry that is missing takes `default` where one is given.
    """

    def __init__(self, entries: object, file: str, way_out: str, where: str = ""):
        self.file, self.way_out, self.where = file, way_out, where
        if not isinstance(entries, dict):
            what = where.rstrip(".") or "what it holds"
            raise FileError(f"{file} cannot be used: {what} is {quoted(entries)}: give an object. {way_out}")
        self.entries: dict[str, Any] = entries

    def wrong(self, problem: str) -> FileError:
        """An error about this file, to be raised."""
        return FileError(f"{self.file} cannot be used: {problem}. {self.way_out}")

    def _take(self, name: str, default: Any, is_right: Callable[[Any], bool], wanted: str) -> Any:
        value = self.entries.get(name, default)
        if value is _REQUIRED:
            raise self.wrong(f"'{self.where}{name}' is missing")
        if value is not default and not is_right(value):
            raise self.wrong(f"{self.where}{name} is {quoted(value)}: give {wanted}")
        return value

    def number(self, name: str, low: float, high: float, default: Any = _REQUIRED, nan: bool = False) -> float:
        """A number from low to high; nan: or NaN."""

        def is_right(value: Any) -> bool:
            return _is_number(value) and (low <= value <= high or (nan and math.isnan(value)))

        return self._take(name, default, is_right, f"a number from {low:g} to {high:g}")

    def whole(self, name: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        def is_right(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        return self._take(name, default, is_right, f"a whole number from {low} to {high}")

    def numbers(self, name: str, count: range, low: float, high: float, default: Any = _REQUIRED) -> tuple[float, ...]:
        """A list of numbers from low to high, as many as `count` has."""

        def is_right(value: Any) -> bool:
            return (
                isinstance(value, list) and len(value) in count
                and all(_is_number(each) and low <= each <= high for each in value)
            )  # fmt: skip

        wanted = f"a list of {count[0]} to {count[-1]} numbers from {low:g} to {high:g}"
        return tuple(self._take(name, default, is_right, wanted))

    def text(self, name: str, default: Any = _REQUIRED, most: int = 300) -> str:
        """Printable text of at most `most` characters."""

        def is_right(value: Any) -> bool:
            return isinstance(value, str) and len(value) <= most and value.isprintable()

        return self._take(name, default, is_right, f"printable text of at most {most} characters")

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        return self._take(name, default, lambda value: isinstance(value, bool), "true or false")

    def choice(self, name: str, options: Collection[str], default: Any = _REQUIRED) -> str:
        return self._take(
            name, default, lambda value: isinstance(value, str) and value in options, f"one of {', '.join(options)}"
        )

    def inner(self, name: str, default: Any = _REQUIRED) -> Fields:
        """The entries of an object within this one."""
        entries = self._take(name, default, lambda value: isinstance(value, dict), "an object")
        return Fields(entries, self.file, self.way_out, f"{self.where}{name}.")

    def rows(self, name: str, most: int) -> list[Fields]:
        """The objects of a list of at most `most`."""
        rows = self._take(
            name, _REQUIRED, lambda value: isinstance(value, list) and len(value) <= most, f"a list of at most {most}"
        )
        return [Fields(row, self.file, self.way_out, f"{self.where}{name}[{i}].") for i, row in enumerate(rows)]

    def only(self, names: Collection[str]) -> None:
        """Refuses entries of other names."""
        if unknown := sorted(self.entries.keys() - set(names)):
            listed = ", ".join(name if name.isidentifier() else quoted(name) for name in unknown[:5])
            raise self.wrong(
                f"{self.where.rstrip('.') or 'it'} has settings that this pack does not know: {listed[:200]}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
