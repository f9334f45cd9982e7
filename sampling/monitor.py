"""The monitored sampler: any SAMPLER, watched through its own callback and stopped when the detector rejects."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch

from ..scoring.inspector import Inspector
from ..trials.foreign import check_choice
from ..trials.observer import SILENT, Decision, Observer
from .candidates import Call, CandidateEngine, Counted, Tape, own_functions, record
from .guard import harmless

STOPS = ("rejected", "decided", "never")
Look = Callable[[torch.Tensor], torch.Tensor]  # Gate.look


class _Stop(Exception):
    """Leaves the inner sampler; caught in MonitorSampler.sample and nowhere else."""


def video_latent(x0: torch.Tensor, shapes: Sequence[Sequence[int]] | None) -> torch.Tensor:
    """The video part of a sampler's x0. Audio-video models are sampled as one flat row, of latents of these `shapes`
    (None or a single one for all others); video comes first."""
    return comfy.utils.unpack_latents(x0, shapes)[0] if shapes and len(shapes) > 1 else x0


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


@dataclass(eq=False)
class MonitorSampler(comfy.samplers.Sampler):
    """Wraps a SAMPLER; the wrapped run is the same to the last bit for as long as it is not stopped.

    inspector: may be None, then nothing is inspected. stop: "rejected" ends a run when every item is rejected,
    "decided" ends it at the decision (the single-frame probe), "never" only watches. on_step(step, x0) sees the x0
    prediction of each step (1-based; not to be written to). observer: sees each step, and may bring a person's decision
    instead of the detector's; look: decodes x0 predictions for it that are not inspected. compare: a sampler whose
    evaluations are to be counted beside the run's, without the model. calls: where the run's evaluations are recorded
    for as long as it may still be stopped; with a recording it goes on from there, and shows steps anew only.
    After the run: `evaluations` (of the model), `compared` (those of `compare`), `steps` (executed), `x0` (the last x0
    prediction), `stopped`. A stopped run returns its x0 prediction, in model space like any sampler's result.

    Only a step that is in the schedule and after the one before is looked at: samplers that choose their own steps, and
    some of other packs, call back more often, or count otherwise.
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
    evaluations: int = field(default=0, init=False)
    compared: int | None = field(default=None, init=False)
    steps: int = field(default=0, init=False)
    x0: torch.Tensor | None = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)
    _at: int = field(default=0, init=False)  # the latest step that was looked at
    _left: tuple[int, torch.Tensor] | None = field(default=None, init=False)  # where the sampler was told to stop, x0

    def __post_init__(self):
        check_choice("stop", self.stop, STOPS)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
        disable_pbar=False,
    ):
        if self.compare is not None:
            engine = CandidateEngine(self.compare, model_wrap, sigmas, extra_args, latent_image, denoise_mask)
            self.compared = engine.costs(noise)[-1]
        self._at = 0
        model, tape = Counted(model_wrap, len(noise)), None
        if self.calls is not None:
            own, inspected = own_functions(extra_args), self.inspector is not None
            tape = Tape(model, self.calls, lambda *request: record(model, own, [request])[0], own, inspected)
        levels, shapes = sigmas.tolist(), getattr(model_wrap.inner_model, "latent_shapes", None)

        def watch(step, x0, x, total_steps):
            if tape is not None and tape.replaying:
                return
            if callback is not None:
                callback(step, x0, x, total_steps)
            # Core looks for the user's cancel in its progress bar only, which a caller may have left out.
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.x0 = video_latent(x0, shapes)
            if not self._at <= step < len(levels) - 1:
                return
            self._watch(step + 1, levels[step], x0, may_stop=tape is None or tape.recording)
            if tape is not None and self.inspector is not None and self.inspector.decided:
                tape.forget()

        try:
            samples = self.inner.sample(
                tape or model, sigmas, extra_args, watch, noise, latent_image, denoise_mask, disable_pbar
            )
        except _Stop:
            samples = None
        finally:
            self.evaluations = model.evaluations
        # A sampler may catch what its callback raises: it has a clip only where it went on to the last step.
        if self._left is not None and (samples is None or self._left[0] < len(levels) - 1):
            self.stopped, samples = True, self._left[1]
        self._left = None
        return samples

    def _watch(self, step: int, sigma: float, x0: torch.Tensor, may_stop: bool) -> None:
        video = self.x0
        self._at, self.steps = step, self.steps + 1
        if self.on_step is not None:
            self.on_step(step, video)
        inspector = self.inspector
        decision = attend(self.observer, inspector, step, sigma, video, self.look)
        if inspector is None:
            return
        if decision in (Decision.ACCEPT, Decision.REJECT):
            inspector.overrule(step, decision is Decision.ACCEPT, len(video))
        if (self.stop == "rejected" and inspector.rejected) or (self.stop == "decided" and inspector.decided):
            if may_stop:
                self._left = step, x0
                raise _Stop()
            inspector.message = "there was no memory to put the clip aside, so it was sampled to its end"
