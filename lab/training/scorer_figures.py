"""How well the demo family's scorer foretells the judge's verdicts on samples, while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...demo.preset import STEPS
from ...scoring.detector import Detector, DetectorSettings
from ...scoring.viclip import ViCLIP
from .scorer_data import Captions, network_frames
from .scorer_samples import Samples


@torch.no_grad()
def scores(viclip: ViCLIP, samples: Samples, captions: Captions) -> Tensor:
    """[N, K] cosines of every kept moment with its caption."""
    texts = F.normalize(viclip.encode_text(captions(samples.captions)), dim=-1)[samples.prompt]
    columns = []
    for moment in samples.previews.unbind(1):
        frames = network_frames(moment, viclip.config.frames)
        clips = torch.cat([viclip.encode_vision(part) for part in frames.split(32)])
        columns.append((F.normalize(clips, dim=-1) * texts).sum(1))
    return torch.stack(columns, 1)


def detect(trace: Tensor, settings: DetectorSettings):
    """The decision on scores of steps 1, 2, ... of 50."""
    detector = Detector(settings, STEPS)
    for step, score in enumerate(trace.tolist(), 1):
        if decision := detector.observe(step, score):
            return decision
    raise ValueError(f"{len(trace)} steps do not reach the end of the window, step {detector.last}")
