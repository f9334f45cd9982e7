"""The registry's archive: what .comfyignore leaves can be imported and run, and holds all that its texts name."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import house
import pytest
import torch

from foresight.evaluation.__main__ import COMMANDS
from foresight.evaluation.server import ComfyServer
from foresight.lab.training.__main__ import TASKS

ROOT = house.ROOT
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: which files are its own?")
# Imports all modules of the pack in sys.argv[1] as ComfyUI does: by its folder, whose name is no identifier. The
# installed package and what only tests use (sys.argv[2]) are out of reach.
IMPORT_ALL = """
import importlib, importlib.util, sys
from pathlib import Path
folder, barred = Path(sys.argv[1]), {"foresight", *sys.argv[2].split(",")}
class Blind:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in barred else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Blind, sys.meta_path)
sys.path.insert(0, sys.argv[3])
from comfy.cli_args import args
args.cpu = True
spec = importlib.util.spec_from_file_location("pack", folder / "__init__.py", submodule_search_locations=[str(folder)])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
for path in sorted(folder.glob("*/*.py")):
    name = ".".join(path.relative_to(folder).with_suffix("").parts)
    if path.name != "__main__.py":
        importlib.import_module(f"pack.{name}".removesuffix(".__init__"))
        print(name)
"""
# Sentence that a page must hold if it names what only a clone of the repository has.
CLONE_ONLY = "in a clone of the repository only"
# The records of measurements name the command that made them, whatever it was.
RECORDS = "docs/results/"
# `lab/x.py`, docs/x.md and the like in running text.
FOLDERS = "docs|locales|subgraphs|tests|web|workflows|" + "|".join(
    {room.split("/")[0] for room in house.arrows((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))}
)
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|json|jpg|png|js|csv)\b")
PLACEHOLDER = re.compile(r"NODE|FAMILY")
MODULE = re.compile(r"python3? -m (foresight(?:\.\w+)+)(?: (\w+))?")
DEV = re.compile(r"dev\.py (\w+)")
WORDS = {"foresight.evaluation": COMMANDS, "foresight.lab.training": TASKS}  # module -> what may follow it
# In an archive, in a clone.
DEV_COMMANDS = {False: {"demo", "serve"}, True: {"demo", "serve", "test", "lint", "train", "mutate", "compatibility"}}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def tracked(*patterns: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()}


def shipped() -> set[str]:
    """The files of the archive. New files that git does not ignore count: they will be in the next one."""
    every = tracked() | tracked("--others", "--exclude-standard")
    rules = "--exclude-from=.comfyignore"
    return every - tracked("--cached", "--ignored", rules) - tracked("--others", "--ignored", rules)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "ComfyUI-Foresight video"
    for path in shipped():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder


def test_the_archive_is_the_runtime_and_its_commands(archive):
    assert not [name for name in ("lab", "tests", ".ci", ".github") if (archive / name).exists()]
    rooms = {path.parts[0] for path in house.files(archive) if len(path.parts) > 1}
    table = house.arrows((archive / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert rooms == {room for room in table if room.split("/")[0] != "lab" and not room.endswith(".py")}
    packages = tomllib.loads((archive / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert set(packages) == {"foresight", *(f"foresight.{room}" for room in rooms)}


def test_every_module_of_the_archive_can_be_imported(archive, comfyui):
    # Dependencies are those of ComfyUI and matplotlib; what else is installed here is for tests and for Ray.
    barred = "ray,pytest,hypothesis,playwright,openai,trustme,vbench,diffusers,timm,ftfy"
    command = [sys.executable, "-P", "-c", IMPORT_ALL, str(archive), barred, str(comfyui)]
    ended = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    names = {".".join(path.with_suffix("").parts) for path in house.files(archive) if len(path.parts) > 1}
    assert set(ended.stdout.split()) == {name for name in names if not name.endswith(".__main__")}


def test_comfyui_runs_the_archive(archive, comfyui, tmp_path):
    server = ComfyServer(comfyui, tmp_path, archive, log=tmp_path / "server.log", cpu=not torch.cuda.is_available(),
                         arguments=("--disable-api-nodes",))  # fmt: skip
    with server:
        info = server.object_info()
        names = json.loads((archive / "node_list.json").read_text(encoding="utf-8"))
        assert {id: info[id]["display_name"] for id in names} == names, server.log_tail()
        graphs = sorted(path.stem for path in (archive / "workflows").glob("*.json"))
        assert sorted(json.loads(server.get("/workflow_templates"))["foresight"]) == graphs


@pytest.mark.parametrize("command", ["test", "lint", "train", "compatibility"])
def test_what_develops_says_that_a_clone_is_needed(archive, command):
    ended = subprocess.run([sys.executable, archive / "dev.py", command], capture_output=True, text=True)
    assert ended.returncode == 1 and "Clone the repository" in " ".join(ended.stderr.split())
    assert not (archive / ".venv").exists()


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and text of everything that a user may read: pages, translations, graphs' notes, strings in the code."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            yield name, "\n".join(each for each in strings if isinstance(each, str))
        elif path.suffix in (".md", ".js") or (path.suffix == ".json" and not name.startswith(("weights/", RECORDS))):
            yield name, path.read_text(encoding="utf-8")


def exists(folder: Path, module: str, command: str | None) -> bool:
    """Whether `python -m module command` can run in a folder that holds the package."""
    path = folder.joinpath(*module.split(".")[1:])
    if (path / "__main__.py").is_file():
        return command is None or command.isupper() or command in WORDS.get(module, [command])
    return path.with_suffix(".py").is_file()


def missing(folder: Path, name: str, text: str) -> list[str]:
    """What a shipped text names and the archive lacks. What a clone has may be named where the text says so."""
    clone = CLONE_ONLY in " ".join(text.split())
    places = [folder, ROOT] if clone else [folder]
    lines = []
    for module, command in () if name.startswith(RECORDS) else MODULE.findall(text):
        if not any(exists(place, module, command or None) for place in places):
            lines.append(f"python -m {module} {command}".rstrip())
    if name != "dev.py":
        lines += [f"dev.py {command}" for command in DEV.findall(text) if command not in DEV_COMMANDS[clone]]
    paths = [path for path in PATH.findall(text) if not PLACEHOLDER.search(path)]
    lines += [path for path in paths if not any((place / path).is_file() for place in places)]
    for link in LINK.findall(text) if name.endswith(".md") else ():
        file, _, heading = link.partition("#")
        if "://" in link:
            continue
        # A node's help page is read from web/docs, whatever its language.
        start = Path("web/docs") if name.startswith("web/docs/") else Path(name).parent
        here = start / file if file else Path(name)
        target = next((place / here for place in places if (place / here).exists()), None)
        if target is None or (heading and heading not in headings(target)):
            lines.append(f"link {link}")
    return lines


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_command_and_page_that_a_shipped_text_names_is_there(archive):
    lines = [f"{name} names {each}" for name, text in texts(archive) for each in missing(archive, name, text)]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("name, text, line", [
    ("docs/page.md", "run `python -m foresight.evaluation train`", "python -m foresight.evaluation train"),
    ("docs/page.md", "run `python -m foresight.lab.graphs --server X`", "python -m foresight.lab.graphs"),
    ("docs/page.md", "see [there](elsewhere.md)", "link elsewhere.md"),
    ("docs/page.md", "see [there](method.md#nowhere)", "link method.md#nowhere"),
    ("nodes/x.py", "a profile (docs/elsewhere.md)", "docs/elsewhere.md"),
    ("README.md", "`python dev.py test`", "dev.py test"),
])  # fmt: skip
def test_a_name_without_its_thing_is_found(archive, name, text, line):
    assert missing(archive, name, text) == [line]


def test_a_page_that_says_so_may_name_what_a_clone_has(archive):
    assert missing(archive, "docs/page.md", f"`lab/graphs/forms.py` is {CLONE_ONLY}") == []
    assert missing(archive, "docs/page.md", f"`lab/graphs/nothing.py` is {CLONE_ONLY}") == ["lab/graphs/nothing.py"]
