"""What the evaluations share: where a result was made, and how figures are written."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Of `python -m foresight.evaluation NAME`."""
    return argparse.ArgumentParser(
        prog=f"python -m foresight.evaluation {name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def environment(command: str) -> dict[str, Any]:
    import comfyui_version

    return {
        "command": command, "date": datetime.date.today().isoformat(), "comfyui": comfyui_version.__version__,
        "torch": torch.__version__, "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPU cores, {'CUDA' if torch.cuda.is_available() else 'no GPU'}",
    }  # fmt: skip


def shown(value: Any, kind: str) -> str:
    """A figure as text, by the kinds of report_tables.Table; a cell of `statistics` with its interval."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        if not math.isfinite(value["value"]):
            return "-"
        middle, low, high = (shown(value[key], kind) for key in ("value", "low", "high"))
        unit = " %" if kind in ("percent", "change") else ""
        return f"{middle} ({low.removesuffix(unit)} to {high.removesuffix(unit)})"
    if kind == "text":
        return str(value)
    if kind == "count":
        return f"{value:.0f}"
    if not math.isfinite(value):
        return "-"
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "change":
        return f"{100 * value:+.1f} %"
    return f"{value:+.3f}" if kind == "signed" else f"{value:.3f}"


def percent(cell: Mapping[str, float], signed: bool = False) -> str:
    """A rate of `statistics` as text: value (low to high, count of how many)."""
    if cell.get("of") == 0:
        return "none"
    text = shown(cell, "change" if signed else "percent")
    return f"{text.removesuffix(')')}, {cell['count']} of {cell['of']})" if "of" in cell else text


def number(cell: Mapping[str, float]) -> str:
    return shown(cell, "number")


def filled(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of this name. ValueError where it has none."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"the page has no marks of the name {name!r}")
    return f"{before}{begin}{text}{end}{after}"


def publish(out: Path, name: str, document: dict[str, Any], page: str) -> None:
    """Writes and prints a result: JSON for programs, Markdown for people."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / f"{name}.md").write_text(page)
    print(page)
