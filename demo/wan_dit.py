"""The text-to-video transformer of Wan 2.1 in plain torch, at any width that is a multiple of 128.

State-dict names and results are those of ComfyUI's ``comfy/ldm/wan/model.py`` (tests compare), so what is trained here
is loaded by its stock UNETLoader. The model predicts the velocity noise - x0 of flow matching.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

HEAD_DIM = 128  # ComfyUI derives the number of heads as dim // 128
FREQ_DIM = 256
EPS = 1e-6


def sinusoidal(position: Tensor) -> Tensor:
    """Timesteps [B] -> [B, FREQ_DIM], cosines first."""
    half = FREQ_DIM // 2
    angles = torch.outer(position.float(), torch.pow(10000, -torch.arange(half, device=position.device) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rope_angles(
    grid: tuple[int, int, int], device: torch.device | None = None, times: Tensor | None = None
) -> Tensor:
    """Rotation angles [tokens, HEAD_DIM / 2] of a (time, height, width) grid: 22 for time, 21 each for y and x. times:
    the places [grid[0]] of the latents in their clip; from 0 on where not given."""
    side = 2 * (HEAD_DIM // 6)
    parts = []
    for axis, (size, dim) in enumerate(zip(grid, (HEAD_DIM - 2 * side, side, side), strict=True)):
        omega = 1 / 10000 ** torch.linspace(0, (dim - 2) / dim, dim // 2, dtype=torch.float64, device=device)
        places = torch.arange(size, device=device) if axis or times is None else times
        angles = torch.outer(places.double(), omega)
        parts.append(angles.view([-1 if i == axis else 1 for i in range(3)] + [dim // 2]).expand(*grid, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [B, heads, tokens, HEAD_DIM]; cos, sin: [tokens, HEAD_DIM / 2]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2).to(x.dtype)


class Memory:
    """What one layer keeps of earlier chunks of a stream: keys (rotated) and values, [B, heads, tokens, HEAD_DIM]."""

    def __init__(self) -> None:
        self.past: tuple[Tensor, Tensor] | None = None
        self.own: tuple[Tensor, Tensor] | None = None  # of the latest forward

    def seen(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.own = k, v
        if self.past is None:
            return k, v
        return torch.cat([self.past[0], k], 2), torch.cat([self.past[1], v], 2)

    def keep(self, most: int | None = None, sink: int = 0) -> None:
        """The latest forward's keys and values are what later chunks see, without a gradient. most: tokens that are
        kept, None: all; sink: how many of them are the first of the clip, the others being the latest."""
        k, v = (x.detach() for x in self.seen(*self.own))
        if most is not None and k.shape[2] > most:
            k, v = (torch.cat([x[:, :, :sink], x[:, :, x.shape[2] - (most - sink) :]], 2) for x in (k, v))
        self.past = k, v


Words = list[tuple[Tensor, Tensor]]  # by block, keys and values of prompts, [prompts, heads, words, HEAD_DIM]


class Attention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps=EPS), nn.RMSNorm(dim, eps=EPS)

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, tokens, HEAD_DIM]."""
        return self._heads(self.norm_k(self.k(context))), self._heads(self.v(context))

    def forward(
        self, x: Tensor, context: Tensor | tuple[Tensor, Tensor], rope: tuple[Tensor, Tensor] | None = None,
        memory: Memory | None = None, mask: Tensor | None = None,
    ) -> Tensor:
        """context [B, tokens, dim], or its keys and values."""
        q = self._heads(self.norm_q(self.q(x)))
        k, v = context if isinstance(context, tuple) else self.read(context)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        v = v.to(q.dtype)
        if memory is not None:
            k, v = memory.seen(k, v)
        return self.o(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.self_attn = Attention(dim)
        self.norm3 = nn.LayerNorm(dim, EPS)
        self.cross_attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))

    def forward(
        self, x: Tensor, e: Tensor, rope: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor],
        memory: Memory | None = None, mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, tokens, dim]; e [B, 1 or tokens, 6, dim]; words: keys and values of the prompts, of B of them or of
        B F, one for each latent."""
        e = (self.modulation.unsqueeze(1) + e).unbind(2)
        y = self.norm1(x) * (1 + e[1]) + e[0]
        x = x + self.self_attn(y, y, rope, memory, mask) * e[2]
        y = self.norm3(x).view(len(words[0]), -1, x.shape[2])
        x = x + self.cross_attn(y, words).view_as(x)
        return x + self.ffn(self.norm2(x) * (1 + e[4]) + e[3]) * e[5]


class Head(nn.Module):
    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.head = nn.Linear(dim, outputs)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / math.sqrt(dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation.unsqueeze(1) + e.unsqueeze(2)).unbind(2)
        return self.head(self.norm(x) * (1 + scale) + shift)


class WanTransformer(nn.Module):
    """Wan 2.1 T2V. Latents are in model space (Wan21 ``process_in``); height and width must be even.

    ValueError for a width that is no multiple of 128.
    """

    def __init__(self, dim: int = 128, layers: int = 8, ffn_dim: int = 512, channels: int = 16, text_dim: int = 4096):
        super().__init__()
        if dim % HEAD_DIM:
            raise ValueError(f"dim must be a multiple of {HEAD_DIM}, got {dim}")
        self.dim, self.channels = dim, channels
        self.patch_embedding = nn.Conv3d(channels, dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(FREQ_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim) for _ in range(layers))
        self.head = Head(dim, channels * 4)

    def read(self, context: Tensor) -> Words:
        """What every block sees of prompts [B, words, text_dim] or [B, prompts, words, text_dim]."""
        context = self.text_embedding(context.view(-1, *context.shape[-2:]))
        return [block.cross_attn.read(context) for block in self.blocks]

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor | Words, hidden: list[Tensor] | None = None,
        which: Tensor | None = None, times: Tensor | None = None, memory: list[Memory] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, F, h, w], timestep [B] or, by latent, [B, F] = 1000 sigma, context [B, words, text_dim], or what
        `read` gives of it -> velocity like x.

        hidden: takes the tokens [B, F * h/2 * w/2, dim] after each block. The others make it causal: which [B, F]:
        which of several prompts each latent has, context being [B, prompts, words, text_dim]; times [F]: places of the
        latents in their clip; memory: of each layer, beside which x is seen; mask [tokens, tokens]: True where a token
        (row) sees another.
        """
        # The patches are cut by hand: as a matrix product they are several times faster on a CPU than a strided Conv3d.
        grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
        patches = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        h = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        e = self.time_embedding(sinusoidal(timestep.flatten())).unflatten(0, (len(x), -1))  # [B, 1 or F, dim]
        e6 = self.time_projection(e).unflatten(2, (6, self.dim))
        if e.shape[1] > 1:
            e, e6 = (each.repeat_interleave(grid[1] * grid[2], 1) for each in (e, e6))
        words = self.read(context) if isinstance(context, Tensor) else context
        if which is not None:
            prompts = len(words[0][0]) // len(x)
            rows = (torch.arange(0, prompts * len(x), prompts, device=x.device)[:, None] + which).flatten()
            words = [(k[rows], v[rows]) for k, v in words]
        angles = rope_angles(grid, x.device, times)
        rope = angles.cos(), angles.sin()
        for block, read, kept in zip(self.blocks, words, memory or [None] * len(self.blocks), strict=True):
            h = block(h, e6, rope, read, kept, mask)
            if hidden is not None:
                hidden.append(h)
        out = self.head(h, e).unflatten(2, (1, 2, 2, self.channels)).unflatten(1, grid)
        return torch.einsum("bfhwpqrc->bcfphqwr", out).reshape(x.shape)


def load_transformer(path: str | Path) -> WanTransformer:
    """Load a checkpoint of any size as fp32, in eval mode."""
    state = load_file(path)
    ffn = state["blocks.0.ffn.0.weight"].shape
    model = WanTransformer(
        dim=ffn[1], ffn_dim=ffn[0], layers=1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        channels=state["patch_embedding.weight"].shape[1], text_dim=state["text_embedding.0.weight"].shape[1])
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.eval()
