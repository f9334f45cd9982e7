"""An evaluation over ComfyUI's API gives what it gives in process."""

from __future__ import annotations

import pytest

from foresight.evaluation import run as run_suite
from foresight.evaluation.store import Store
from foresight.evaluation.suites import load_suite
from foresight.evaluation.workers import Job, Spec, Worker, over_servers

STEPS = 10
# With a threshold that no clip reaches, so that every trial is sampled.
REGENERATE, GENTLE = "regenerate@tau=+0.4", "efdi@injection_mask=first frame,tau=+0.4"
METHODS = ("base", "efdi", REGENERATE, GENTLE)
# By the wall clock, or known only where the model is.
OTHER = ("seconds", "seconds_plain", "seconds_inspection", "report", "clip", "trace")


@pytest.fixture(scope="module")
def spec() -> Spec:
    return Spec("demo", None, STEPS, None, METHODS, True)


def test_rows_are_those_of_the_same_run_in_process(comfy_server, spec):
    item = load_suite("demo", 1).items[0]
    job = Job(item, tuple((method, 1000) for method in METHODS))
    ((done, found),) = over_servers(spec, [job], [comfy_server.url])
    assert done == job and not isinstance(found, Exception), found
    remote = {(row["method"], row["seed"]): row for row in found["rows"]}
    local = {(row["method"], row["seed"]): row for row in Worker(spec)(job)["rows"]}
    assert remote.keys() == local.keys() == {(method, 1000) for method in METHODS}
    assert not local[GENTLE, 1000]["accepted"] and not local[REGENERATE, 1000]["accepted"]
    for key, row in local.items():
        there = remote[key]
        assert there.keys() == row.keys()
        for name in row.keys() - set(OTHER):
            same = pytest.approx(row[name], abs=2e-4) if isinstance(row[name], (float, dict)) else row[name]
            assert there[name] == same, (key, name)
        assert (there["clip"] is None) == (row["clip"] is None) and there["seconds"] > 0
        for mine, its in zip(row["trace"] or (), there["trace"] or (), strict=True):
            assert its[0] == mine[0] and its[1] == pytest.approx(mine[1], abs=1e-5) and its[2] is None
    report = remote[REGENERATE, 1000]["report"]
    assert [trial["kind"] for trial in report["trials"]] == ["refine", "plain"]
    assert report["refined_prompt"] == local[REGENERATE, 1000]["report"]["refined_prompt"] is not None


def test_a_server_that_is_gone_leaves_its_prompts_to_the_others(comfy_server, tmp_path):
    gone = "http://127.0.0.1:9"
    run_suite.run([
        "--suite", "demo", "--prompts", "2", "--seeds", "1", "--steps", "4", "--method", "base", "--no-report",
        "--out", str(tmp_path), "--server", gone, "--server", comfy_server.url,
    ])  # fmt: skip
    with Store(tmp_path / run_suite.DATABASE) as store:
        assert [row["prompt_index"] for row in store.rows()] == [0, 1]
        assert "over the API" in store.metas()[0]["machine"]
