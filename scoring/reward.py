"""What a search asks of a half-sampled clip: a reward, the higher the better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .inspector import Gate, video
from .scorer import reading_of


class Reward(Protocol):
    """Judges the x0 predictions of candidates that are half sampled. Values are compared between the candidates of one
    search only, all of one prompt, so a reward brings its prompt along and needs no scale across prompts.

    It may have `patchers`: ComfyUI's ModelPatchers of weights that ComfyUI should budget memory for; and `notes` for
    the search's report: how it reads the prompt.
    """

    name: str

    def score(self, x0: Tensor, sigma: float, step: int) -> Tensor:
        """[B], float32: a reward for each item of x0, NaN where one cannot be judged.

        x0: [B, C, F, H, W], the x0 predictions of one step, CFG-combined, in model space; not to be written to.
        sigma: the noise level that they were predicted at, the model's own (flow: 0..1). step: steps of the schedule
        that are done, from 1. May raise: the search then takes the whole step's rewards for NaN.
        """


@dataclass
class AlignmentReward:
    """The training-free reward: the gate's scorer on previews of the x0 predictions (alignment with the prompt)."""

    gate: Gate
    _text: Tensor | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"alignment ({self.gate.scorer.name})"

    @property
    def patchers(self) -> tuple:
        return self.gate.patchers

    @property
    def notes(self) -> tuple[str, ...]:
        return reading_of(self.gate.scorer, self.gate.prompt).notes

    def score(self, x0: Tensor, sigma: float, step: int) -> Tensor:
        if self._text is None:
            self._text = self.gate.scorer.encode_text(self.gate.prompt)
        latent = video(x0)
        return torch.tensor(self.gate.scores([self.gate.look(item) for item in latent.split(1)], self._text, latent)[0])
