"""The whole method in one call: base run, single-frame injection, prompt refinement, both (paper, section 3.2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management

from ..refiner.base import RefinementError, RefinementRequest, Refiner
from ..scoring.inspector import Gate
from ..trials.cost import worst_case_enhanced, worst_case_nfe
from ..trials.observer import SILENT, Observer
from ..trials.plan import Action, TrialPlan
from ..trials.verdict import TrialRecord, Verdict
from .injection import Injection, InjectionSettings
from .inputs import Inputs, Latent
from .noise import reseeded
from .probe import single_frame_probe
from .run import Result, monitored_sample

logger = logging.getLogger("foresight")


@dataclass(frozen=True)
class HierarchyResult:
    """latent: the clip that the hierarchy settled on; base: the monitored base run; verdict: with all history."""

    latent: Latent
    base: Result
    verdict: Verdict


def refine(request: RefinementRequest, refiner: Refiner, rejected: Verdict, observer: Observer = SILENT) -> Verdict:
    """Asks for a better prompt and adds the answer to the history; a refiner that fails leaves a failed record."""
    observer.begin("2", "refine")
    begin = time.perf_counter()
    record = TrialRecord("2", "refine", prompt=request.prompt, negative=request.negative)
    try:
        refinement = refiner.refine(request)
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # promise 2: whatever breaks a refiner (or the scorer it asks) must not break the run
        reason = str(error) if isinstance(error, RefinementError) else f"{type(error).__name__}: {error}"
        logger.warning("Foresight: the prompt was not refined: %s", reason)
        details = {"refiner": refiner.name, "usage": getattr(error, "usage", {})}
        record = replace(record, accepted=False, message=reason, details=details)
    else:
        record = replace(
            record, prompt=refinement.prompt, negative=refinement.negative,
            details={
                "refiner": refiner.name, "reasoning": refinement.reasoning, "evidence": list(refinement.evidence),
                "seed": refinement.seed, "usage": refinement.usage,
            },
        )
    record = replace(record, seconds={"refinement": time.perf_counter() - begin})
    observer.conclude(record)
    return rejected.followed_by(record)


def worst_case(steps: int, gate: Gate) -> int:
    """The most schedule steps, video and single-frame together, that the hierarchy can execute."""
    bound = worst_case_nfe(steps, gate.video.window(steps)[1], gate.single_frame.window(steps)[1])
    return bound.video + bound.single_frame


def run_hierarchy(
    inputs: Inputs, gate: Gate, reguide: Callable[[str, str], Any], *, negative: str,
    refiner: Refiner | None, injection: InjectionSettings | None, observer: Observer = SILENT,
) -> HierarchyResult:
    """Runs the trial plan to its end, for the clip of gate.prompt.

    reguide(prompt, negative) gives a guider with a refined prompt. refiner, injection: None leaves that trial out; with
    both left out the run is watched and reported, never stopped. observer: sees each trial.
    """
    plan = TrialPlan(injection=injection is not None, refinement=refiner is not None)
    settings = {"negative": negative, "worst_case": worst_case(inputs.whole, gate)}
    stop = "rejected" if plan.injection or plan.refinement else "never"
    base = result = monitored_sample(inputs, gate, stop=stop, settings=settings, observer=observer)
    verdict, anchor = base.verdict, None
    step = plan.next(verdict.accepted or stop == "never")
    while step.action is not Action.FINISH:
        succeeded = True
        match step.action:
            case Action.PROBE:
                anchor, probed = single_frame_probe(inputs, gate, verdict, observer)
                verdict, succeeded = probed, probed.accepted
            case Action.REFINE:
                request = RefinementRequest(
                    gate.prompt, negative, base.verdict.preview, base.verdict.predicted_score, inputs.noise.seed,
                    base.verdict.settings["model"],
                )
                verdict = refine(request, refiner, verdict, observer)
                succeeded = verdict.record.accepted
                if succeeded:
                    noise = reseeded(inputs.noise, verdict.record.details["seed"])
                    guider = reguide(verdict.record.prompt, verdict.record.negative)
                    inputs = replace(inputs, noise=noise, guider=guider)
            case Action.INJECT:
                result = monitored_sample(inputs, injection=Injection(anchor, injection), observer=observer)
                verdict = result.verdict
            case Action.SAMPLE | Action.PLAIN:
                checked = gate if step.action is Action.SAMPLE else None
                result = monitored_sample(inputs, checked, previous=verdict, observer=observer)
                verdict, succeeded = result.verdict, result.verdict.accepted
        step = plan.next(succeeded)
    if details := base.verdict.record.details:
        most = worst_case_enhanced(details["nfe_most"], details["nfe_candidate_most"])
        verdict = replace(verdict, settings={**verdict.settings, "worst_case": most})
    return HierarchyResult(result.latent, base, verdict)
