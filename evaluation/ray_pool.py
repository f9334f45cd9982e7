"""An evaluation's jobs over a Ray cluster (optional: pip install "ray>=2.40"): one ComfyUI on each GPU.

Every worker is an actor with a ComfyUI of its own, and prompts are its tasks. The demo family is sampled in the actor's
process; for another model the actor starts a ComfyUI server on its machine, with the files in that machine's
FORESIGHT_MODELS folder, so that a new machine needs nothing but the pack, ComfyUI and the files. Only the driver writes
to the database. An actor that is lost is replaced and its prompt given out again; a machine that never comes back is
not waited for.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .comfyui import ROOT, comfyui_path
from .server import ComfyServer
from .workers import ATTEMPTS, Job, Outcome, Spec, Worker

INSTALL = 'a Ray cluster needs Ray here and on its machines: pip install "foresight-video[ray]"'


class RayWorker:
    """What an actor holds: a Worker, and the server it started where the model needs one."""

    def __init__(self, spec: Spec):
        self._stack = ExitStack()
        server = None
        if spec.model != "demo" and not spec.family:
            server = self._stack.enter_context(own_server()).url
        self.worker = Worker(spec, server)

    def ready(self) -> int:
        """The process, once it can work."""
        return os.getpid()

    def work(self, job: Job) -> dict[str, Any]:
        return self.worker(job)


@contextmanager
def own_server() -> Iterator[ComfyServer]:
    """A ComfyUI on a free port of this machine. Ray has set CUDA_VISIBLE_DEVICES to the actor's GPU."""
    with tempfile.TemporaryDirectory(prefix="foresight_", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        server = ComfyServer(comfyui_path(), base, ROOT, log=base / "server.log", arguments=("--disable-api-nodes",))
        if models := os.environ.get("FORESIGHT_MODELS"):
            for place in filter(Path.is_dir, Path(models).iterdir()):
                (base / "models" / place.name).symlink_to(place, target_is_directory=True)
        with server:
            yield server


def over_ray(spec: Spec, jobs: list[Job], address: str, workers: int | None = None) -> Iterator[Outcome]:
    """address: "auto", host:port, ray://host:port, or "local" for a cluster of this machine alone. workers: default one
    a GPU of the cluster, or one a CPU where it has none. ConnectionError where there is no cluster."""
    try:
        import ray
        from ray.exceptions import RayActorError, RayError
    except ImportError:
        raise ConnectionError(INSTALL) from None
    started = not ray.is_initialized()
    if started:
        try:
            # Actors must find this package and ComfyUI where the driver found them.
            ray.init(address=None if address == "local" else address, log_to_driver=False, runtime_env={
                "env_vars": {name: os.environ[name] for name in ("COMFYUI_PATH", "PYTHONPATH", "FORESIGHT_MODELS",
                                                                 "OMP_NUM_THREADS") if name in os.environ},
            })  # fmt: skip
        except (ConnectionError, ValueError, RayError) as error:
            raise ConnectionError(f"no Ray cluster at {address!r}: {error}") from None
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = min(workers or gpus or int(resources.get("CPU", 1)), len(jobs))
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(RayWorker)
        yield from _share_out(ray, RayActorError, lambda: actor.remote(spec), jobs, count)
    finally:
        if started:
            ray.shutdown()


def _share_out(ray: Any, lost: type[Exception], hire: Any, jobs: list[Job], count: int) -> Iterator[Outcome]:
    waiting, attempts = deque(jobs), dict.fromkeys((job.item.index for job in jobs), 0)
    busy: dict[Any, tuple[Any, Job | None]] = {}  # what is awaited -> its actor, and its job (None: getting ready)
    stillborn = 0  # actors lost before they could work, in a row: the set-up is wrong, not the machine

    def take_on() -> None:
        worker = hire()
        busy[worker.ready.remote()] = worker, None

    for _ in range(count):
        take_on()
    while waiting or any(job for _, job in busy.values()):
        (finished,), _ = ray.wait(list(busy), num_returns=1)
        worker, job = busy.pop(finished)
        try:
            result = ray.get(finished)
        except lost as error:
            if job is None:
                stillborn += 1
                if stillborn >= ATTEMPTS * count:
                    raise ConnectionError(f"no worker could be set up: {error}") from None
            else:
                attempts[job.item.index] += 1
                if attempts[job.item.index] == ATTEMPTS:
                    yield job, RuntimeError(f"its worker was lost {ATTEMPTS} times: {error}")
                else:
                    waiting.appendleft(job)
            take_on()
            continue
        except Exception as error:  # the prompt's own; the others go on
            result = error
        if job is None:
            stillborn = 0
        else:
            yield job, result
        if waiting:
            task = waiting.popleft()
            busy[worker.work.remote(task)] = worker, task
        else:
            ray.kill(worker)
