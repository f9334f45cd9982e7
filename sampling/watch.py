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
from .guard import harmless
from .guided import accompanied
from .monitor import attend, video_latent
from .records import gate_settings, model_family, partial_schedule, trial_record

KEY = "foresight_watch"


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
        self._evaluations, self._items = 0, 1
        self._prompt: str | None = None

    def patch(self, model):
        """A clone of the MODEL that is watched."""
        model = accompanied(model.clone(), self.gate.scorer)
        kinds = comfy.patcher_extension.WrappersMP
        for kind, wrapper in ((kinds.OUTER_SAMPLE, self._outer_sample), (kinds.PREDICT_NOISE, self._predict_noise)):
            model.remove_wrappers_with_key(kind, KEY)  # a model is watched by its last Watch only
            model.add_wrapper_with_key(kind, KEY, wrapper)
        return model

    def _predict_noise(self, executor, x, *args, **kwargs):
        self._evaluations += max(1, len(x) // self._items)  # a search asks for several candidates in one call
        return executor(x, *args, **kwargs)

    def _outer_sample(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False,
        seed=None, **kwargs,
    ):
        steps, levels = len(sigmas) - 1, sigmas.tolist()
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
            done = at = 0

            def watch(step: int, x0, x, total_steps: int) -> None:
                nonlocal done, at
                if callback is not None:
                    callback(step, x0, x, total_steps)
                if not at <= step < steps:  # as MonitorSampler
                    return
                done, at = done + 1, step + 1
                video = video_latent(x0, kwargs.get("latent_shapes"))
                attend(observer, inspector, step + 1, levels[step], video, self.gate.look)

            self._evaluations, self._items, begin = 0, len(noise), time.perf_counter()
            try:
                return executor(noise, latent_image, sampler, sigmas, denoise_mask, watch, disable_pbar, seed, **kwargs)
            finally:
                seconds = time.perf_counter() - begin
                record = trial_record("0", "sample", inspector, self._evaluations, done, seconds)
                note = record.message or partial_schedule(executor.class_obj.model_patcher, sigmas)
                self._conclude(replace(record, message=note), settings, observer)

    def _conclude(self, record: TrialRecord, settings: dict[str, Any], observer: Observer) -> None:
        observer.conclude(record)
        context = get_executing_context()
        prompt = context.prompt_id if context else None
        before = self.verdict.history if self.verdict and prompt is not None and prompt == self._prompt else ()
        self._prompt, self.verdict = prompt, Verdict((*before, record), settings, observer.id)
        observer.finish(self.verdict)
        with harmless("the verdict could not be shown"):
            self.on_verdict(self.verdict)
