"""tune: a person's own graph is run plainly and scored at every step, and what is found becomes a preset."""

from __future__ import annotations

import csv
import json
import re
import urllib.error

import made_evidence
import numpy as np
import pytest
from test_own_graph import KINDS, core

from foresight.demo import preset
from foresight.evaluation import tune
from foresight.evaluation.api_graph import node
from foresight.evaluation.demo_command import read_frames
from foresight.evaluation.evidence import DATABASE
from foresight.evaluation.own_graph import OwnGraph
from foresight.evaluation.raced import RACES
from foresight.evaluation.server import ExecutionFailed, Interrupted
from foresight.evaluation.store import Store
from foresight.evaluation.suites import Item
from foresight.scoring.race_preset import load_race_preset

PROMPTS = "a red circle moves left on a black background\na small green square spins on a white background\n"
FILES = ("--scorer", preset.SCORER, "--converter", preset.CONVERTER)
USED = {"scorer": "viclip-l", "model": "WAN21", "steps": 50, "tau": made_evidence.TAU, "scale": 1.0}


@pytest.fixture
def command(tmp_path, comfy_server):
    """The command's arguments, with a graph and prompts of its own."""
    (tmp_path / "mine.json").write_text(json.dumps(core()))
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return ["--server", comfy_server.url, "--graph", str(tmp_path / "mine.json"), "--prompts",
            str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), *FILES]  # fmt: skip


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_clips_are_those_of_the_graph_alone(comfy_server, make):
    graph, words = make(), "a blue ring moves up on a black background"
    mine = json.loads(json.dumps(graph).replace("a red circle", words).replace('seed": 1', 'seed": 5'))
    plain = comfy_server.queue(mine | {"show": node("PreviewImage", images=["9", 0])}, targets=["show"])
    backend = tune.Plain(comfy_server.url)
    backend.use(OwnGraph.of(graph, backend.nodes, preset.SCORER, preset.CONVERTER))
    found = backend.sample(words, 5)
    assert np.array_equal(found.frames, read_frames(comfy_server, plain["outputs"]["show"]["images"]))
    again = backend.sample(words, 5)  # what the server has already, where a command was stopped before it was kept
    assert again.report == found.report and np.array_equal(again.frames, found.frames)
    (trial,) = found.report["trials"]
    assert [step for step, score in trial["verdict"]["trace"] if score is not None] == [1, 2, 3, 4]
    used, bundled = found.report["settings"], load_race_preset(next(RACES.glob("*.json")))
    assert bundled.fits(used["scorer"], used["model"], 50)  # by which the node finds a preset
    assert found.report["prompt"] == words and found.report["final_score"] == found.final_score


def test_a_stopped_command_goes_on_and_a_longer_one_adds(command, tmp_path, monkeypatch, capsys):
    """Against a real server, with the demo family as if it were unknown."""
    graph = core()
    graph["8"]["inputs"]["steps"] = 12  # on fewer than 11, light self-refinement has no step of its own
    (tmp_path / "mine.json").write_text(json.dumps(graph))
    sampled, asked = tune.Plain.sampled, []

    def counted(self, *graph):
        asked.append(graph)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return sampled(self, *graph)

    monkeypatch.setattr(tune.Plain, "sampled", counted)
    with pytest.raises(SystemExit, match="stopped; the same command goes on from here"):
        tune.main([*command, "--seeds", "2"])
    tune.main([*command, "--seeds", "2"])
    assert "2 clips to make, 2 are there" in capsys.readouterr().out and len(asked) == 5
    (tmp_path / "prompts.txt").write_text("".join(reversed(PROMPTS.splitlines(keepends=True))))  # found again by words
    tune.main([*command, "--seeds", "2", "--light"])
    assert len(asked) == 9 and "a preset takes 10 prompts" in capsys.readouterr().out
    with Store(tmp_path / "out" / DATABASE) as store:
        rows, (first, *_) = store.rows(), store.metas()
    assert [(row["prompt_index"], row["seed"], row["method"]) for row in rows] == [
        (prompt, seed, method) for prompt in (0, 1) for seed in (1000, 1001) for method in ("base", "self_refine@light")
    ]  # fmt: skip
    assert [row["prompt"] for row in rows[::4]] == PROMPTS.splitlines() and first["settings"]["steps"] == 12
    for row in rows:
        assert [point[0] for point in row["trace"]] == list(range(1, 13)) and row["right"] is None
        passes = row["report"]["trials"][0]["details"].get("self_refine", {}).get("passes", {})
        assert row["nfe"] == 12 + sum(passes.values()) and bool(passes) == (row["method"] != "base")
    names = {path.stem for path in (tmp_path / "out" / "clips").glob("*.webp")}
    with (tmp_path / "out" / "judgements.csv").open() as file:
        clips = [line["clip"] for line in csv.DictReader(file)]
    assert set(clips) == names and len(clips) == 8 and clips[:2] == ["0000_1000", "0000_1001"]
    assert names == {tune.name_of(row) for row in rows} and "0001_1001_light" in names
    (tmp_path / "mine.json").write_text(json.dumps(core() | {"2": node("ModelSamplingSD3", model=["1", 0], shift=3.0)}))
    with pytest.raises(SystemExit, match="runs of another graph, scorer or converter .* give another --out"):
        tune.main([*command, "--seeds", "2"])


@pytest.mark.parametrize("error, said", [
    (urllib.error.URLError("refused"), "the server answers no more .*refused.*the same command goes on"),
    (ConnectionResetError("reset"), "the server answers no more .*reset.*the same command goes on"),
    (Interrupted("cancelled in node 8"), "cancelled in node 8 on the server; the same command goes on"),
    (TimeoutError("too long"), "the server answers no more .*too long"),
])  # fmt: skip
def test_what_ends_a_run_leaves_what_is_there(command, monkeypatch, error, said):
    def ends(*_):
        raise error

    monkeypatch.setattr(tune.Plain, "sampled", ends)
    with pytest.raises(SystemExit, match=f"evaluation tune: {said}"):
        tune.main(command)


@pytest.mark.parametrize("change, said", [
    ({"--server": "http://127.0.0.1:9"}, "no ComfyUI answers at http://127.0.0.1:9 .*start it, or correct the address"),
    ({"--server": "127.0.0.1:8188"}, "no ComfyUI answers at 127.0.0.1:8188 .*unknown url type"),
    ({"--prompts": "empty.txt"}, "empty.txt has no prompts: write one on each line"),
    ({"--prompts": "none.txt"}, "no suite .*none.txt"),
    ({"--graph": "none.json"}, "the graph .*none.json cannot be read"),
    ({"--seeds": "0"}, "--seeds is 0: it must be 1 or more"), ({"--folds": "1"}, "--folds is 1"),
    ({"--scorer": "none.pth"}, "--scorer none.pth: the server's models/foresight has"),
    ({"--graph": "batch.json"}, "makes 2 clips at once: set the latent's batch_size to 1"),
    ({"--graph": "wrong.json"}, "the server refuses the graph: .*node 8 .*sampler_name"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_the_way_out(command, tmp_path, change, said):
    (tmp_path / "empty.txt").write_text("\n\n")
    for name, id, inputs in (("batch", "7", {"batch_size": 2}), ("wrong", "8", {"sampler_name": "none"})):
        graph = core()
        graph[id]["inputs"] |= inputs
        (tmp_path / f"{name}.json").write_text(json.dumps(graph))
    ((option, value),) = change.items()
    added = [option, str(tmp_path / value) if option in ("--graph", "--prompts") else value]
    with pytest.raises(SystemExit) as ended:
        tune.main([*command, *added])
    assert re.search(f"evaluation tune: .*{said}", str(ended.value), re.DOTALL)


def test_a_clip_that_fails_is_left_out_and_three_in_a_row_end_the_command():
    class Backend(tune.Plain):
        def __init__(self, good: set[int]):
            self.good = good

        def where(self):
            return "here", {}

        def sample(self, prompt, seed, settings=None, light=False):
            if seed not in self.good:
                raise ExecutionFailed({"node_id": "8", "node_type": "KSampler", "exception_message": "out of memory"})
            raise tune.Problem(f"reached {seed}")

    jobs = [tune.Job(Item(0, "a"), (("base", seed),), {}) for seed in range(5)]
    outcomes = tune.runs(Backend({2}), jobs)
    assert [str(next(outcomes)[1]) for _ in range(2)] == ["node 8 (KSampler): out of memory"] * 2
    with pytest.raises(tune.Problem, match="reached 2"):
        next(outcomes)
    with pytest.raises(tune.Problem, match="3 clips in a row failed, the last one with: node 8 .*out of memory"):
        list(tune.runs(Backend(set()), jobs))


@pytest.fixture
def runs(tmp_path):
    """Plain runs of 12 prompts that nobody has judged."""
    generator = np.random.default_rng(0)
    rows = [made_evidence.base_row(generator, prompt, seed, False) | {"report": {"settings": USED, "trials": []}}
            for prompt in range(12) for seed in range(4)]  # fmt: skip
    with Store(tmp_path / DATABASE, write=True) as store:
        store.add(rows, store.begin("typed", "m", {}, made_evidence.SETTINGS | {"fingerprint": "abc123"}))
        tune.show_clips(store, store.rows(), tmp_path)
    return tmp_path


def shown(folder, *arguments):
    a = tune.options(["--graph", "mine.json", "--prompts", "p.txt", "--out", str(folder), *arguments])
    tune.show(tune.load(folder / DATABASE), a)
    return load_race_preset(folder / "mine_race.json")


def test_without_a_judge_the_scorer_grades_itself_and_it_is_said(runs, capsys):
    fitted = shown(runs)
    said = capsys.readouterr().out
    assert "the scorer grades itself" in said and "a final score of 0.22 (the scorer's own threshold)" in said
    assert (fitted.scorer, fitted.model, fitted.steps, set(fitted.races)) == ("viclip-l", "WAN21", 50, {"off"})
    assert fitted.fitted["good_by"].startswith("a final score of 0.22")
    aucs = [float(line.split("|")[3].split()[0]) for line in said.splitlines() if re.match(r"\| \d+ \| \d+%", line)]
    assert len(aucs) == len(tune.SHOWN) and aucs[0] < aucs[-1] and aucs[-1] > 0.95  # traces converge to the final score


def test_a_threshold_that_parts_nothing_gives_way_to_the_median(runs, capsys):
    evidence = tune.load(runs / DATABASE)
    scores = [row["final_score"] for row in evidence.rows["base"].values()]
    for tau in (-1.0, 1.0):
        moved, said = tune.parted(tune.replace(evidence, settings=evidence.settings | {"tau": tau}), None)
        assert moved.tau == pytest.approx(np.median(scores)) and "parts nothing; this is their median" in said
    assert tune.parted(evidence, None)[0].tau == made_evidence.TAU
    assert tune.parted(evidence, 0.3)[0].tau == 0.3
    with pytest.raises(tune.Problem, match="all clips came off alike"):
        shown(runs, "--good", "0.9")


def judge(path, verdict_of):
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, tune.COLUMNS)
        writer.writeheader()
        writer.writerows(line | {"verdict": verdict_of(line["clip"])} for line in lines)
    return path


def test_a_persons_own_eyes_are_the_judge(runs, capsys):
    path = judge(runs / "judgements.csv", lambda clip: "" if clip == "0003_2" else (
        "wrong", "Right ")[int(clip[-1]) % 2])  # fmt: skip
    fitted = shown(runs, "--judgements", str(path))
    said = capsys.readouterr().out
    assert "47 of 48 clips are judged" in said and "24 of 47 plain clips" in said and "grades itself" not in said
    assert fitted.fitted["plain"]["value"] == pytest.approx((11 * 0.5 + 2 / 3) / 12)
    before = path.read_text()
    with Store(runs / DATABASE) as store:
        tune.show_clips(store, store.rows(), runs)
    assert path.read_text() == before


@pytest.mark.parametrize("text, said", [
    ("clip,verdict\n0000_0,maybe\n", "line 2: the verdict is 'maybe': write right or wrong"),
    ("clip,verdict\n0000_0,right\n9999_0,right\n", "line 3: there is no clip '9999_0'"),
    ("clip,verdict\n0000_0,\n", "holds no verdict yet"), ("", "holds no verdict yet"),
    ("clip;verdict\n0000_0;right\n", "has the columns clip;verdict: it needs clip, prompt, verdict"),
    ("clip,verdict\n0000_0\n", "holds no verdict yet"), (b"\xff\xfe\x00", "cannot be read"),
    ("clip,verdict\n0000_0,right\n0000_1.webp,wrong\n", "1 prompts with two seeds or more"),
])  # fmt: skip
def test_judgements_that_cannot_be_used_name_line_and_value(runs, tmp_path, text, said):
    path = tmp_path / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(tune.Problem, match=said):
        shown(runs, "--judgements", str(path))
    with pytest.raises(tune.Problem, match="none.csv cannot be read"):
        shown(runs, "--judgements", str(tmp_path / "none.csv"))
