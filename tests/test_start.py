"""The pack starts with what ComfyUI itself brings, whatever else is missing, broken or left over in the environment."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ("nodes", "sampling", "panel", "refiner", "scoring", "l2r", "files", "trials", "demo")
# What ComfyUI's requirements name, directly or through what they need, on both versions.
BROUGHT = {"torch", "numpy", "PIL", "aiohttp", "safetensors", "tokenizers", "transformers", "comfy", "comfy_api",
           "comfy_execution", "folder_paths", "latent_preview"}  # fmt: skip
LOAD = """
import asyncio, json, sys
barred = set(sys.argv[2].split(","))
class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in barred:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Bar())
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import foresight
extension = asyncio.run(foresight.comfy_entrypoint())
ids = [node.define_schema().node_id for node in asyncio.run(extension.get_node_list())]
print(json.dumps([ids, sorted(barred & set(sys.modules))]))
"""


def started(comfyui: Path, barred: str = "", **environment: str) -> tuple[list[str], list[str]]:
    """The ids of the nodes that load, and which of the barred modules were loaded all the same."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, comfyui, barred], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("barred, environment", [
    ("matplotlib", {}), ("", {"MPLBACKEND": "nonsense"}), ("", {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}),
    ("requests,ray,ftfy", {}),
])  # fmt: skip
def test_every_node_loads_without_what_is_optional(comfyui, barred, environment):
    ids, loaded = started(comfyui, barred, **environment)
    assert sorted(ids) == sorted(json.loads((ROOT / "node_list.json").read_text(encoding="utf-8"))) and not loaded


def starts_with(path: Path) -> set[str]:
    """Outer names of the packages that a module imports when it is imported itself."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


def test_no_module_of_the_runtime_imports_at_start_what_comfyui_does_not_bring():
    own = {"refiner/transport.py": {"requests"}, "demo/judge.py": {"scipy"}}  # imported by those that ask for them
    for path in (path for room in RUNTIME for path in sorted((ROOT / room).glob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        assert starts_with(path) - sys.stdlib_module_names - BROUGHT == own.get(name, set()), name
