"""Puts ComfyUI on the path, on the CPU where there is no GPU, and starts one real server for the tests that ask."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from foresight.evaluation.results import environment
from foresight.evaluation.server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".foresight" / "comfyui-0.3.75").resolve()

# No test fails by time: where others share the cores, all of it takes long.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

if (COMFYUI / "main.py").exists():
    # In front, because this checkout also has a folder named `nodes`, which ComfyUI's `import nodes` must not find.
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", type=Path, help="write what is found of versions and models to this JSON file")
    parser.addoption("--interface", action="store_true", help="keep the nodes' inputs and outputs as they are now")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What the tests of compatibility have found, as lab/release/compatibility.py reads it; other versions stay."""
    path = session.config.getoption("--compatibility")
    if path is None or hasattr(session.config, "workerinput"):  # workers tell the process that started them
        return
    ran = environment("python dev.py compatibility")
    found: dict = {"models": {}, "families": {}, "in the path": {}}
    for outcome in ("passed", "failed", "skipped"):
        for report in session.config.pluginmanager.get_plugin("terminalreporter").stats.get(outcome, []):
            named = dict(report.user_properties)
            if {"model", "check", "sampler"} <= named.keys():
                checks = found["models"].setdefault(named["model"], {}).setdefault(named["check"], {})
                checks[named["sampler"]] = outcome
            elif "row" in named:
                found["in the path"][named["row"]] = named.get("outcome", "holds") if outcome == "passed" else outcome
            elif "family" in named:
                features = found["families"].setdefault(named["family"], {})
                if "feature" in named:
                    works = named.get("outcome", "works") if outcome == "passed" else outcome
                    features[named["feature"]] = works
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = results.get(ran["comfyui"], {})
    results[ran["comfyui"]] = before | {"environment": ran} | {part: told for part, told in found.items() if told}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def pytest_collection_finish(session: pytest.Session) -> None:
    """ComfyUI collects garbage at each load of a model whose clone is gone; half a second, where it looks through all
    that is imported here."""
    gc.freeze()


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI folder under test."""
    assert (COMFYUI / "main.py").exists(), f"no ComfyUI in {COMFYUI}: run `python dev.py test`, or set COMFYUI_PATH"
    return COMFYUI


@pytest.fixture(scope="session")
def comfy_server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with this pack; shared by all tests, so a test must not count on an empty queue or output."""
    base = tmp_path_factory.mktemp("comfyui")
    server = ComfyServer(
        comfyui, base, ROOT, log=base / "server.log", cpu=not torch.cuda.is_available(),
        arguments=("--disable-api-nodes",),
    )  # fmt: skip
    with server:
        yield server
