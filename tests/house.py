"""Reads which file imports which, and holds that against the table of arrows in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "foresight"
OUTSIDE = "tests"  # the folder that is no room


def arrows(page: str) -> dict[str, set[str]]:
    """Room -> rooms that it may import, from the rows `| room | what it is | rooms |` of the page's table."""
    rows = dict(re.findall(r"^\| `(.+?)` \| .+? \| (.+?) \|$", page, re.MULTILINE))
    ships = {room for room in rows if room.split("/")[0] != "lab"}
    return {
        room: set(re.findall(r"`(.+?)`", rooms)) | (ships if "all that ships" in rooms else set())
        for room, rooms in rows.items()
    }


def files(root: Path) -> list[Path]:
    """Every Python file of the project, relative to its root: the root's own, and those of visible folders."""
    paths = (path.relative_to(root) for path in sorted(root.rglob("*.py")))
    return [path for path in paths if path.parts[0] != OUTSIDE and not any(p.startswith(".") for p in path.parts)]


def room_of(path: Path) -> str:
    """A file of the root is a room by itself; lab's rooms are its folders."""
    folders = path.parts[:-1]
    return "/".join(folders[:2] if folders[:1] == ("lab",) else folders[:1]) or path.name


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import, those inside functions too; level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            yield from ((node.level, base + alias.name) for alias in node.names)


def imported(root: Path, path: Path) -> set[Path]:
    """The project's own files that a file imports."""
    result = set()
    for level, name in imports(ast.parse((root / path).read_text(encoding="utf-8"))):
        parts = name.split(".")
        if level:
            parts = [*path.parts[: len(path.parts) - level], *parts]
        elif parts[0] == PACKAGE:
            parts = parts[1:]
        elif len(path.parts) > 1:  # only a script in the root finds the rooms beside it
            continue
        # The name is that of a module, of something in a module, or of something in a package.
        ends = ["/".join(end) for end in (parts, parts[:-1]) if end]
        candidates = [Path(end + rest) for end in ends for rest in (".py", "/__init__.py")]
        result |= set([file for file in candidates if (root / file).is_file()][:1])
    return result - {path}


def faults(root: Path, page: str) -> list[str]:
    """One line for each room that the table lacks or has too much, each import that it does not allow, each circle."""
    allowed = arrows(page)
    graph = {path: imported(root, path) for path in files(root)}
    rooms = {room_of(path) for path in graph}
    lines = [f"{room} is not in the table" for room in sorted(rooms - allowed.keys())]
    lines += [f"{room} is in the table, but not in the tree" for room in sorted(allowed.keys() - rooms)]
    for path, targets in graph.items():
        here = room_of(path)
        for target in sorted(targets):
            if (there := room_of(target)) != here and there not in allowed.get(here, ()):
                lines.append(f"{path.as_posix()} imports {target.as_posix()}: no arrow from {here} to {there}")
    return lines + [f"circle: {' -> '.join(path.as_posix() for path in circle)}" for circle in circles(graph)]


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """One circle for each import that closes one, by depth-first search."""
    result, done = [], set()

    def visit(path: Path, way: list[Path]) -> None:
        if path in way:
            result.append([*way[way.index(path) :], path])
        elif path not in done:
            for target in sorted(graph.get(path, ())):
                visit(target, [*way, path])
            done.add(path)

    for path in graph:
        visit(path, [])
    return result
