"""Writes the nodes' English texts from their schemas to locales/en, and says what the translations lack.

``python -m foresight.lab.release.locales --server http://127.0.0.1:8188``, with a running ComfyUI that has this pack
(python dev.py serve). Translations (locales/zh) are kept by hand; like the frontend they go by node, input and number
of the output.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...evaluation.graphs import ObjectInfo, inputs_of
from ...evaluation.server import ComfyClient

ROOT = Path(__file__).resolve().parents[2]
PACK = "custom_nodes.foresight"


def node_texts(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node's entry in nodeDefs.json."""

    def described(name: str, tooltip: str | None) -> dict[str, str]:
        return {"name": name} | ({"tooltip": tooltip} if tooltip else {})

    tips = node.get("output_tooltips") or [None] * len(node["output_name"])
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {each.name: described(each.name, each.options.get("tooltip")) for each in inputs_of(node)},
        "outputs": {str(i): described(*pair) for i, pair in enumerate(zip(node["output_name"], tips, strict=True))},
    }


def panel_texts() -> dict[str, str]:
    """What the live panel says (web/words.js), by itself, and what nodes say of the clips that they show."""
    sources = [*sorted(ROOT.glob("web/*.js")), ROOT / "trials" / "picture.py", ROOT / "nodes" / "enhancers.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    return {text: text for text in re.findall(r'\bsa(?:y|id)\("([^"]+)"', code)}


def files(info: ObjectInfo) -> dict[str, str]:
    """Path below the project's root -> text, of the English files."""
    ours = {id: node for id, node in sorted(info.items()) if node["python_module"] == PACK}
    categories = {part: part for node in ours.values() for part in node["category"].split("/")}
    contents = {
        "nodeDefs": {id: node_texts(node) for id, node in ours.items()},
        "main": {"nodeCategories": categories, "foresight": panel_texts()},
    }
    return {
        f"locales/en/{name}.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for name, content in contents.items()
    }


def keys(texts: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The place of every text, dotted: ForesightSampler.inputs.seed.tooltip."""
    for key, value in texts.items():
        yield from keys(value, f"{above}{key}.") if isinstance(value, dict) else [above + key]


def differences(english: Mapping[str, Any], translated: Mapping[str, Any]) -> list[str]:
    """What a translation lacks and what is left over in it, one line each."""
    here, there = set(keys(english)), set(keys(translated))
    return [f"lacks {key}" for key in sorted(here - there)] + [f"still has {key}" for key in sorted(there - here)]


def faults() -> list[str]:
    """The differences of every translated file from locales/en."""
    lines = []
    for english in sorted(ROOT.glob("locales/en/*.json")):
        for path in sorted(ROOT.glob(f"locales/*/{english.name}")):
            texts = (json.loads(file.read_text(encoding="utf-8")) for file in (english, path))
            lines += [f"{path.relative_to(ROOT).as_posix()} {line}" for line in differences(*texts)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    for path, text in files(ComfyClient(parser.parse_args().server).object_info()).items():
        (ROOT / path).write_text(text, encoding="utf-8")
    print(*faults(), sep="\n")


if __name__ == "__main__":
    main()
