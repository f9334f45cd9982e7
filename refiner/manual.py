"""Trial 2 with the words that the user has written for it. Nothing is asked or checked: it is their prompt."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Rewording, RewordingRequest


@dataclass(frozen=True)
class ManualReworder:
    prompt: str
    name = "manual"

    def __post_init__(self):
        if not self.prompt.strip():
            raise ValueError("manual_prompt is empty: write the prompt for Trial 2, or choose another back end.")

    def reword(self, request: RewordingRequest) -> Rewording:
        return Rewording(self.prompt, request.negative, "The user's own alternative prompt.")
