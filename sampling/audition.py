"""Seed audition: many seeds a short way, the promising ones to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch

from ..scoring.detector import reached
from ..scoring.inspector import Gate
from ..trials.observer import SILENT, Decision, Observer
from ..trials.report import Report
from ..trials.verdict import TrialRecord
from .contender import Contender
from .enhanced import unsearched
from .inputs import Inputs, Latent, joined
from .records import gate_settings
from .segments import own_steps
from .self_refine import remembers


@dataclass(frozen=True)
class Audition:
    """latent: the finished clips along the batch dimension, best first; chosen: their seeds. sheet: the middle frame of
    each seed's preview, [N, H, W, 3], None where one has none. report: JSON; a score is None where there is none."""

    latent: Latent
    chosen: tuple[int, ...]
    sheet: torch.Tensor | None
    report: dict[str, Any]


def budget(seeds: int, keep: int, fraction: float, inputs: Inputs, by_hand: bool = False) -> int:
    """Schedule steps of an audition, at most: as many model evaluations with a first-order sampler. by_hand: others
    than the best may be picked, whose states are not kept."""
    stop = reached(fraction, inputs.whole)
    return seeds * stop + keep * (inputs.steps - (0 if by_hand or not _resumes(inputs) else stop))


def _resumes(inputs: Inputs) -> bool:
    """Whether a seed can be gone on with; else it is begun anew."""
    return unsearched(inputs.sampler) is inputs.sampler and not remembers(inputs.guider.model_patcher.model_options)


def hold_audition(
    make: Callable[[int], Inputs], gate: Gate, seeds: Sequence[int], *, keep: int, fraction: float,
    observer: Observer = SILENT, wait: float = 0.0,
) -> Audition:
    """Runs each seed up to `fraction` of its schedule, scores the preview there, and the best `keep` to the end.

    make(seed) gives the sampling inputs of one clip. A chosen seed goes on from where it was put aside: its clip is the
    same as without an audition. wait: seconds in which a person may choose others in the live panel, if somebody looks.
    """
    inputs = {seed: make(seed) for seed in seeds}
    first = inputs[seeds[0]]
    stop = reached(fraction, first.whole)
    if not 0 < stop <= first.steps:
        raise ValueError(
            f"fraction {fraction} of {first.whole} steps is step {stop}, but only {first.steps} are run: lower it."
        )
    if not 1 <= keep <= len(seeds):
        raise ValueError(f"keep is {keep}, but there are {len(seeds)} seeds: keep between 1 and all of them.")
    if own_steps(first.sampler):
        raise ValueError("an audition looks at a step of the schedule: dpm_fast and dpm_adaptive choose their own.")
    settings = gate_settings(gate, first.whole) | {
        "steps": first.steps, "seed": seeds[0], "plan": "audition", "look_step": stop, "keep": keep,
    }  # fmt: skip
    short = gate.looks({stop: None}, first.whole)
    contenders, records, resumes = [], [], _resumes(first)
    for number, seed in enumerate(seeds, 1):
        hearing = replace(inputs[seed], sampler=unsearched(first.sampler))
        details = {"candidate": number, "seed": seed}
        contender = Contender(f"seed {seed}", hearing, short, observer, resumes, details)
        records.append(contender.begin("audition", settings, stop="decided"))
        contenders.append(contender)
        ranking = _ranking(records)
        for loser in ranking[keep:]:  # what is let go is begun anew if a person picks it
            contenders[loser].calls.clear()
    scores = [record.best and record.best.predicted_score for record in records]
    previews = [record.preview for record in records]
    choice = _choice_by_hand(observer, len(seeds), ranking[:keep], wait) if wait else ranking[:keep]
    chosen = tuple(seeds[i] for i in choice)
    for i in choice:
        contenders[i].inputs = inputs[seeds[i]]
        records.append(contenders[i].finish({}))
    clips = [contenders[i].latent for i in choice]
    sheet = None
    if all(preview is not None for preview in previews):
        sheet = torch.stack([preview[len(preview) // 2] for preview in previews])
    latent = joined(clips)
    report = Report({
        "seeds": list(seeds), "scores": scores, "chosen": list(chosen), "stop_step": stop,
        "tau": gate.video.tau, "final_scores": [contenders[i].final for i in choice],
        "nfe": sum(record.nfe_video for record in records), "nfe_of_all_seeds": len(seeds) * first.steps,
        "seconds": sum(sum(record.seconds.values()) for record in records),
        "notes": [f"{record.trial}: {record.message}" for record in records if record.message],
    })  # fmt: skip
    return Audition(latent, chosen, sheet, report)


def _ranking(records: Sequence[TrialRecord]) -> list[int]:
    """Places in `records`, best first; what has no score comes last, in the order of the seeds."""
    scores = [record.best and record.best.predicted_score for record in records]
    return sorted(range(len(scores)), key=lambda i: math.inf if scores[i] is None else -scores[i])


def _choice_by_hand(observer: Observer, count: int, best: list[int], wait: float) -> list[int]:
    """What a person ticks of `count` auditions; the best where nobody looks or answers in time."""
    observer.offer(list(range(count)), best, wait)
    end = time.monotonic() + wait
    try:
        while time.monotonic() < end and observer.somebody_looks():
            comfy.model_management.throw_exception_if_processing_interrupted()
            if observer.take() is Decision.STOP:
                raise comfy.model_management.InterruptProcessingException()
            if observer.choice is not None:
                return observer.choice
            observer.waits(end - time.monotonic())
            time.sleep(0.1)
    finally:
        observer.waits(0)
        observer.offer(None, [], 0)
    return best
