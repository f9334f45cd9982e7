"""Writes workflows/ and subgraphs/ anew: ``python -m foresight.lab.graphs --server http://127.0.0.1:8188``.

Needs a running ComfyUI 0.3.75 with this pack (python dev.py serve): how its nodes look goes into the files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ...evaluation.graph_settings import WAN
from ...evaluation.graphs import ObjectInfo
from ...evaluation.server import ComfyClient
from .forms import GRAPHS, graph, hierarchy
from .graph import Graph, Link
from .ui_format import blueprint, ui_workflow

ROOT = Path(__file__).resolve().parents[2]
BLUEPRINT = "Sample, Watch and Repair (Foresight)"
BOX_INPUTS = {
    "model": "MODEL", "clip": "CLIP", "noise": "NOISE", "sampler": "SAMPLER", "sigmas": "SIGMAS",
    "latent_image": "LATENT", "l2r": "FORESIGHT_L2R", "scorer": "FORESIGHT_SCORER", "prompt": "STRING",
    "negative": "STRING", "cfg": "FLOAT", "tau": "FLOAT", "delta": "FLOAT",
}  # fmt: skip


def box(object_info: ObjectInfo) -> dict[str, Any]:
    """The hierarchy as a subgraph blueprint: one box with the inputs of BOX_INPUTS."""
    inner = Graph()
    links = {name: Link(None, slot) for slot, name in enumerate(BOX_INPUTS)}
    switch, base = hierarchy(inner, WAN, 0, **links, experts={})
    outputs = {"latent": ("LATENT", switch[0]), "verdict": ("FORESIGHT_VERDICT", switch[1]),
               "preview": ("IMAGE", base[4])}  # fmt: skip
    defaults = {"prompt": "", "negative": "", "cfg": WAN.cfg, "tau": WAN.tau, "delta": WAN.delta}
    return blueprint(BLUEPRINT, inner, BOX_INPUTS, outputs, defaults, object_info)


def files(object_info: ObjectInfo) -> dict[str, str]:
    """Path below the project's root -> text, of every file that is written from here."""
    contents = {f"workflows/{name}.json": ui_workflow(graph(name), object_info) for name in GRAPHS}
    contents[f"subgraphs/{BLUEPRINT}.json"] = box(object_info)
    return {path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in contents.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    for path, text in files(ComfyClient(parser.parse_args().server).object_info()).items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
