"""The running average of weights that trainings keep."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """Exponential moving average of a module's weights, in `.model`."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = copy.deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        weight = 1 - min(self.decay, self.updates / (self.updates + 10))  # young averages forget the start quickly
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
