"""The house plan: imports run along the arrows of docs/architecture.md, no files import each other in a circle, and
every room has its row there. The checker itself (house.py) is tried on small trees that break each rule once."""

from __future__ import annotations

import ast
from pathlib import Path

import house
import pytest

PAGE = (house.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TABLE = """
| room | what it is | may import |
|---|---|---|
| `__init__.py` | the entrance | `upper` |
| `upper` | a room | `lower` |
| `lower` | a room | none |
| `lab` | a name | none |
| `lab/bench` | what does not ship | all that ships |
"""
ASKED = ("hasattr", "getattr", "signature")
TREE = {
    "__init__.py": "async def enter():\n    from .upper import run\n",
    "upper/__init__.py": "",
    "upper/run.py": "import torch\nimport lower\nfrom ..lower.tools import saw\nfrom .parts import nail\n",
    "upper/parts.py": "nail = 1\n",
    "lower/__init__.py": "",
    "lower/tools.py": "saw = 1\n",
    "lab/__init__.py": "",
    "lab/bench/__init__.py": "from ...upper import run\n",
    "tests/test_it.py": "import anything\n",
}


def faults(folder: Path, page: str = TABLE, **changes: str) -> list[str]:
    for path, text in (TREE | changes).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return house.faults(folder, page)


def test_the_house_stands_as_its_plan_says():
    assert house.faults(house.ROOT, PAGE) == []


def test_the_plan_is_of_this_house():
    allowed = house.arrows(PAGE)
    assert set().union(*allowed.values()) <= allowed.keys()
    shipped = {room for here, rooms in allowed.items() if not here.startswith("lab") for room in rooms}
    assert not [room for room in shipped if room.startswith("lab")]


def test_a_sound_tree_has_no_faults(tmp_path):
    assert faults(tmp_path) == []


@pytest.mark.parametrize("upward", [
    "from ..upper import run",
    "from ..upper.run import saw",
    "from foresight.upper.run import saw",
    "import foresight.upper.run",
    "def late():\n    from ..upper import run",
    "def late():\n    import foresight.upper",
])  # fmt: skip
def test_an_import_that_runs_upward_is_named(tmp_path, upward):
    (line,) = faults(tmp_path, **{"lower/more.py": upward + "\n"})
    assert line.startswith("lower/more.py imports upper/") and line.endswith("no arrow from lower to upper")


def switches(tree: ast.AST) -> list[int]:
    """Lines that ask whether ComfyUI has something of that name, or how it is called."""

    def of_comfyui(node: ast.AST) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id.startswith("comfy")

    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args and of_comfyui(node.args[0]))
    asked = (node for node in calls if getattr(node.func, "id", getattr(node.func, "attr", "")) in ASKED)
    return [node.lineno for node in asked if all(isinstance(name, ast.Constant) for name in node.args[1:2])]


def test_versions_of_comfyui_are_told_apart_in_compat_alone():
    found = {
        f"{file.relative_to(house.ROOT)}:{line}"
        for room in ("nodes", "sampling", "evaluation", "lab", "tests") for file in (house.ROOT / room).rglob("*.py")
        for line in switches(ast.parse(file.read_text(encoding="utf-8"))) if file.name != "compat.py"
    }  # fmt: skip
    assert not found


@pytest.mark.parametrize("asked, found", [
    ("hasattr(comfy.sd, 'CLIP')", [1]), ("getattr(comfy.sd.CLIP, 'generate', None)", [1]),
    ("inspect.signature(comfy.sample.sample)", [1]), ("getattr(comfy.latent_formats, name)", []),
    ("hasattr(guider, 'cfg')", []),
])  # fmt: skip
def test_a_version_switch_is_found(asked, found):
    assert switches(ast.parse(asked)) == found


def test_nothing_that_ships_imports_lab(tmp_path):
    (line,) = faults(tmp_path, **{"upper/more.py": "from ..lab import bench\n"})
    assert line == "upper/more.py imports lab/bench/__init__.py: no arrow from upper to lab/bench"


@pytest.mark.parametrize("back", ["from . import run", "from .run import saw", "def late():\n    from . import run"])
def test_a_circle_of_files_is_named(tmp_path, back):
    (line,) = faults(tmp_path, **{"upper/parts.py": back + "\nnail = 1\n"})
    assert line == "circle: upper/run.py -> upper/parts.py -> upper/run.py"


@pytest.mark.parametrize("path, room", [
    ("attic/things.py", "attic"), ("attic/deep/things.py", "attic"), ("lab/attic/things.py", "lab/attic"),
    ("setup.py", "setup.py"),
])  # fmt: skip
def test_a_room_that_the_table_lacks_is_named(tmp_path, path, room):
    assert faults(tmp_path, **{path: "import os\n"}) == [f"{room} is not in the table"]


def test_a_room_that_is_gone_is_named(tmp_path):
    page = TABLE + "| `attic` | a room | none |\n"
    assert faults(tmp_path, page) == ["attic is in the table, but not in the tree"]
