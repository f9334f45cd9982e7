"""The candidate engine: makes, pauses and goes on with runs of any sampler exactly, and knows nothing of why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

POST_CFG = "sampler_post_cfg_function"
DRY = 1e3  # what a dry run takes for predictions: far apart, so that nothing looks settled and the count is the highest


@dataclass(frozen=True)
class Call:
    """One model evaluation. parts: what CFG++ samplers look at beside x0; empty for all others."""

    x0: torch.Tensor
    parts: dict[str, torch.Tensor]

    def on_cpu(self) -> Call:
        parts = {name: part.to("cpu", copy=True) for name, part in self.parts.items()}
        return Call(self.x0.to("cpu", copy=True), parts)

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


class Unkept(Exception):
    """There is no memory to keep a call in; `call` is the call itself, where it was made."""

    def __init__(self, call: Call):
        self.call = call


class _Pause(Exception):
    """Leaves a sampler at the end of a stage; caught in CandidateEngine and nowhere else."""


class _Ask(Exception):
    """Leaves a sampler that wants an evaluation, so that several can be made at once; caught in CandidateEngine."""

    def __init__(self, *request):
        self.request = request


class StandIn:
    """The guider as a sampler sees it, with something done at its calls."""

    def __init__(self, guider):
        self._guider = guider

    @property
    def cfg(self) -> float:
        """ComfyUI 0.33 logs it at the first step; guiders of other packs may have none."""
        return getattr(self._guider, "cfg", 1.0)

    def __getattr__(self, name):
        return getattr(self._guider, name)


class Counted(StandIn):
    """Counts: one call is one model evaluation, with or without CFG. A search asks for several candidates in one call,
    each of `items` rows."""

    def __init__(self, guider, items: int = 1):
        super().__init__(guider)
        self._items, self.evaluations = items, 0

    def __call__(self, x, *args, **kwargs):
        self.evaluations += max(1, len(x) // self._items)
        return self._guider(x, *args, **kwargs)


class Tape(StandIn):
    """Answers from a recording what the sampler has asked at an earlier stage.

    So a run goes on exactly where it was left, with its multistep history, its own draws of noise and everything else
    that a sampler keeps to itself: its arithmetic is simply done again, which costs next to nothing.

    calls: the recording, to which further calls are added while `recording`. live(x, sigma, model_options, seed): makes
    them. own: how many post-CFG functions belong to the model; what follows them is the sampler's.
    """

    def __init__(self, guider, calls: list[Call], live: Callable[..., Call], own: int, recording: bool = True):
        super().__init__(guider)
        self._calls, self._live, self._own, self.recording = calls, live, own, recording
        self._at = 0
        self.replaying = bool(calls)  # whether the sampler is still where it has been before

    def forget(self) -> None:
        """The run will not be left any more: what it holds is freed, and from here on the guider answers itself."""
        self._calls.clear()
        self._at, self.recording = 0, False

    def __call__(self, x, sigma, model_options, seed=None):
        functions = model_options.get(POST_CFG, [])[self._own :]
        if self._at == len(self._calls):
            self.replaying = False
            if not self.recording:
                return self._guider(x, sigma, model_options=model_options, seed=seed)
            try:
                self._calls.append(self._live(x, sigma, model_options, seed))
            except Unkept as unkept:
                self.forget()
                return unkept.call.answer(x, sigma, model_options, functions)
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

    def costs(self, noise: torch.Tensor) -> list[int]:
        """[N + 1]: evaluations of a run at the start and at the x0 prediction of each step; the last are all
        of them. Counted by running the sampler without the model."""
        calls, counts = [], [0] * len(self.sigmas)

        def live(x, *_):
            x0 = torch.full_like(x, DRY * (len(calls) + 1), device="cpu")
            return Call(x0, {"cond_denoised": x0, "uncond_denoised": x0})

        def watch(step, *_):
            counts[step + 1] = len(calls)

        self._sample(Tape(self.guider, calls, live, self._own), Candidate(0, noise), watch)
        counts[-1] = len(calls)
        return counts

    def advance(self, candidates: Sequence[Candidate], stop: int) -> None:
        """Each candidate up to the x0 prediction of step `stop`; to the very end where that is the last one."""
        for start in range(0, len(candidates), self.at_once):
            group = list(candidates[start : start + self.at_once])
            while len(group) > 1:
                requests = [(each, request) for each in group if (request := self._next(each, stop)) is not None]
                calls = self._evaluate([request for _, request in requests]) if requests else []
                for (each, _), call in zip(requests, calls, strict=True):
                    each.calls.append(call)
                group = [each for each, _ in requests]
            for last in group:
                self._stage(last, stop, lambda *request: self._evaluate([request])[0])

    def finish(self, candidate: Candidate, callback: Callable | None, disable: bool) -> torch.Tensor:
        """The finished latent; the callback sees the whole run of this candidate, from its first step."""

        counted = Counted(self.guider, len(candidate.noise))
        tape = Tape(counted, candidate.calls, self._evaluate, self._own, recording=False)
        try:
            return self._sample(tape, candidate, callback, disable)
        finally:
            self.evaluations += counted.evaluations

    @property
    def _own(self) -> int:
        return own_functions(self.extra_args)

    def _next(self, candidate: Candidate, stop: int) -> tuple | None:
        """The evaluation that a candidate needs next, None once it is through with the stage."""

        def ask(*request):
            raise _Ask(*request)

        try:
            self._stage(candidate, stop, ask)
        except _Ask as ask:
            return ask.request
        return None

    def _stage(self, candidate: Candidate, stop: int, live: Callable) -> None:
        def watch(step, x0, *_):
            candidate.steps, candidate.x0 = step + 1, x0
            if step + 1 == stop < len(self.sigmas) - 1:
                raise _Pause()

        try:
            self._sample(Tape(self.guider, candidate.calls, live, self._own), candidate, watch)
        except _Pause:
            return

    def _sample(self, tape: Tape, candidate: Candidate, callback: Callable | None, disable: bool = True):
        extra_args = {**self.extra_args, "seed": candidate.seed}
        return self.inner.sample(
            tape, self.sigmas, extra_args, callback, candidate.noise.clone(), self.latent, self.mask, disable
        )

    def _evaluate(self, requests: list[tuple]) -> list[Call]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if len(requests) > self.at_once:
            return [call for request in requests for call in self._evaluate([request])]
        try:
            calls = record(self.guider, self._own, requests)
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


def record(guider, own: int, requests: list[tuple]) -> list[Call]:
    """The evaluations for these requests (x, sigma, model_options, seed), from one call of the guider, kept on the
    CPU. Unkept where that has no room for a single one."""
    options, seed = requests[0][2:]
    parts: dict[str, torch.Tensor] = {}
    if len(options.get(POST_CFG, [])) > own:

        def keep(args):
            parts.update({name: args[name] for name in ("cond_denoised", "uncond_denoised") if name in args})
            return args["denoised"]

        options = {**options, POST_CFG: [*options[POST_CFG][:own], keep]}
    x, sigma = (torch.cat([request[i] for request in requests]) for i in (0, 1))
    x0 = guider(x, sigma, model_options=options, seed=seed)
    rows = len(x) // len(requests)
    calls = [
        Call(x0[i : i + rows], {name: part[i : i + rows] for name, part in parts.items()})
        for i in range(0, len(x), rows)
    ]
    try:
        return [call.on_cpu() for call in calls]
    except (MemoryError, RuntimeError) as error:  # torch's CPU allocator raises the latter
        if len(calls) > 1:
            raise
        raise Unkept(calls[0]) from error
