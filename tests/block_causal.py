"""A whole clip through Wan in plain torch, under a block-causal mask: what a stream with a cache has to equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from foresight.demo.wan_dit import WanTransformer, rope_angles, rotate, sinusoidal


def transformer(patcher) -> WanTransformer:
    """The weights of a tiny_wan model, in plain torch."""
    weights = patcher.model.diffusion_model.state_dict()
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    network = WanTransformer(dim=128, layers=layers, ffn_dim=128)
    network.load_state_dict(weights)
    return network.eval()


def seen(frames: int, ends: list[int], window: int = 0, sink: int = 0) -> Tensor:
    """[frames, frames]: whether a frame (row) sees another. ends: of the chunks, in frames."""
    window = window or frames
    mask = torch.zeros(frames, frames, dtype=torch.bool)
    for begin, end in zip([0, *ends], ends, strict=False):
        mask[begin:end, :end] = True
        if end > window:
            mask[begin:end, sink : end - (window - sink)] = False
    return mask


@torch.no_grad()
def velocity(
    network: WanTransformer, x: Tensor, sigmas: Tensor, context: Tensor, frames: Tensor, at: list[int] | None = None
) -> Tensor:
    """x [1, 16, F, h, w], sigmas [F] of the frames, context [1 or F, L, D] of the clip or of each frame, frames [F, F]
    from `seen`, at: the position of each frame (default: in order) -> velocity like x."""
    grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
    tokens = grid[1] * grid[2]
    h = network.patch_embedding(x).flatten(2).transpose(1, 2)
    e = network.time_embedding(sinusoidal(1000 * sigmas))
    e6 = network.time_projection(e).unflatten(1, (6, -1)).repeat_interleave(tokens, 0).unbind(1)
    e = e.repeat_interleave(tokens, 0)
    mask = frames.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    context = network.text_embedding(context)
    angles = rope_angles(grid).unflatten(0, (grid[0], tokens))[at or list(range(grid[0]))].flatten(0, 1)
    for block in network.blocks:
        shifts = [modulation + each for modulation, each in zip(block.modulation[0], e6, strict=True)]
        y, attention = block.norm1(h) * (1 + shifts[1]) + shifts[0], block.self_attn
        parts = attention.norm_q(attention.q(y)), attention.norm_k(attention.k(y)), attention.v(y)
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
        q, k = (rotate(part, angles.cos(), angles.sin()) for part in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        h = h + attention.o(y) * shifts[2]
        parts = block.norm3(h).chunk(len(context), dim=1)
        words = [block.cross_attn(part, text) for part, text in zip(parts, context.split(1), strict=True)]
        h = h + torch.cat(words, 1)
        h = h + block.ffn(block.norm2(h) * (1 + shifts[4]) + shifts[3]) * shifts[5]
    shift, scale = network.head.modulation[0][0] + e, network.head.modulation[0][1] + e
    out = network.head.head(network.head.norm(h) * (1 + scale) + shift)
    out = out.unflatten(2, (1, 2, 2, 16)).unflatten(1, grid)
    return torch.einsum("bfhwpqrc->bcfphqwr", out).reshape(x.shape)
