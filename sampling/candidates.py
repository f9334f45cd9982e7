"""The candidate engine: makes, pauses and goes on with runs of any sampler exactly, and knows nothing of why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch

from .line import Line, Steps
from .sent import Sent

POST_CFG = "sampler_post_cfg_function"
DRY = 1e3  # what a dry run takes for predictions: far apart, so that nothing looks settled and the count is the highest
MOST = 100  # evaluations a step that a dry run follows; no sampler of fixed steps takes so many


@dataclass(frozen=True)
class Call:
    """One model evaluation. parts: what CFG++ samplers look at beside x0; empty for all others."""

    x0: torch.Tensor | Sent
    parts: dict[str, torch.Tensor | Sent]

    def on_cpu(self) -> Call:
        return Call(Sent(self.x0), {name: Sent(part) for name, part in self.parts.items()})

    def answer(self, x: torch.Tensor, sigma: torch.Tensor, options: dict[str, Any], functions: Sequence[Callable]):
        """The guider's answer, shown once more to the functions that the sampler has added."""
        x0 = self.x0.to(x)
        parts = {name: part.to(x) for name, part in self.parts.items()}
        for function in functions:
            x0 = function({**parts, "denoised": x0, "sigma": sigma, "input": x, "model_options": options})
        return x0


@dataclass(eq=False)
class Candidate:
    """One way to make the clip. steps: how far it has come; x0: its prediction there; calls: its evaluations so far,
    which are all that it takes to go on."""

    seed: int
    noise: torch.Tensor
    steps: int = 0
    x0: torch.Tensor | None = None
    calls: list[Call] = field(default_factory=list)


class Tape:
    """Answers from a recording what the sampler has asked at an earlier stage (a Line's `answer`).

    So a run goes on exactly where it was left, with its multistep history, its own draws of noise and everything else
    that a sampler keeps to itself: its arithmetic is simply done again, which costs next to nothing.

    calls: the recording, to which further calls are added while `recording`. own: how many post-CFG functions belong to
    the model; what follows them is the sampler's. make(live, request): makes a call, where request is (x, sigma,
    model_options, seed).
    """

    def __init__(self, calls: list[Call], own: int, make: Callable[..., Call], recording: bool = True):
        self._calls, self._own, self._make, self.recording = calls, own, make, recording
        self._at = 0
        self.replaying = bool(calls)  # whether the sampler is still where it has been before
        self.full = False  # whether there was no memory to record any more

    def forget(self) -> None:
        """The run will not be left any more: what it holds is freed, and from here on the model answers itself."""
        self._calls.clear()
        self._at, self.recording = 0, False

    def __call__(self, live, x, sigma, model_options, seed):
        functions = model_options.get(POST_CFG, [])[self._own :]
        if self._at == len(self._calls):
            self.replaying = False
            if not self.recording:
                return live(x, sigma, model_options, seed)
            call = self._make(live, (x, sigma, model_options, seed))
            try:
                self._calls.append(call.on_cpu())
                self._at += 1
            except (MemoryError, RuntimeError):  # torch's CPU allocator raises the latter
                self.forget()
                self.full = True
            return call.answer(x, sigma, model_options, functions)
        self._at += 1
        return self._calls[self._at - 1].answer(x, sigma, model_options, functions)


@dataclass
class CandidateEngine:
    """Runs candidates of one clip with `inner`, whatever sampler that is; the rest are Sampler.sample's own arguments.

    at_once: candidates in one model call. evaluations: so far, one a candidate and call. bar: progress, if any.
    """

    inner: comfy.samplers.Sampler
    guider: Any
    sigmas: torch.Tensor
    extra_args: dict[str, Any]
    latent: torch.Tensor | None
    mask: torch.Tensor | None
    at_once: int = 1
    evaluations: int = 0
    bar: Any = None
    _schedule: torch.Tensor = field(init=False)  # the sigmas on the CPU

    def __post_init__(self):
        self._schedule = self.sigmas.cpu()

    def costs(self, noise: torch.Tensor) -> list[int] | None:
        """[N + 1]: evaluations of a run at the start and at the x0 prediction of each step, 0 where none is shown; the
        last are all of them. Counted by running the sampler without the model. None where that is not to be had: the
        sampler asks the model past its guider's own call, or chooses its steps by the model's answers."""
        asked, counts = 0, [0] * len(self.sigmas)

        def answer(live, x, sigma, model_options, seed):
            nonlocal asked
            if asked == MOST * (len(self.sigmas) - 1):
                line.end()
            asked += 1
            x0 = torch.full_like(x, DRY * asked)
            call = Call(x0, {"cond_denoised": x0, "uncond_denoised": x0})
            return call.answer(x, sigma, model_options, model_options.get(POST_CFG, [])[self._own :])

        def watch(step, x0, *_):
            if place := steps.place(step, x0, line.level):
                counts[place] = asked

        line, steps = Line(answer=answer, offline=True), Steps(self._schedule, noise.shape)
        if self._sample(line, Candidate(0, noise), watch) is None:
            return None
        counts[-1] = asked
        return counts

    def advance(self, candidates: Sequence[Candidate], stop: int, most: int) -> None:
        """Each candidate up to the x0 prediction of step `stop`; to the very end where that is the last one. most: the
        evaluations that this takes from the start; no more are made, whatever a sampler shows of its steps."""
        for start in range(0, len(candidates), self.at_once):
            group = list(candidates[start : start + self.at_once])
            while len(group) > 1:
                requests = [(each, request) for each in group if (request := self._next(each, stop, most)) is not None]
                calls = self._evaluate([request for _, request in requests]) if requests else []
                for (each, _), call in zip(requests, calls, strict=True):
                    each.calls.append(call.on_cpu())
                group = [each for each, _ in requests]
            for last in group:
                self._stage(last, stop, most, lambda _, live, request: self._evaluate([request], live)[0])

    def finish(self, candidate: Candidate, callback: Callable | None, disable: bool) -> torch.Tensor:
        """The finished latent; the callback sees the whole run of this candidate, from its first step."""
        line = Line(len(candidate.noise), Tape(candidate.calls, self._own, None, recording=False))
        try:
            return self._sample(line, candidate, callback, disable)
        finally:
            self.evaluations += line.evaluations

    @property
    def _own(self) -> int:
        return own_functions(self.extra_args)

    def _next(self, candidate: Candidate, stop: int, most: int) -> tuple | None:
        """The evaluation that a candidate needs next, None once it is through with the stage."""
        wanted = []

        def make(line, live, request):
            usual = vars(self.guider)
            if any(value is not usual.get(name) for name, value in vars(line.guider).items()):
                return self._evaluate([request], live)[0]  # what the sampler has set there holds for its own call only
            wanted.append(request)
            line.end()

        self._stage(candidate, stop, most, make)
        return wanted[0] if wanted else None

    def _stage(self, candidate: Candidate, stop: int, most: int, make: Callable) -> None:
        def bounded(live, request):
            if len(candidate.calls) >= most:
                line.end()
            return make(line, live, request)

        def watch(step, x0, *_):
            if place := steps.place(step, x0, line.level):
                candidate.steps, candidate.x0 = place, x0
                if stop <= place < len(self.sigmas) - 1:
                    line.end()

        line = Line(len(candidate.noise), Tape(candidate.calls, self._own, bounded))
        steps = Steps(self._schedule, candidate.noise.shape)
        self._sample(line, candidate, watch)

    def _sample(self, line: Line, candidate: Candidate, callback: Callable | None, disable: bool = True):
        # Each run has a guider of its own: what a sampler that is ended has set on it must not reach the next.
        options = comfy.model_patcher.create_model_options_clone(self.extra_args.get("model_options", {}))
        extra_args = {**self.extra_args, "model_options": options, "seed": candidate.seed}
        return line.sample(
            self.inner, copy.copy(self.guider), self.sigmas, extra_args, callback, candidate.noise.clone(), self.latent,
            self.mask, disable,
        )  # fmt: skip

    def _evaluate(self, requests: list[tuple], model: Callable | None = None) -> list[Call]:
        """model: asked instead of the guider."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if len(requests) > self.at_once:
            return [call for request in requests for call in self._evaluate([request])]
        try:
            calls = record(model or self.guider, self._own, requests)
        except torch.OutOfMemoryError:
            if len(requests) == 1:
                raise
            self.at_once = 1
            comfy.model_management.soft_empty_cache()
            return self._evaluate(requests)
        self.evaluations += len(requests)
        if self.bar is not None:
            self.bar.update(len(requests))
        return calls


def own_functions(extra_args: dict[str, Any]) -> int:
    """How many post-CFG functions belong to the model, before a sampler adds its own."""
    return len(extra_args.get("model_options", {}).get(POST_CFG, []))


def record(model: Callable, own: int, requests: list[tuple]) -> list[Call]:
    """The evaluations for these requests (x, sigma, model_options, seed), from one call of the model."""
    options, seed = requests[0][2:]
    parts: dict[str, torch.Tensor] = {}
    if len(options.get(POST_CFG, [])) > own:

        def keep(args):
            parts.update({name: args[name] for name in ("cond_denoised", "uncond_denoised") if name in args})
            return args["denoised"]

        options = {**options, POST_CFG: [*options[POST_CFG][:own], keep]}
    x, sigma = (torch.cat([request[i] for request in requests]) for i in (0, 1))
    x0 = model(x, sigma, model_options=options, seed=seed)
    rows = len(x) // len(requests)
    return [
        Call(x0[i : i + rows], {name: part[i : i + rows] for name, part in parts.items()})
        for i in range(0, len(x), rows)
    ]
