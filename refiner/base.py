"""What rewords a prompt: Trial 2's question and its answer (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..trials.foreign import quoted


@dataclass(frozen=True)
class RewordingRequest:
    """preview: [F, H, W, 3] float in 0..1, what the rejected run was about to become; predicted_score: its score.

    seed: of the rejected run's noise, None where nobody can draw other noise. family: the video model's, in words.
    """

    prompt: str
    negative: str
    preview: Tensor
    predicted_score: float | None
    seed: int | None = None
    family: str | None = None


@dataclass(frozen=True)
class Rewording:
    """reasoning: one or two sentences for people. evidence: what led there, ready for JSON, strongest first.

    seed: of the noise to restart from, 0 to 2^64 - 1; None keeps the rejected run's noise, as the paper does. usage:
    what the answer cost (tokens, price, attempts), ready for JSON; empty where nothing was asked. RewordingError for
    anything else.
    """

    prompt: str
    negative: str
    reasoning: str
    evidence: tuple[dict[str, Any], ...] = field(default=())
    seed: int | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name, kind in (("prompt", str), ("negative", str), ("reasoning", str), ("usage", dict)):
            if not isinstance(value := getattr(self, name), kind):
                raise RewordingError(f"the refiner's {name} is {quoted(value)}, and no {kind.__name__}")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**64):
            raise RewordingError(f"the refiner's seed is {quoted(self.seed)}, and no whole number from 0 to 2^64 - 1")


class RewordingError(Exception):
    """No better prompt, and why. The run then goes on with the original prompt. usage: what the attempt cost."""

    def __init__(self, message: str, usage: dict[str, Any] | None = None):
        super().__init__(message)
        self.usage = usage or {}


class Reworder(Protocol):
    name: str

    def reword(self, request: RewordingRequest) -> Rewording:
        """Gives a prompt with the same meaning that states more clearly what the preview lacks.

        RewordingError: there is none, with the reason.
        """
