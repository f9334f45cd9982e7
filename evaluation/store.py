"""The evidence of one evaluation in one SQLite file: every run of every method, and where and how it was made.

Table `meta`, one row for each time the `run` command was started:

    id        INTEGER, what runs.meta points to
    started   TEXT, UTC, ISO 8601
    command   TEXT, as it was typed
    machine   TEXT, JSON string: what ran it, e.g. "2 CPU cores, no GPU"; one row for each kind that took part
    versions  TEXT, JSON: comfyui, torch, python, foresight
    settings  TEXT, JSON: fingerprint, suite, prompts, seeds, methods, model, steps, sampler, scheduler, cfg, shift,
              tau, delta, scale (the scorer's own), scorer, l2r, detector, ...

Table `runs`, one row for each (prompt_index, prompt, seed, method, settings), which is its unique key: a run that is
added a second time changes nothing.

    suite             TEXT, "demo", "vbench" or the suite file's name
    prompt_index      INTEGER, place in the suite, from 0
    prompt            TEXT
    difficulty        TEXT, group within the suite (demo: easy, medium, hard), "" where there are none
    seed              INTEGER
    method            TEXT, e.g. "base", "efdi", "fixed_step@12", "efdi@tau=+0.04" (evaluation/methods.py)
    settings          TEXT, fingerprint of everything the result depends on besides the key's other columns
    right             INTEGER 0/1: the judge's verdict on the finished clip; NULL without a judge
    predicted_score   REAL, the detector's; on `base` the default detector's, applied to the run's own trace
    final_score       REAL, the scorer's score of the finished clip, decoded by the VAE
    stop_step         INTEGER, step (1-based) at which the detector decided on the first run; NULL: not inspected
    rule              TEXT, the rule that fired then
    accepted          INTEGER 0/1: that decision
    trial             TEXT, in which the run ended: "0", "1", "2", "2->1"
    nfe               INTEGER, all model evaluations, a single frame's counted like a video's
    nfe_single_frame  INTEGER, those of them that were of a single frame
    nfe_plain         INTEGER, evaluations of the plain run
    seconds           REAL, of everything the method needs: sampling, inspection, refinement; not decoding or judging
    seconds_plain     REAL, sampling seconds of the plain run of this prompt and seed
    seconds_inspection REAL, inspection's share of `seconds`; on `base` that of all its steps, not part of `seconds`
    inspections       INTEGER, inspected video steps
    inspections_single_frame INTEGER
    motion            REAL, mean absolute difference of neighbouring frames of the finished clip, 0..1
    measures          TEXT, JSON: other figures of the finished clip by name (the judge's margins; a plug-in's scores)
    trace             TEXT, JSON: [[step, score, sigma or null], ...] of the first run; on `base` of ALL steps
    report            TEXT, JSON: the run report (trials/report.py) of runs that were sampled for the method, else null;
                      on `base` its window is the last step, because every step was scored and nothing decided
    notes             TEXT, JSON: list of strings
    base_seed         INTEGER: this row's clip is the base clip of that seed (nothing was sampled for it); else NULL
    clip              BLOB, animated WebP, at most 256 pixels wide; NULL where base_seed is set or clips are off
    meta              INTEGER, the meta row of the command that made it

`Store.rows` gives them as dictionaries with JSON read and 0/1 as booleans.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..trials.foreign import printable, quoted
from ..trials.report import safe

VERSION = 1
APPLICATION = 0x466F7265  # "Fore": tells our file from any other SQLite database

COLUMNS = {
    "suite": "TEXT NOT NULL", "prompt_index": "INTEGER NOT NULL", "prompt": "TEXT NOT NULL", "difficulty": "TEXT",
    "seed": "INTEGER NOT NULL", "method": "TEXT NOT NULL", "settings": "TEXT NOT NULL", "right": "INTEGER",
    "predicted_score": "REAL", "final_score": "REAL", "stop_step": "INTEGER", "rule": "TEXT", "accepted": "INTEGER",
    "trial": "TEXT", "nfe": "INTEGER", "nfe_single_frame": "INTEGER", "nfe_plain": "INTEGER", "seconds": "REAL",
    "seconds_plain": "REAL", "seconds_inspection": "REAL", "inspections": "INTEGER",
    "inspections_single_frame": "INTEGER", "motion": "REAL", "measures": "TEXT", "trace": "TEXT", "report": "TEXT",
    "notes": "TEXT", "base_seed": "INTEGER", "clip": "BLOB", "meta": "INTEGER",
}  # fmt: skip
KEY = ("prompt_index", "prompt", "seed", "method", "settings")
JSON = ("measures", "trace", "report", "notes")
BOOLEAN = ("right", "accepted")
_QUOTED = {name: f'"{name}"' for name in COLUMNS}  # `right` is a word of SQL
_SCHEMA = f"""
BEGIN;
CREATE TABLE meta (id INTEGER PRIMARY KEY, started TEXT, command TEXT, machine TEXT, versions TEXT, settings TEXT);
CREATE TABLE runs ({", ".join(f"{_QUOTED[name]} {kind}" for name, kind in COLUMNS.items())},
    UNIQUE ({", ".join(KEY)}));
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""
# What a column may hold besides NULL: a damaged file may hold anything anywhere.
_TYPES = {"TEXT": str, "INTEGER": int, "REAL": (int, float), "BLOB": bytes}
_PARSED = {"measures": dict, "trace": list, "report": dict, "notes": list}


class StoreError(Exception):
    """What is wrong with the database, and the way out."""


class Store:
    """Opens, or with `write` creates, the database at `path`. Use as a context manager.

    Any number of processes may read while one writes; a second writer is refused. Raises StoreError.
    """

    def __init__(self, path: Path, write: bool = False):
        self.path = Path(path)
        self._lock: sqlite3.Connection | None = None
        if not write and not self.path.exists():
            raise StoreError(f"there is no database {self.path}: make one with `python -m foresight.evaluation run`.")
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = self._hold_lock()
            # Also a reader opens it for writing: a process that was killed leaves half a change behind, which the next
            # to open the file has to undo. `query_only` keeps it from changing anything else.
            mode = "rwc" if write else "rw"
            self._database = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise StoreError(f"{self.path} cannot be opened: {error}. Is its folder there and writable?") from None
        with ExitStack() as undo:
            undo.callback(self.close)  # a store that turns out wrong, or is cancelled here, must not keep the lock
            self._check(write)
            if not write:
                self._database.execute("PRAGMA query_only = ON")
            undo.pop_all()

    def _hold_lock(self) -> sqlite3.Connection:
        """A lock of its own beside the database, so that readers are not kept out; it goes with the process, however
        that ends."""
        lock = sqlite3.connect(f"{self.path}.lock", timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            if "locked" not in str(error):
                raise
            raise StoreError(
                f"another process is writing to {self.path}: wait for it, or give this run another --out."
            ) from None
        return lock

    def _check(self, write: bool) -> None:
        with self._explained():
            application, version = (
                self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            empty = not self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if empty and write:
                self._database.executescript(_SCHEMA)
                return
        if empty and not application:
            raise StoreError(f"{self.path} holds nothing yet: fill it with `python -m foresight.evaluation run`.")
        if application != APPLICATION:
            raise StoreError(f"{self.path} is not a database of this evaluation: name another file or folder.")
        if version != VERSION:
            raise StoreError(
                f"{self.path} has schema version {version}, this Foresight reads {VERSION}: use the Foresight that "
                "made it, or another --out. Nothing was changed."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors in the user's words. What was added before stays."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text:
                way_out = "free some space and run the same command again: it goes on where it stopped."
            elif "decode" in text:
                way_out = "it is damaged; give another --out."
            elif "readonly" in text:
                way_out = "make the file and its folder writable, or give another --out."
            elif "locked" in text:
                way_out = "another program is using it; close that and run the same command again."
            else:
                way_out = "run the same command again, or give another --out."
            raise StoreError(f"{self.path}: {text}: {way_out}") from None
        except (sqlite3.Error, UnicodeDecodeError) as error:  # sqlite3 fails to decode what is said of a broken schema
            problem = printable(str(error))
            raise StoreError(f"{self.path}: {problem}: it is damaged or no SQLite file; give another --out.") from None

    def begin(self, command: str, machine: Any, versions: Any, settings: Any) -> int:
        """Notes that a command was started; its id goes with every row it adds."""
        words = (safe(command), *map(_json, (machine, versions, settings)))
        values = (datetime.now(UTC).isoformat(timespec="seconds"), *words)
        with self._explained(), self._database:
            return self._database.execute(
                "INSERT INTO meta (started, command, machine, versions, settings) VALUES (?, ?, ?, ?, ?)", values
            ).lastrowid

    def add(self, rows: Iterable[dict[str, Any]], meta: int | None = None) -> None:
        """Adds runs, all or none of them; one whose key is there already is passed over. Unknown columns: ValueError;
        values that SQLite cannot keep: StoreError. Numbers that are not finite become null."""
        rows = [row | {"meta": meta} for row in rows]
        for row in rows:
            if unknown := row.keys() - COLUMNS:
                raise ValueError(f"a run has no column {', '.join(sorted(unknown))}; columns are {', '.join(COLUMNS)}.")
        command = (
            f"INSERT INTO runs ({', '.join(_QUOTED.values())}) VALUES ({', '.join('?' * len(COLUMNS))}) "
            f"ON CONFLICT ({', '.join(KEY)}) DO NOTHING"
        )
        values = [[_kept(name, row) for name in COLUMNS] for row in rows]
        with self._explained(), self._database:
            self._database.executemany(command, values)

    def remove(self, rows: Iterable[dict[str, Any]]) -> None:
        """Takes these rows of `rows` away."""
        keys = [[row[name] for name in KEY] for row in rows]
        with self._explained(), self._database:
            self._database.executemany(f"DELETE FROM runs WHERE {' AND '.join(f'{name} = ?' for name in KEY)}", keys)

    def rows(self, settings: str | None = None, clips: bool = False, **equal: Any) -> list[dict[str, Any]]:
        """Runs in the order of the suite, then seed, then method. settings: only of this fingerprint; equal: only where
        these columns have these values. Without `clips` rows have no "clip"."""
        columns = [name for name in COLUMNS if clips or name != "clip"]
        if settings is not None:
            equal["settings"] = settings
        if unknown := equal.keys() - COLUMNS:
            raise ValueError(f"no column {', '.join(sorted(unknown))}; columns are {', '.join(COLUMNS)}.")
        where = f" WHERE {' AND '.join(f'{_QUOTED[name]} = ?' for name in equal)}" if equal else ""
        chosen = ", ".join(_QUOTED[name] for name in columns)
        query = f"SELECT {chosen} FROM runs{where} ORDER BY prompt_index, seed, method"
        with self._explained():
            rows = self._database.execute(query, list(equal.values())).fetchall()
        return [self._row(dict(zip(columns, values, strict=True))) for values in rows]

    def clip(self, row: dict[str, Any]) -> bytes | None:
        """The animated WebP of a row of `rows`, also where it is a base clip; None where none was kept."""
        shared = {"method": "base", "seed": row["base_seed"]} if row["base_seed"] is not None else {}
        key = [(row | shared)[name] for name in KEY]
        with self._explained():
            row = self._database.execute(
                f"SELECT clip FROM runs WHERE {' AND '.join(f'{name} = ?' for name in KEY)}", key
            ).fetchone()
        return row and row[0]

    def metas(self) -> list[dict[str, Any]]:
        """The commands that were started, with JSON read."""
        names = ("id", "started", "command", "machine", "versions", "settings")
        with self._explained():
            rows = self._database.execute(f"SELECT {', '.join(names)} FROM meta ORDER BY id").fetchall()
        return [
            {name: self._parsed(name, value) if name in names[3:] else value
             for name, value in zip(names, row, strict=True)}
            for row in rows
        ]  # fmt: skip

    def _parsed(self, name: str, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError):
            raise StoreError(f"{self.path}: a {name} is no JSON: it is damaged; give another --out.") from None

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        for name, value in row.items():
            kinds = _TYPES[COLUMNS[name].split()[0]]
            if value is not None and isinstance(value, kinds) and name in JSON:
                value, kinds = self._parsed(name, value), _PARSED[name]
            if not isinstance(value, (kinds, type(None))):
                raise StoreError(
                    f"{self.path}: a run's {name} is {quoted(value)}: it is damaged; give another --out."
                )
            row[name] = bool(value) if name in BOOLEAN and value is not None else value
        return row

    def fingerprints(self) -> list[str]:
        """The settings of the runs, in the order in which they came."""
        with self._explained():
            rows = self._database.execute("SELECT settings FROM runs GROUP BY settings ORDER BY min(rowid)")
            return [row[0] for row in rows]

    def close(self) -> None:
        self._database.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _json(value: Any) -> str:
    return json.dumps(safe(value), ensure_ascii=False, allow_nan=False)


def _kept(name: str, row: dict[str, Any]) -> Any:
    """A run's value as its column keeps it. StoreError where it cannot be kept, before anything is written."""
    value, problem = row.get(name), None
    if name in JSON and value is not None:
        try:
            return _json(value)
        except RecursionError:
            problem = "it is nested too deep"
    elif isinstance(value, str) and safe(value) != value:
        problem = "it holds half a character, which no file can: take it out"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        problem = "whole numbers here go from -2^63 to 2^63 - 1"
    elif not isinstance(value, (str, int, float, bytes, type(None))):
        problem = "it is no text, number or bytes"
    if problem:
        key = ", ".join(f"{each} {quoted(row.get(each))}" for each in ("prompt_index", "seed", "method"))
        raise StoreError(f"the run of {key} cannot be kept: {name} is {quoted(value)}, and {problem}.")
    return value
