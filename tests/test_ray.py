"""An evaluation over a Ray cluster of two workers, one of which is killed in mid-run: nothing lost, nothing twice."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest

from foresight.evaluation.fill import cells, keep, missing
from foresight.evaluation.ray_pool import over_ray, own_server
from foresight.evaluation.store import Store
from foresight.evaluation.suites import load_suite
from foresight.evaluation.workers import Spec, Worker

ray = pytest.importorskip("ray", reason="Ray is an optional extra")
METHODS = ["base", "efdi"]
SPEC = Spec("demo", None, 4, None, tuple(METHODS), False)


@pytest.fixture(scope="module")
def cluster(comfyui):
    os.environ.setdefault("COMFYUI_PATH", str(comfyui))
    os.environ.setdefault("RAY_worker_niceness", "0")  # other tests run beside this one
    environment = {name: os.environ[name] for name in ("COMFYUI_PATH", "PYTHONPATH") if name in os.environ}
    ray.init(
        num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": environment | {"OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield
    ray.shutdown()


def working() -> list[psutil.Process]:
    """Ray names a worker's process after the method it is in."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("RayWorker.work" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:  # it ended while we looked
            continue
    return found


def test_a_killed_worker_loses_nothing_and_repeats_nothing(cluster, tmp_path):
    suite = load_suite("demo", 3)
    jobs = missing(suite.items, lambda _: cells(METHODS, range(1000, 1002), 1), [])
    begun, killed = threading.Event(), []

    def kill_one() -> None:
        begun.wait(120)
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for process in working()[:1]:
                process.kill()
                killed.append(process.pid)
            time.sleep(0.01)

    def watched(outcomes):
        for outcome in outcomes:
            begun.set()  # the first prompt is done: the run is under way
            yield outcome

    killer = threading.Thread(target=kill_one)
    killer.start()
    settings = {"suite": "demo", "fingerprint": "f"}
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        failed = keep(store, jobs, watched(over_ray(SPEC, jobs, "local", workers=2)), "a test", settings)
        killer.join()
        assert killed and not failed
        found = [(row["prompt_index"], row["seed"], row["method"]) for row in store.rows()]
        wanted = [(i, seed, m) for i in range(3) for seed, m in ((1000, "base"), (1000, "efdi"), (1001, "base"))]
        assert found == sorted(wanted)
        own = Worker(SPEC)(jobs[0])["rows"]  # here the same numbers come out as there
        there = {(row["seed"], row["method"]): row["final_score"] for row in store.rows(prompt_index=0)}
        assert {(row["seed"], row["method"]): row["final_score"] for row in own} == pytest.approx(there, abs=1e-5)


def test_workers_that_cannot_be_set_up_are_given_up(cluster):
    jobs = missing(load_suite("demo", 1).items, lambda _: [("base", 0)], [])
    broken = Spec("demo", None, None, "no_such_module:judge", ("base",), False)
    with pytest.raises(ConnectionError, match="(?s)no worker could be set up.*no_such_module:judge"):
        list(over_ray(broken, jobs, "local", workers=1))


def test_a_worker_of_another_model_starts_a_comfyui_with_its_files(comfyui, tmp_path, monkeypatch):
    (tmp_path / "diffusion_models").mkdir()
    (tmp_path / "diffusion_models" / "large.safetensors").write_bytes(b"")
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setenv("FORESIGHT_MODELS", str(tmp_path))
    with own_server() as server:
        nodes = server.object_info()
    assert "large.safetensors" in nodes["UNETLoader"]["input"]["required"]["unet_name"][0]
    assert "ForesightSampler" in nodes
    assert server.process is None and not server.base.exists()
