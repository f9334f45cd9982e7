"""The whole method in one call: base run, single-frame injection, a reworded prompt, both (paper, section 3.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..refiner.base import Reworder, Rewording, RewordingError, RewordingRequest
from ..scoring.inspector import Gate
from ..trials.cost import worst_case_enhanced, worst_case_nfe
from ..trials.foreign import logger, quoted
from ..trials.observer import SILENT, Observer
from ..trials.plan import Action, Step, drive, ladder
from ..trials.verdict import TrialRecord, Verdict
from .enhanced import plain, unsearched
from .guard import harmless
from .injection import Anchor, Injection, InjectionSampler, InjectionSettings
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


def reword(
    request: RewordingRequest, reworder: Reworder, rejected: Verdict, use: Callable[[Rewording], Any],
    observer: Observer = SILENT,
) -> tuple[Verdict, Any]:
    """Asks for a better prompt and adds the answer to the history. use(answer): makes of it what sampling needs, which
    is given back, None without it: where that fails (an encoder out of memory) or the reworder does, the record is a
    failed one, with the prompt that was there."""
    observer.begin("2", "refine")
    begin = time.perf_counter()
    record, used = TrialRecord("2", "refine", prompt=request.prompt, negative=request.negative), None
    with harmless("the prompt was not reworded") as failure:
        answer = reworder.reword(request)
        if not isinstance(answer, Rewording):
            raise RewordingError(f"the refiner gave {quoted(answer)}, and no rewording")
        details = {
            "refiner": reworder.name, "reasoning": answer.reasoning, "evidence": list(answer.evidence),
            "seed": answer.seed, "usage": answer.usage,
        }  # fmt: skip
        used = use(answer)
        record = replace(record, prompt=answer.prompt, negative=answer.negative, details=details)
    if error := failure.error:
        reason = str(error) if isinstance(error, RewordingError) else f"{type(error).__name__}: {error}"
        details = {"refiner": reworder.name, "usage": getattr(error, "usage", {})}
        record = replace(record, accepted=False, message=reason, details=details)
    record = replace(record, seconds={"refinement": time.perf_counter() - begin})
    observer.conclude(record)
    return rejected.followed_by(record), used


def _unreworded(verdict: Verdict) -> Verdict:
    """The verdict, where what was reworded is not used after all."""
    history = (replace(each, accepted=False) if each.kind == "refine" else each for each in verdict.history)
    return replace(verdict, history=tuple(history))


def _within(verdict: Verdict) -> Verdict:
    """With a bound that holds what a broken trial has spent for nothing: the clip that follows it is not given up."""
    spent = sum(record.nfe_video + record.nfe_single_frame for record in verdict.history)
    if spent <= verdict.settings["worst_case"]:
        return verdict
    bound = verdict.settings["worst_case"]
    more = f"with what the broken trial had spent, the bound of {bound} evaluations did not hold"
    return replace(verdict.noting(more), settings={**verdict.settings, "worst_case": spent})


def _ahead(base: Verdict, later: Verdict) -> bool:
    """Whether the first run is predicted to be better than the last one that was judged after it."""
    judged = [record.best.predicted_score for record in later.history if record.kind == "sample" and record.best]
    first, last = base.predicted_score, judged[-1]
    return None not in (first, last) and first > last


def _no_injection(inputs: Inputs, settings: InjectionSettings) -> str | None:
    """Why Trial 1 could not be carried out, known before anything is sampled."""
    try:
        sampler = InjectionSampler(unsearched(inputs.sampler), Injection(Anchor(None), settings))
        sampler.require(inputs.guider.model_patcher.get_model_object("model_sampling"), inputs.steps)
    except ValueError as error:
        return f"Trial 1 is left out: {error}"
    return None


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
    bound = worst_case(inputs.whole, gate)
    settings = {"negative": negative, "worst_case": bound}
    watched_only = injection is None and reworder is None
    no_injection = injection and _no_injection(inputs, injection)
    if no_injection:
        logger.warning("Foresight: %s", no_injection)

    def left(spent: Iterable[TrialRecord] = ()) -> int | None:
        """Steps that the next part may take so that a whole clip still fits the bound; None: it always does, because
        each part was counted as a whole clip."""
        if plain(inputs.sampler) is not inputs.sampler:
            return None
        return bound - inputs.steps - sum(record.steps for record in spent)

    base = result = monitored_sample(
        inputs, gate, stop="never" if watched_only else "rejected", settings=settings, observer=observer,
        stop_by=left(), notes=filter(None, (no_injection,)),
    )  # fmt: skip
    own, verdict, anchor = inputs, base.verdict, None
    broken: list[TrialRecord] = []

    def inputs_for(answer: Rewording) -> Inputs:
        noise = reseeded(inputs.noise, answer.seed, inputs.latent)
        return replace(inputs, noise=noise, guider=reguide(answer.prompt, answer.negative))

    def do(step: Step) -> bool:
        nonlocal inputs, result, verdict, anchor
        match step.action:
            case Action.SAMPLE if step.trial == "0":
                return verdict.accepted or not base.stopped
            case Action.PROBE:
                room, most = left(verdict.history), gate.single_frame.window(inputs.whole)[1]
                no_room = "the bound leaves no room for a probe" if room is not None and room < most else None
                anchor, verdict = single_frame_probe(inputs, gate, verdict, observer, no_injection or no_room)
            case Action.REWORD:
                request = RewordingRequest(
                    gate.prompt, negative, base.verdict.preview, base.verdict.predicted_score, inputs.noise.seed,
                    base.verdict.settings["model"],
                )
                verdict, reworded = reword(request, reworder, verdict, inputs_for, observer)
                inputs = reworded or inputs
            case Action.INJECT:
                result = monitored_sample(
                    inputs, None, Injection(anchor, injection), observer=observer, scored_by=gate, broken=broken
                )
                verdict = result.verdict
            case Action.SAMPLE | Action.PLAIN:
                judge = gate if step.action is Action.SAMPLE else None
                if judge is None and verdict.reworded and _ahead(base.verdict, verdict):
                    inputs, verdict = own, _unreworded(verdict).noting("the first run came closer: it is finished")
                stop_by = left(verdict.history)
                result = monitored_sample(
                    inputs, judge, previous=verdict, observer=observer, stop_by=stop_by, scored_by=gate, broken=broken
                )
                verdict = result.verdict
                return verdict.accepted or not result.stopped
        return verdict.accepted

    with harmless("the trials were given up") as failure:
        drive(ladder(injection=injection is not None, rewording=reworder is not None), do)
    if failure.message:  # the clip that was rejected could have been finished, and no repair may lose it (promise 2)
        failure.error = None  # its frames hold what the trial had on the device
        verdict = replace(verdict, history=(*verdict.history, *broken))
        result = monitored_sample(own, previous=_unreworded(verdict), observer=observer, scored_by=gate)
        verdict = _within(result.verdict.noting(failure.message))
    if details := base.verdict.record.details:
        known = details["nfe_plain"] is not None
        most = worst_case_enhanced(details["nfe_most"], details["nfe_candidate_most"]) if known else None
        verdict = replace(verdict, settings={**verdict.settings, "worst_case": most})
    return HierarchyResult(result.latent, base, verdict)
