"""The rules of a latent search: its settings, and how rewards choose among candidates."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from ..trials.foreign import check_choice, quoted

METHODS = ("resampling", "beam", "best of N")
SCALES = ("spread", "raw")


def parse_schedule(text: str, steps: int) -> tuple[float, ...]:
    """Shares of the schedule from "10, 15, 20": the steps after which candidates are scored, 0-based as the authors
    write them, on a schedule of `steps` steps. ValueError for what cannot be read or lies outside."""
    parts = [part.strip() for part in re.split("[,;]", text) if part.strip()]
    if not parts or not all(part.isdecimal() and len(part) < 9 and int(part) < steps for part in parts):
        raise ValueError(f"schedule is {quoted(text)}: enter steps from 0 to {steps - 1}, for example 10, 15, 20.")
    return tuple(sorted({(int(part) + 1) / steps for part in parts}))


@dataclass(frozen=True)
class SearchSettings:
    """The defaults are the authors': 6 candidates, scored after steps 10, 15 and 20 (0-based) of 50, beta 0.1.

    method: "resampling" is the paper's; "beam" keeps the better half at each check; "best of N" scores finished clips.
    beta: share of new noise in a candidate; 1: each is the clip of its own seed, seed + i. temperature: of the softmax,
    above 0; scale: rewards are divided by their spread between the candidates of the check ("spread": cosines and
    learned scores then mean the same to the softmax, which the paper's sum of three standardised scores does by itself)
    or not ("raw"). budget: the most model evaluations of a run, 0 for no bound. at_once: candidates in one model call,
    which costs memory and saves time. schedule_steps: see `inputs.Inputs`.
    """

    candidates: int = 6
    method: str = "resampling"
    schedule: tuple[float, ...] = parse_schedule("10, 15, 20", 50)
    beta: float = 0.1
    temperature: float = 1.0
    scale: str = "spread"
    budget: int = 0
    at_once: int = 1
    schedule_steps: int = 0

    def __post_init__(self):
        for name, options in (("method", METHODS), ("scale", SCALES)):
            check_choice(name, getattr(self, name), options)
        if self.candidates < 1 or self.at_once < 1 or self.budget < 0:
            raise ValueError(
                f"candidates is {self.candidates}, at_once {self.at_once} and budget {self.budget}: the first two "
                "count from 1, and a budget of 0 is none."
            )
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}: set it between 0 (all the same) and 1 (seeds of their own).")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}: set it above 0; less trusts the reward more.")

    def checks(self, available: int) -> list[int]:
        """Steps (1-based) whose x0 predictions are scored, of the `available` first ones."""
        if self.method == "best of N":
            return [available]
        whole = self.schedule_steps or available
        checks = sorted({max(1, round(share * whole)) for share in self.schedule})
        if checks[0] > available:
            raise ValueError(
                f"the search first scores after step {checks[0]}, but only {available} steps are sampled here: score "
                "earlier."
            )
        return [step for step in checks if step <= available]


def survival_weights(rewards: torch.Tensor, temperature: float, scale: str = "spread") -> torch.Tensor:
    """[n], sum 1: softmax(rewards / temperature); scale: see SearchSettings."""
    rewards = rewards.double()
    if scale == "spread" and len(rewards) > 1:
        rewards = (rewards - rewards.mean()) / rewards.std(correction=0).clamp(min=1e-12)
    return torch.softmax(rewards / temperature, 0)


def resampled(weights: torch.Tensor, generator: torch.Generator) -> list[int]:
    """As many draws with replacement as there are candidates, of which each is kept once: candidate i stays with
    probability 1 - (1 - w_i)^n, and there are never more than before (paper, resampling stage; authors' code)."""
    draws = torch.multinomial(weights, len(weights), replacement=True, generator=generator)
    return sorted(set(draws.tolist()))
