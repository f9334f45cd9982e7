"""The command that breaks our files and requests: a few of each find no fault, and faults that are put in are found."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from foresight.files.fields import FileError
from foresight.lab.release import fuzz
from foresight.lab.release.fuzz import FAULTS, FILES, ROOT, ROUTES, fuzz_files, fuzzed

PRESET = FILES["detector preset"]


def test_a_few_hostile_inputs_of_each_kind_find_no_fault():
    found = fuzzed(inputs=25, seed=3)
    assert found.keys() == {*FILES, *ROUTES}
    for name, outcome in found.items():
        assert outcome.counts["read"] + outcome.counts["refused"] == 25 and not outcome.faults, (name, outcome)


def test_the_same_seed_makes_the_same_inputs():
    def made(seed):
        inputs = []
        fuzz_files("preset", replace(PRESET, read=lambda path: inputs.append(path.read_bytes())), 40, seed)
        return inputs

    assert made(1) == made(1) != made(2) and len(set(made(1))) > 20


def broken(read_good, raised):
    """A reader that reads the first, good, file and then fails."""
    reads = iter([read_good])

    def read(path):
        next(reads, raised)()

    return replace(PRESET, read=read)


def fails(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("error, kind", [
    (KeyError("x"), "crashes"), (OverflowError(), "crashes"), (FileError("it is wrong"), "unnamed"),
    (ValueError("a.json is wrong"), "unnamed"), (FileError("a.json: \ud83d"), "unnamed"),
])  # fmt: skip
def test_a_fault_of_a_reader_is_found(error, kind):
    outcome = fuzz_files("preset", broken(lambda: None, fails(error)), 3, 1)
    assert outcome.counts[kind] == 3 and type(error).__name__ in outcome.faults[0]
    assert not sum(outcome.counts[other] for other in FAULTS if other != kind)


@pytest.mark.parametrize("stuck", [False, True])
def test_an_input_that_takes_long_is_found_and_given_up(monkeypatch, stuck):
    monkeypatch.setattr(fuzz, "SLOW", 0.05)
    monkeypatch.setattr(fuzz, "STUCK", 1)
    outcome = fuzz_files("preset", broken(lambda: None, lambda: time.sleep(60 if stuck else 0.1)), 1, 1)
    assert outcome.counts["hangs"] == 1 and outcome.counts["read"] == (not stuck) and outcome.slowest < 30


def test_what_is_published_is_of_every_kind_and_without_a_fault():
    published = json.loads((ROOT / "docs" / "results" / "fuzz.json").read_text(encoding="utf-8"))
    assert published["kinds"].keys() == {*FILES, *ROUTES}
    assert all(row["inputs"] >= 2000 and not any(row[kind] for kind in FAULTS) for row in published["kinds"].values())
