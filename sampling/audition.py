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
from ..trials.verdict import TrialRecord
from .enhanced import in_part
from .guided import attached, guided_sample
from .inputs import Inputs, Latent
from .monitor import MonitorSampler
from .records import gate_settings, trial_record


@dataclass(frozen=True)
class Audition:
    """latent: the finished clips along the batch dimension, best first; chosen: their seeds. sheet: the middle frame of
    each seed's preview, [N, H, W, 3], None where one has none. report: JSON; a score is None where there is none."""

    latent: Latent
    chosen: tuple[int, ...]
    sheet: torch.Tensor | None
    report: dict[str, Any]


def budget(seeds: int, keep: int, fraction: float, inputs: Inputs) -> int:
    """Schedule steps of an audition: as many model evaluations with a first-order sampler."""
    return seeds * reached(fraction, inputs.whole) + keep * inputs.steps


def hold_audition(
    make: Callable[[int], Inputs], gate: Gate, seeds: Sequence[int], *, keep: int, fraction: float,
    observer: Observer = SILENT, wait: float = 0.0,
) -> Audition:
    """Runs each seed up to `fraction` of its schedule, scores the preview there, and the best `keep` to the end.

    make(seed) gives the sampling inputs of one clip. A chosen seed starts again from its noise: its clip is the same as
    without an audition. wait: seconds in which a person may choose others in the live panel, if somebody looks.
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
    share = stop / first.whole
    short = replace(gate, every=stop, video=replace(gate.video, start=share, end=share))
    settings = gate_settings(gate, first.whole) | {"steps": first.steps, "seed": seeds[0]}
    records = [_hear(inputs[seed], short, stop, seed, settings, observer) for seed in seeds]
    previews = [record.preview for record in records]
    scores = [record.best and record.best.predicted_score for record in records]
    ranking = sorted(range(len(seeds)), key=lambda i: math.inf if scores[i] is None else -scores[i])
    choice = _choice_by_hand(observer, len(seeds), ranking[:keep], wait) if wait else ranking[:keep]
    chosen = tuple(seeds[i] for i in choice)
    clips = []
    for seed in chosen:
        clip, record = _finish(inputs[seed], gate, seed, observer)
        clips.append(clip)
        records.append(record)
    sheet = None
    if all(preview is not None for preview in previews):
        sheet = torch.stack([preview[len(preview) // 2] for preview in previews])
    latent = {**clips[0], "samples": torch.cat([clip["samples"] for clip in clips])}
    report = {
        "seeds": list(seeds), "scores": scores, "chosen": list(chosen), "stop_step": stop,
        "nfe": sum(record.nfe_video for record in records), "nfe_of_all_seeds": len(seeds) * first.steps,
        "seconds": sum(sum(record.seconds.values()) for record in records),
        "notes": [f"{record.trial}: {record.message}" for record in records if record.message],
    }  # fmt: skip
    return Audition(latent, chosen, sheet, report)


def _hear(
    inputs: Inputs, gate: Gate, stop: int, seed: int, settings: dict[str, Any], observer: Observer
) -> TrialRecord:
    """The record of a seed's first `stop` steps, with its score there."""
    inspector = gate.inspector(inputs.whole, stop, picture=observer.to_picture)
    sampler = in_part(inputs.sampler, inputs.whole)
    short = replace(
        inputs, sampler=sampler, sigmas=inputs.sigmas[: stop + 1], guider=attached(inputs.guider, gate.scorer)
    )
    monitor = MonitorSampler(sampler, inspector, stop="never", observer=observer)
    return _sample(short, gate, monitor, f"seed {seed}", "audition", settings)[1]


def _finish(inputs: Inputs, gate: Gate, seed: int, observer: Observer) -> tuple[Latent, TrialRecord]:
    monitor = MonitorSampler(inputs.sampler, observer=observer, look=gate.look)
    return _sample(inputs, gate, monitor, f"seed {seed}", "finish", {"seed": seed})


def _sample(
    inputs: Inputs, gate: Gate, monitor: MonitorSampler, trial: str, kind: str, settings: dict[str, Any]
) -> tuple[Latent, TrialRecord]:
    monitor.observer.begin(trial, kind, steps=inputs.steps, settings=settings)
    begin = time.perf_counter()
    latent, _ = guided_sample(inputs, monitor, inputs.guider, gate)
    seconds = time.perf_counter() - begin
    record = trial_record(trial, kind, monitor.inspector, monitor.evaluations, monitor.steps, seconds)
    monitor.observer.conclude(record)
    return latent, record


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
            time.sleep(0.1)
    finally:
        observer.offer(None, [], 0)
    return best
