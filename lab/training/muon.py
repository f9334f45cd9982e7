"""Muon for small models on any CPU: momentum, orthogonalised, for the hidden matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix (Muon, Jordan et al. 2024), in fp32.

    matrix: [B, rows, columns], one batch per shape, because one call a matrix is what makes Muon slow on a CPU.
    """
    x = matrix / (matrix.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Steps are scaled to the size of AdamW's, as torch's own Muon with adjust_lr_fn "match_rms_adamw".

    That one works in bfloat16: for the demo transformer's 80 matrices a step takes 55 ms of one core that has such
    instructions (137 here), but 1,520 on one that has none (AVX2; 123 here), and a recipe should run on any.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                buffers = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    buffers.append(p.grad.lerp(buffer, group["momentum"]))  # Nesterov
                update = orthogonalise(torch.stack(buffers)) * (0.2 * max(shape) ** 0.5)
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=group["lr"])
