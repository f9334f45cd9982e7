"""Which tests run a function: every test file is run once, and what each of its tests calls of the pack is kept.

Tests run in forks of a process that has imported torch and ComfyUI already, so a run costs what its tests cost. Tests
that start a server or a browser are left out: what they run is in another process.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

IMPORTED = ("torch", "torchvision", "safetensors.torch", "hypothesis", "PIL.Image", "matplotlib.figure", "transformers")
OF_COMFYUI = ("comfy.samplers", "comfy.sd", "comfy.sample", "comfy_api.latest", "comfy_extras.nodes_custom_sampler")
ELSEWHERE = ("comfy_server", "ComfyServer", "playwright", "cosmic_ray")  # words of tests that work in other processes
MEMORY = 24 << 30  # bytes of addresses that a fork may have: a fault may allocate without end
BETWEEN = 120  # seconds that a process may take before the first test, and after each
PATIENCE = 20.0  # seconds that a test may take beside three times its own before it counts as hanging


def import_once() -> None:
    """What nearly all tests import, as tests/conftest.py does it; forks start with it."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = not importlib.import_module("torch").cuda.is_available()
    for name in (*IMPORTED, *OF_COMFYUI):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Watcher:
    """A pytest plugin. tests: seconds of each that passed, and what it called, as "room/module.py:Class.method"; first:
    the first that failed. A test that takes far longer than `usual` says ends the process."""

    def __init__(self, root: Path, tracing: bool, usual: dict[str, float]):
        self.prefix, self.tracing, self.usual = f"{root}{os.sep}", tracing, usual
        self.called: set[tuple[str, str]] = set()
        self.tests: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        self.first = ""

    def _call(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if code.co_filename.startswith(self.prefix):
            self.called.add((code.co_filename, code.co_qualname))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "comfy_server" not in item.fixturenames]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.called = set()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE + 3 * self.usual.get(item.nodeid, 60))
        begin = time.monotonic()
        if self.tracing:
            threading.settrace(self._call)
            sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            signal.alarm(BETWEEN)
            functions = {f"{name.removeprefix(self.prefix)}:{function_name(code)}" for name, code in self.called}
            self.tests[item.nodeid] = {"seconds": round(time.monotonic() - begin, 3), "functions": sorted(functions)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)
            self.first = self.first or (report.nodeid if report.failed else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.first = self.first or report.nodeid

    def passed(self) -> dict[str, dict[str, Any]]:
        return {name: test for name, test in self.tests.items() if name not in self.failed}


def function_name(code: str) -> str:
    """Of a code's qualified name: what is inside a function counts as the function."""
    return code.split(".<locals>")[0]


class Forks:
    """Runs tests of a copy of the checkout, whose folder is named foresight."""

    def __init__(self, copy: Path):
        self.copy = copy
        os.environ |= {"PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, tests: Iterable[str], usual: dict[str, float], tracing: bool = False) -> dict[str, Any]:
        """tests: files or node ids. first: the first that failed, "" where none did; tests: what passed, of which."""
        answer = self.copy.parent / "answer.json"
        answer.unlink(missing_ok=True)
        process = os.fork()
        if not process:
            code = 1
            try:
                code = self._within(list(tests), usual, tracing, answer)
            finally:
                os._exit(code)
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # what it started and did not end
        if not answer.exists():
            return {"first": f"the process ended with {os.waitstatus_to_exitcode(status)}", "tests": {}}
        return json.loads(answer.read_text(encoding="utf-8"))

    def _within(self, tests: list[str], usual: dict[str, float], tracing: bool, answer: Path) -> int:
        os.setsid()
        gc.freeze()  # pytest collects garbage several times, and would look through all that was imported
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(BETWEEN)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with (self.copy.parent / "output.txt").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        for name in [name for name in sys.modules if name.split(".")[0] == "foresight"]:
            del sys.modules[name]
        sys.path.insert(0, str(self.copy.parent))
        sys.dont_write_bytecode = True
        os.chdir(self.copy)
        watcher = Watcher(self.copy, tracing, usual)
        more = [] if tracing else ["-x"]
        code = pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", *more, *tests], plugins=[watcher])
        signal.alarm(0)
        # Where no test failed, pytest itself ended badly: the pack cannot be imported, or asks for the end.
        first = watcher.first or ("" if code in (0, 5) else f"pytest ended with {int(code)}")
        answer.write_text(json.dumps({"first": first, "tests": watcher.passed()}), encoding="utf-8")
        return 0


def record(forks: Forks, root: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What every test of root/tests calls: node id -> seconds, functions. Kept in the folder by file and its text: one
    that changed is run again."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "tests").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if any(word in text for word in ELSEWHERE[1:]):
            continue
        kept = folder / f"{path.stem}.{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        if not kept.exists():
            ran = forks.run([f"tests/{path.name}"], {}, tracing=True)
            if ran["first"]:
                print(f"{path.name}: {ran['first']} fails without a fault; it is left out", flush=True)
            kept.write_text(json.dumps(ran["tests"]), encoding="utf-8")
        whole |= json.loads(kept.read_text(encoding="utf-8"))
    return whole
