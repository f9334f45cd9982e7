"""Clips to fit converters on that need no download: procedural pictures with the statistics of natural ones.

Edges, areas and textures of all sizes, as photographs have them: dead leaves (Lee, Mumford and Huang 2001, "Occlusion
models for natural images"), noise of spectrum 1/f, gradients and strokes, seen by a camera that moves and zooms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LEAVES = 220


def procedural_clips(count: int, frames: int, size: int, seed: int = 0) -> Tensor:
    """[count, frames, size, size, 3] float in 0..1; the same seed gives the same clips on one version of torch."""
    generator = torch.Generator().manual_seed(seed)
    kinds = (_leaves, _pink, _gradient, _strokes)
    clips = [
        _camera(_mixed(kinds[i % len(kinds)], kinds[(i // len(kinds)) % len(kinds)], 2 * size, generator), frames, size,
                generator)
        for i in range(count)
    ]  # fmt: skip
    return torch.stack(clips)


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator)


def _colours(count: int, generator: torch.Generator) -> Tensor:
    """[count, 3]: mostly muted, as in photographs."""
    grey = _rand(generator, count, 1)
    return (grey + (_rand(generator, count, 3) - 0.5) * _rand(generator, count, 1)).clamp(0, 1)


def _mixed(one, other, size: int, generator: torch.Generator) -> Tensor:
    """[3, size, size]: a picture with another's texture on it."""
    texture = other(size, generator) - 0.5
    return (one(size, generator) + 0.3 * _rand(generator, 1) * texture).clamp(0, 1)


def _leaves(size: int, generator: torch.Generator) -> Tensor:
    """Discs and boxes that cover each other, their radii distributed as r^-3 (the scale-invariant choice)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    canvas = torch.full((3, size, size), 0.5)
    smallest, largest = 2.0, size / 3
    for colour in _colours(LEAVES, generator):
        u, cx, cy, box = _rand(generator, 4).tolist()
        radius = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
        dx, dy = (x - cx * size).abs(), (y - cy * size).abs()
        inside = torch.maximum(dx, dy) < radius if box < 0.3 else dx.square() + dy.square() < radius**2
        canvas = torch.where(inside, colour[:, None, None], canvas)
    return canvas


def _pink(size: int, generator: torch.Generator) -> Tensor:
    """Amplitude 1/f, the spectrum of natural images; channels mostly alike."""
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    amplitude = 1 / torch.hypot(fy.expand(-1, fx.shape[1]), fx.expand(size, -1)).clamp_min(1 / size)
    phase = torch.polar(amplitude.expand(4, -1, -1), 2 * math.pi * _rand(generator, 4, *amplitude.shape))
    noise = torch.fft.irfft2(phase, s=(size, size))
    noise = noise[:1] + 0.4 * noise[1:]
    noise = noise / noise.std()
    return (_colours(1, generator)[0][:, None, None] + 0.18 * noise).clamp(0, 1)


def _gradient(size: int, generator: torch.Generator) -> Tensor:
    corners = _colours(4, generator).T.reshape(1, 3, 2, 2)
    return F.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True)[0]


def _strokes(size: int, generator: torch.Generator) -> Tensor:
    """Rows of small dark marks on a plain ground, as writing has them."""
    ground, ink = _colours(2, generator)
    cell = int(torch.randint(6, 20, (), generator=generator))
    marks = (_rand(generator, 1, 1, size // (cell // 3), size // (cell // 3)) < 0.4).float()
    marks = F.interpolate(marks, size=(size, size), mode="nearest")[0, 0]
    rows = ((torch.arange(size) // cell) % 2 == 0).float()[:, None]
    return torch.lerp(ground[:, None, None], ink[:, None, None], (marks * rows)[None])


def _camera(canvas: Tensor, frames: int, size: int, generator: torch.Generator) -> Tensor:
    """[frames, size, size, 3]: a window that pans and zooms over a canvas [3, 2 size, 2 size]."""
    start, end = (_rand(generator, 2) * 0.8 - 0.4 for _ in range(2))
    zoom = 0.5 * (0.8 + 0.4 * _rand(generator, 2))
    speed = _rand(generator, 1)  # some cameras stand nearly still
    time = torch.linspace(0, 1, frames)[:, None] * speed
    centre = torch.lerp(start[None], end[None], time)
    half = torch.lerp(zoom[:1], zoom[1:], time)[..., None]  # [frames, 1, 1]
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([x[None] * half + centre[:, None, None, 0], y[None] * half + centre[:, None, None, 1]], -1)
    view = F.grid_sample(
        canvas[None].expand(frames, -1, -1, -1), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return view.movedim(1, -1)
