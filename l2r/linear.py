"""Fallback previews for models without a trained converter: the linear map every ComfyUI latent format carries."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import check_latent


class LinearL2R(nn.Module):
    """rgb = (factors . latent + bias + 1) / 2 (a linear map is a fair decoder: Latent-NeRF, the paper's [41]), enlarged
    bicubically, so that a scorer sees blur and not blocks. Takes and gives what `L2R` does.

    factors: one row of three per channel; bias: three values or None; scale: pixels per latent. unfold: of models that
    fold their latents (Flux 2 has 2 x 2 places in one of 128 channels), [B, channels, H, W] to those of the factors.
    """

    def __init__(
        self,
        factors: Sequence[Sequence[float]],
        bias: Sequence[float] | None = None,
        scale: int = 8,
        name: str = "linear",
        channels: int | None = None,
        unfold: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(bias if bias is not None else [0.0] * 3, dtype=torch.float32))
        if self.factors.ndim != 2 or self.factors.shape[1] != 3 or self.bias.shape != (3,):
            raise ValueError(
                f"latent_rgb_factors must be rows of 3 with a bias of 3, not {list(self.factors.shape)} and "
                f"{list(self.bias.shape)}."
            )
        self.channels, self.scale, self.name = channels or len(factors), scale, name
        self.unfold = unfold
        self.metadata: dict[str, object] = {"name": name}

    def forward(self, latent: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """[B, C, F, H, W] to [B, F, scale*H, scale*W, 3] in 0..1, on the latent's device; or only these frames."""
        check_latent(latent, self)
        latent = latent if frames is None else torch.stack([latent[:, :, at] for at in frames], 2)
        scale = float(self.scale)
        if self.unfold is not None:
            unfolded = self.unfold(latent.movedim(2, 1).flatten(0, 1)).unflatten(0, (len(latent), -1)).movedim(1, 2)
            latent, scale = unfolded, scale * latent.shape[-1] / unfolded.shape[-1]
        factors, bias = self.factors.to(latent.device), self.bias.to(latent.device)
        rgb = F.linear(latent.float().movedim(1, -1), factors.T, bias).movedim(-1, 2)  # [B, F, 3, H, W]
        if scale != 1:
            batch = rgb.shape[:2]
            rgb = F.interpolate(rgb.flatten(0, 1), scale_factor=scale, mode="bicubic").unflatten(0, batch)
        return ((rgb + 1) / 2).clamp(0, 1).movedim(2, -1)
