"""The latent-to-RGB converter in the layout of the paper (section 3.1, A.2 and figure S1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..trials.foreign import quoted


def check_latent(latent: Tensor, converter: "L2R | nn.Module") -> None:
    """Raises ValueError unless the latent is [B, C, F, H, W] with the channels of this converter."""
    if latent.ndim != 5:
        raise ValueError(
            f"L2R converter {quoted(converter.name)} takes video latents [B, C, F, H, W], not {list(latent.shape)}."
        )
    if latent.shape[1] != converter.channels:
        raise ValueError(
            f"L2R converter {quoted(converter.name)} reads latents of {converter.channels} channels, but this one has "
            f"{latent.shape[1]}: choose the converter trained for this model's VAE, or 'auto'."
        )


class CausalConv3d(nn.Conv3d):
    """2x3x3 convolution that sees the current and the previous latent frame (A.2); nothing precedes the first."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1, bias: bool = True):
        super().__init__(inputs, outputs, (2, 3, 3), padding=(0, 1, 1), groups=groups, bias=bias)

    def forward(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """[B, C, F, H, W] to [B, outputs, F, H, W], or only these of the F frames."""
        x = F.pad(x, (0, 0, 0, 0, 1, 0))
        if frames is None:
            return super().forward(x)
        # Picked one by one: a list of places would be copied to the device, which stalls it.
        pairs = torch.stack([x[:, :, at : at + 2] for at in frames], 1)  # [B, n, C, 2, H, W]
        return super().forward(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])[:, :, :, 0].transpose(1, 2)


class CausalBlock(nn.Module):
    """Figure S1(b): a main branch of two causal convolutions beside a 1x1x1 skip, then the non-linearity.

    The figure does not say which non-linearity nor how many convolutions; two with biases give the stated 0.059 M.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.main = nn.Sequential(CausalConv3d(channels, channels), nn.SiLU(), CausalConv3d(channels, channels))
        self.skip = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.main(x) + self.skip(x))


class LearnedUpsampling(CausalConv3d):
    """Figure S1(c): every output pixel is a learned weighted sum of the latents around it, now and one frame before.

    The weights depend on the position within the cell and on the channel, not on the content: a depthwise 3-D
    convolution to scale^2 values a channel, then a pixel shuffle. Starts as bilinear interpolation.
    """

    def __init__(self, channels: int, scale: int):
        super().__init__(channels, channels * scale**2, groups=channels, bias=False)
        self.scale = scale
        at = (torch.arange(scale) + 0.5) / scale - 0.5  # where a pixel lies in its cell, -0.5..0.5
        taps = torch.stack([(-at).clamp(min=0), 1 - at.abs(), at.clamp(min=0)], 1)
        bilinear = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale**2, 3, 3)
        with torch.no_grad():
            self.weight[:, 0, 0] = 0
            self.weight[:, 0, 1] = bilinear.repeat(channels, 1, 1)

    def forward(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """[B, C, F, H, W] to [B, F, C, scale*H, scale*W], or only these of the F frames."""
        return F.pixel_shuffle(super().forward(x, frames).transpose(1, 2), self.scale)


class L2R(nn.Module):
    """Maps model-space latents [B, C, F, H, W] to previews [B, F, scale*H, scale*W, 3] in 0..1; 58,659 parameters at
    16 channels. Frames are kept (no temporal upsampling), and frame t does not depend on latents after t.
    """

    def __init__(self, channels: int = 16, scale: int = 8, metadata: Mapping[str, object] | None = None):
        super().__init__()
        self.channels, self.scale = channels, scale
        self.metadata = dict(metadata or {})
        self.blocks = nn.Sequential(CausalBlock(channels), CausalBlock(channels))
        self.upsample = LearnedUpsampling(channels, scale)
        self.project = nn.Conv2d(channels, channels, 9, padding=4)
        self.to_rgb = nn.Conv2d(channels, 3, 3, padding=1)

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", "L2R"))

    def forward(self, latent: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """All frames, or only those asked for. Raises ValueError for latents of another layout or channel count."""
        check_latent(latent, self)
        weight = self.to_rgb.weight
        x = self.upsample(self.blocks(latent.to(weight.device, weight.dtype)), frames)
        rgb = self.to_rgb(F.silu(self.project(x.flatten(0, 1)))).sigmoid()
        return rgb.unflatten(0, x.shape[:2]).movedim(2, -1)
