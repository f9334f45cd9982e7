"""Distribution matching of motion (Diagonal Distillation, section 3.4): differences of neighbouring latents."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

HIDDEN = 64  # of the head (code 24ef1c9)
ERRORS, GROWTH = (0.7, 0.3), 1.2  # of frame_weights (code 24ef1c9)

Kind = Literal["latent", "difference", "head"]


def motion(x0: Tensor, kind: Kind) -> Tensor:
    """F of the paper (Table 9), up to the head: the latents as they are, or differences of neighbouring ones."""
    return x0 if kind == "latent" else x0.diff(dim=2)


class FlowHead(nn.Module):
    """The rest of the paper's F (the best of seven in its Table 9; sizes of its code): two convolutions, GroupNorm and
    SiLU over differences of latents, as a residual that is zero at first."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, HIDDEN, 1), nn.GroupNorm(8, HIDDEN), nn.SiLU(), nn.Conv3d(HIDDEN, channels, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, flow: Tensor) -> Tensor:
        """[B, 16, F, 8, 8] -> the same."""
        return flow + self.layers(flow)


def frame_weights(fake: Tensor, real: Tensor) -> Tensor:
    """[B, 1, F - 1, 1, 1]: how much each difference counts. More where the error has grown large by then, and later
    ones more: .7 (1 + its share of the cumulative error) + .3 * 1.2^k / mean."""
    error = (fake.diff(dim=2) - real.diff(dim=2)).abs().mean((1, 3, 4))
    grown = error.cumsum(1) / error.sum(1, keepdim=True).clamp(min=1e-8)
    later = GROWTH ** torch.arange(error.shape[1], dtype=error.dtype, device=error.device)
    weights = ERRORS[0] * (1 + grown) + ERRORS[1] * later / later.mean()
    return weights[:, None, :, None, None]


def flow_matching(x0: Tensor, fake: Tensor, real: Tensor, weights: Tensor, kind: Kind = "difference") -> Tensor:
    """The matching loss on motion: the target is the student's own less the normalised direction from real to fake
    motion. weights: of the differences; latents as they are count alike."""
    own, wrong, right = (motion(each, kind) for each in (x0, fake, real))
    with torch.no_grad():
        size = (own - right).abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
        target = own - (wrong - right) / size
    error = (own - target).square()
    return 0.5 * (error if kind == "latent" else weights * error).mean()
