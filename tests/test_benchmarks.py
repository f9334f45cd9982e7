"""The benchmarks run; what they measure is for a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from foresight.lab.benchmarks import inspection, streaming


def test_the_inspection_benchmark_runs_at_a_tiny_size(comfyui, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    out = tmp_path / "results" / "inspection.json"
    with torch.random.fork_rng():
        inspection.main(["--tiny", "--repeat", "1", "--whole-runs", "--out", str(out)])
    (found,) = json.loads(out.read_text(encoding="utf-8"))["measured"]
    assert found["overhead"] == pytest.approx(found["inspection"] * 14 / (50 * found["step"]))
    assert found["overhead_of_whole_runs"] > -1
    assert "64x64, 9 frames" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_real_sizes_are_refused():
    with pytest.raises(SystemExit, match="need a GPU"):
        inspection.main([])


def test_the_streaming_benchmark_runs_at_a_tiny_size(comfyui, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    out = tmp_path / "results" / "streaming.json"
    streaming.main(["--tiny", "--repeat", "2", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["late_chunk_against_first_of_full_window"]["ratio"] > 0
    assert set(found["whole_clip_against_cache"]) == {"3", "5"}
