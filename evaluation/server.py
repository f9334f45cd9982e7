"""A ComfyUI server as a process, and its HTTP API as plain calls (standard library only).

Used by the tests, `dev.py`, the demo client and the evaluation suites.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import socket
from typing import Any

Prompt = dict[str, dict[str, Any]]


class PromptRejected(ValueError):
    """ComfyUI's validation refused the prompt. `node_errors` maps node id to its errors."""

    def __init__(self, body: dict[str, Any]):
        self.node_errors: dict[str, Any] = body.get("node_errors") or {}
        lines = [body.get("error", {}).get("message", "prompt refused")]
        for id, node in self.node_errors.items():
            lines += [f"node {id} ({node['class_type']}): {e['message']}: {e['details']}" for e in node["errors"]]
        super().__init__("\n".join(lines))


class ExecutionFailed(RuntimeError):
    """A node raised while running. Carries ComfyUI's report of it: node_id, node_type, exception_message, traceback."""

    def __init__(self, report: dict[str, Any]):
        self.report = report
        trace = "".join(report.get("traceback", []))
        where = f"node {report.get('node_id')} ({report.get('node_type')})"
        super().__init__(f"{where}: {report.get('exception_message')}\n{trace}")


class Interrupted(RuntimeError):
    """The run was cancelled."""


class NotStarted(RuntimeError):
    """The ComfyUI process ended, or gave no answer in time. Says so, with the end of its log where there is one."""


class ComfyClient:
    """The API of a running ComfyUI at `url`, for example http://127.0.0.1:8188."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def _ask(self, path: str, *content: Any) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, *content), timeout=60) as answer:
            return answer.read()

    def get(self, path: str, **query: str) -> bytes:
        return self._ask(path + (f"?{urllib.parse.urlencode(query)}" if query else ""))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        return self._ask(path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def system_stats(self) -> dict[str, Any]:
        return json.loads(self.get("/system_stats"))

    def object_info(self) -> dict[str, Any]:
        return json.loads(self.get("/object_info"))

    def submit(self, prompt: Prompt, targets: Sequence[str] = (), client_id: str | None = None) -> str:
        """Queue a prompt (API form) and return its id at once. Raises PromptRejected.

        targets: the output nodes to run, where not all of them. client_id: of the page that hears of it, if any.
        """
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        if targets:
            body["partial_execution_targets"] = list(targets)
        try:
            return json.loads(self.post("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(json.load(error)) from None

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """The history entry of a finished prompt. Raises ExecutionFailed, Interrupted or TimeoutError."""
        deadline = time.monotonic() + timeout
        while not (history := json.loads(self.get(f"/history/{prompt_id}"))):
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {prompt_id} did not finish within {timeout:.0f} s")
            time.sleep(0.05)
        entry = history[prompt_id]
        for kind, report in entry["status"]["messages"]:
            if kind == "execution_error":
                raise ExecutionFailed(report)
            if kind == "execution_interrupted":
                raise Interrupted(f"cancelled in node {report.get('node_id')} ({report.get('node_type')})")
        return entry

    def queue(self, prompt: Prompt, timeout: float = 600.0, targets: Sequence[str] = ()) -> dict[str, Any]:
        """Run a prompt to its end and return its history entry; `entry["outputs"]` maps node id to its ui outputs."""
        return self.wait(self.submit(prompt, targets), timeout)

    def interrupt(self) -> None:
        """Cancel what is running now."""
        self.post("/interrupt", {})

    def view(self, file: dict[str, str]) -> bytes:
        """The bytes of an output file as the history names it: {"filename", "subfolder", "type"}."""
        return self.get("/view", **{key: file[key] for key in ("filename", "subfolder", "type")})


def seconds(entry: dict[str, Any]) -> float:
    """How long a finished prompt ran, by the server's clock."""
    times = {kind: report["timestamp"] for kind, report in entry["status"]["messages"]}
    return (times["execution_success"] - times["execution_start"]) / 1000


class ComfyServer(ComfyClient):
    """A ComfyUI process with one pack linked into a base directory of its own.

    Use as a context manager, or call `start` and `stop`. With `log=None` the process writes to this one's output,
    otherwise to that file. `cpu=None` asks the interpreter's torch whether there is a CUDA device.
    `variables` are added to the process's environment.
    """

    def __init__(
        self, comfyui: Path, base: Path, pack: Path, python: str = sys.executable, port: int = 0,
        log: Path | None = None, cpu: bool | None = None, arguments: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.base, self.log = base, log
        self.environment = os.environ | dict(variables or {})
        port = port or free_port()
        super().__init__(f"http://127.0.0.1:{port}")
        cpu = not has_cuda(python) if cpu is None else cpu
        self.command = [
            python, "-u", str(comfyui / "main.py"), "--base-directory", str(base), "--port", str(port),
            "--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}", "--disable-auto-launch",
            *(["--cpu"] if cpu else []), *arguments,
        ]  # fmt: skip
        for folder in ("models", "input", "output", "user", "custom_nodes"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        link(pack, base / "custom_nodes" / "foresight")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        return self.base / "output"

    def start(self, timeout: float = 300.0) -> ComfyServer:
        """Start the process and wait until it answers. Raises NotStarted if it does not."""
        stream = self.log.open("wb") if self.log else None
        try:
            self.process = subprocess.Popen(
                self.command, cwd=self.base, env=self.environment, stdout=stream, stderr=subprocess.STDOUT
            )
        finally:
            if stream:
                stream.close()
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.system_stats()
                return self
            except (urllib.error.URLError, ConnectionError):
                code = self.process.poll()
                if code is not None or time.monotonic() > deadline:
                    self.stop()
                    what = f"gave no answer in {timeout:.0f} s" if code is None else f"ended with code {code}"
                    raise NotStarted(f"ComfyUI {what}\n{self.log_tail()}".rstrip()) from None
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def log_tail(self, lines: int = 60) -> str:
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_cuda(python: str) -> bool:
    check = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([python, "-c", check], stderr=subprocess.DEVNULL).returncode == 0


def link(target: Path, place: Path) -> None:
    """Make `place` lead to the folder `target`; a junction on Windows, where symbolic links need extra rights."""
    if os.path.lexists(place):
        if place.resolve() == target.resolve():
            return
        place.rmdir() if os.name == "nt" else place.unlink()
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(place))
    else:
        place.symlink_to(target, target_is_directory=True)
