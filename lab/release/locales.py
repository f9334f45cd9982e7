"""Writes locales/: the nodes' texts in English as their schemas have them, and in Chinese as chinese.py has them.

``python -m foresight.lab.release.locales --server http://127.0.0.1:8188``, with a running ComfyUI that has this pack
(python dev.py serve). The frontend takes the texts by node, input and number of the output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...evaluation.graphs import ObjectInfo
from ...evaluation.server import ComfyClient
from .chinese import NAMES, TEXTS

ROOT = Path(__file__).resolve().parents[2]
PACK = "custom_nodes.foresight"
CATEGORIES = {"en": {"Foresight": "Foresight", "demo": "demo"}, "zh": {"Foresight": "Foresight", "demo": "演示"}}


def node_texts(info: ObjectInfo, name: Callable[[str], str], text: Callable[[str], str]) -> dict[str, Any]:
    """nodeDefs.json of all nodes of this pack."""
    return {id: _node(node, name, text) for id, node in sorted(info.items()) if node["python_module"] == PACK}


def _node(node: dict[str, Any], name: Callable[[str], str], text: Callable[[str], str]) -> dict[str, Any]:
    inputs = {key: options[0] if options else {} for kind in ("required", "optional")
              for key, (_, *options) in node["input"].get(kind, {}).items()}  # fmt: skip
    tips = node.get("output_tooltips") or [None] * len(node["output_name"])

    def described(label: str, tip: str | None) -> dict[str, str]:
        return {"name": name(label)} | ({"tooltip": text(tip)} if tip else {})

    return {
        "display_name": name(node["display_name"]),
        "description": text(node["description"]),
        "inputs": {key: described(key, options.get("tooltip")) for key, options in inputs.items()},
        "outputs": {str(i): described(*pair) for i, pair in enumerate(zip(node["output_name"], tips, strict=True))},
    }


def files(info: ObjectInfo) -> dict[str, str]:
    """Path below the project's root -> text. KeyError: chinese.py lacks that name or text."""
    made = {}
    for language, name, text in (("en", str, str), ("zh", NAMES.__getitem__, TEXTS.__getitem__)):
        made[f"locales/{language}/nodeDefs.json"] = node_texts(info, name, text)
        made[f"locales/{language}/main.json"] = {"nodeCategories": CATEGORIES[language]}
    return {path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    for path, content in files(ComfyClient(parser.parse_args().server).object_info()).items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(content, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
