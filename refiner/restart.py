"""Trial 2 without a better prompt: the same words, other noise. Ours, not the paper's; every refiner's baseline."""

from __future__ import annotations

from .base import Refinement, RefinementError, RefinementRequest

SEED_STEP = 100_000  # far from the neighbouring seeds that people try themselves
_SEEDS = 2**64  # ComfyUI's widgets and torch's generators take 64 bits


class RestartRefiner:
    """A Refiner that needs nothing. Deterministic: the new seed follows from the old one."""

    name = "restart"

    def refine(self, request: RefinementRequest) -> Refinement:
        if request.seed is None:
            raise RefinementError("the noise cannot be drawn anew: connect NOISE to the VLM Prompt Refiner")
        seed = (request.seed + SEED_STEP) % _SEEDS
        return Refinement(
            request.prompt, request.negative, f"The prompt stays; the noise is drawn anew with seed {seed}.", seed=seed
        )
