"""The mutation run: which faults it plants, against which tests, and what it publishes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

cosmic_ray = pytest.importorskip("cosmic_ray")

from cosmic_ray.commands import init  # noqa: E402
from cosmic_ray.work_db import WorkDB, use_db  # noqa: E402

from foresight.lab.release import mutation  # noqa: E402

SOURCE = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    least: int | None = None


def within(value: int | None, limits: Limits) -> bool | None:
    return value >= limits.least
"""
TEST = """
from foresight.trials.limits import Limits, within


def test_within():
    assert within(1, Limits(1)) and {assertion}
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one room, one module and one test."""
    root = tmp_path / "checkout"
    for name, text in {
        "__init__.py": "", "trials/__init__.py": "", "trials/limits.py": SOURCE, "tests/conftest.py": "",
        "tests/test_limits.py": TEST.format(assertion="not within(-1, Limits(1))"),
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    for name, value in {
        "ROOT": root, "CACHE": tmp_path / "cache", "EQUIVALENT": root / "equivalent.json", "ROOMS": ("trials",),
    }.items():  # fmt: skip
        monkeypatch.setattr(mutation, name, value)
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):  # of the tests that it starts; put back afterwards
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    (root / "equivalent.json").write_text("[]")
    return root


def mutate(out: Path) -> dict:
    mutation.main(["trials", "--out", str(out)])
    return json.loads((out / "mutation.json").read_text())


def test_a_fault_is_noticed_named_equivalent_or_published(checkout, tmp_path, monkeypatch, capsys):
    whole = mutate(tmp_path / "out")
    assert whole["rooms"]["trials"] == whole["modules"]["trials/limits.py"]
    counts = whole["rooms"]["trials"]
    assert counts["planted"] == 2 and counts["killed"] + counts["survived"] == 2  # >= to >, and to <: no annotation
    assert counts == {"planted": 2, "killed": 2, "survived": 0, "equivalent": 0, "score": 1.0}
    assert "| trials | 2 | 2 | 0 | 0 | 100 % |" in (tmp_path / "out" / "mutation.md").read_text()

    capsys.readouterr()
    monkeypatch.setattr(mutation, "mutate_and_test", lambda *args: pytest.fail("it was planted before"))
    assert mutate(tmp_path / "out")["rooms"] == whole["rooms"]  # what is known is not planted again
    monkeypatch.undo()


def test_a_survivor_is_shown_until_it_is_named_equivalent(checkout, tmp_path):
    (checkout / "tests" / "test_limits.py").write_text(TEST.format(assertion="within(2, Limits(1))"))
    (checkout / "trials" / "limits.py").write_text(SOURCE.replace("value >= limits.least", "value > limits.least - 1"))
    whole = mutate(tmp_path / "out")
    assert whole["rooms"]["trials"]["survived"] == len(whole["survivors"]) > 0
    first = whole["survivors"][0]
    assert first["module"] == "trials/limits.py" and "limits.least" in first["change"]
    (checkout / "equivalent.json").write_text(json.dumps([first | {"why": "as an example"}]))
    again = mutate(tmp_path / "out")["rooms"]["trials"]
    assert (again["equivalent"], again["survived"]) == (1, whole["rooms"]["trials"]["survived"] - 1)


def test_tests_that_fail_without_a_fault_are_named(checkout):
    (checkout / "tests" / "test_limits.py").write_text(TEST.format(assertion="False"))
    with pytest.raises(ValueError, match="tests/test_limits.py fail without a fault"):
        mutation.main(["trials/limits.py"])
    with pytest.raises(SystemExit):
        mutation.main(["no/such/room"])


def test_the_same_seed_takes_the_same_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(mutation.ROOT)
    module = "scoring/detector.py"
    drawn = []
    for number in range(2):
        with use_db(tmp_path / f"{number}.sqlite", WorkDB.Mode.create) as work:
            init([Path(module)], work, {})
            items = list(mutation.worth_planting(work.work_items, Path(module).read_text()))
            drawn += [[item.mutations for item in mutation.sample(items, module, 20, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == drawn[3] == drawn[4] and drawn[0] != drawn[2] == drawn[5]
    assert len(drawn[0]) == 20 and len(mutation.sample(items, module, 0, 0)) == len(items)


def test_every_module_has_tests_to_run():
    named = {module: mutation.tests_of(module) for module in mutation.modules(mutation.ROOMS)}
    assert named["scoring/detector.py"][0] == "tests/test_detector.py"
    assert named["scoring/inspector.py"], "no test names it, so those of what imports it"
    for tests in named.values():
        assert len(tests) <= mutation.MOST_FILES and all((mutation.ROOT / test).is_file() for test in tests)
    assert {module for module, tests in named.items() if not tests} <= {"nodes/types.py"}  # which holds no decision
