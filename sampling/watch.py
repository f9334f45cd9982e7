"""Foresight Watch: report-only inspection of a model under any sampler node."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import comfy.patcher_extension
from comfy_execution.utils import get_executing_context

from ..scoring.inspector import Gate
from ..trials.observer import SILENT, Observer
from ..trials.verdict import TrialRecord, Verdict
from .enhanced import shown
from .guard import harmless
from .guided import KEY as BESIDE
from .guided import accompanied
from .line import Line, Steps, video_latent
from .monitor import attend, unjudged
from .records import additions, gate_settings, model_family, partial_schedule, trial_record, with_finals

KEY = "foresight_watch"
OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


class Watch:
    """Inspects every run of a patched model. Only the callback is chained, as a wrapper around the guider's sampling:
    whichever sampler runs, nothing that it computes with is replaced.

    verdict: of the latest run, with the runs of the same queued prompt before it as its history; None before the
    first. on_verdict sees each. schedule_steps: see `sampling.inputs.Inputs`. running: opens the observer of
    a run.
    """

    def __init__(
        self, gate: Gate, schedule_steps: int = 0, on_verdict: Callable[[Verdict], None] = lambda verdict: None,
        running: Callable[[], AbstractContextManager[Observer]] = lambda: nullcontext(SILENT),
    ):
        self.gate = gate
        self.schedule_steps = schedule_steps
        self.on_verdict = on_verdict
        self.running = running
        self.verdict: Verdict | None = None
        self._prompt: str | None = None

    def patch(self, model):
        """A clone of the MODEL that is watched."""
        model = model.clone()
        model.remove_wrappers_with_key(OUTER_SAMPLE, KEY)  # a model is watched by its last Watch only
        model.remove_additional_models(BESIDE)
        model = accompanied(model, self.gate)
        model.add_wrapper_with_key(OUTER_SAMPLE, KEY, self._outer_sample)
        return model

    def _outer_sample(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False,
        seed=None, **kwargs,
    ):
        steps = len(sigmas) - 1
        if steps < 1:
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs
            )
        whole = max(self.schedule_steps, steps)
        family = model_family(executor.class_obj.model_patcher)
        settings = {"steps": steps, "seed": seed, "model": family, **gate_settings(self.gate, whole)}
        with self.running() as observer:
            inspector = self.gate.inspector(whole, steps)
            observer.begin("0", "sample", steps=steps, window=self.gate.video.window(whole), settings=settings)
            line, places, done = Line(len(noise)), Steps(sigmas, noise.shape), 0
            finished, last = False, None

            def watch(index: int, x0, x, total_steps: int) -> None:
                nonlocal done, last
                if callback is not None:
                    callback(index, x0, x, total_steps)
                if step := places.place(index, x0, line.level):
                    done += 1
                    last = video_latent(x0, executor.class_obj.inner_model, kwargs.get("latent_shapes"))
                    attend(observer, inspector, step, places.levels[step - 1], last, self.gate.look)

            begin, notes = time.perf_counter(), [partial_schedule(executor.class_obj.model_patcher, sigmas)]
            try:
                with line.on(executor.class_obj):
                    samples = line.run(
                        executor, noise, latent_image, shown(sampler, observer, self.gate.look), sigmas, denoise_mask,
                        line.told(watch), disable_pbar, seed, **kwargs,
                    )  # fmt: skip
                done, finished = steps, True
                notes += unjudged(inspector, places), line.unseen
                return samples
            finally:
                seconds = time.perf_counter() - begin
                record = trial_record("0", "sample", inspector, line.evaluations, done, seconds, notes=notes)
                record = replace(record, details=additions(sampler))
                if finished and last is not None:
                    record = with_finals(record, self.gate, last, steps, observer)
                self._conclude(record, settings, observer)

    def _conclude(self, record: TrialRecord, settings: dict[str, Any], observer: Observer) -> None:
        observer.conclude(record)
        context = get_executing_context()
        prompt = context.prompt_id if context else None
        before = self.verdict.history if self.verdict and prompt is not None and prompt == self._prompt else ()
        self._prompt, self.verdict = prompt, Verdict((*before, record), settings, observer.id)
        observer.finish(self.verdict)
        with harmless("the verdict could not be shown"):
            self.on_verdict(self.verdict)
