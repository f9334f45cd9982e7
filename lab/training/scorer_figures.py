"""How well the demo family's scorer foretells the judge's verdicts on samples, while it is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...demo.preset import STEPS
from ...demo.wan_dit import load_transformer
from ...demo.wan_vae import load_vae
from ...scoring.detector import Detector, DetectorSettings
from ...scoring.viclip import ViCLIP
from .scorer_data import Captions, network_frames
from .scorer_samples import Samples, generate
from .train_dit import EXPORT as TRANSFORMER
from .train_l2r import VAE

TRAIN, STILLS, VALIDATION = (
    {"name": "train", "split": "train", "count": 480, "seeds": 5},
    {"name": "stills", "split": "train", "count": 120, "seeds": 4},
    {"name": "validation", "split": "validation", "count": 60, "seeds": 5},
)
WATCHED = list(range(1, 15))  # the steps that the detector sees
# Steps of the schedule, and those whose predictions are kept. Samples to train on take half as many, at half the cost.
SCHEDULES = {
    "train": (STEPS // 2, [2, 3, 4, 5, 6, 7, 10]), "stills": (STEPS // 2, [6, 10, 12, 15]),
    "validation": (STEPS, WATCHED),
}


def models():
    return load_transformer(TRANSFORMER), load_vae(VAE)


def make_samples(*sets: dict) -> None:
    """Generates what is not on disk yet."""
    loaded = models()
    for chosen in sets:
        name = chosen["name"]
        steps, moments = SCHEDULES[name]
        generate(**chosen, models=loaded, steps=steps, moments=moments, frames=1 if name == "stills" else 5)


@torch.no_grad()
def scores(viclip: ViCLIP, samples: Samples, captions: Captions) -> Tensor:
    """[N, K] cosines of every kept moment with its caption."""
    said = F.normalize(viclip.encode_text(captions(samples.captions)), dim=-1)[samples.prompt]
    columns = []
    for moment in samples.previews.unbind(1):
        frames = network_frames(moment, viclip.config.frames)
        seen = torch.cat([viclip.encode_vision(part) for part in frames.split(32)])
        columns.append((F.normalize(seen, dim=-1) * said).sum(1))
    return torch.stack(columns, 1)


def auc(values: Tensor, right: Tensor) -> float:
    """Chance that a right one scores above a wrong one, ties half; nan when one kind is missing."""
    good, bad = values[right.bool()], values[~right.bool()]
    above = good[:, None] - bad[None]
    return ((above > 0).float() + 0.5 * (above == 0).float()).mean().item()


def within(values: Tensor, samples: Samples) -> tuple[float, float]:
    """Mean AUC over the prompts with both outcomes, and its standard error."""
    each = torch.tensor([auc(values[samples.prompt == p], samples.right[samples.prompt == p]) for p in samples.mixed()])
    return each.mean().item(), (each.std() / math.sqrt(len(each))).item() if len(each) > 1 else math.nan


def detect(trace: Tensor, settings: DetectorSettings):
    """The decision on scores of steps 1, 2, ... of 50."""
    detector = Detector(settings, STEPS)
    for step, score in enumerate(trace.tolist(), 1):
        if decision := detector.observe(step, score):
            return decision
    raise ValueError(f"{len(trace)} steps do not reach the end of the window, step {detector.last}")
