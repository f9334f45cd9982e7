"""A network in training: its optimisers, each at its own peak rate, and the running average of its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


class Learner:
    """`network` learns by `step`; what comes of it is the running average of its weights, `result`.

    optimisers: their learning rates are the peaks; they may also hold parameters that are not the network's. decay: of
    the average.
    """

    def __init__(self, network: nn.Module, *optimisers: Optimizer, decay: float):
        def forget(averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
            count = int(updates)
            # A young average forgets its start quickly.
            torch._foreach_lerp_(averages, weights, 1 - min(decay, count / (count + 10)))

        self.network, self.optimisers = network, optimisers
        self.peaks = [group["lr"] for group in self.groups]
        self.average = AveragedModel(network, multi_avg_fn=forget).eval().requires_grad_(False)
        self.average.n_averaged += 1  # the start counts as one: at zero torch takes the next weights as they are

    @property
    def groups(self) -> list[dict]:
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    @property
    def result(self) -> nn.Module:
        return self.average.module

    def step(self, loss: Tensor, rate: float = 1.0) -> None:
        """Goes down the gradient of `loss`. rate: share of the peak rates."""
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update_parameters(self.network)

    def state_dict(self) -> dict:
        return {"network": self.network.state_dict(), "average": self.average.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        self.load_weights(state)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def load_weights(self, state: dict) -> None:
        """Network and average alone, for going on with another recipe."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
