"""Trial 2 without a better prompt: the same words, other noise. Ours, and the baseline of every other back end."""

from __future__ import annotations

from .base import Rewording, RewordingError, RewordingRequest

SEED_STEP = 100_000  # far from the neighbouring seeds that people try themselves
_SEEDS = 2**64  # ComfyUI's widgets and torch's generators take 64 bits


class RestartReworder:
    """A Reworder that needs nothing. Deterministic: the new seed follows from the old one."""

    name = "restart"

    def reword(self, request: RewordingRequest) -> Rewording:
        if request.seed is None:
            raise RewordingError("the noise cannot be drawn anew: connect NOISE to the VLM Prompt Refiner")
        seed = (request.seed + SEED_STEP) % _SEEDS
        return Rewording(
            request.prompt, request.negative, f"The prompt stays; the noise is drawn anew with seed {seed}.", seed=seed
        )
