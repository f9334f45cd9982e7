"""A latent-to-RGB converter that works at latent resolution, with one pixel shuffle at the end (ours)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import CausalConv3d, check_latent


class SubpixelL2R(nn.Module):
    """Maps model-space latents [B, C, F, H, W] to previews [B, F, scale*H, scale*W, 3] in 0..1, as `L2R` does.

    Every patch of scale x scale pixels is an affine function of the latents around it (3x3, now and one frame before),
    which `fit.fit_affine` finds in closed form, plus a small network of `width` channels that refinement trains; width
    0 leaves it out. At 16 channels and scale 8 it multiplies 0.055 million times a latent (0.132 at width 40), the
    paper's layout 1.39 million times, nearly all of them in its 9x9 convolution over pixels.
    """

    def __init__(self, channels: int, scale: int = 8, width: int = 0, metadata: Mapping[str, object] | None = None):
        super().__init__()
        self.channels, self.scale, self.width = channels, scale, width
        self.metadata = dict(metadata or {})
        outputs = 3 * scale**2
        self.affine = CausalConv3d(channels, outputs)
        if width:
            self.network = nn.Sequential(
                CausalConv3d(channels, width), nn.SiLU(), CausalConv3d(width, width), nn.SiLU(),
                CausalConv3d(width, width), nn.SiLU(), nn.Conv3d(width, outputs, 1),
            )  # fmt: skip

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", "L2R (sub-pixel)"))

    def colours(self, latent: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """`forward` before it is cut to 0..1, so that what lies outside still has a gradient."""
        check_latent(latent, self)
        weight = self.affine.weight
        x = latent.to(weight.device, weight.dtype)
        patches = self.affine(x, frames)
        if self.width:
            *before, third, silu, last = self.network
            for layer in before:
                x = layer(x)
            patches = patches + last(silu(third(x, frames)))
        return F.pixel_shuffle(patches.transpose(1, 2), self.scale).movedim(2, -1)

    def forward(self, latent: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """All frames, or only those asked for. Raises ValueError for latents of another layout or channel count."""
        return self.colours(latent, frames).clamp(0, 1)

    @torch.no_grad()
    def widened(self, width: int, generator: torch.Generator) -> "SubpixelL2R":
        """The same map with a network of `width` channels to train, silent at first."""
        wider = SubpixelL2R(self.channels, self.scale, width, self.metadata)
        wider.affine.load_state_dict(self.affine.state_dict())
        *causal, last = (layer for layer in wider.network if isinstance(layer, nn.Conv3d))
        for layer in causal:
            layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)
            layer.bias.zero_()
        last.weight.zero_()
        last.bias.zero_()
        return wider.to(self.affine.weight.device)
