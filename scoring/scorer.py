"""What an alignment scorer is."""

from typing import Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """Says how well frames fit a text. tau and delta only mean something for the scorer that carries them."""

    name: str
    tau: float  # a run whose predicted score is at least this passes
    delta: float  # how much better a single frame must score before it is injected (section 3.2)
    scale: float  # spread of its scores against ViCLIP-L's; multiplies the detector's margins
    device: torch.device

    def encode_text(self, prompt: str) -> Tensor:
        """The L2-normalised text feature [D] of the prompt's words alone (words.plain): callers give it as it is
        written, with weights, LoRA tags and all that is meant for the video model's encoder. ValueError without words.
        """

    def looks_at(self, count: int) -> list[int]:
        """Which of a clip's `count` frames it scores: those alone give the same score, and only they are decoded."""

    def score(self, frames: Tensor, text: Tensor) -> float:
        """Cosine of frames [F, H, W, 3] in 0..1 and a text feature [D]."""
