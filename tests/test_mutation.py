"""The mutation run: which faults it plants, against which tests, and what it publishes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

cosmic_ray = pytest.importorskip("cosmic_ray")

from foresight.lab.release import mutation, touched  # noqa: E402

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
def checkout(tmp_path, monkeypatch):
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
    for name, value in {
        "ROOT": root, "CACHE": tmp_path / "cache", "EQUIVALENT": root / "equivalent.json", "ROOMS": ("trials",),
    }.items():  # fmt: skip
        monkeypatch.setattr(mutation, name, value)
    monkeypatch.setattr(mutation, "import_once", lambda: None)  # nothing here needs it
    monkeypatch.setattr(touched, "PATIENCE", 1.0)
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"):  # put back afterwards
        monkeypatch.setenv(name, "1")
    (root / "equivalent.json").write_text("[]")
    return root


def mutate(out: Path, *more: str) -> dict:
    mutation.main(["trials", "--out", str(out), *more])
    return json.loads((out / "mutation.json").read_text())


def test_a_fault_is_noticed_named_equivalent_or_published(checkout, tmp_path, monkeypatch):
    whole = mutate(tmp_path / "out")
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

    monkeypatch.setattr(touched.Forks, "run", lambda *args, **kwargs: pytest.fail("it was run before"))
    assert mutate(tmp_path / "out")["rooms"] == whole["rooms"]  # what is known is not planted again


def test_a_survivor_is_shown_until_a_test_kills_it_or_it_is_named_equivalent(checkout, tmp_path):
    test = checkout / "tests" / "test_limits.py"
    test.write_text(TEST.format(assertion="within(2, Limits(1))"))
    (checkout / "trials" / "limits.py").write_text(SOURCE.replace("value >= limits.least", "value > limits.least - 1"))
    whole = mutate(tmp_path / "out", "--most", "4")
    survivors = [each for each in whole["faults"] if each["outcome"] == "survived"]
    assert whole["rooms"]["trials"]["survived"] == len(survivors) >= 1
    assert survivors[0]["module"] == "trials/limits.py" and "limits.least" in survivors[0]["change"]
    assert survivors[0]["change"] in (tmp_path / "out" / "mutation.md").read_text()

    (checkout / "equivalent.json").write_text(json.dumps([survivors[0] | {"why": "as an example"}]))
    again = mutate(tmp_path / "out", "--most", "4")["rooms"]["trials"]
    assert (again["equivalent"], again["survived"]) == (1, len(survivors) - 1)
    assert ": as an example\n" in (tmp_path / "out" / "mutation.md").read_text()

    test.write_text(TEST.format(assertion="not within(0, Limits(1)) and not within(-1, Limits(1))"))
    last = mutate(tmp_path / "out", "--most", "4")["rooms"]["trials"]
    assert (last["killed"], last["equivalent"]) == (3, 1), "what is named equivalent is not planted again"


def test_a_fault_that_never_ends_is_killed(checkout, tmp_path):
    (checkout / "trials" / "limits.py").write_text(SOURCE.replace("    return value >= limits.least\n", ENDLESS))
    whole = mutate(tmp_path / "out", "--most", "3", "--seed", "1")
    ended = [each["test"] for each in whole["faults"] if each["outcome"] == "killed" and "process" in each["test"]]
    assert ended and all(test == "the process ended with -14" for test in ended)


def test_tests_that_fail_without_a_fault_are_named_and_left_out(checkout, tmp_path, capsys):
    (checkout / "tests" / "test_limits.py").write_text(TEST.format(assertion="False"))
    whole = mutate(tmp_path / "out")
    assert "test_limits.py: tests/test_limits.py::test_within fails without a fault" in capsys.readouterr().out
    assert {each["test"] for each in whole["faults"]} == {"", "tests/test_limits.py::test_told"}
    with pytest.raises(SystemExit):
        mutation.main(["no/such/room"])


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
