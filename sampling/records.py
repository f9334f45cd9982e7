"""What a sampling run leaves for the report: its record, its settings, and notes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch

from ..scoring.inspector import Gate, Inspector
from ..scoring.scorer import reading_of
from ..scoring.words import plain
from ..trials.observer import Observer
from ..trials.verdict import TrialRecord
from .enhanced import self_refinement
from .guard import harmless
from .inputs import Inputs
from .search import SearchSampler


def trial_record(
    trial: str, kind: str, inspector: Inspector | None, evaluations: int, steps: int, seconds: float, *,
    single_frame: bool = False, notes: Iterable[str | None] = (),
) -> TrialRecord:
    """The record of one guider call: `evaluations` of the model in `steps` steps. seconds: all of them, those of
    inspection included. notes: for its message."""
    nfe = {"nfe_single_frame" if single_frame else "nfe_video": evaluations}
    record = TrialRecord(trial, kind, steps=steps, seconds={"sampling": seconds, "inspection": 0.0}, **nfe)
    if inspector is None:
        return replace(record, message=joined_notes(notes))
    items, sampling = inspector.items(), seconds - inspector.seconds
    accepted = not items or any(item.accepted for item in items)
    record, failed = replace(record, items=items, accepted=accepted), None
    if inspector.last is not None:
        with harmless("no preview could be made") as failure:
            record = replace(record, preview=inspector.preview(items.index(record.best)))
        failed = failure.message
    message = joined_notes((inspector.message, failed, *notes))
    return replace(record, message=message, seconds={"sampling": sampling, "inspection": inspector.seconds})


def with_finals(record: TrialRecord, gate: Gate, x0: torch.Tensor, steps: int, observer: Observer) -> TrialRecord:
    """The record of a clip that is finished, judged by its last x0 prediction, which is shown as that of the last of
    its `steps`."""
    begin, finals, clips = time.perf_counter(), (), ()
    with harmless("the finished clip was not scored") as failure:
        finals, clips = gate.judge(x0)
    unscored = failure.message or (None if all(map(math.isfinite, finals)) else "the final score is not finite")
    record = replace(record, finals=finals, clips=clips, message=joined_notes((record.message, unscored)))
    observer.step(steps, None, clips[finals.index(record.final)] if record.final in finals else None)
    inspection = record.seconds["inspection"] + time.perf_counter() - begin
    return replace(record, seconds=record.seconds | {"inspection": inspection})


def joined_notes(notes: Iterable[str | None]) -> str | None:
    return "; ".join(filter(None, notes)) or None


def additions(sampler: comfy.samplers.Sampler) -> dict[str, Any]:
    """What self-refinement and search have done in a sampler; empty where it has neither."""
    refining = self_refinement(sampler)
    search = dict(sampler.result) if isinstance(sampler, SearchSampler) else None
    if search is None and refining is None:
        return {}
    return {"search": search, "self_refine": refining and refining.result.report()}


def enhancement(inputs: Inputs, nfe_plain: int | None) -> dict[str, Any]:
    """What self-refinement and search add to a record: what they did, and in evaluations what the plain sampler takes
    and what a run of one candidate, and of the whole search, takes at most; None where that cannot be told."""
    refining = self_refinement(inputs.sampler)
    search = inputs.sampler.result if isinstance(inputs.sampler, SearchSampler) else None
    extra = refining.settings.evaluations(inputs.steps) - inputs.steps if refining else 0
    candidate = None if nfe_plain is None else nfe_plain + extra
    return {
        "nfe_plain": nfe_plain, "nfe_candidate_most": candidate,
        "nfe_most": search["nfe_most"] if search else candidate,
        **additions(inputs.sampler),
    }  # fmt: skip


def model_family(patcher) -> str:
    """The video model's class in core, e.g. "WAN21": for the report, and for whoever rewords prompts for it."""
    return type(patcher.model).__name__


def gate_settings(gate: Gate | None, steps: int) -> dict[str, Any]:
    """What the report says of the gate, in a schedule of `steps` steps. scored_pieces and text_notes: see Reading, of a
    prompt that is not simply read whole."""
    if gate is None:
        return {}
    read: dict[str, Any] = {}
    with harmless("how the prompt is read cannot be told"):
        reading = reading_of(gate.scorer, gate.prompt)
        read |= {"scored_pieces": list(reading.pieces)} if len(reading.pieces) > 1 else {}
        read |= {"text_notes": list(reading.notes)} if reading.notes else {}
    return {
        "prompt": gate.prompt, "scored_text": plain(gate.prompt), **read,
        "tau": gate.video.tau, "delta": gate.delta, "scale": gate.video.scale,
        "scorer": gate.scorer.name, "l2r": gate.l2r.name, "every": gate.every,
        "video_window": list(gate.video.window(steps)),
        "single_frame_window": list(gate.single_frame.window(steps)), "schedule_steps": steps,
    }


def partial_schedule(patcher, sigmas: torch.Tensor) -> str | None:
    """A note for the report where sampling does not start from pure noise (video to video, a second pass)."""
    top = getattr(patcher.get_model_object("model_sampling"), "sigma_max", None)
    if top is None or float(sigmas[0]) >= 0.9 * float(top):
        return None
    return (
        f"sampling starts at sigma {float(sigmas[0]):.3g}, not at the model's {float(top):.3g}: previews are "
        "clearer there than the detector's settings were made for"
    )
