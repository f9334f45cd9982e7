"""Breaks every kind of file of ours and every request to the panel: ``python -m foresight.lab.release.fuzz``.

For each kind it makes hostile inputs from one good one (bytes flipped, cut or put in; entries and headers that are
absurd, missing, huge or nested) and reads them as the nodes and commands do. What is read is used once. Nothing may be
raised but a refusal that names the file, nothing may take more than 2 seconds, no request may end in a 5xx. An input is
made from the seed, its kind and its number alone, so that one that fails can be made again. Writes
docs/results/fuzz.json and fuzz.md; ends with 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from aiohttp.test_utils import TestServer

from ...evaluation.comfyui import load_comfyui
from ...evaluation.results import environment, publish
from ...evaluation.store import StoreError
from ...panel.routes import add_routes, addressed
from ...panel.runs import RunStore
from ...refiner.profiles import ProfileError
from .fuzz_kinds import FILES, ROUTES, FileKind, Request, Sent

ROOT = Path(__file__).resolve().parents[2]
SLOW = 2.0  # seconds
STUCK = 20  # seconds after which an input is given up
FAULTS = ("crashes", "hangs", "unnamed")
@dataclass
class Outcome:
    """What became of a kind's inputs. faults: the first ones, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def fault(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.faults = [*self.faults, what][:5]


class Stuck(Exception):
    """An input took too long, and was given up."""


@contextmanager
def given_up_after(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stuck

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz_files(name: str, kind: FileKind, inputs: int, seed: int) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        path = Path(folder, kind.name)
        kind.write(path)
        kind.read(path)  # a good one is read
        good = path.read_bytes()
        for number in range(inputs):
            path.write_bytes(kind.broken(good, random.Random(f"{seed}/{name}/{number}")))
            begin, said = time.monotonic(), None
            try:
                with given_up_after(STUCK):
                    kind.read(path)
                outcome.counts["read"] += 1
            except (ValueError, StoreError) as error:
                said = str(error)
                outcome.counts["refused"] += 1
                named = kind.name in said or (isinstance(error, ProfileError) and "profile" in said)
                if not (named and said.isprintable() and len(said) < 2000) or type(error) is ValueError:
                    outcome.fault("unnamed", f"input {number}: {type(error).__name__}: {said[:300]}")
            except Stuck:
                pass
            except Exception as error:  # what this command is there to find
                outcome.fault("crashes", f"input {number}: {type(error).__name__}: {str(error)[:300]}")
            took = time.monotonic() - begin
            outcome.slowest = max(outcome.slowest, took)
            if took > SLOW:
                outcome.fault("hangs", f"input {number}: {took:.1f} s; {said}")
    return outcome


async def _answer(port: int, request: Sent) -> tuple[int, bytes]:
    """Status and body; a request goes out as its bytes are, because a client's library would mend it."""
    method, path, headers, body = request
    given = {"Host": f"127.0.0.1:{port}", "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body)
        answer = await reader.read()
    finally:
        writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), content if b"application/json" in head else b""


async def fuzz_route(name: str, request: Request, inputs: int, seed: int) -> Outcome:
    outcome, store, routes = Outcome(), RunStore(), web.RouteTableDef()
    add_routes(routes, store)
    app = web.Application(middlewares=[addressed])
    app.add_routes(routes)
    with store.running(None, "prompt", "7", None) as run:
        run.begin("0", "sample", steps=50, window=(8, 14), decidable=True, settings={"prompt": "a red circle"})
        run.step(9, 0.25, torch.zeros(3, 8, 8, 3))
        run.report = {"accepted": True}
        async with TestServer(app) as server:
            for number in range(inputs):
                begin = time.monotonic()
                try:
                    sent = request(run.id, random.Random(f"{seed}/{name}/{number}"))
                    status, said = await asyncio.wait_for(_answer(server.port, sent), STUCK)
                    outcome.counts["read" if status < 400 else "refused"] += 1
                    if status >= 500:
                        outcome.fault("crashes", f"input {number}: status {status}: {said[:200]!r}")
                    elif status >= 400 and said and not json.loads(said).get("error"):
                        outcome.fault("unnamed", f"input {number}: status {status}: {said[:200]!r}")
                except TimeoutError:
                    pass
                except Exception as error:  # no answer at all
                    outcome.fault("crashes", f"input {number}: {type(error).__name__}: {error}")
                took = time.monotonic() - begin
                outcome.slowest = max(outcome.slowest, took)
                if took > SLOW:
                    outcome.fault("hangs", f"input {number}: {took:.1f} s")
                run.take()
    return outcome


def fuzzed(inputs: int, seed: int) -> dict[str, Outcome]:
    """What became of `inputs` of each kind of file and request."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kind in FILES.items():  # torch takes seconds to get ready when a layout is first laid out
                fuzz_files(name, kind, 0, seed)
            found = {name: fuzz_files(name, kind, inputs, seed) for name, kind in FILES.items()}
            return found | {name: asyncio.run(fuzz_route(name, each, inputs, seed)) for name, each in ROUTES.items()}
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    chosen = parser.parse_args()
    load_comfyui()
    command = f"python -m foresight.lab.release.fuzz --inputs {chosen.inputs} --seed {chosen.seed}"
    made = environment(command)
    found = fuzzed(chosen.inputs, chosen.seed)
    rows = {
        name: {"inputs": chosen.inputs, **{key: each.counts[key] for key in ("read", "refused", *FAULTS)},
               "slowest_seconds": round(each.slowest, 2)}
        for name, each in found.items()
    }  # fmt: skip
    document = {"environment": made, "seed": chosen.seed, "kinds": rows}
    publish(chosen.out, "fuzz", document, page(made, chosen.seed, rows))
    faults = [f"{name}, {fault}" for name, each in found.items() for fault in each.faults]
    print(*faults, sep="\n")
    sys.exit(bool(faults))


def page(made: dict[str, Any], seed: int, rows: dict[str, dict[str, Any]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = ["| kind | " + " | ".join(each.replace("_", " ") for each in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(row[each]) for each in columns) + " |" for name, row in rows.items()]
    return (
        "# Hostile files and requests\n\nEach is read and used as the nodes and commands do, or refused by a message "
        "that names the file. crashes: anything else was raised, or a 5xx answered; hangs: more than 2 seconds; "
        "unnamed: a refusal without the file's name.\n\n"
        f"`{made['command']}`, {made['date']}, {made['machine']}, ComfyUI "
        f"{made['comfyui']}, torch {made['torch']}, seed {seed}.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
