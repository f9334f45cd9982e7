"""Promise 5 and the house plan, read off the source: what the pack never does, and which room may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Downward only: a room may import the rooms that stand after it, and itself.
ROOMS = ["nodes", "sampling", "refiner", "scoring", "l2r", "panel", "trials", "demo"]
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "server", "folder_paths", "nodes", "latent_preview"}
FORBIDDEN_MODULES = {
    "requests", "urllib", "http", "socket", "aiohttp", "subprocess", "pickle", "dill", "ctypes", "multiprocessing",
    "importlib", "shutil", "tempfile",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "print"}
# Commands that people run themselves; the nodes import none of them (tested below).
COMMANDS = {
    *(f"demo/{name}" for name in ("train_vae", "train_dit", "train_l2r", "train_scorer", "train_common", "run", "media",
                                  "scorer_figures", "scorer_data", "scorer_batches", "scorer_samples", "train_reward",
                                  "reward_data")),
    "l2r/train",
}  # fmt: skip


def sources():
    """(room, path, tree) of every module but the commands: of all that ComfyUI can end up importing."""
    yield "", ROOT / "__init__.py", ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    for room in ROOMS:
        for path in sorted((ROOT / room).glob("*.py")):
            if f"{room}/{path.stem}" not in COMMANDS:
                yield room, path, ast.parse(path.read_text(encoding="utf-8"))


SOURCES = list(sources())
NAMES = [f"{room}/{path.name}" for room, path, _ in SOURCES]


def imports(tree):
    """(level, dotted name) of every import; level 0 is absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            yield from ((node.level, base + alias.name) for alias in node.names)


@pytest.mark.parametrize("room, path, tree", SOURCES, ids=NAMES)
def test_the_pack_reaches_no_network_process_or_interpreter(room, path, tree):
    for _, name in imports(tree):
        served = room == "panel" and name == "aiohttp.web"  # answers requests, makes none
        asks = f"{room}/{path.name}" == "refiner/transport.py"  # only what the machine's owner has configured
        asks = asks and name.split(".")[0] in ("requests", "socket") or name == "urllib.parse.urlsplit"
        assert served or asks or name.split(".")[0] not in FORBIDDEN_MODULES, f"{path.name} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("os.environ", "os.system", "os.popen", "os.putenv"), path.name
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in FORBIDDEN_CALLS, f"{path.name} calls {called}"
        if called == "torch.load":
            safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only")
            assert safe == "True", f"{path.name}: torch.load without weights_only=True"


@pytest.mark.parametrize("room", ROOMS[2:])
def test_lower_rooms_work_without_comfyui(room):
    for path in (ROOT / room).glob("*.py"):  # commands too
        for level, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            assert level or name.split(".")[0] not in COMFYUI, f"{room}/{path.name} imports {name}"


@pytest.mark.parametrize("room, path, tree", SOURCES, ids=NAMES)
def test_a_cancel_passes_every_blanket_except(room, path, tree):
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try):
            continue
        caught = [ast.unparse(handler.type) if handler.type else "" for handler in node.handlers]
        assert "" not in caught and "BaseException" not in caught, f"{room}/{path.name}:{node.lineno}"
        if room in ("nodes", "sampling") and "Exception" in caught:
            passed = caught[: caught.index("Exception")]
            assert any(name.endswith("InterruptProcessingException") for name in passed), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("room, path, tree", SOURCES, ids=NAMES)
def test_imports_run_down_the_house_plan(room, path, tree):
    for level, name in imports(tree):
        first = name.split(".")[0]
        if level == 2 and first in ROOMS:
            assert ROOMS.index(first) >= ROOMS.index(room), f"{room}/{path.name} imports upward: {name}"
        own = f"{room}." if level == 1 else ""
        assert "/".join(f"{own}{name}".split(".")[:2]) not in COMMANDS, f"{room}/{path.name} imports a command"


@pytest.mark.parametrize("room, path, tree", SOURCES, ids=NAMES)
def test_no_global_random_state(room, path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.manual_seed", "torch.seed", "random.seed", "np.random.seed")
    assert not any(name.split(".")[0] == "random" for level, name in imports(tree) if level == 0), path.name


def test_no_widget_takes_a_path_a_url_or_a_key(comfyui):
    import asyncio

    from foresight import comfy_entrypoint
    from foresight.sampling.search import parse_schedule
    from foresight.sampling.self_refine import parse_plan

    numbers = {"plan": parse_plan, "schedule": parse_schedule}  # texts of digits; anything else is refused
    for parse in numbers.values():
        for text in ("http://host/x", "/etc/passwd", "2-5:3, key", "10, $(id)", "__import__('os')"):
            with pytest.raises(ValueError):
                parse(text, 50)
    extension = asyncio.run(comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        for given in node.GET_SCHEMA().inputs:
            if given.io_type == "STRING":
                known = given.id in ("prompt", "negative", "manual_prompt", *numbers)
                assert known, f"{node.__name__}.{given.id}: free text that is no prompt"
