"""The VAE of Wan 2.1 in plain torch, at any width, with ComfyUI's state-dict names.

The released code feeds a clip through the network in chunks of four frames and caches what each causal convolution
must remember. Here the whole clip goes through at once: causal zero padding takes the place of the caches, and the
first frame, which has a latent frame of its own, goes around the temporal up- and downsampling as it does there. The
result is the same (tests compare with ComfyUI's ``comfy/ldm/wan/vae.py``); training becomes feasible without a GPU.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

DIM_MULT = (1, 2, 4, 4)
TEMPORAL_DOWN = (False, True, True)  # 4x in time after the three 2x steps in space
RES_BLOCKS = 2

# ComfyUI's Wan21 latent format: model space = (latent - mean) / std.
WAN21_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
              0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
WAN21_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
             3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def to_model_space(latent: Tensor) -> Tensor:
    """Wan21 ``process_in``: VAE latent [B, 16, F, h, w] -> what the transformer sees."""
    mean, std = (latent.new_tensor(v).view(1, -1, 1, 1, 1) for v in (WAN21_MEAN, WAN21_STD))
    return (latent - mean) / std


def to_vae_space(latent: Tensor) -> Tensor:
    """Wan21 ``process_out``, the inverse of :func:`to_model_space`."""
    mean, std = (latent.new_tensor(v).view(1, -1, 1, 1, 1) for v in (WAN21_MEAN, WAN21_STD))
    return latent * std + mean


class CausalConv3d(nn.Conv3d):
    """Convolution that looks only back in time; ``padding`` counts each side, as in the released code."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple, stride: int | tuple = 1,
                 padding: int | tuple = 0):
        super().__init__(inputs, outputs, kernel, stride, padding)
        self.time_padding = 2 * self.padding[0]
        self.padding = (0, *self.padding[1:])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 1 and self.time_padding == self.kernel_size[0] - 1:
            # An image meets only zeros in the past: the last temporal tap is all there is.
            return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self.padding[1:]).unsqueeze(2)
        if self.time_padding:
            x = F.pad(x, (0, 0, 0, 0, self.time_padding, 0))
        return super().forward(x)


class RMSNorm(nn.Module):
    """Norm over channels; ``images`` only sets the shape of the weight, as stored in checkpoints."""

    def __init__(self, dim: int, images: bool = False):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *((1, 1) if images else (1, 1, 1))))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()  # as F.normalize, whose norm takes long on CPUs
        return x / norm * math.sqrt(x.shape[1]) * self.gamma


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(inputs), nn.SiLU(), CausalConv3d(inputs, outputs, 3, padding=1),
            RMSNorm(outputs), nn.SiLU(), nn.Dropout(0.0), CausalConv3d(outputs, outputs, 3, padding=1))
        self.shortcut = CausalConv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply an image layer to each frame of x [B, C, T, H, W]."""
    frames = layer(x.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Single-head attention within each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, images=True)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)
        return self.proj(out.transpose(1, 2).unflatten(2, x.shape[2:]))

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self.attend, x)


class Downsample(nn.Module):
    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        x = per_frame(self.resample, x)
        if self.time_conv is None or x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"),
                                      nn.Conv2d(dim, dim // 2, 3, padding=1))
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1), padding=(1, 0, 0)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        if self.time_conv is not None and x.shape[2] > 1:
            # The released code starts the cache after the first frame, so the later frames do not see it here.
            later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
            later = later.movedim(1, 3).flatten(2, 3)
            x = torch.cat([x[:, :, :1], later], dim=2)
        return per_frame(self.resample, x)


class Encoder(nn.Module):
    def __init__(self, dim: int, outputs: int):
        super().__init__()
        dims = [dim * m for m in (1, *DIM_MULT)]
        self.conv1 = CausalConv3d(3, dims[0], 3, padding=1)
        layers: list[nn.Module] = []
        for i, (inputs, width) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            layers += [ResidualBlock(inputs if j == 0 else width, width) for j in range(RES_BLOCKS)]
            if i < len(TEMPORAL_DOWN):
                layers.append(Downsample(width, TEMPORAL_DOWN[i]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = nn.Sequential(ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width))
        self.head = nn.Sequential(RMSNorm(width), nn.SiLU(), CausalConv3d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    def __init__(self, dim: int, z_dim: int):
        super().__init__()
        dims = [dim * m for m in (DIM_MULT[-1], *DIM_MULT[::-1])]
        temporal = TEMPORAL_DOWN[::-1]
        self.conv1 = CausalConv3d(z_dim, dims[0], 3, padding=1)
        self.middle = nn.Sequential(ResidualBlock(dims[0], dims[0]), AttentionBlock(dims[0]),
                                    ResidualBlock(dims[0], dims[0]))
        layers: list[nn.Module] = []
        for i, (inputs, width) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            inputs = inputs // 2 if i else inputs  # each upsampling before has halved the channels
            layers += [ResidualBlock(inputs if j == 0 else width, width) for j in range(RES_BLOCKS + 1)]
            if i < len(temporal):
                layers.append(Upsample(width, temporal[i]))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(RMSNorm(width), nn.SiLU(), CausalConv3d(width, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(z))))


class WanVAE(nn.Module):
    """Wan 2.1 VAE: 4x in time, 8x in space. Pixels are in -1..1, a clip has 4n+1 frames and n+1 latent frames."""

    def __init__(self, dim: int = 96, z_dim: int = 16):
        super().__init__()
        self.dim, self.z_dim = dim, z_dim
        self.encoder = Encoder(dim, z_dim * 2)
        self.conv1 = CausalConv3d(z_dim * 2, z_dim * 2, 1)
        self.conv2 = CausalConv3d(z_dim, z_dim, 1)
        self.decoder = Decoder(dim, z_dim)

    def encode(self, x: Tensor) -> Tensor:
        """[B, 3, 4n+1, H, W] in -1..1 -> mean latent [B, z_dim, n+1, H/8, W/8]; other frame counts: ValueError."""
        if x.shape[2] % 4 != 1:
            raise ValueError(f"a clip needs 4n+1 frames, got {x.shape[2]}")
        return self.conv1(self.encoder(x))[:, : self.z_dim]

    def decode(self, z: Tensor) -> Tensor:
        """[B, z_dim, F, h, w] -> [B, 3, 4F-3, 8h, 8w], about -1..1, not clamped."""
        return self.decoder(self.conv2(z))

    @torch.no_grad()
    def whiten_latents(self, latents: Tensor) -> None:
        """Make this VAE's latents unit normal and uncorrelated over channels, once ComfyUI's Wan21 format has scaled
        them. Reconstructions stay the same: the change goes into the outer 1x1 convolutions.

        Scaling each channel is not enough: most of a channel's variance is the background, and at equal noise the
        shapes would drown first. latents: [B, z_dim, F, h, w], encoded by this VAE before the call.
        """
        rows = latents.movedim(1, -1).flatten(0, -2).double()
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        matrix = vectors * values.rsqrt() @ vectors.T  # the whitening that changes the latents least (ZCA)
        scale, shift = rows.new_tensor(WAN21_STD), rows.new_tensor(WAN21_MEAN)
        matrix, inverse = scale[:, None] * matrix, matrix.inverse() / scale
        offset = shift - matrix @ rows.mean(0)  # z' = matrix z + offset
        n = self.z_dim
        encode, decode = self.conv1.weight[:, :, 0, 0, 0], self.conv2.weight[:, :, 0, 0, 0]
        encode[:n] = (matrix @ encode[:n].double()).float()
        self.conv1.bias[:n] = (matrix @ self.conv1.bias[:n].double() + offset).float()
        decode.copy_(decode.double() @ inverse)  # conv2 sees z' and acts as it did on z
        self.conv2.bias -= (decode.double() @ offset).float()


def load_vae(path: str | Path) -> WanVAE:
    """Load a checkpoint of any width as fp32, in eval mode."""
    state = load_file(path)
    vae = WanVAE(state["decoder.head.0.gamma"].shape[0], state["conv2.weight"].shape[0])
    vae.load_state_dict({k: v.float() for k, v in state.items()})
    return vae.eval()
