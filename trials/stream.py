"""A stream without torch: its chunks, the noise levels of each, what its cache takes, and how many forwards that costs.

A streaming model makes a clip chunk by chunk, each in a few steps, and sees the chunks before through a cache of keys
and values. Levels are those of the papers: timesteps from 1000 down, warped by the model's shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

CLEAN, REUSE, NOISY = KV_MODES = ("clean", "reuse last", "noisy")
GRID = (1000.0, 750.0, 500.0, 250.0)  # of the models that were distilled to four steps
CUSTOM, SIGMAS = "custom levels", "sigmas"


@dataclass(frozen=True)
class Chunk:
    """Latents start..start + frames of the stream, made at these noise levels, highest first; the last ends at 0."""

    index: int
    start: int
    frames: int
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas)


@dataclass(frozen=True)
class Preset:
    """A published schedule. digits: as `steps_by_chunk` reads them. chunk: latents. last: the level that each chunk's
    last step has, None: that of the grid. levels: where they are no grid. warped: whether the model's shift is put on
    them. kv: what the cache takes; window and sink: in latents, 0 where the whole clip is seen."""

    digits: str
    chunk: int = 3
    last: float | None = None
    levels: tuple[float, ...] = ()
    warped: bool = True
    kv: str = CLEAN
    window: int = 0
    sink: int = 0

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """The levels of a chunk of that many steps. Counts that nobody has published are spread evenly."""
        if len(self.levels) == steps:
            return self.levels
        if steps == 1:
            return GRID[:1]
        falls = steps if self.last is None else steps - 1
        even = GRID[:falls] if falls <= 4 and (self.last is not None or falls == 4) else tuple(
            1000.0 * (1 - step / falls) for step in range(falls)
        )  # fmt: skip
        return even if self.last is None else (*even, self.last)


# Sources (a GitHub repository, and its file):
# - Self-Forcing (arXiv 2506.08009): guandeh17/Self-Forcing, configs/self_forcing_dmd.yaml.
# - CausVid (2412.07772): tianweiy/CausVid, configs/wan_causal_dmd.yaml. Not warped: they are those of shift 8 already.
# - Causal-Forcing (2602.02214) by frames, and its ++ of two steps (2605.15141): thu-ml/Causal-Forcing,
#   configs/causal_forcing_dmd_framewise.yaml and configs/causal_forcing_dmd_framewise_2step.yaml.
# - LongLive 1.0 (2509.22622): NVlabs/LongLive, configs/longlive_inference.yaml at 294de2d. 2.0 is another model.
# - Diagonal Distillation: Sphere-AI-Lab/diagdistill at 24ef1c9, configs/shared_schedule.yaml for the steps (4, 3, then
#   2, the last at 100, whose keys and values stay), configs/exp_stage2_diag_from_stage1.yaml for window and sink.
PRESETS = {
    "Self-Forcing": Preset("4"),
    "CausVid": Preset("3", levels=(1000.0, 757.0, 522.0), warped=False),
    "Causal-Forcing": Preset("4", chunk=1),
    "Causal-Forcing, 4 then 2": Preset("42+", chunk=1),
    "LongLive": Preset("4", window=12, sink=3),
    "Diagonal Distillation": Preset("4322222", last=100.0, kv=REUSE, window=12, sink=3),
}


def warp(level: float, shift: float) -> float:
    """The sigma of a timestep (0..1000) under a flow model's shift."""
    share = level / 1000
    return shift * share / (1 + (shift - 1) * share)


def steps_by_chunk(digits: str, chunks: int, first: int = 0) -> list[int]:
    """Steps of the chunks first, first + 1, ...: one digit each, the whole repeated for longer clips; with a + behind
    it, only its last digit goes on ("42+": 4, 2, 2, ...). ValueError where it is not of digits from 1 to 9."""
    text = digits.replace(" ", "").replace(",", "")
    goes_on, text = text.endswith("+"), text.removesuffix("+")
    if not text or not text.isascii() or not text.isdigit() or "0" in text:
        raise ValueError(
            f"schedule is {digits!r}: write one digit from 1 to 9 for each chunk's steps, for example 4322222; a "
            "longer clip repeats them, or only the last with a + behind it (42+)."
        )
    counts = [int(digit) for digit in text]
    at = range(first, first + chunks)
    return [counts[min(index, len(counts) - 1) if goes_on else index % len(counts)] for index in at]


def parse_levels(text: str, shift: float) -> list[tuple[float, ...]]:
    """Sigmas by chunk from "1000, 750, 500, 250; 1000, 500": chunks apart by semicolons. Values above 1 are timesteps,
    to be warped by the model's shift; others are sigmas as they are. ValueError for what cannot be read."""
    try:
        rows = [[float(value) for value in row.split(",")] for row in text.strip().rstrip(";").split(";")]
    except ValueError:
        raise ValueError(
            f"levels is {text!r}: write falling timesteps apart by commas, and chunks apart by semicolons, for example "
            "1000, 750, 500, 250; 1000, 500."
        ) from None
    return [falling(tuple(warp(v, shift) if max(row) > 1 else v for v in row), "levels") for row in rows]


def split_sigmas(sigmas: Sequence[float]) -> list[tuple[float, ...]]:
    """SIGMAS by chunk: each run of levels down to a 0 is one chunk's. ValueError where there is none."""
    rows: list[list[float]] = [[]]
    for sigma in sigmas:
        if sigma > 0:
            rows[-1].append(float(sigma))
        elif rows[-1]:
            rows.append([])
    if rows[-1] or len(rows) < 2:
        raise ValueError(
            "sigmas do not end in 0: a chunk has to be finished before the next can see it. Connect the whole schedule "
            "(denoise 1, not split), or choose a preset."
        )
    return [falling(tuple(row), "sigmas") for row in rows[:-1]]


def falling(levels: tuple[float, ...], name: str) -> tuple[float, ...]:
    good = all(math.isfinite(level) and 0 < level < 1.001 for level in levels)  # schedulers round 1 up at times
    if not good or any(low >= high for high, low in zip(levels, levels[1:], strict=False)):
        raise ValueError(
            f"{name} do not fall from a chunk's start to its end between 1000 (sigma 1) and 0: {list(levels)}. Order "
            "them from the noisiest down, without the closing 0."
        )
    return levels


@dataclass(frozen=True)
class StreamSettings:
    """preset: of PRESETS, or CUSTOM (`levels` as `parse_levels` reads them), or SIGMAS (those of the sampling node).
    digits, chunk, kv, window, sink: instead of the preset's own where they are not None. window: how many latents a
    chunk sees, itself included, 0 all; sink: how many of the first it always sees. context_noise: sigma of what the
    cache takes in the noisy mode, 0..1. goes_on: whether another call continues, so that the last chunk is cached too.
    """

    preset: str = "Self-Forcing"
    digits: str | None = None
    levels: str = ""
    chunk: int | None = None
    kv: str | None = None
    window: int | None = None
    sink: int | None = None
    context_noise: float = 0.1
    goes_on: bool = False
    base: Preset = field(init=False, repr=False)

    def __post_init__(self):
        if self.preset not in (*PRESETS, CUSTOM, SIGMAS):
            raise ValueError(f"preset is {self.preset!r}: choose one of {', '.join((*PRESETS, CUSTOM, SIGMAS))}.")
        base = PRESETS.get(self.preset, Preset("4"))
        object.__setattr__(self, "base", base)
        for name in ("chunk", "kv", "window", "sink", "digits"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(base, name))
        if self.kv not in KV_MODES:
            raise ValueError(f"kv is {self.kv!r}: choose one of {', '.join(KV_MODES)}.")
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}: a chunk has 1 latent or more.")
        if self.window and self.window < self.chunk:
            raise ValueError(
                f"window is {self.window} latents, but a chunk alone has {self.chunk}: raise window, or set it to 0 so "
                "that the whole clip is seen."
            )
        if self.sink < 0 or (self.window and self.sink + self.chunk > self.window):
            raise ValueError(
                f"sink is {self.sink} latents and a chunk {self.chunk}, which do not fit into a window of {self.window}"
                ": lower sink, or raise window."
            )
        if self.goes_on and not self.window:
            raise ValueError(
                "goes_on is set, but window is 0: a stream that never ends has to forget. Set window, for example to "
                "12."
            )
        if not 0 <= self.context_noise < 1:
            raise ValueError(f"context_noise is {self.context_noise}: it is a sigma from 0 up to, but not, 1.")
        steps_by_chunk(self.digits, 1)

    def sees(self, frames: int) -> int:
        """The latents for which the cache has room in a stream of that many."""
        return self.window if self.goes_on else min(self.window or frames, frames)

    def chunks(
        self, frames: int, shift: float, sigmas: Sequence[float] = (), start: int = 0, first: int = 0
    ) -> list[Chunk]:
        """The chunks of `frames` new latents after `start` that are there; `first` chunks were made before. A last one
        is shorter where they are no multiple. ValueError where there is nothing to make."""
        if frames < 1:
            raise ValueError(
                f"the latent has no frames left after the {start} that it starts from: make it longer than the start."
            )
        count = math.ceil(frames / self.chunk)
        if self.preset in (CUSTOM, SIGMAS):
            rows = parse_levels(self.levels, shift) if self.preset == CUSTOM else split_sigmas(sigmas)
            levels = [rows[min(first + index, len(rows) - 1)] for index in range(count)]
        else:
            steps = steps_by_chunk(self.digits, count, first)
            levels = [
                tuple(warp(t, shift) if self.base.warped else t / 1000 for t in self.base.timesteps(n)) for n in steps
            ]
        return [
            Chunk(first + index, start + index * self.chunk, min(self.chunk, frames - index * self.chunk), row)
            for index, row in enumerate(levels)
        ]

    def cached(self, chunks: Sequence[Chunk], chunk: Chunk) -> bool:
        """Whether a chunk's keys and values are needed once it is made: not of the last, where nothing follows."""
        return self.goes_on or chunk is not chunks[-1]

    def passes(self, chunks: Sequence[Chunk], chunk: Chunk) -> int:
        """Forwards that only fill the cache after a chunk."""
        return int(self.kv != REUSE and self.cached(chunks, chunk))

    def context(self, chunks: Sequence[Chunk]) -> float:
        """The sigma of what the cache takes: none when clean, the last step's own where that is what stays in it."""
        own = chunks[-1].sigmas[-1] if self.kv == REUSE else self.context_noise if self.kv == NOISY else 0.0
        return own if own < 1 else 0.0

    def forwards(self, chunks: Sequence[Chunk]) -> int:
        """Forwards of a plain run, cache passes included."""
        return sum(chunk.steps + self.passes(chunks, chunk) for chunk in chunks)


def pieces(frames: int, chunk: int) -> list[tuple[int, int]]:
    """(start, frames) in which latents that are given go into the cache: what is over comes first, as an image."""
    over = frames % chunk
    if not frames:
        return []
    starts = [0] * bool(over) + list(range(over, frames, chunk))
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], frames], strict=True)]


def cache_bytes(layers: int, rows: int, tokens: int, width: int, itemsize: int) -> int:
    """Bytes of keys and values. rows: batch items times conditionings; tokens: of all latents in the window."""
    return 2 * layers * rows * tokens * width * itemsize


def parse_prompts(text: str) -> list[tuple[int, str]]:
    """(chunk at which it begins, prompt), from lines that begin with a chunk's number ("5: it turns left"); lines
    without one go on with the prompt above, and the first begins at chunk 0. ValueError where none is, or they do not
    rise."""
    prompts: list[tuple[int, str]] = []
    for line in text.strip().splitlines():
        number, colon, rest = line.partition(":")
        if colon and number.strip().isdecimal():
            prompts.append((int(number), rest.strip()))
        elif prompts:
            prompts[-1] = (prompts[-1][0], f"{prompts[-1][1]}\n{line.strip()}".strip())
        else:
            prompts.append((0, line.strip()))
    begins = [begin for begin, _ in prompts]
    if not prompts or not all(prompt for _, prompt in prompts):
        raise ValueError(
            "prompts has an empty prompt: write what the clip shows, and later prompts as 5: it turns left."
        )
    if begins[0] != 0 or any(after <= before for before, after in zip(begins, begins[1:], strict=False)):
        raise ValueError(
            f"prompts begin at chunks {begins}: the first begins at 0, and each later than the one above it."
        )
    return prompts
