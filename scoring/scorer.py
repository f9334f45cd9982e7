"""What an alignment scorer is."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .pieces import Reading


class Scorer(Protocol):
    """Says how well frames fit a text. tau and delta only mean something for the scorer that carries them."""

    name: str
    tau: float  # a run whose predicted score is at least this passes
    delta: float  # how much better a single frame must score before it is injected (section 3.2)
    scale: float  # spread of its scores against ViCLIP-L's; multiplies the detector's margins
    device: torch.device

    def encode_text(self, prompt: str) -> Tensor:
        """The text feature of the prompt's words alone (words.plain), however many they are: callers give it as it is
        written, with weights, LoRA tags and all that is meant for the video model's encoder, and hand on what they get:
        [D], L2-normalised, or [P, D] of a prompt in pieces (pieces.together). ValueError without words."""

    def looks_at(self, count: int) -> list[int]:
        """Which of a clip's `count` frames it scores: those alone give the same score, and only they are decoded."""

    def score(self, frames: Tensor, text: Tensor) -> float | Tensor:
        """Cosine of frames [F, H, W, 3] in 0..1 and a text feature of encode_text; a tensor without dimensions where it
        still lies on a device, so that whoever asks for several waits once (`numbers`)."""


def numbers(values: Sequence[float | Tensor]) -> list[float]:
    """Of numbers, some of which may lie on a device: those come in one copy."""
    away = [value for value in values if isinstance(value, Tensor)]
    come = iter(torch.stack([value.float().to(away[0].device) for value in away]).tolist() if away else ())
    return [next(come) if isinstance(value, Tensor) else float(value) for value in values]


def patchers_of(*parts: object) -> tuple:
    """ComfyUI's ModelPatchers of those scorers and networks whose weights it manages: their `patcher`."""
    return tuple(part.patcher for part in parts if hasattr(part, "patcher"))


def reading_of(scorer: Scorer, prompt: str) -> Reading:
    """What a scorer's `reading(prompt)` tells of how it reads a prompt; nothing where it has no such method."""
    return scorer.reading(prompt) if hasattr(scorer, "reading") else Reading()
