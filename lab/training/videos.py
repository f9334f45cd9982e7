"""Clips out of a folder of videos, for training converters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import torch
from torch import Tensor
from torch.nn import functional as F

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
HELD_OUT = 20  # every so many-th video measures only
MOTION_PAIRS = 4  # of neighbouring frames, spread over a clip, whose optical flow is looked at
MOTION_SIDE = 256  # pixels of the shorter side at which it is


def split(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folder's videos to train on and those to measure with, chosen by name, so that more videos move none from one
    side to the other. ValueError where there are fewer than two."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise ValueError(f"{folder} has {len(files)} video(s) ({', '.join(sorted(SUFFIXES))}): two are the least.")
    rank = {path: int(hashlib.sha256(path.name.encode()).hexdigest(), 16) for path in files}
    held_out = [path for path in files if rank[path] % HELD_OUT == 0] or [min(files, key=rank.__getitem__)]
    return [path for path in files if path not in held_out], held_out


def read_clip(path: Path, frames: int, height: int, width: int, start: float = 0.0) -> Tensor | None:
    """uint8 [frames, height, width, 3] from `start` (0 to 1) of the video on, fitted over and cut out of the middle.
    None where there are not so many frames, or the file cannot be read."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            length = stream.duration or 0
            if start and length and stream.frames > frames:
                container.seek(int(start * length * (1 - frames / stream.frames)), stream=stream)
            taken = []
            for frame in container.decode(stream):
                taken.append(fitted(torch.from_numpy(frame.to_ndarray(format="rgb24")), height, width))
                if len(taken) == frames:
                    return torch.stack(taken)
    except (av.error.FFmpegError, IndexError, OSError):
        pass
    return None


def fitted(frame: Tensor, height: int, width: int) -> Tensor:
    """uint8 [H, W, 3] to uint8 [height, width, 3]: fitted over it and cut out of the middle."""
    scale = max(height / frame.shape[0], width / frame.shape[1])
    size = max(height, round(frame.shape[0] * scale)), max(width, round(frame.shape[1] * scale))
    pixels = frame.movedim(-1, 0)[None].float()
    if size != tuple(frame.shape[:2]):
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = pixels[0, :, top : top + height, left : left + width]
    return cut.round().clamp(0, 255).byte().movedim(0, -1)


def clips(
    files: Sequence[Path], frames: int, height: int, width: int, generator: torch.Generator,
    moves: Callable[[Tensor], bool] = lambda clip: True,
) -> Iterator[Tensor]:
    """Clips without end, from files and places drawn at random; those that do not move enough are left out. ValueError
    where a whole round over the files gives none."""
    missed = 0
    while missed < max(50, 2 * len(files)):
        path = files[int(torch.randint(len(files), (), generator=generator))]
        clip = read_clip(path, frames, height, width, float(torch.rand((), generator=generator)))
        missed += 1
        if clip is not None and moves(clip):
            missed = 0
            yield clip
    raise ValueError(
        f"none of {missed} clips could be used: videos need at least {frames} frames, and enough motion (--min-flow)."
    )


class Motion:
    """Mean optical flow in pixels a frame, by RAFT (as in the paper, A.2), from torchvision's own weights file."""

    def __init__(self, weights: Path, device: torch.device | str = "cpu"):
        """weights: torchvision's raft_small or raft_large checkpoint. ValueError for another file."""
        from torchvision.models.optical_flow import raft_large, raft_small

        state = torch.load(weights, weights_only=True)
        for build in (raft_small, raft_large):
            model = build()
            if {name: tensor.shape for name, tensor in model.state_dict().items()} == {
                name: tensor.shape for name, tensor in state.items()
            }:
                break
        else:
            raise ValueError(f"{weights.name} is neither torchvision's raft_small nor its raft_large.")
        model.load_state_dict(state)
        self.model, self.device = model.eval().to(device), device

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> float:
        """clip: uint8 [T, H, W, 3]."""
        at = torch.linspace(0, len(clip) - 2, MOTION_PAIRS).long().unique()
        pixels = clip[torch.cat([at, at + 1])].movedim(-1, 1).float().div(127.5).sub(1)
        scale = MOTION_SIDE / min(pixels.shape[-2:])
        size = [max(128, round(side * scale / 8) * 8) for side in pixels.shape[-2:]]  # RAFT's own conditions
        first, second = F.interpolate(pixels, size, mode="bilinear", antialias=True).to(self.device).chunk(2)
        return float(self.model(first, second)[-1].norm(dim=1).mean())
