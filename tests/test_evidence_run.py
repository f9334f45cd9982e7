"""The evaluation's run command: suites, methods, and what is left when it is interrupted."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from foresight.evaluation import __main__ as commands
from foresight.evaluation import run as run_suite
from foresight.evaluation.backend import GATE_SETTINGS, INJECTION_SETTINGS, InProcess, Sampled, demo_judge, motion, webp
from foresight.evaluation.bench import Bench, MethodError
from foresight.evaluation.fill import cells, keep, missing
from foresight.evaluation.methods import STANDARD, load_method
from foresight.evaluation.store import Store
from foresight.evaluation.suites import Item, Suite, SuiteError, load_suite
from foresight.evaluation.workers import Job, Spec, Worker

STEPS = 10
TAU, SCALE = 0.2, 0.5


# Suites


def test_demo_suite_is_balanced_and_knows_the_truth():
    suite = load_suite("demo", 7)
    assert [item.group for item in suite.items] == ["easy", "medium", "hard"] * 2 + ["easy"]
    assert all(item.scene is not None and item.index == place for place, item in enumerate(suite.items))
    assert load_suite("demo", 4).items == suite.items[:4]


def test_vbench_suite_is_whole_and_comes_from_the_package(monkeypatch):
    if importlib.util.find_spec("vbench") is None:
        pytest.skip("VBench's prompts come with its package")
    suite = load_suite("vbench")
    assert len(suite.items) == 946 and len({item.prompt for item in suite.items}) == 944
    assert {item.group for item in suite.items} > {"overall_consistency", "color"}
    monkeypatch.setitem(sys.modules, "vbench", None)  # as where it is not installed
    with pytest.raises(SuiteError, match="pip install --no-deps vbench"):
        load_suite("vbench")


def test_a_suite_file_may_hold_anything_that_people_write(tmp_path):
    long = "a red circle and " * 625
    short, chinese, parted = "a red circle moves left", "红色的圆向左移动", "a cat\u2028sits"
    lines = ["\ufeff" + short, "", "  ", chinese, short, long, parted]
    path = tmp_path / "mine.txt"
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    suite = load_suite(str(path))
    assert [item.prompt for item in suite.items] == [short, chinese, long.strip(), parted]
    assert [item.index for item in suite.items] == [0, 1, 2, 3]
    notes = "\n".join(suite.notes)
    for part in ("2 empty", "1 repeated", "line 6 has 10,62", "first: line 4"):
        assert part in notes
    assert suite.items[0].scene is not None and suite.items[3].scene is None
    assert len(load_suite(str(path), 2).items) == 2


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\n\n  \n", "has no prompts"), (b"ein B\xe4r", "not UTF-8.*byte 5"), (b"a\0b", "line 1.*zero bytes"),
        (b"ok\n" + b"x" * 20_001, "line 2 has 20,001 characters"),
        (None, "no suite.*name demo, demo_validation, vbench"),
    ],
)  # fmt: skip
def test_a_suite_file_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "suite.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SuiteError, match=message):
        load_suite(str(path))
    with pytest.raises(SuiteError, match="0 prompts"):
        load_suite("demo", 0)


# Methods, on a backend whose runs are known beforehand


class Scripted:
    """Seed s: scores scripted by seed; records what is asked of it."""

    family, steps = None, STEPS

    def __init__(self, traces: dict[int, list[float]]):
        self.traces, self.calls = traces, []

    def report(self, seed: int, trial: str, nfe: int) -> dict:
        trace = [[step, score] for step, score in enumerate(self.traces[seed], 1)]
        verdict = {"accepted": False, "predicted_score": trace[2][1], "stop_step": 3, "rule": "budget", "trace": trace}
        seconds = {"sampling": float(nfe), "inspection": STEPS / 10, "refinement": 0.0}
        return {
            "settings": {"tau": TAU, "scale": SCALE}, "trial": trial, "nfe": nfe, "nfe_single_frame": 0, "notes": [],
            "seconds": sum(seconds.values()), "nfe_video": nfe,
            "trials": [{"verdict": verdict, "kind": "sample", "nfe_video": nfe, "seconds": seconds}],
        }  # fmt: skip

    def sample(self, prompt, seed, settings, *, inject=False, refine=False):
        self.calls.append((seed, dict(settings), inject, refine))
        nfe = 20 if inject or refine else STEPS
        frames = np.full((2, 4, 4, 3), seed, np.uint8)
        return Sampled(frames, self.traces[seed][-1], self.report(seed, "1" if inject else "0", nfe))

    def regenerate(self, prompt, seed, failed):
        self.calls.append((seed, "regenerate", failed.frames[0, 0, 0, 0]))
        return Sampled(np.full((2, 4, 4, 3), 99, np.uint8), 0.5, self.report(seed, "2", STEPS))


GOOD, BAD, WORST = ([score] * STEPS for score in (0.3, 0.1, 0.05))


def bench(*traces: list[float]) -> Bench:
    judge = lambda item, frames: {"right": bool(frames.max() > 1), "measures": {"brightness": float(frames.max())}}  # noqa: E731
    return Bench(Scripted(dict(enumerate(traces, 1))), Item(0, "a prompt", "easy"), judge, {})


def test_what_passes_is_the_base_clip_and_costs_one_run():
    made = bench(GOOD)
    row = load_method("efdi", STEPS).run(made, 1)
    assert [call[0] for call in made.backend.calls] == [1]  # the base run, nothing else
    assert (row["accepted"], row["base_seed"], row["nfe"], row["trial"], row["clip"]) == (True, 1, STEPS, "0", None)
    assert row["inspections"] == row["stop_step"] == 3  # the window of 10 steps ends there
    assert row["seconds"] == pytest.approx(STEPS + 0.1 * 3) and row["seconds_plain"] == STEPS


def test_what_fails_is_given_to_the_trials_of_the_method():
    for name, trials in (("efdi", (True, True)), ("trial_1", (True, False)), ("trial_2", (False, True))):
        made = bench(BAD)
        row = load_method(name, STEPS).run(made, 1)
        assert made.backend.calls[1] == (1, {}, *trials)
        assert (row["accepted"], row["base_seed"], row["nfe"]) == (False, None, 20) and row["clip"]
        assert [point[0] for point in row["trace"]] == [1, 2, 3]


def test_a_fixed_step_looks_at_that_step_alone():
    trace = [0.3] * 4 + [0.1] + [0.3] * 5
    made = bench(trace)
    assert not load_method("fixed_step@5", STEPS).run(made, 1)["accepted"]
    assert made.backend.calls[1][1]["every"] == 5
    assert load_method("fixed_step@4", STEPS).run(made, 1)["accepted"]


def test_a_threshold_may_be_relative_to_the_scorers_own():
    made = bench([0.21] * STEPS)
    assert load_method("efdi", STEPS).run(made, 1)["accepted"]
    assert not load_method("efdi@tau=+0.04", STEPS).run(made, 1)["accepted"]  # 0.2 + 0.04 * 0.5
    assert made.backend.calls[1][1] == {"tau": 0.22}
    assert load_method("efdi@tau=0.205,injection_mask=first frame", STEPS).run(made, 1)["accepted"]


def test_regeneration_throws_away_finished_clips():
    made = bench(BAD, GOOD)
    row = load_method("regenerate", STEPS).run(made, 1)
    assert made.backend.calls[1] == (2, "regenerate", 1)
    assert (row["nfe"], row["final_score"], row["accepted"], row["rule"]) == (2 * STEPS, 0.5, False, "final_score")
    plain = load_method("regenerate_plain", STEPS).run(made, 1)
    assert (plain["base_seed"], plain["nfe"], plain["final_score"]) == (2, 2 * STEPS, 0.3)
    assert load_method("regenerate", STEPS).run(bench(GOOD), 1)["nfe"] == STEPS


def test_reseeding_pays_for_what_it_stopped():
    made = bench(BAD, GOOD)
    row = load_method("reseed", STEPS).run(made, 1)
    assert (row["base_seed"], row["nfe"], row["right"]) == (2, 3 + STEPS, True)
    assert row["seconds"] == pytest.approx(3 + 0.3 + STEPS)


def test_best_of_several_seeds():
    made = bench(BAD, GOOD, WORST)
    row = load_method("best_of_3", STEPS).run(made, 1)
    assert (row["seed"], row["base_seed"], row["nfe"], row["final_score"]) == (1, 2, 3 * STEPS, 0.3)
    row = load_method("audition_3", STEPS).run(made, 1)
    assert (row["base_seed"], row["nfe"], row["inspections"]) == (2, 3 * 3 + STEPS, 9)
    assert sorted(made.known) == [("base", seed) for seed in (1, 2, 3)] and len(made.added) == 3  # each base run once


@pytest.mark.parametrize(
    "name, message",
    [
        ("efid", "no method 'efid'.*efdi"), ("best_of_1", "2 or more"), ("fixed_step", "from 1 to 10"),
        ("fixed_step@11", "from 1 to 10"), ("efdi@colour=3", "colour=3.*tau"), ("efdi@tau=high", "no number"),
        ("nowhere.at.all:sampler", "cannot be loaded.*module:name"), ("best_of_3@tau=1", "no method"),
    ],
)  # fmt: skip
def test_a_method_that_is_none_is_named(name, message):
    with pytest.raises(MethodError, match=message):
        load_method(name, STEPS)


# In ComfyUI


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker(Spec("demo", None, STEPS, None, (*STANDARD, "fixed_step@3", f"{__name__}:half"), True))


def half(family, prompt, seed):
    """A plug-in that stops half-way."""
    import dataclasses

    from foresight.sampling.run import monitored_sample

    inputs = family.inputs(prompt, seed)
    result = monitored_sample(dataclasses.replace(inputs, sigmas=inputs.sigmas[: family.steps // 2 + 1]))
    return {"latent": result.latent, "nfe": family.steps // 2, "notes": ["half the steps"]}


def test_settings_are_the_nodes_own(comfyui):
    from foresight.nodes.hierarchy import ForesightSampler
    from foresight.nodes.widgets import detector_widgets, injection_widgets, threshold_widgets

    assert [w.id for w in (*threshold_widgets(), *detector_widgets())] == list(GATE_SETTINGS)
    assert [w.id for w in injection_widgets()] == list(INJECTION_SETTINGS)
    inputs = {given.id for given in ForesightSampler.define_schema().inputs}
    assert inputs > {*GATE_SETTINGS, *INJECTION_SETTINGS, "inject", "refiner"}


def test_what_is_taken_from_the_base_run_is_what_a_run_of_its_own_gives(worker):
    backend: InProcess = worker.backend
    seen = set()
    for item in load_suite("demo", 3).items:
        made = Bench(backend, item, demo_judge, {})
        for settings in ({}, {"start": 0.3, "end": 0.3, "every": 3}):
            own = backend.sample(item.prompt, 1000, settings, inject=False, refine=False)
            verdict, decision = own.report["trials"][0]["verdict"], made.decision(1000, settings)
            watched = made.watched(1000, decision, settings, 1.0)
            for name in ("accepted", "predicted_score", "stop_step", "rule"):
                assert watched[name] == verdict[name]
            assert [point[:2] for point in watched["trace"]] == verdict["trace"]
            assert np.array_equal(own.frames, made.base_clip(1000).frames)
            assert own.final_score == made.base(1000)["final_score"]
            seen.add(watched["accepted"])
    assert seen == {True, False}


def test_a_prompt_with_all_methods_and_a_plug_in(worker):
    item = load_suite("demo", 1).items[0]
    found = worker(Job(item, tuple((name, 1000) for name in worker.methods)))
    rows = {(row["method"], row["seed"]): row for row in found["rows"]}
    assert {method for method, _ in rows} == set(worker.methods)
    assert {seed for method, seed in rows if method == "base"} >= {1000, 1001, 1002}  # best of three asked for them
    base, plug_in = rows["base", 1000], rows[f"{__name__}:half", 1000]
    assert len(base["trace"]) == STEPS and base["trace"][0][2] == 1.0 and set(base["measures"]) > {"count", "colour"}
    assert (plug_in["nfe"], plug_in["notes"], plug_in["accepted"]) == (STEPS // 2, ["half the steps"], None)
    assert plug_in["final_score"] != base["final_score"]
    again = worker(Job(item, (("efdi", 1000),), {("base", 1000): base}))  # goes on from the base rows that are known
    timeless = [{k: v for k, v in row.items() if "seconds" not in k and k not in ("report", "clip")} for row in (
        *again["rows"], rows["efdi", 1000])]
    assert len(again["rows"]) == 1 and timeless[0] == timeless[1]


def test_motion_is_the_mean_change_between_frames():
    still = np.full((3, 2, 2, 3), 9, np.uint8)
    assert motion(still) == motion(still[:1]) == 0
    still[1] += 51
    assert motion(still) == pytest.approx(0.2)
    assert webp(np.zeros((3, 300, 600, 3), np.uint8))[8:12] == b"WEBP"


# The command


def test_a_plan_holds_what_is_missing_and_nothing_else():
    suite = Suite("s", (Item(0, "a"), Item(1, "b")))
    rows = [{"prompt_index": 0, "prompt": "a", "seed": seed, "method": "base"} for seed in (5, 6)]
    (first, second) = missing(suite.items, lambda _: cells(["base", "efdi"], range(5, 7), 1), rows)
    assert first.cells == (("efdi", 5),) and sorted(first.known) == [("base", 5), ("base", 6)]
    assert second.cells == (("base", 5), ("base", 6), ("efdi", 5)) and second.known == {}
    assert missing(suite.items[:1], lambda _: cells(["base"], range(5, 7)), rows) == []


def test_a_prompt_that_fails_leaves_the_others_alone(tmp_path, capsys):
    jobs = [Job(Item(index, "p"), (("base", 1),)) for index in range(2)]
    row = {"prompt_index": 1, "prompt": "p", "seed": 1, "method": "base", "report": {"settings": {"tau": 0.2}}}
    outcomes = iter([(jobs[0], ValueError("no")), (jobs[1], {"rows": [row], "machine": "m", "versions": {}})])
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        assert keep(store, jobs, outcomes, "typed", {"suite": "s", "fingerprint": "f"}) == 1
        (kept,) = store.rows("f")
        assert (kept["prompt_index"], kept["suite"]) == (1, "s") and store.metas()[0]["settings"]["tau"] == 0.2
    assert "prompt 0 failed (ValueError: no)" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "0"], "--seeds is 0"), (["--server", "http://x", "--ray", "auto"], "exclude each other"),
        (["--model", "cogvideox_5b"], "name it with --server"), (["--method", "nothing"], "no method 'nothing'"),
        (["--suite", "no/such/file"], "no suite"), (["--server", "http://127.0.0.1:9"], "no server is"),
        (["--server", "http://x", "--also", f"{__name__}:half"], "needs the models in process"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_done_says_why(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        commands.main(["run", "--prompts", "1", "--no-report", "--out", str(tmp_path), *arguments])


def test_commands_are_listed_and_unknown_ones_named(capsys):
    commands.main([])
    listed = capsys.readouterr().out
    assert all(f"\n    {name} " in listed for name in commands.COMMANDS)
    for name in commands.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            commands.main([name, "--help"])
        assert ended.value.code == 0 and "usage:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no command 'rum'; commands are run"):
        commands.main(["rum"])


def test_a_killed_run_goes_on_where_it_stopped(comfyui, tmp_path):
    command = [
        sys.executable, "-m", "foresight.evaluation", "run", "--suite", "demo", "--seeds", "1", "--steps", "4",
        "--method", "efdi", "--workers", "1", "--no-report", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"COMFYUI_PATH": str(comfyui), "OMP_NUM_THREADS": "1"}

    def rows() -> list[dict]:
        with Store(tmp_path / run_suite.DATABASE) as store:
            return store.rows()

    running = subprocess.Popen([*command, "--prompts", "500"], env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / run_suite.DATABASE).exists() or not rows():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = rows()
    prompts = 1 + max(row["prompt_index"] for row in before)
    done = subprocess.run([*command, "--prompts", str(prompts + 1)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = rows()
    assert "1 prompts, 2 results to make" in done.stdout and f"{len(before) + 2} results are in" in done.stdout
    assert len(after) == len(before) + 2 and after[: len(before)] == before  # nothing lost, nothing twice
    with pytest.raises(ProcessLookupError):  # its processes have gone with it
        os.killpg(running.pid, 0)
