"""The noise of a stream: each draw is a function of the run's seed and of where it is used, and of nothing else.

So a chunk has the same noise whichever call makes it and however often others were drawn again, and seeds next to each
other, or 1,000 apart, share nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import torch


def drawn(like: torch.Tensor, seed: int, *place: Hashable) -> torch.Tensor:
    """Normal noise shaped as `like`, on its device. place: frame, step, draw, or whatever else tells it from others."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(like.shape, generator=generator).to(like)
