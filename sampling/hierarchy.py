"""The whole method in one call: base run, single-frame injection, a reworded prompt, both (paper, section 3.2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..refiner.base import Reworder, RewordingError, RewordingRequest
from ..scoring.inspector import Gate
from ..trials.cost import worst_case_enhanced, worst_case_nfe
from ..trials.observer import SILENT, Observer
from ..trials.plan import Action, Step, drive, ladder
from ..trials.verdict import TrialRecord, Verdict
from .guard import harmless
from .injection import Injection, InjectionSettings
from .inputs import Inputs, Latent
from .noise import reseeded
from .probe import single_frame_probe
from .run import Result, monitored_sample


@dataclass(frozen=True)
class HierarchyResult:
    """latent: the clip that the hierarchy settled on; base: the monitored base run; verdict: with all history."""

    latent: Latent
    base: Result
    verdict: Verdict


def reword(request: RewordingRequest, reworder: Reworder, rejected: Verdict, observer: Observer = SILENT) -> Verdict:
    """Asks for a better prompt and adds the answer to the history; a reworder that fails leaves a failed record."""
    observer.begin("2", "refine")
    begin = time.perf_counter()
    record = TrialRecord("2", "refine", prompt=request.prompt, negative=request.negative)
    with harmless("the prompt was not reworded") as failure:
        answer = reworder.reword(request)
        details = {
            "refiner": reworder.name, "reasoning": answer.reasoning, "evidence": list(answer.evidence),
            "seed": answer.seed, "usage": answer.usage,
        }  # fmt: skip
        record = replace(record, prompt=answer.prompt, negative=answer.negative, details=details)
    if error := failure.error:
        reason = str(error) if isinstance(error, RewordingError) else f"{type(error).__name__}: {error}"
        details = {"refiner": reworder.name, "usage": getattr(error, "usage", {})}
        record = replace(record, accepted=False, message=reason, details=details)
    record = replace(record, seconds={"refinement": time.perf_counter() - begin})
    observer.conclude(record)
    return rejected.followed_by(record)


def worst_case(steps: int, gate: Gate) -> int:
    """The most schedule steps, video and single-frame together, that the hierarchy can execute."""
    bound = worst_case_nfe(steps, gate.video.window(steps)[1], gate.single_frame.window(steps)[1])
    return bound.video + bound.single_frame


def run_hierarchy(
    inputs: Inputs, gate: Gate, reguide: Callable[[str, str], Any], *, negative: str,
    reworder: Reworder | None, injection: InjectionSettings | None, observer: Observer = SILENT,
) -> HierarchyResult:
    """Runs the trial plan to its end, for the clip of gate.prompt.

    reguide(prompt, negative) gives a guider with a reworded prompt. reworder, injection: None leaves that trial out;
    with both left out the run is watched and reported, never stopped. observer: sees each trial.
    """
    settings = {"negative": negative, "worst_case": worst_case(inputs.whole, gate)}
    watched_only = injection is None and reworder is None
    base = result = verdict = anchor = None

    def do(step: Step) -> bool:
        nonlocal inputs, base, result, verdict, anchor
        match step.action:
            case Action.SAMPLE if base is None:
                stop = "never" if watched_only else "rejected"
                base = result = monitored_sample(inputs, gate, stop=stop, settings=settings, observer=observer)
                verdict = base.verdict
                return verdict.accepted or watched_only
            case Action.PROBE:
                anchor, verdict = single_frame_probe(inputs, gate, verdict, observer)
            case Action.REWORD:
                request = RewordingRequest(
                    gate.prompt, negative, base.verdict.preview, base.verdict.predicted_score, inputs.noise.seed,
                    base.verdict.settings["model"],
                )
                verdict = reword(request, reworder, verdict, observer)
                if verdict.accepted:
                    noise = reseeded(inputs.noise, verdict.record.details["seed"])
                    guider = reguide(verdict.record.prompt, verdict.record.negative)
                    inputs = replace(inputs, noise=noise, guider=guider)
            case Action.INJECT:
                result = monitored_sample(inputs, injection=Injection(anchor, injection), observer=observer)
                verdict = result.verdict
            case Action.SAMPLE | Action.PLAIN:
                judge = gate if step.action is Action.SAMPLE else None
                result = monitored_sample(inputs, judge, previous=verdict, observer=observer)
                verdict = result.verdict
        return verdict.accepted

    drive(ladder(injection=injection is not None, rewording=reworder is not None), do)
    if details := base.verdict.record.details:
        most = worst_case_enhanced(details["nfe_most"], details["nfe_candidate_most"])
        verdict = replace(verdict, settings={**verdict.settings, "worst_case": most})
    return HierarchyResult(result.latent, base, verdict)
