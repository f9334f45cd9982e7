"""What leaves the model's device for the CPU: sent without waiting, and waited for where it is read."""

from __future__ import annotations

import comfy.model_management
import torch


class Sent:
    """A copy of a tensor on the CPU, in pinned memory where there is a GPU. The GPU sends it when it comes to it, so
    that whoever asks for it goes on at once; what was sent before an evaluation is there long before its end."""

    def __init__(self, tensor: torch.Tensor):
        self._device, self._arrival, self._copy = tensor.device, None, None
        event = getattr(getattr(torch, tensor.device.type, None), "Event", None)
        if event and tensor.device.type != "cpu" and comfy.model_management.device_supports_non_blocking(tensor.device):
            try:
                self._copy, self._arrival = tensor.to("cpu", non_blocking=True), event()
                self._arrival.record()
                return
            except RuntimeError:  # memory that can be pinned is scarcer than memory
                self._arrival = None
        self._copy = tensor.to("cpu", copy=True)

    def read(self) -> torch.Tensor:
        """On the CPU. Waits until it is there."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        return self._copy

    def __float__(self) -> float:
        return float(self.read())

    def to(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, of the type and on the device of `like`."""
        if like.device != self._device or like.dtype != self._copy.dtype:
            self.read()  # else the device does both, in order
        return self._copy.to(like.device, like.dtype, non_blocking=self._arrival is not None, copy=True)
