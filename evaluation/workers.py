"""Who does an evaluation's jobs: processes with a ComfyUI of their own, or threads that ask running servers.

Each way takes all jobs and yields (job, result or exception) in the order in which they end; only the caller writes.
"""

from __future__ import annotations

import os
import queue
import threading
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from .backend import Backend, InProcess, Judge, demo_judge, named, no_judge
from .bench import Bench, Cell, Measure, Method, Row
from .methods import load_method
from .suites import Item

ATTEMPTS = 3  # at what loses its worker: more is no accident


@dataclass(frozen=True)
class Spec:
    """What a worker has to set up. model: of graph_settings.FAMILIES; family: "module:function" instead of it."""

    model: str = "demo"
    family: str | None = None
    steps: int | None = None
    judge: str | None = None
    methods: tuple[str, ...] = ()
    keep_clips: bool = True


@dataclass(frozen=True)
class Job:
    """One prompt: the cells to make, and the rows that are there of what methods share."""

    item: Item
    cells: tuple[Cell, ...]
    known: dict[Cell, Row] = field(default_factory=dict, compare=False)


Outcome = tuple[Job, dict[str, Any] | Exception]


def make_backend(spec: Spec, server: str | None = None) -> Backend:
    if server is not None:
        from .over_api import OverApi

        return OverApi(server, spec.model, spec.steps)
    from .demo_family import DemoFamily, start_worker

    start_worker()
    if spec.family:
        return InProcess(named(spec.family, "the family")())
    return InProcess(DemoFamily(steps=spec.steps) if spec.steps else DemoFamily())


class Worker:
    """Call it with a Job: {"rows", "machine", "versions"}. load(name, steps): finds a method; judge and measure: see
    Bench; both in place of what the spec names."""

    def __init__(
        self, spec: Spec, server: str | None = None, *, load: Callable[[str, int], Method] = load_method,
        judge: Judge | None = None, measure: Measure | None = None,
    ):
        self.spec, self.measure = spec, measure
        own = demo_judge if spec.model == "demo" and not spec.family else no_judge
        self.judge = judge or (named(spec.judge, "the judge") if spec.judge else own)
        self.backend = make_backend(spec, server)
        self.methods = {name: load(name, self.backend.steps) for name in spec.methods}
        self.machine, self.versions = self.backend.where()

    @torch.inference_mode()
    def __call__(self, job: Job) -> dict[str, Any]:
        bench = Bench(self.backend, job.item, self.judge, dict(job.known), self.spec.keep_clips, self.measure)
        for name, seed in job.cells:
            bench.row(self.methods[name], seed)
        return {"rows": bench.added, "machine": self.machine, "versions": self.versions}


_worker: Callable[[Job], dict[str, Any]] | None = None


def _start(make: Callable[[], Callable[[Job], dict[str, Any]]]) -> None:
    global _worker
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker = make()


def _leave_with_parent() -> None:
    """A killed command must not leave processes behind that wait for work for ever."""
    parent_process().join()
    os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    return _worker(job)


def in_processes(
    make: Callable[[], Callable[[Job], dict[str, Any]]], jobs: list[Job], workers: int
) -> Iterator[Outcome]:
    """make: gives each process its Worker, or what is called like one.

    The demo models are too small for several threads, so cores are used by running several jobs at once. Processes that
    are lost (killed for memory, say) are replaced and their jobs tried again; ConnectionError where that does not help.
    """
    left, in_vain = list(jobs), 0
    while left:
        if in_vain == ATTEMPTS:
            raise ConnectionError(f"{len(left)} prompts are left, but their processes end by themselves: see above.")
        pool = ProcessPoolExecutor(min(workers, len(left)), get_context("spawn"), _start, (make,))
        in_vain += 1
        try:
            waiting = {pool.submit(_work, job): job for job in left}
            left = []
            for finished in as_completed(waiting):
                error = finished.exception()
                if isinstance(error, BrokenProcessPool):
                    left.append(waiting[finished])
                elif error is None or isinstance(error, Exception):
                    in_vain = 0
                    yield waiting[finished], error or finished.result()
                else:
                    raise error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def over_servers(spec: Spec, jobs: list[Job], servers: list[str]) -> Iterator[Outcome]:
    """A thread for each server, because the work is the servers'. A server that answers no more is left out, and its
    job given to another."""
    waiting: queue.Queue[Job] = queue.Queue()
    ended: queue.Queue[tuple[str, Job | None, Any]] = queue.Queue()
    for job in jobs:
        waiting.put(job)

    def work(server: str) -> None:
        job = None
        try:
            worker = Worker(spec, server)
            while True:
                job = waiting.get_nowait()
                try:
                    ended.put((server, job, worker(job)))
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    raise
                except Exception as error:  # one prompt's; the others go on
                    ended.put((server, job, error))
                job = None
        except queue.Empty:
            ended.put((server, None, None))
        except Exception as error:  # the server's: it is gone, or was never there
            if job is not None:
                waiting.put(job)
            ended.put((server, None, error))

    alive = set(servers)
    for server in servers:
        threading.Thread(target=work, args=(server,), daemon=True).start()
    left = {job.item.index: job for job in jobs}
    reasons = []
    while left and alive:
        server, job, result = ended.get()
        if job is not None:
            del left[job.item.index]
            yield job, result
            continue
        alive.discard(server)
        if result is not None:
            reasons.append(f"{server}: {result}")
        elif left and waiting.qsize():  # it went home before another server's job came back
            alive.add(server)
            threading.Thread(target=work, args=(server,), daemon=True).start()
    if left:
        raise ConnectionError(f"{len(left)} prompts are left, but no server is: {'; '.join(reasons)}")
