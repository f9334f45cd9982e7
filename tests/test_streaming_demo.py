"""`dev.py demo --streaming`: fixed prompts, the example graph at three times its length, a verdict for each part."""

from __future__ import annotations

import json

import pytest

from foresight.demo import preset
from foresight.demo.script import frames_of
from foresight.evaluation import streaming_demo as run
from foresight.evaluation.graphs import node_of
from foresight.lab.training.common import STREAMER


def entry(right, **changes):
    return {"chunks": 21, "forwards": 104, "forwards_plain": 104, "redrawn": 0, "taken_back": 0, "seconds": 2.0,
            "right": right} | changes  # fmt: skip


def test_prompts_are_fixed_and_turn_at_each_part():
    scripts = run.scripts(6)
    assert scripts == run.scripts(6) and len({script.prompts[0] for script in scripts}) == 6
    for script in scripts:
        assert script.latents == 3 * preset.STREAM_LATENTS and len(script.segments) == 4
        first, second, third, _ = script.prompts
        assert first == third != second
        begins = [int(line.split(":")[0]) for line in run.prompt_lines(script).splitlines()]
        assert begins == [0, 7, 13, 19]


def test_the_graph_is_the_example_with_or_without_its_gate(comfy_server):
    (script,) = run.scripts(1)
    info = comfy_server.object_info()
    for gated in (True, False):
        graph = run.streaming_graph(info, script, 9, gated)
        stream = graph[node_of(graph, "ForesightStreamingSampler")]["inputs"]
        assert ("chunk_gate" in stream) == gated and stream["preset"] == "Self-Forcing"
        assert graph[node_of(graph, "EmptyHunyuanLatentVideo")]["inputs"]["length"] == frames_of(21)
        assert graph[node_of(graph, "RandomNoise")]["inputs"]["noise_seed"] == 9
        guider = graph[node_of(graph, "ForesightStreamingGuider")]["inputs"]
        assert guider["prompts"].startswith("0: ") and guider["recache"] is False
        assert graph[node_of(graph, "ForesightChunkGate")]["inputs"]["prompt"] == guider["prompts"]


def test_the_total_tells_both_sides_part_by_part():
    runs = [{"plain": entry([True, False]), "gated": entry([True, True], forwards=130, redrawn=3, taken_back=1)},
            {"plain": entry([True, False]), "gated": entry([False, True], forwards=104)}]  # fmt: skip
    summary = run.summarise(runs)
    assert summary["plain"]["right"] == [2, 0] and summary["gated"]["clips_right"] == 1
    told = run.total(summary)
    assert "100 %, 0 % without the gate, 50 %, 100 % with it; whole clips: 0 and 1." in told
    assert "Forwards: 208 and 234 (1.12 times); 3 chunks redrawn, 1 taken back" in told
    line = run.line(0, "a red circle", True, runs[0]["gated"])
    assert line.split() == ["with", "21", "3", "1", "130", "right", "right"]
    assert run.line(0, "a red circle", False, runs[0]["plain"]).startswith("   1. a red circle")


def test_no_prompts_are_none_to_run(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["--count", "0"])
    assert ended.value.code == 2 and "--count is 0" in capsys.readouterr().err


def test_it_says_which_weights_are_missing_or_writes_what_it_promises(comfy_server, tmp_path, capsys):
    command = ["--server", comfy_server.url, "--count", "1", "--seed", "3", "--out", str(tmp_path)]
    if not STREAMER.exists():
        with pytest.raises(SystemExit, match=f"{preset.STREAMER} is not in"):
            run.main(command)
        return
    run.main(command)
    written = json.loads((tmp_path / "streaming.json").read_text(encoding="utf-8"))
    (made,) = written["runs"]
    assert (made["plain"]["chunks"], made["plain"]["forwards"], made["plain"]["redrawn"]) == (21, 104, 0)
    assert made["plain"]["forwards"] <= made["gated"]["forwards"] <= 104 + 52
    assert len(made["plain"]["right"]) == 4
    assert {path.stem for path in tmp_path.glob("*.mp4")} == {"stream_01_plain", "stream_01_gated"}
    assert "1 streams of 21 chunks" in capsys.readouterr().out
