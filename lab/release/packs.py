"""Other packs beside this one: ``python -m foresight.lab.release.packs FOLDER``, on the ComfyUI in COMFYUI_PATH.

FOLDER has a clone of each pack of REPOSITORIES, and `site`, a folder of what they import that ComfyUI does not bring
(``pip install --no-deps --target FOLDER/site gguf opencv-python-headless imageio-ffmpeg pywavelets accelerate peft``).
One ComfyUI is started with each pack beside Foresight, the checks of pack_checks.py are made there, and what came of
them goes into docs/results/other_packs.json, from which docs/other_packs.md is written. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ...evaluation.comfyui import comfyui_path, load_comfyui
from ...evaluation.results import environment
from ...evaluation.server import ComfyServer, link
from .pack_checks import TRIED, tried
from .pack_graphs import Bench
from .published import filled

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "results" / "other_packs.json", ROOT / "docs" / "other_packs.md"
REPOSITORIES = {
    "ComfyUI-WanVideoWrapper": "kijai/ComfyUI-WanVideoWrapper", "ComfyUI-GGUF": "city96/ComfyUI-GGUF",
    "ComfyUI-VideoHelperSuite": "Kosinkadink/ComfyUI-VideoHelperSuite", "RES4LYF": "ClownsharkBatwing/RES4LYF",
}  # fmt: skip
QUIET = ("--disable-api-nodes", "--disable-metadata", "--preview-method", "latent2rgb")


def commit(folder: Path) -> dict[str, str]:
    """Of a clone: its commit, and the day of it."""
    told = subprocess.run(
        ["git", "-C", str(folder), "log", "-1", "--format=%H %cs"], check=True, capture_output=True, text=True)
    return dict(zip(("commit", "of"), told.stdout.split(), strict=True))


def run(folder: Path, name: str) -> dict[str, Any]:
    """What came of each check with one pack: check -> outcome."""
    base = folder / "tried" / environment("")["comfyui"] / name
    shutil.rmtree(base, ignore_errors=True)  # no files of a run before
    (base / "custom_nodes").mkdir(parents=True)
    link(folder / name, base / "custom_nodes" / name)
    variables = {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    server = ComfyServer(comfyui_path(), base, ROOT, log=base / "server.log", arguments=QUIET, variables=variables)
    with server:
        bench = Bench(server, name, folder)
        return {check: tried(act, bench) for check, act in TRIED[name].items()}


def table(name: str, found: dict[str, Any]) -> list[str]:
    """found: version of ComfyUI -> pack -> its results. A row for each check, a column for each version."""
    there = {version: packs[name] for version, packs in found.items() if name in packs}
    checks = dict.fromkeys(check for pack in there.values() for check in pack["checks"])
    of = " and ".join(dict.fromkeys(f"`{pack['commit'][:10]}` of {pack['of']}" for pack in there.values()))
    days = ", ".join(dict.fromkeys(pack["environment"]["date"] for pack in there.values()))
    head = ["", *(f"ComfyUI {version}" for version in there)]
    rows = [[check, *(pack["checks"].get(check, "not tried") for pack in there.values())] for check in checks]
    lines = [head, ["---"] * len(head), *rows]
    return [f"{REPOSITORIES[name]}, {of}, tried {days}:", "", *("| " + " | ".join(line) + " |" for line in lines), ""]


def write(found: dict[str, Any]) -> None:
    """Every pack's table into the page, between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    for name in REPOSITORIES:
        page = filled(page, name, "\n".join(table(name, found)))
    PAGE.write_text(page, encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with a clone of each pack, and `site`")
    parser.add_argument("--only", choices=list(REPOSITORIES), help="one pack; what was found of the others stays")
    options = parser.parse_args(arguments)
    load_comfyui()
    folder = options.folder.resolve()
    ran = environment("python -m foresight.lab.release.packs FOLDER")
    for name in [options.only] if options.only else REPOSITORIES:
        if not (folder / name / "__init__.py").is_file():
            raise SystemExit(f"{folder / name} is no pack: clone {REPOSITORIES[name]} there.")
        results = {**commit(folder / name), "environment": ran, "checks": run(folder, name)}
        found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        found.setdefault(ran["comfyui"], {})[name] = results
        for check, outcome in results["checks"].items():
            print(f"{name}: {check}: {outcome}", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write(found)


if __name__ == "__main__":
    main(sys.argv[1:])
