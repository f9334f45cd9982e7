"""A page of the live panel, as tests see it."""

from __future__ import annotations

import json

import comfy.model_management
import torch

from foresight.panel.runs import RunStore
from foresight.trials.verdict import ItemVerdict, TrialRecord


class Page:
    """A store, and what a page is told of it."""

    def __init__(self):
        self.events = []
        self.store = RunStore(self.hear, comfy.model_management.InterruptProcessingException)

    def hear(self, event, data, client):
        self.events.append((event, json.loads(json.dumps(data)), client))

    def running(self, known=None):
        return self.store.running(known, "prompt", "7", "tab")

    def told(self, event):
        return [data for name, data, _ in self.events if name == f"foresight.{event}"]


def record():
    return TrialRecord("0", "sample", (ItemVerdict(True, 0.3, 10, "early_accept", ((10, 0.3),)),))


def picture(side=8):
    return torch.zeros(5, side, side, 3, dtype=torch.uint8)
