"""The monitored sampler: any SAMPLER, watched through its own callback and stopped when the detector rejects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import comfy.model_management
import comfy.samplers
import torch

from ..scoring.inspector import Inspector
from ..trials.foreign import check_choice
from ..trials.observer import SILENT, Decision, Observer
from .candidates import Call, CandidateEngine, Tape, own_functions, record
from .guard import harmless
from .line import Line, Steps, video_latent

STOPS = ("rejected", "decided", "never")
Look = Callable[[torch.Tensor], torch.Tensor]  # Gate.look


def attend(
    observer: Observer, inspector: Inspector | None, step: int, sigma: float, x0: torch.Tensor, look: Look | None
) -> Decision | None:
    """Inspects a step (1-based) where the inspector wants it, shows it to the observer, and gives what a person has
    decided. Their decision to stop is the user's own cancel. look: decodes x0 predictions that are not inspected."""
    score, frames = None, None
    if inspector is not None and inspector.wants(step):
        score = math.nan
        with harmless(f"step {step} was not inspected") as failure:
            seen = inspector.observe(step, sigma, x0)
            score, frames = max(seen.scores), seen.frames
        if failure.message:
            with harmless(f"step {step} was not counted"):
                inspector.skip(step, failure.message, x0.shape[0])
    elif look is not None and observer.wants_picture():
        with harmless(f"step {step} was not shown"):
            frames = look(x0)
    begin = time.perf_counter()
    observer.step(step, score, frames)
    if inspector is not None:
        inspector.seconds += time.perf_counter() - begin
    decision = observer.take()
    if decision is Decision.STOP:
        raise comfy.model_management.InterruptProcessingException()
    return decision


def unjudged(inspector: Inspector, steps: Steps) -> str | None:
    """A note for the report on a run that went to its end without showing what is to be judged."""
    if inspector.decided:
        return None
    what = "parts of the clip only" if steps.part else "not all steps that are to be inspected"
    return f"not judged: the sampler has shown {what}"


@dataclass(eq=False)
class MonitorSampler(comfy.samplers.Sampler):
    """Wraps a SAMPLER; the wrapped run is the same to the last bit for as long as it is not stopped.

    inspector: may be None, then nothing is inspected. stop: "rejected" ends a run when every item is rejected,
    "decided" ends it at the decision (the single-frame probe), "never" only watches. on_step(step, x0) sees the x0
    prediction of each step (1-based; not to be written to). observer: sees each step, and may bring a person's decision
    instead of the detector's; look: decodes x0 predictions for it that are not inspected. compare: a sampler whose
    evaluations are to be counted beside the run's, without the model. calls: where the run's evaluations are recorded
    for as long as it may still be stopped; with a recording it goes on from there, and shows steps anew only.
    stop_by: the last step at which it may be stopped. After the run: `evaluations` (of the model; `beside`: those
    of them that cannot be recorded), `compared` (those of `compare`, None where they cannot be told), `steps` (shown),
    `x0` (the last x0 prediction), `stopped`, and `notes` for the report. A stopped run returns its x0 prediction, in
    model space like any sampler's result, whatever the sampler makes of being stopped.
    """

    inner: comfy.samplers.Sampler
    inspector: Inspector | None = None
    _: KW_ONLY
    stop: str = "rejected"
    on_step: Callable[[int, torch.Tensor], None] | None = None
    observer: Observer = SILENT
    look: Look | None = None
    compare: comfy.samplers.Sampler | None = None
    calls: list[Call] | None = None
    stop_by: int | None = None
    evaluations: int = field(default=0, init=False)
    beside: int = field(default=0, init=False)
    compared: int | None = field(default=None, init=False)
    steps: int = field(default=0, init=False)
    x0: torch.Tensor | None = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self):
        check_choice("stop", self.stop, STOPS)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
        disable_pbar=False,
    ):
        if self.compare is not None:
            engine = CandidateEngine(self.compare, model_wrap, sigmas, extra_args, latent_image, denoise_mask)
            costs = engine.costs(noise)
            self.compared = costs and costs[-1]
        tape = None
        if self.calls is not None:
            own, inspected = own_functions(extra_args), self.inspector is not None
            tape = Tape(self.calls, own, lambda live, request: record(live, own, [request])[0], inspected)
        line, steps = Line(len(noise), tape), Steps(sigmas, noise.shape)

        def watch(index, x0, x, total_steps):
            nonlocal left
            if tape is not None and tape.replaying:
                return
            if callback is not None:
                callback(index, x0, x, total_steps)
            step = steps.place(index, x0, line.level)
            if step is None:
                return
            self.x0, self.steps = video_latent(x0, model_wrap.inner_model), self.steps + 1
            if self._rejects(step, steps.levels[step - 1], tape):
                left = x0
                line.end()
            if tape is not None and self.inspector is not None and self.inspector.decided:
                tape.forget()

        left = None
        try:
            samples = line.sample(
                self.inner, model_wrap, sigmas, extra_args, watch, noise, latent_image, denoise_mask, disable_pbar
            )
        finally:
            self.evaluations, self.beside = line.evaluations, line.beside
        if left is not None:
            self.stopped, samples = True, left
        elif self.x0 is None:
            self.x0 = video_latent(samples, model_wrap.inner_model)
        self._conclude(line, steps)
        return samples

    def _rejects(self, step: int, sigma: float, tape: Tape | None) -> bool:
        """Whether the run is to be stopped at this step, which is shown to whoever wants to see it."""
        video, inspector = self.x0, self.inspector
        if self.on_step is not None:
            self.on_step(step, video)
        decision = attend(self.observer, inspector, step, sigma, video, self.look)
        if inspector is None:
            return False
        if decision in (Decision.ACCEPT, Decision.REJECT):
            inspector.overrule(step, decision is Decision.ACCEPT, len(video))
        if not ((self.stop == "rejected" and inspector.rejected) or (self.stop == "decided" and inspector.decided)):
            return False
        if self.stop_by is not None and step > self.stop_by:
            late = "too late for another try within the stated bound"
        elif tape is not None and not tape.recording:
            late = "with no memory to put it aside" if tape.full else "after it had passed"
        else:
            return True
        if (note := f"rejected {late}, so it was sampled to its end") not in self.notes:
            self.notes.append(note)
        return False

    def _conclude(self, line: Line, steps: Steps) -> None:
        if self.inspector is not None and not self.stopped and (note := unjudged(self.inspector, steps)):
            self.notes.append(note)
        if line.unseen:
            self.notes.append(line.unseen)
        if line.ignored:
            self.notes.append("the sampler did not end when it was stopped: what it made after that is not used")
