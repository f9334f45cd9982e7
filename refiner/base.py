"""What a prompt refiner is: Trial 2's question and its answer (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class RefinementRequest:
    """preview: [F, H, W, 3] float in 0..1, what the rejected run was about to become; predicted_score: its score."""

    prompt: str
    negative: str
    preview: Tensor
    predicted_score: float | None


@dataclass(frozen=True)
class Refinement:
    """reasoning: one or two sentences for people. evidence: what led there, ready for JSON, strongest first."""

    prompt: str
    negative: str
    reasoning: str
    evidence: tuple[dict[str, Any], ...] = field(default=())


class RefinementError(Exception):
    """No refined prompt, and why. The run then goes on with the original prompt."""


class Refiner(Protocol):
    name: str

    def refine(self, request: RefinementRequest) -> Refinement:
        """Gives a prompt with the same meaning that states more clearly what the preview lacks.

        RefinementError: there is none, with the reason.
        """
