"""Help pages in other languages, of the nodes' translated texts: ``python -m foresight.lab.release.help_pages``.

ComfyUI shows web/docs/NODE/LANGUAGE.md where there is one, else the English page, web/docs/NODE.md, which is kept by
hand and says more. Types and the order of inputs are taken from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
# Of each language: the sections, the heads of their tables, and where there is more.
FRAMES = {
    "zh": {
        "inputs": ("输入", "| 输入 | 类型 | 说明 |"),
        "outputs": ("输出", "| 输出 | 类型 | 说明 |"),
        "more": "更详细的说明（英文）：`web/docs/{node}.md`。",
    }
}
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \|", re.MULTILINE)


def _types(page: str, section: str) -> list[tuple[str, str]]:
    """Name and type of each row of a section's table; a row may hold several names."""
    body = next((part for part in re.split(r"^## ", page, flags=re.MULTILINE) if part.startswith(section)), "")
    return [(name, type) for names, type in ROW.findall(body)[1:] for name in names.split(", ")]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(node: str, english: str, texts: Mapping[str, Any], language: str) -> str:
    """A node's help page. english: its English one. texts: its entry in the language's nodeDefs.json."""
    frame, inputs = FRAMES[language], texts["inputs"]
    title, head = frame["inputs"]
    lines = [f"# {texts['display_name']}", "", texts["description"], "",
             f"![{texts['display_name']}](images/{node}.png)"]  # fmt: skip
    if inputs:
        lines += ["", f"## {title}", "", head, "|---|---|---|"]
    for name, type in _types(english, "Inputs"):
        told = inputs[name]
        label = name if told["name"] == name else f"{told['name']} ({name})"
        lines.append(f"| {_cell(label)} | {type} | {_cell(told.get('tooltip', ''))} |")
    title, head = frame["outputs"]
    lines += ["", f"## {title}", "", head, "|---|---|---|"]
    for number, (_, type) in enumerate(_types(english, "Outputs")):
        told = texts["outputs"][str(number)]
        lines.append(f"| {_cell(told['name'])} | {type} | {_cell(told.get('tooltip', ''))} |")
    return "\n".join([*lines, "", frame["more"].format(node=node), ""])


def pages() -> Iterator[tuple[Path, str]]:
    """Path and text of every page that has an English one and translated texts."""
    for language in FRAMES:
        texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        for english in sorted(PAGES.glob("*.md")):
            node = english.stem
            if node in texts:
                told = page(node, english.read_text(encoding="utf-8"), texts[node], language)
                yield PAGES / node / f"{language}.md", told


if __name__ == "__main__":
    for path, text in pages():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
