"""Promises 2, 4 and 5, read off the source: what the rooms that ComfyUI imports never do."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest
from house import imports

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["nodes", "sampling", "refiner", "scoring", "l2r", "panel", "trials", "demo"]  # what ComfyUI ends up importing
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "server", "folder_paths", "nodes", "latent_preview"}
FORBIDDEN_MODULES = {
    "requests", "urllib", "http", "socket", "aiohttp", "subprocess", "pickle", "dill", "ctypes", "multiprocessing",
    "importlib", "shutil", "tempfile",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "print"}


def sources():
    """(room, path, tree) of every module of the runtime."""
    yield "", ROOT / "__init__.py", ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    for room in ROOMS:
        for path in sorted((ROOT / room).glob("*.py")):
            yield room, path, ast.parse(path.read_text(encoding="utf-8"))


SOURCES = list(sources())
NAMES = [f"{room}/{path.name}" for room, path, _ in SOURCES]


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
    for path in (ROOT / room).glob("*.py"):
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
def test_no_global_random_state(room, path, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.manual_seed", "torch.seed", "random.seed", "np.random.seed")
    assert not any(name.split(".")[0] == "random" for level, name in imports(tree) if level == 0), path.name


def test_no_widget_takes_a_path_a_url_or_a_key(comfyui):
    import asyncio

    from foresight import comfy_entrypoint
    from foresight.sampling.search_rules import parse_schedule
    from foresight.sampling.self_refine import parse_plan
    from foresight.trials.stream import parse_levels, steps_by_chunk
    from foresight.trials.stream_plans import GateSettings

    def looks(text, _):
        return GateSettings(0.2, looks=text)

    # Texts of digits; anything else is refused.
    numbers = {"plan": [parse_plan], "schedule": [parse_schedule, steps_by_chunk], "levels": [parse_levels],
               "looks": [looks]}  # fmt: skip
    for parse in itertools.chain(*numbers.values()):
        for text in ("http://host/x", "/etc/passwd", "2-5:3, key", "10, $(id)", "__import__('os')"):
            with pytest.raises(ValueError):
                parse(text, 50)
    extension = asyncio.run(comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        for given in node.GET_SCHEMA().inputs:
            if given.io_type == "STRING":
                known = given.id in ("prompt", "prompts", "negative", "manual_prompt", *numbers)
                assert known, f"{node.__name__}.{given.id}: free text that is no prompt"
