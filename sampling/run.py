"""One clip, sampled under the monitor: the walk that every trial but the probe is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..scoring.inspector import Gate
from ..trials.observer import SILENT, Observer
from ..trials.verdict import TrialRecord, Verdict
from .enhanced import injected, plain, shown
from .guided import attached, guided_sample
from .injection import Injection
from .inputs import Inputs, Latent
from .monitor import MonitorSampler
from .records import enhancement, gate_settings, model_family, partial_schedule, trial_record, with_finals
from .segments import adaptive


@dataclass(frozen=True)
class Result:
    """latent: the finished latent, or the x0 prediction at the stop; x0: the last x0 prediction; both for VAE.decode.

    steps_x0: the x0 predictions of all steps along the batch dimension, where keep_steps is on.
    """

    latent: Latent
    x0: Latent
    verdict: Verdict
    steps_x0: Latent | None = None
    stopped: bool = False


def monitored_sample(
    inputs: Inputs, gate: Gate | None = None, injection: Injection | None = None, *, previous: Verdict | None = None,
    stop: str = "rejected", keep_steps: bool = False, settings: dict[str, Any] | None = None,
    observer: Observer = SILENT, stop_by: int | None = None, notes: Iterable[str] = (), scored_by: Gate | None = None,
    broken: list[TrialRecord] | None = None,
) -> Result:
    """Samples, inspected by `gate` where there is one, from `injection` where there is one.

    previous: the verdict this run answers, whose history goes into the report. A run that follows a failed rewording
    is sampled plainly: the same prompt and noise would only be rejected again. `settings` go into the report;
    `observer` sees each step. stop_by: the last step at which the run may be stopped. notes: for its record. scored_by:
    scores the finished clip where `gate` does not judge it; an injection's gate does unasked. broken: where the run
    raises, what it has spent is put in here.
    """
    shown_by = gate or scored_by
    if injection is not None:
        previous, shown_by = injection.anchor.verdict or previous, shown_by or injection.anchor.gate
    if previous is not None and previous.rewording_failed:
        gate = None
    reworded = previous is not None and previous.reworded
    inspector = gate.inspector(inputs.whole, inputs.steps) if gate else None
    sampler = injected(inputs.sampler, injection) if injection else inputs.sampler
    sampler = shown(sampler, observer, shown_by and shown_by.look)
    if injection:
        kind, trial = "inject", "2->1" if reworded else "1"
    else:
        kind, trial = "sample" if gate else "plain", "2" if reworded else "0"
    settings = {
        **gate_settings(gate, inputs.whole), "model": model_family(inputs.guider.model_patcher), "steps": inputs.steps,
        "seed": inputs.noise.seed,
        **(previous.settings if previous else {}), **(settings or {}),
    }
    observer.begin(
        trial, kind, steps=inputs.steps, window=gate and gate.video.window(inputs.whole), decidable=bool(gate),
        settings=settings,
    )  # fmt: skip
    steps: list[torch.Tensor] = []
    simple = plain(inputs.sampler)
    monitor = MonitorSampler(
        sampler, inspector, stop=stop, stop_by=stop_by, observer=observer, look=shown_by and shown_by.look,
        compare=simple if simple is not inputs.sampler and not adaptive(simple) else None,
        on_step=(lambda _, x0: steps.append(x0.to("cpu", copy=True))) if keep_steps else None,
    )
    begin = time.perf_counter()
    judges = (getattr(inputs.sampler, name, None) for name in ("reward", "gate"))  # a search's, a stream's
    guider = attached(inputs.guider, shown_by, *judges)
    latent = None
    try:
        latent, x0 = guided_sample(inputs, monitor, guider, shown_by)
    finally:
        if latent is None and broken is not None:
            seconds = {"sampling": time.perf_counter() - begin}
            broken.append(TrialRecord(trial, kind, accepted=False, nfe_video=monitor.evaluations, seconds=seconds))
            observer.conclude(broken[-1])
    seconds = time.perf_counter() - begin
    partial = inspector and partial_schedule(inputs.guider.model_patcher, inputs.sigmas)
    steps_done = monitor.steps if monitor.stopped or injection else inputs.steps  # not every sampler shows them all
    record = trial_record(
        trial, kind, inspector, monitor.evaluations, steps_done, seconds, notes=(*notes, *monitor.notes, partial)
    )
    if simple is not inputs.sampler:
        record = replace(record, details=enhancement(inputs, monitor.compared))
    if shown_by is not None and not monitor.stopped:
        record = with_finals(record, shown_by, monitor.x0, inputs.steps, observer)
    observer.conclude(record)
    verdict = Verdict((*(previous.history if previous else ()), record), settings, observer.id)
    steps_x0 = None
    if steps:
        process_out = inputs.guider.model_patcher.model.process_latent_out
        steps_x0 = {"samples": torch.cat([process_out(step) for step in steps])}
    return Result(latent, x0, verdict, steps_x0, monitor.stopped)
