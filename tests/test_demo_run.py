"""The demo command: its fixed prompts, its report and its files."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from foresight.demo import preset
from foresight.demo.captions import prompt
from foresight.demo.world import Scene, render
from foresight.evaluation import demo_command as run
from foresight.evaluation import media
from foresight.evaluation.api_graph import Graph
from foresight.evaluation.graphs import api_form, node_of, one_node_file
from foresight.evaluation.server import ComfyServer
from foresight.lab.release.pictures import CHROMIUM, FLAGS, READY

KEYS = {
    "prompt", "seed", "accepted", "predicted_score", "stop_step", "rule", "trial", "final_score", "judge_base",
    "judge_final", "nfe", "nfe_plain", "seconds", "seconds_plain", "plan", "budget", "self_refine", "candidates",
    "delivered_seed", "nfe_worst_case",
}  # fmt: skip


def clip_of(scene: Scene, seconds: float) -> run.Clip:
    return run.Clip(render(scene, generator=torch.Generator().manual_seed(0)).numpy(), seconds)


PAPER, RACE = ({"plan": plan, "budget": 0.25, "self_refine": "later"} for plan in ("paper", "race"))
PICTURE = np.full((800, 1200, 3), 255, np.uint8)


def report(accepted: bool, trial: str, states: tuple[str, ...] = ()) -> dict:
    verdict = {"accepted": accepted, "predicted_score": 0.31, "stop_step": 10, "rule": "early_reject"}
    tried = [{"candidate": n, "seed": n + 2, "state": state} for n, state in enumerate(states, 1)]
    delivered = next((row["seed"] for row in tried if row["state"] == "delivered"), 3)
    return {
        "trials": [{"verdict": verdict}], "trial": trial, "final_score": 0.4, "nfe": 70, "nfe_plain": 50,
        "candidates": tried, "final_seed": delivered, "nfe_worst_case": 90,
    }  # fmt: skip


def pair(before: Scene, after: Scene, told: dict, planned: dict = RACE) -> run.Pair:
    return run.Pair(clip_of(before, 1.0), clip_of(after, 1.5), PICTURE, told, planned)


def test_prompts_are_fixed_by_index():
    pairs = [run.fixed_pair(index, 0) for index in range(12)]
    assert pairs == [run.fixed_pair(index, 0) for index in range(12)]
    assert [seed for *_, seed in pairs] == list(range(12))
    assert len({text for text, *_ in pairs}) == 12


def test_an_entry_compares_the_first_verdict_with_what_came_out():
    (text, right), (_, wrong) = prompt("test", "easy", 0), prompt("test", "easy", 1)
    entry = run.run_entry(text, 3, right, pair(wrong, right, report(False, "1"), PAPER))
    assert entry.keys() == KEYS
    assert entry["judge_base"] is False and entry["judge_final"] is True
    assert (entry["accepted"], entry["trial"], entry["nfe"], entry["seconds_plain"]) == (False, "1", 70, 1.0)
    summary = run.summarise([entry])
    assert (summary["repaired"], summary["spoiled"], summary["rejected"]) == (1, 0, 1)
    assert "wrong, right" in run.line(0, entry) and "trial 1, early reject" in run.line(0, entry)
    assert "1 repaired" in run.total(summary) and "1 rejected early" in run.total(summary)


def test_a_race_says_what_was_tried_and_what_it_may_cost():
    (text, right), (_, wrong) = prompt("test", "easy", 0), prompt("test", "easy", 1)
    states = ("put aside", "delivered", "put aside")
    entry = run.run_entry(text, 3, right, pair(right, wrong, report(False, "candidate 2", states)))
    assert entry["delivered_seed"] == 4 and len(entry["candidates"]) == 3 and entry["budget"] == 0.25
    assert "candidate 2 of 3" in run.line(0, entry) and "right, wrong" in run.line(0, entry)
    total = run.total(run.summarise([entry]))
    assert "3 candidates tried (budget 25%, self-refined: later), another seed delivered in 1" in total
    assert "Right before: 1 of 1, after: 0 (0 repaired, 1 spoiled)" in total
    assert "70 against 50 plain (1.40 times, at most 1.80)" in total


def test_clips_without_a_scene_are_not_judged():
    _, scene = prompt("test", "easy", 0)
    entry = run.run_entry("a cat", 0, None, pair(scene, scene, report(True, "0"), PAPER))
    assert entry["judge_base"] is None and entry["judge_final"] is None
    assert run.summarise([entry])["judged"] == 0
    assert "-, -" in run.line(0, entry)


def test_clips_are_written_whole(tmp_path):
    frames = render(prompt("test", "hard", 0)[1], generator=torch.Generator().manual_seed(0)).numpy()
    media.write_clip(frames, tmp_path / "clip", {})
    with av.open(str(tmp_path / "clip.mp4")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    big = frames.repeat(media.ENLARGE, 1).repeat(media.ENLARGE, 2)
    assert decoded.shape == big.shape
    assert np.abs(decoded.astype(int) - big).mean() < 6
    with Image.open(tmp_path / "clip.webp") as animation:
        assert animation.is_animated and animation.size == (256, 256)
    rows = [("plain", frames), ("preview", frames[::4])]
    media.contact_sheet(rows, ["one", "two"], tmp_path / "sheet.png")
    media.contact_sheet(rows, ["one", "two"], tmp_path / "more.png", below=PICTURE)
    sheet, more = Image.open(tmp_path / "sheet.png"), Image.open(tmp_path / "more.png")
    assert sheet.width > 9 * 128 and more.size == (sheet.width, sheet.height + 800)


def carried(path: Path) -> dict[str, dict]:
    """The graphs in a clip's file, read as ComfyUI's frontend does."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return {kind: json.loads(container.metadata[kind]) for kind in media.EXIF if kind in container.metadata}
    texts = (text.split(":", 1) for text in Image.open(path).getexif().values())
    return {kind: json.loads(text) for kind, text in texts}


def test_the_demo_writes_what_it_promises(comfy_server: ComfyServer, tmp_path, capsys):
    run.main(["--server", comfy_server.url, "--count", "2", "--seed", "5", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written.keys() == {"runs", "summary", "environment"}
    assert [entry.keys() for entry in written["runs"]] == [KEYS] * 2
    assert [entry["seed"] for entry in written["runs"]] == [5, 6]
    for entry in written["runs"]:
        assert entry["plan"] == "race" and entry["nfe_plain"] == preset.STEPS
        assert isinstance(entry["judge_base"], bool) and isinstance(entry["judge_final"], bool)
        (row,) = [row for row in entry["candidates"] if row["state"] == "delivered"]
        assert row["seed"] == entry["delivered_seed"] == entry["seed"] + row["candidate"] - 1
        assert entry["nfe"] == sum(row["nfe"] for row in entry["candidates"]) <= entry["nfe_worst_case"]
        if row["candidate"] == 1:
            assert entry["judge_base"] == entry["judge_final"]
    for number, entry in enumerate(written["runs"], 1):
        for suffix in ("mp4", "webp"):
            plain, ours = (carried(tmp_path / f"{number:02}_{which}.{suffix}") for which in ("plain", "foresight"))
            prompt, made = plain["prompt"], api_form(ours["workflow"])
            assert prompt[node_of(prompt, "KSampler")]["inputs"]["seed"] == entry["seed"]
            assert not [node for node in prompt.values() if node["class_type"].startswith("ForesightSampler")]
            inputs = made[node_of(made, "ForesightSampler")]["inputs"]
            assert {name: inputs[name] for name in ("prompt", "seed", *run.PLANNED)}.items() <= entry.items()
    names = {f"{n:02}_{what}" for n in (1, 2) for what in ("plain.mp4", "plain.webp", "foresight.mp4", "foresight.webp",
             "sheet.png")}  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == names | {"report.json"}
    said = capsys.readouterr().out
    assert "2 runs" in said and written["runs"][0]["prompt"][:40] in said


DROP = """async ([name, type, data]) => {
    app.graph.clear()
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0))
    await app.handleFile(new File([bytes], name, { type }))
}"""
HAS = """([type, seed]) => app.graph._nodes.some(
    node => node.type === type && node.widgets.some(widget => widget.name === 'seed' && widget.value === seed))"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
def test_a_clip_that_is_dropped_into_comfyui_opens_its_graph(comfy_server: ComfyServer, tmp_path):
    info = comfy_server.object_info()
    graph = run.demo_graph(info, "a red ring", 7)
    plain = {id: graph[id] for id in Graph(graph, info).upstream(run.PLAIN)}
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        page.goto(comfy_server.url)
        page.wait_for_function(READY)
        for node, graphs in (("KSampler", {"prompt": plain}),
                             ("ForesightSampler", {"workflow": one_node_file("demo", seed=7)})):  # fmt: skip
            media.write_clip(frames, tmp_path / node, graphs)
            for suffix, type in ((".mp4", "video/mp4"), (".webp", "image/webp")):
                file = (tmp_path / node).with_suffix(suffix)
                page.evaluate(DROP, [file.name, type, base64.b64encode(file.read_bytes()).decode()])
                page.wait_for_function(HAS, arg=[node, 7])
        page.context.browser.close()


@pytest.mark.parametrize(
    "arguments, planned",
    [
        (["--plan", "paper"], PAPER),
        (["--budget", "0", "--self-refine", "off"], RACE | {"budget": 0.0, "self_refine": "off"}),
    ],
)
def test_the_demo_runs_what_it_is_told(comfy_server: ComfyServer, tmp_path, arguments, planned):
    run.main(["--server", comfy_server.url, "--count", "1", "--out", str(tmp_path), *arguments])
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (entry,) = written["runs"]
    assert planned.items() <= entry.items() and planned.items() <= written["summary"].items()
    if planned["plan"] == "paper":
        assert entry["candidates"] == [] and entry["trial"] in ("0", "1", "2", "2->1")
    else:
        assert len(entry["candidates"]) == 1 and entry["nfe"] == preset.STEPS


def test_a_budget_that_is_none_ends_the_demo_with_a_sentence(comfy_server: ComfyServer, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["--server", comfy_server.url, "--budget", "-1", "--out", str(tmp_path)])
    assert ended.value.code == 2 and "budget" in capsys.readouterr().err
