"""The mutation run: which faults it plants, against which tests, and what it publishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

cosmic_ray = pytest.importorskip("cosmic_ray")

from foresight.lab.release import mutation  # noqa: E402

SOURCE = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    least: int | None = None

    @property
    def told(self) -> str:
        return f"at least {self.least}"


def within(value: int | None, limits: Limits) -> bool | None:
    return value >= limits.least
"""
TEST = """
from foresight.trials.limits import Limits, within


def test_told():
    assert Limits(1).told == "at least 1"


def test_within():
    assert within(1, Limits(1)) and {assertion}
"""
ENDLESS = "    n = 0\n    while n < 3:\n        n = n + 1\n    return value >= limits.least\n"


@pytest.fixture
def checkout(tmp_path):
    """A repository of one room, one module and one test."""
    root = tmp_path / "checkout"
    for name, text in {
        "__init__.py": "", "trials/__init__.py": "", "trials/limits.py": SOURCE, "tests/conftest.py": "",
        "tests/test_limits.py": TEST.format(assertion="not within(-1, Limits(1))"), "pyproject.toml": "",
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    (root / "equivalent.json").write_text("[]")
    return root


# A process of its own, as the command has one: a fork of a test worker, whose libraries run threads, may hang.
RUN = """
import sys
from pathlib import Path

from foresight.lab.release import mutation, touched

root, known, *arguments = sys.argv[1:]
mutation.ROOT, mutation.CACHE = Path(root), Path(root).parent / "cache"
mutation.EQUIVALENT = mutation.ROOT / "equivalent.json"
mutation.ROOMS, touched.PATIENCE = ("trials",), 1.0
mutation.import_once = lambda: None  # nothing here needs it
if known == "known":
    touched.Forks.run = None  # nothing may be run again
sys.exit(mutation.main(arguments))
"""


def run(root: Path, *arguments: str, known: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(root), "known" if known else "", *arguments]
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def mutate(root: Path, *more: str, known: bool = False) -> dict:
    ended = run(root, "trials", "--out", str(root.parent / "out"), *more, known=known)
    assert ended.returncode == 0, ended.stderr
    return json.loads((root.parent / "out" / "mutation.json").read_text()) | {"said": ended.stdout}


def test_a_fault_is_noticed_named_equivalent_or_published(checkout, tmp_path):
    whole = mutate(checkout)
    counts = whole["rooms"]["trials"]
    # @property removed, >= to >, and to <; no annotation, nothing frozen
    assert counts == {"faults": 3, "planted": 3, "killed": 3, "survived": 0, "equivalent": 0, "score": 1.0}
    assert counts == {"faults": 3} | whole["modules"]["trials/limits.py"]
    assert "| trials | 3 | 3 | 3 | 0 | 0 | 100 % |" in (tmp_path / "out" / "mutation.md").read_text()
    # by the test that calls the function, not by the file's first
    killers = {each["operator"].split("_")[0]: each["test"] for each in whole["faults"]}
    assert killers["core/RemoveDecorator"] == "tests/test_limits.py::test_told"
    assert killers["core/ReplaceComparisonOperator"] == "tests/test_limits.py::test_within"
    assert (checkout / "trials" / "limits.py").read_text() == SOURCE

    assert mutate(checkout, known=True)["rooms"] == whole["rooms"]  # what is known is not planted again


def test_a_survivor_is_shown_until_a_test_kills_it_or_it_is_named_equivalent(checkout, tmp_path):
    test = checkout / "tests" / "test_limits.py"
    test.write_text(TEST.format(assertion="within(2, Limits(1))"))
    (checkout / "trials" / "limits.py").write_text(SOURCE.replace("value >= limits.least", "value > limits.least - 1"))
    whole = mutate(checkout, "--most", "4")
    survivors = [each for each in whole["faults"] if each["outcome"] == "survived"]
    assert whole["rooms"]["trials"]["survived"] == len(survivors) >= 1
    assert survivors[0]["module"] == "trials/limits.py" and "limits.least" in survivors[0]["change"]
    assert survivors[0]["change"] in (tmp_path / "out" / "mutation.md").read_text()

    (checkout / "equivalent.json").write_text(json.dumps([survivors[0] | {"why": "as an example"}]))
    again = mutate(checkout, "--most", "4")["rooms"]["trials"]
    assert (again["equivalent"], again["survived"]) == (1, len(survivors) - 1)
    assert ": as an example\n" in (tmp_path / "out" / "mutation.md").read_text()

    test.write_text(TEST.format(assertion="not within(0, Limits(1)) and not within(-1, Limits(1))"))
    last = mutate(checkout, "--most", "4")["rooms"]["trials"]
    assert (last["killed"], last["equivalent"]) == (3, 1), "what is named equivalent is not planted again"


def test_a_fault_that_never_ends_is_killed(checkout):
    (checkout / "trials" / "limits.py").write_text(SOURCE.replace("    return value >= limits.least\n", ENDLESS))
    whole = mutate(checkout, "--most", "3", "--seed", "1")
    ended = [each["test"] for each in whole["faults"] if each["outcome"] == "killed" and "process" in each["test"]]
    assert ended and all(test == "the process ended with -14" for test in ended)


def test_tests_that_fail_without_a_fault_are_named_and_left_out(checkout):
    (checkout / "tests" / "test_limits.py").write_text(TEST.format(assertion="False"))
    whole = mutate(checkout)
    assert "test_limits.py: tests/test_limits.py::test_within fails without a fault" in whole["said"]
    assert {each["test"] for each in whole["faults"]} == {"", "tests/test_limits.py::test_told"}
    refused = run(checkout, "no/such/room")
    assert refused.returncode == 2 and "no/such/room is neither a room nor a module" in refused.stderr


def test_the_same_seed_takes_the_same_sample_from_each_module_in_proportion():
    modules = ("scoring/detector.py", "scoring/preset.py")
    faults = [each for name in modules for each in mutation.worth_planting(mutation.ROOT, name)]
    first, second, other = (mutation.sample(faults, 20, seed) for seed in (0, 0, 1))
    assert first == second != other and len(first) == 20 and set(first) < set(faults)
    assert first == mutation.sample(faults[::-1], 30, 0)[:20] and len(mutation.sample(faults, 0, 0)) == len(faults)
    share = sum(each.module == "scoring/preset.py" for each in faults) / len(faults)
    assert abs(sum(each.module == "scoring/preset.py" for each in first) - 20 * share) <= 1


def test_a_line_is_of_the_outermost_function_or_method():
    source = "A = 1\n\n@cache\ndef f(x=2):\n    return lambda: 3\n\nclass C:\n    n = 1\n\n    def m(self):\n        1"
    named = [mutation.function_at(source, line) for line in (1, 3, 4, 5, 8, 10, 11)]
    assert named == ["", "f", "f", "f", "", "C.m", "C.m"]


def test_the_tests_of_a_fault_call_its_function_or_are_of_what_imports_its_module():
    def test(name, seconds, *functions):
        return {name: {"seconds": seconds, "functions": list(functions)}}

    recorded = (
        test("a::dear", 3.0, "scoring/detector.py:Detector.observe") | test("a::other", 1.0)
        | test("b::cheap", 1.0, "scoring/detector.py:Detector.observe") | test("c::far", 0.1, "scoring/preset.py:load")
    )  # fmt: skip
    source = (mutation.ROOT / "scoring" / "detector.py").read_text().splitlines()
    line = next(n for n, text in enumerate(source, 1) if "def observe" in text)
    fault = mutation.Fault("scoring/detector.py", line, "core/AddNot", 0)
    assert mutation.tests_for(mutation.ROOT, fault, recorded, 60) == ["b::cheap", "a::dear", "a::other"]
    assert mutation.tests_for(mutation.ROOT, fault, recorded, 2) == ["b::cheap"]
    module = mutation.Fault("scoring/detector.py", 1, "core/AddNot", 0)
    assert mutation.tests_for(mutation.ROOT, module, recorded, 60) == ["b::cheap", "a::dear", "a::other"]
    del recorded["a::dear"], recorded["b::cheap"]
    assert mutation.tests_for(mutation.ROOT, module, recorded, 60) == ["c::far"], "which imports it"
