"""Measures the demo family's scorer on samples of the demo transformer for test prompts."""

from __future__ import annotations

import json
import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from ..l2r.checkpoint import load_l2r
from ..scoring.detector import Detector, DetectorSettings
from ..scoring.viclip import ViCLIP, load_viclip
from .preset import CFG, SHIFT, STEPS
from .scorer_data import Captions, network_frames, statements
from .scorer_samples import Samples, generate, load_samples
from .train_common import WEIGHTS, today
from .train_dit import EXPORT as TRANSFORMER
from .train_l2r import EXPORT as CONVERTER
from .train_l2r import VAE
from .wan_dit import load_transformer
from .wan_vae import load_vae

FIGURES = WEIGHTS / "scorer_figures.json"
TRAIN, STILLS, VALIDATION, TEST = (
    {"name": "train", "split": "train", "count": 480, "seeds": 5},
    {"name": "stills", "split": "train", "count": 120, "seeds": 4},
    {"name": "validation", "split": "validation", "count": 60, "seeds": 5},
    {"name": "test", "split": "test", "count": 40, "seeds": 6},
)
WATCHED = list(range(1, 15))  # the steps that the detector sees
# Steps of the schedule, and those whose predictions are kept. Samples to train on take half as many, at half the cost.
SCHEDULES = {
    "train": (STEPS // 2, [2, 3, 4, 5, 6, 7, 10]), "stills": (STEPS // 2, [6, 10, 12, 15]),
    "validation": (STEPS, WATCHED), "test": (STEPS, WATCHED),
}


def models():
    return load_transformer(TRANSFORMER), load_vae(VAE)


def make_samples(*sets: dict) -> None:
    """Generates what is not on disk yet."""
    loaded = models()
    for chosen in sets:
        name = chosen["name"]
        steps, moments = SCHEDULES[name]
        generate(**chosen, models=loaded, steps=steps, moments=moments,
                 frames=1 if name == "stills" else 5, first_seed=0 if name != "test" else 1000)


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


def text_only(train: Samples, test: Samples) -> Tensor:
    """What a look at the caption alone foretells: ridge regression of the verdict on the caption's statements."""
    x = torch.stack([statements(train.scenes[p]) for p in train.prompt.tolist()])
    y = train.right.float()
    kernel = x.T @ x + 3.0 * torch.eye(x.shape[1])
    weight = torch.linalg.solve(kernel, x.T @ (y - y.mean()))
    return torch.stack([statements(test.scenes[p]) for p in test.prompt.tolist()]) @ weight


def figure(value: float) -> float | None:
    """Rounded for the file; None where it is undefined, e.g. the AUC when every clip is wrong."""
    return None if math.isnan(value) else round(float(value), 4)


def detect(trace: Tensor, settings: DetectorSettings):
    """The decision on scores of steps 1, 2, ... of 50."""
    detector = Detector(settings, STEPS)
    for step, score in enumerate(trace.tolist(), 1):
        if decision := detector.observe(step, score):
            return decision
    raise ValueError(f"{len(trace)} steps do not reach the end of the window, step {detector.last}")


def evaluate(tokenize, path) -> dict:
    """Writes weights/demo/scorer_figures.json: AUC of the score against the judge, over all clips, within prompts, and
    beside a text-only predictor."""
    make_samples(TEST)
    viclip, l2r = load_viclip(path), load_l2r(CONVERTER)
    config = viclip.config
    captions = Captions(tokenize, config.context)
    test, train = (load_samples(**{**chosen, "l2r": l2r, "shown": config.frames}) for chosen in (TEST, TRAIN))
    values, right = scores(viclip, test, captions), test.right
    settings = DetectorSettings.video(tau=config.tau, scale=config.scale)
    decisions = [detect(row[:-1], settings) for row in values]
    predicted = torch.tensor([decision.predicted_score for decision in decisions])
    accepted = torch.tensor([decision.accepted for decision in decisions])
    looks = {f"step {step}": values[:, test.steps.index(step)] for step in (5, 8, 10, 14)}
    looks |= {"predicted score": predicted, "finished clip": values[:, -1]}
    figures = {
        "command": "python -m foresight.demo.train_scorer --evaluate", "date": today(), "torch": torch.__version__,
        "scorer": {"name": config.name, "tau": config.tau, "delta": config.delta, "scale": config.scale},
        "steps": STEPS, "cfg": CFG, "shift": SHIFT, "split": "test", "clips": len(right),
        "prompts": len(test.captions), "prompts_with_both_outcomes": len(test.mixed()),
        "right": figure(right.float().mean()),
        "auc": {
            name: dict(zip(("over_all", "within_prompt", "within_prompt_standard_error"),
                           map(figure, (auc(column, right), *within(column, test))), strict=True))
            for name, column in looks.items()
        },
        "auc_text_only_over_all": figure(auc(text_only(train, test), right)),
        "detector": {
            "accepted": figure(accepted.float().mean()),
            "failures_rejected": figure((~accepted[~right]).float().mean()),
            "right_ones_rejected": figure((~accepted[right]).float().mean()),
            "mean_stop_step": figure(sum(decision.step for decision in decisions) / len(decisions)),
            "rules": dict(Counter(decision.rule for decision in decisions)),
        },
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    return figures
