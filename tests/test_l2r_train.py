"""The converters' training command: what it reads, that it learns, goes on after a stop, and says what is wrong."""

from __future__ import annotations

import av
import comfy.latent_formats
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from foresight.l2r import fit
from foresight.l2r.checkpoint import load_l2r
from foresight.l2r.clips import procedural_clips
from foresight.l2r.learner import Learner
from foresight.l2r.pairs import encoded
from foresight.lab.training import converter as recipe
from foresight.lab.training import videos
from foresight.lab.training.common import VAE
from foresight.lab.training.loop import train


def write(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos of 24 frames in 64x96, and what is none."""
    folder = tmp_path_factory.mktemp("videos")
    for i, clip in enumerate(procedural_clips(5, 24, 96, seed=7)[:, :, :64]):
        write(folder / f"{i}.mp4", (clip.numpy() * 255).round().astype(np.uint8))
    (folder / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


def test_videos_are_split_by_name_and_more_of_them_move_none(folder, tmp_path):
    training, held_out = videos.split(folder)
    assert len(training) + len(held_out) == 6 and held_out and not set(training) & set(held_out)
    for name in [f"{i}.mp4" for i in range(400)]:
        (tmp_path / name).touch()
    before = set(videos.split(tmp_path)[1])
    assert 5 <= len(before) <= 40
    for name in [f"more{i}.webm" for i in range(400)]:
        (tmp_path / name).touch()
    assert before <= set(videos.split(tmp_path)[1])


def test_a_folder_without_videos_is_named(tmp_path):
    with pytest.raises(ValueError, match="has 0 video"):
        videos.split(tmp_path)


def test_clips_are_fitted_and_start_where_asked(folder):
    clip = videos.read_clip(folder / "0.mp4", 9, 32, 32)
    assert clip.shape == (9, 32, 32, 3) and clip.dtype == torch.uint8
    whole = videos.read_clip(folder / "0.mp4", 24, 64, 96)
    assert (whole.float() / 255 - procedural_clips(5, 24, 96, seed=7)[0, :, :64]).abs().mean() < 0.02
    late = videos.read_clip(folder / "0.mp4", 9, 64, 96, start=1.0)
    assert late is None or late.shape == (9, 64, 96, 3)
    assert videos.read_clip(folder / "0.mp4", 25, 32, 32) is None
    assert videos.read_clip(folder / "broken.mp4", 1, 32, 32) is None


def test_clips_that_hardly_move_are_left_out(folder):
    files = videos.split(folder)[0]
    source = videos.clips(files, 5, 32, 32, torch.Generator().manual_seed(0), lambda clip: False)
    with pytest.raises(ValueError, match="none of .* enough motion"):
        next(source)


def test_flow_is_measured_by_torchvisions_raft(tmp_path, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = raft_small()
    torch.save(model.state_dict(), tmp_path / "raft.pth")
    clip = videos.read_clip(folder / "1.mp4", 5, 64, 96)
    found = videos.Motion(tmp_path / "raft.pth")(clip)
    pixels = clip[[0, 1, 2, 3, 1, 2, 3, 4]].movedim(-1, 1).float().div(127.5).sub(1)
    pixels = torch.nn.functional.interpolate(pixels, (256, 384), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model.eval()(*pixels.chunk(2))[-1].norm(dim=1).mean()
    assert found == pytest.approx(float(expected), rel=1e-3)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is neither"):
        videos.Motion(tmp_path / "other.pth")


@pytest.mark.parametrize("architecture", ["paper", "subpixel"])
def test_it_learns_and_goes_on_after_a_stop(folder, tmp_path, monkeypatch, architecture):
    for name, value in (("BATCH", 2), ("POOL", 6), ("STEPS_A_CLIP", 10)):
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(recipe.Converter, "every", 20)
    monkeypatch.setattr(fit, "AVERAGE", 0.9)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(VAE)))
    encode = lambda clip: encoded(vae, comfy.latent_formats.Wan21(), clip.float() / 255)  # noqa: E731
    files = [path for path in sorted(folder.glob("*.mp4")) if path.stem != "broken"]
    held_out = [encode(videos.read_clip(files[0], 9, 64, 64))]
    said = []

    def run(steps):
        def draw(generator):
            return videos.clips(files[1:], 9, 64, 64, generator)

        train(recipe.Converter(
            encode, draw, held_out, tmp_path / "made.safetensors", architecture=architecture, seed=0,
            metadata={"latent_format": "Wan21"},
        ), steps, said.append)  # fmt: skip

    run(20)
    first = load_l2r(tmp_path / "made.safetensors").metadata["psnr"]
    run(60)
    made = load_l2r(tmp_path / "made.safetensors")
    assert made.metadata["psnr"] > first and made.metadata["steps"] == 60
    assert "going on from step 20" in said
    assert [line.split(" step ")[1].split()[0] for line in said if "held_out" in line] == ["20", "40", "60"]
    assert (tmp_path / "made.log").read_text().count("\n") == 3 and (tmp_path / "made.png").stat().st_size > 1000


def test_the_average_forgets_the_random_weights_it_began_with():
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.data.fill_(100.0)
    learner = Learner(model, torch.optim.SGD(model.parameters(), 0.0), decay=fit.AVERAGE)
    learner.step(model.weight.sum())
    model.weight.data.fill_(1.0)
    for _ in range(200):
        learner.step(model.weight.sum())
    assert torch.allclose(learner.result.weight, model.weight, atol=1e-3)


def test_the_average_moves_by_what_its_age_allows():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    learner = Learner(model, torch.optim.SGD(model.parameters(), 0.0), decay=0.2)
    expected = 0.0
    for update in range(1, 6):
        model.weight.data.fill_(float(update))
        learner.step(model.weight.sum())
        expected += (1 - min(0.2, update / (update + 10))) * (update - expected)
        assert learner.result.weight.item() == pytest.approx(expected)
