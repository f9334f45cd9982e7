"""The evidence database: what goes in comes out, once, and whatever is wrong with the file is said in plain words."""

from __future__ import annotations

import math
import random
import sqlite3
import subprocess
import sys

import pytest

from foresight.evaluation.store import COLUMNS, VERSION, Store, StoreError


def run(**changes) -> dict:
    return {
        "suite": "demo", "prompt_index": 0, "prompt": "ein Kreis, 红色的圆", "difficulty": "easy", "seed": 1,
        "method": "base", "settings": "abc", "right": True, "accepted": False, "final_score": 0.2,
        "trace": [[1, 0.1, 0.9], [2, 0.2, None]], "measures": {"count": 0.5}, "notes": [], "clip": b"webp", **changes,
    }  # fmt: skip


def test_rows_come_back_as_they_went_in(tmp_path):
    with Store(tmp_path / "a" / "runs.sqlite", write=True) as store:
        meta = store.begin("the command", {"cores": 2}, {"torch": "2"}, {"steps": 50})
        store.add([run(seed=2), run(), run(method="efdi", base_seed=1, clip=None, right=None)], meta)
    with Store(tmp_path / "a" / "runs.sqlite") as store:
        rows = store.rows()
        assert [(row["seed"], row["method"]) for row in rows] == [(1, "base"), (1, "efdi"), (2, "base")]
        first = rows[0]
        assert first.keys() == COLUMNS.keys() - {"clip"}
        assert first | {"clip": b"webp"} == first | run()
        assert first["right"] is True and first["accepted"] is False and rows[1]["right"] is None
        assert store.rows(clips=True)[0]["clip"] == b"webp"
        assert store.clip(rows[1]) == store.clip(rows[0]) == b"webp"
        assert [row["method"] for row in store.rows(settings="abc", method="efdi")] == ["efdi"]
        assert store.fingerprints() == ["abc"]
        assert store.metas()[0]["settings"] == {"steps": 50} and first["meta"] == meta


def test_the_same_run_twice_is_kept_once(tmp_path):
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        store.add([run(), run(final_score=0.9)])
        store.add([run(final_score=0.9), run(settings="other")])
        assert [row["final_score"] for row in store.rows()] == [0.2, 0.2]
        assert len(store.rows(settings="abc")) == 1


def test_what_is_removed_is_gone_and_nothing_else(tmp_path):
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        store.add([run(), run(seed=8), run(settings="other")])
        store.remove(row for row in store.rows() if row["seed"] == 8)
        assert [(row["seed"], row["settings"]) for row in store.rows()] == [(1, "abc"), (1, "other")]
        store.add([run(seed=8)])
        assert len(store.rows()) == 3


def test_an_unknown_column_is_named(tmp_path):
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        with pytest.raises(ValueError, match="colour"):
            store.add([run(colour="red")])
        with pytest.raises(ValueError, match="colour"):
            store.rows(colour="red")


def test_a_database_of_another_version_is_refused_unchanged(tmp_path):
    path = tmp_path / "runs.sqlite"
    Store(path, write=True).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    for write in (False, True):
        with pytest.raises(StoreError, match=f"version {VERSION + 1}.*reads {VERSION}"):
            Store(path, write=write)
    assert path.read_bytes() == before


def test_other_files_are_refused(tmp_path):
    text, other = tmp_path / "text", tmp_path / "other.sqlite"
    text.write_text("no database, but long enough to look like something " * 9)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE photos (name)")
    with pytest.raises(StoreError, match="no SQLite file"):
        Store(text, write=True)
    with pytest.raises(StoreError, match="not a database of this evaluation") as refused:
        Store(other, write=True)
    with pytest.raises(StoreError, match="not a database of this evaluation"):  # the first refusal gave the lock back
        Store(other, write=True)
    assert refused.tb  # until here it kept the first store alive, so that only closing it can have freed the lock
    with pytest.raises(StoreError, match="there is no database.*evaluation run"):
        Store(tmp_path / "nowhere.sqlite")
    assert not (tmp_path / "nowhere.sqlite").exists()


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    path = tmp_path / "runs.sqlite"
    with Store(path, write=True) as store:
        store.add([run()])
        (pages,) = store._database.execute("PRAGMA page_count").fetchone()
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full.*free some space and run the same command again"):
            store.add([run(seed=seed, clip=b"x" * 100_000) for seed in range(2, 5)])
        assert [row["seed"] for row in store.rows()] == [1]
    with Store(path, write=True) as store:
        store.add([run(seed=2)])
        assert [row["seed"] for row in store.rows()] == [1, 2]


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    path = tmp_path / "runs.sqlite"
    other = f"from foresight.evaluation.store import Store; Store({str(path)!r}, write=True)"
    with Store(path, write=True) as store:
        store.add([run()])
        refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        assert "another process is writing" in refused.stderr and refused.returncode
        with Store(path) as reader:
            assert len(reader.rows()) == 1
        store.add([run(seed=2)])
    subprocess.run([sys.executable, "-c", other], check=True)
    assert len(Store(path).rows()) == 2


def test_a_read_only_database_is_said_to_be_one(tmp_path):
    path = tmp_path / "runs.sqlite"
    Store(path, write=True).close()
    with Store(path) as store, pytest.raises(StoreError, match="readonly.*writable"):
        store.add([run()])


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be opened.*writable"):
        Store(tmp_path / "file" / "runs.sqlite", write=True)


NESTED = []
for _ in range(10_000):
    NESTED = [NESTED]
KILLED = """
import os, signal, sqlite3, sys
from foresight.evaluation.store import Store
path, at = sys.argv[1:]
connect = sqlite3.connect
def traced(*arguments, **keywords):
    database = connect(*arguments, **keywords)
    database.set_trace_callback(lambda statement: at in statement and os.kill(os.getpid(), signal.SIGKILL))
    return database
sqlite3.connect = traced
store = Store(path, write=True)
store._database.execute("PRAGMA cache_size = 1")  # what does not fit goes to the file before it is whole
row = {"suite": "demo", "prompt_index": 0, "prompt": "p", "method": "base", "settings": "a", "clip": b"x" * 100_000}
store.add([row | {"seed": seed} for seed in range(2, 9)])
"""
MADE = ("CREATE TABLE meta", "CREATE TABLE runs", "user_version =")


@pytest.mark.parametrize("at", [*MADE, "INSERT INTO runs", "COMMIT"])
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_killed_process_leaves_a_store_that_opens(tmp_path, at, write, there):
    path = tmp_path / "runs.sqlite"
    if there:
        with Store(path, write=True) as store:
            store.add([run()])
    done = subprocess.run([sys.executable, "-c", KILLED, path, at], capture_output=True, text=True)
    assert done.returncode == (0 if there and at in MADE else -9)
    try:
        with Store(path, write=write) as store:
            assert [row["seed"] for row in store.rows() if row["seed"] < 2] == [1] * there
            if write:
                store.add([run(seed=3)])
    except StoreError as error:  # nothing was made yet
        assert not write and not there and "holds nothing yet: fill it with" in str(error)


def test_a_journal_of_a_killed_process_is_undone_by_whoever_reads(tmp_path):
    path = tmp_path / "runs.sqlite"
    with Store(path, write=True) as store:
        store.add([run()])
    begun = KILLED.replace("store.add(", "store._database.execute('BEGIN'); store.add(") + "os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", begun.replace("COMMIT", "never"), path, "COMMIT"], check=False)
    assert path.with_name("runs.sqlite-journal").stat().st_size  # half a change is in the file
    with Store(path) as reader:
        assert [row["seed"] for row in reader.rows()] == [1]
        with pytest.raises(StoreError, match="readonly"):
            reader.add([run(seed=2)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_kept_as_null(tmp_path, value):
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        store.begin("evaluation \ud83d", {"cores": value}, {}, {"tau": value})
        store.add([run(trace=[[1, value, None]], measures={"count": value}, report={"a": [value]}, notes=["\ud83d"])])
        (row,) = store.rows()
        assert (row["trace"], row["measures"], row["report"]) == ([[1, None, None]], {"count": None}, {"a": [None]})
        assert store.metas()[0]["settings"] == {"tau": None}


@pytest.mark.parametrize("column, value, said", [
    ("prompt", "a \ud83d", "half a character"), ("method", "\udc00", "half a character"),
    ("seed", 2**63, "2\\^63"), ("nfe", -(2**63) - 1, "2\\^63"), ("rule", object(), "no text"),
    ("prompt_index", [1], "no text"),
    ("trace", NESTED, "nested"),
])  # fmt: skip
def test_a_value_that_cannot_be_kept_is_named_and_nothing_is_written(tmp_path, column, value, said):
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        with pytest.raises(StoreError, match=f"the run of prompt_index .* cannot be kept: {column} is .*{said}"):
            store.add([run(), run(seed=2) | {column: value}])
        assert store.rows() == []


@pytest.mark.parametrize("column, value", [
    ("trace", "{"), ("trace", "7"), ("report", "[" * 100_000), ("measures", b"\xff"), ("notes", "{}"), ("seed", "x"),
    ("right", "yes"), ("final_score", b"1"), ("prompt", b"\xff\xfe"), ("clip", "text"),
    ("prompt", "CAST(X'FF' AS TEXT)"),
])  # fmt: skip
def test_a_damaged_value_is_said_to_be_one(tmp_path, column, value):
    path = tmp_path / "runs.sqlite"
    with Store(path, write=True) as store:
        store.add([run()])
    with sqlite3.connect(path) as database:
        if str(value).startswith("CAST"):
            database.execute(f"UPDATE runs SET {column} = {value}")
        else:
            database.execute(f'UPDATE runs SET "{column}" = ?', [value])
    with Store(path) as store, pytest.raises(StoreError, match=r"runs\.sqlite.*damaged"):
        store.rows(clips=True)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_damaged_is_said_in_the_stores_own_words(tmp_path, seed):
    path, chance = tmp_path / "runs.sqlite", random.Random(seed)
    with Store(path, write=True) as store:
        store.add([run(seed=n) for n in range(20)], store.begin("c", {}, {}, {}))
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 3, 30))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.choice((len(content), chance.randrange(len(content))))])
        try:
            with Store(path, write=bool(chance.randrange(2))) as store:
                store.rows(clips=True), store.metas(), store.fingerprints()
        except StoreError as error:
            assert "runs.sqlite" in str(error)
