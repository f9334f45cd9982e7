"""The demo command: its fixed prompts, its report and its files."""

from __future__ import annotations

import json

import av
import numpy as np
import torch
from PIL import Image

from foresight.demo import preset
from foresight.demo.captions import prompt
from foresight.demo.world import Scene, render
from foresight.evaluation import demo_command as run
from foresight.evaluation import media
from foresight.evaluation.server import ComfyServer

KEYS = {
    "prompt", "seed", "accepted", "predicted_score", "stop_step", "rule", "trial", "final_score", "judge_base",
    "judge_final", "nfe", "nfe_plain", "seconds", "seconds_plain",
}  # fmt: skip


def clip_of(scene: Scene, seconds: float) -> run.Clip:
    return run.Clip(render(scene, generator=torch.Generator().manual_seed(0)).numpy(), seconds)


def report(accepted: bool, trial: str) -> dict:
    verdict = {"accepted": accepted, "predicted_score": 0.31, "stop_step": 10, "rule": "early_reject"}
    return {"trials": [{"verdict": verdict}], "trial": trial, "final_score": 0.4, "nfe": 70, "nfe_plain": 50}


def test_prompts_are_fixed_by_index():
    pairs = [run.fixed_pair(index, 0) for index in range(12)]
    assert pairs == [run.fixed_pair(index, 0) for index in range(12)]
    assert [seed for *_, seed in pairs] == list(range(12))
    assert len({text for text, *_ in pairs}) == 12


def test_an_entry_compares_the_first_verdict_with_what_came_out():
    (text, right), (_, wrong) = prompt("test", "easy", 0), prompt("test", "easy", 1)
    entry = run.run_entry(
        text, 3, right, run.Pair(clip_of(wrong, 1.0), clip_of(right, 1.5), None, report(False, "1"))
    )
    assert entry.keys() == KEYS
    assert entry["judge_base"] is False and entry["judge_final"] is True
    assert (entry["accepted"], entry["trial"], entry["nfe"], entry["seconds_plain"]) == (False, "1", 70, 1.0)
    summary = run.summarise([entry])
    assert (summary["repaired"], summary["spoiled"], summary["rejected"]) == (1, 0, 1)
    assert "wrong, right" in run.line(0, entry)
    assert "1 repaired" in run.total(summary)


def test_clips_without_a_scene_are_not_judged():
    _, scene = prompt("test", "easy", 0)
    pair = run.Pair(clip_of(scene, 1.0), clip_of(scene, 1.0), None, report(True, "0"))
    entry = run.run_entry("a cat", 0, None, pair)
    assert entry["judge_base"] is None and entry["judge_final"] is None
    assert run.summarise([entry])["judged"] == 0
    assert "-, -" in run.line(0, entry)


def test_clips_are_written_whole(tmp_path):
    frames = render(prompt("test", "hard", 0)[1], generator=torch.Generator().manual_seed(0)).numpy()
    media.write_clip(frames, tmp_path / "clip")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    big = frames.repeat(media.ENLARGE, 1).repeat(media.ENLARGE, 2)
    assert decoded.shape == big.shape
    assert np.abs(decoded.astype(int) - big).mean() < 6
    with Image.open(tmp_path / "clip.webp") as animation:
        assert animation.is_animated and animation.size == (256, 256)
    media.contact_sheet([("plain", frames), ("preview", frames[::4])], ["one", "two"], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 9 * 128


def test_the_demo_writes_what_it_promises(comfy_server: ComfyServer, tmp_path, capsys):
    run.main(["--server", comfy_server.url, "--count", "2", "--seed", "5", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written.keys() == {"runs", "summary", "environment"}
    assert [entry.keys() for entry in written["runs"]] == [KEYS] * 2
    assert [entry["seed"] for entry in written["runs"]] == [5, 6]
    for entry in written["runs"]:
        assert entry["nfe_plain"] == preset.STEPS
        assert isinstance(entry["judge_base"], bool) and isinstance(entry["judge_final"], bool)
        if entry["accepted"]:
            assert (entry["trial"], entry["nfe"]) == ("0", preset.STEPS)
            assert entry["judge_base"] == entry["judge_final"]
    names = {f"{n:02}_{what}" for n in (1, 2) for what in ("plain.mp4", "plain.webp", "foresight.mp4", "foresight.webp",
             "sheet.png")}  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == names | {"report.json"}
    said = capsys.readouterr().out
    assert "2 runs" in said and written["runs"][0]["prompt"][:40] in said
