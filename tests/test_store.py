"""The evidence database: what goes in comes out, once, and whatever is wrong with the file is said in plain words."""

from __future__ import annotations

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
