"""Trial 2 with the words that the user has written for it. Nothing is asked or checked: it is their prompt."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Refinement, RefinementRequest


@dataclass(frozen=True)
class ManualRefiner:
    prompt: str
    name = "manual"

    def __post_init__(self):
        if not self.prompt.strip():
            raise ValueError("manual_prompt is empty: write the prompt for Trial 2, or choose another back end.")

    def refine(self, request: RefinementRequest) -> Refinement:
        return Refinement(self.prompt, request.negative, "The user's own alternative prompt.")
