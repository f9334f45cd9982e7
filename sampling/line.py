"""A sampler's line to the model: what it asks is seen, counted, answered from elsewhere, or refused.

It is set where ComfyUI offers it, as wrappers of the guider's calls. So a sampler holds the guider itself, and may set
its scale or conditions for a step, copy it, ask what it is, or call its predict_noise, as samplers of other packs do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from comfy.model_management import InterruptProcessingException

from .sent import Sent

KINDS = comfy.patcher_extension.WrappersMP


class Halt(BaseException):
    """Ends a sampler from within, and never leaves Line.run. No Exception: few samplers take it for a failure."""


@contextmanager
def wrapping(options: dict[str, Any], kind: str, wrapper: Callable) -> Iterator[None]:
    """Has `wrapper` around all others of its kind in these model options, for as long as the block runs."""
    wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    before = wrappers.get(kind, {})
    wrappers[kind] = {f"foresight_{id(wrapper)}": [wrapper], **before}
    try:
        yield
    finally:
        wrappers[kind] = before


@dataclass(eq=False)
class Line:
    """The calls of one run of a sampler, within the lines that are set already: those see what this one answers.

    items: rows of one evaluation; a search asks for several candidates in one call. answer(live, x, sigma,
    model_options, seed): answers instead of the model; `live` asks that, with the same arguments but itself. offline:
    there is no model to ask.

    evaluations: of the model so far, with or without CFG one each. beside: those of them that went past the guider's
    own call, so that `answer` does not see them. level: the noise level that was last asked for before the present
    callback, None where nothing was since the callback before. guider: whose call that was, perhaps a copy's. ended:
    what the run was ended with. ignored: the sampler went on, or gave a result, all the same.
    """

    items: int = 1
    answer: Callable[..., torch.Tensor] | None = None
    offline: bool = False
    evaluations: int = field(default=0, init=False)
    beside: int = field(default=0, init=False)
    level: Sent | None = field(default=None, init=False)
    guider: Any = field(default=None, init=False)
    ended: BaseException | None = field(default=None, init=False)
    ignored: bool = field(default=False, init=False)
    _outer: Line | None = field(default=None, init=False)
    _asked: Sent | None = field(default=None, init=False)
    _seen: bool = field(default=False, init=False)  # whether anything was asked, and shown
    _shown: bool = field(default=False, init=False)
    _open: bool = field(default=False, init=False)
    _within: bool = field(default=False, init=False)  # a call of the guider

    def sample(self, sampler: comfy.samplers.Sampler, guider, sigmas, extra_args, callback, *rest):
        """What the sampler gives, as Sampler.sample; None where it was ended."""
        with self.on(guider, extra_args.get("model_options", {})):
            return self.run(sampler.sample, guider, sigmas, extra_args, callback and self.told(callback), *rest)

    def run(self, function: Callable, *args, **kwargs):
        """The function's result, None where the run was ended. A cancel is raised, whatever the sampler made of it."""
        try:
            result = function(*args, **kwargs)
        except Halt as halt:
            if halt is not self.ended:
                raise
        except InterruptProcessingException:
            raise
        except Exception:
            if self.ended is None:
                raise
            self.ignored = True
        else:
            if self.ended is None:
                return result
            self.ignored = True
        self.ended.__traceback__ = None  # it holds what the sampler held
        if isinstance(self.ended, InterruptProcessingException):
            raise self.ended
        return None

    @contextmanager
    def on(self, guider, *options: dict[str, Any]) -> Iterator[None]:
        """Sets the line. options: further model options with which the guider may be asked."""
        options = (getattr(guider, "model_options", {}), *options)
        set_before = comfy.patcher_extension.get_all_wrappers(KINDS.PREDICT_NOISE, options[0], is_model_options=True)
        holders = (getattr(wrapper, "__self__", None) for wrapper in set_before)
        self._outer = next((holder for holder in holders if isinstance(holder, Line)), None)
        with ExitStack() as stack:
            for each in options:
                stack.enter_context(wrapping(each, KINDS.PREDICT_NOISE, self._predict))
                stack.enter_context(wrapping(each, KINDS.CALC_COND_BATCH, self._evaluate))
            self._open = True
            stack.callback(setattr, self, "_open", False)  # for copies of the options, which outlive the run
            yield

    def told(self, callback: Callable) -> Callable:
        """The callback, which knows the level of what it is shown, and is not called any more once the run is ended."""

        def shown(*info):
            self._shown = True
            self.level, self._asked = self._asked, None
            self._go_on()
            try:
                callback(*info)
            except InterruptProcessingException as cancel:
                self.ended = cancel
                raise

        return shown

    def end(self) -> NoReturn:
        """Ends the run: from here on the sampler gets nothing from the model, whatever it does."""
        self.ended = Halt()
        raise self.ended

    @property
    def unseen(self) -> str | None:
        """A note for the report on a sampler that shows steps and was not seen to ask for them: it leaves out the model
        options, and with them every wrapper."""
        if self._shown and not self._seen:
            return "the sampler asks the model past ComfyUI's wrappers: its model evaluations are not counted"
        return None

    def _go_on(self) -> None:
        if self.ended is not None:
            self.ignored = True
            raise self.ended
        try:  # core looks for the user's cancel in its progress bar only, which a caller may have left out
            comfy.model_management.throw_exception_if_processing_interrupted()
        except InterruptProcessingException as cancel:
            self.ended = cancel
            raise

    def _see(self, level: Sent) -> None:
        if self._outer is not None:
            self._outer._see(level)
        self._go_on()
        self._seen, self._asked = True, level

    def _predict(self, executor, x, sigma, model_options=None, seed=None):
        request = (x, sigma, {} if model_options is None else model_options, seed)
        if not self._open or self._within:
            return executor(*request)
        self._see(Sent(sigma.max()))
        self.guider = executor.class_obj
        self._within, live = True, partial(self._live, executor)
        try:
            return self.answer(live, *request) if self.answer else live(*request)
        finally:
            self._within = False

    def _live(self, executor, x, sigma, model_options, seed):
        self.evaluations += self._count(x)
        return executor(x, sigma, model_options, seed)

    def _evaluate(self, executor, model, conds, x, sigma, model_options):
        if self._open and not self._within:
            self._see(Sent(sigma.max()))
            if self.offline:
                self.end()
            self.evaluations += self._count(x)
            self.beside += self._count(x)
        return executor(model, conds, x, sigma, model_options)

    def _count(self, x: torch.Tensor) -> int:
        return max(1, len(x) // self.items)


def recorded(guider) -> bool:
    """Whether a line is set that answers from elsewhere, so that a sampler may begin again without the model."""
    options = getattr(guider, "model_options", {})
    wrappers = comfy.patcher_extension.get_all_wrappers(KINDS.PREDICT_NOISE, options, is_model_options=True)
    lines = (getattr(wrapper, "__self__", None) for wrapper in wrappers)
    return any(isinstance(line, Line) and line.answer is not None for line in lines)


def frames_are_rows(model) -> bool:
    """Whether a model takes the frames of one clip as a batch of pictures (Stable Video Diffusion)."""
    return isinstance(model, comfy.model_base.SVD_img2vid)


def video_latent(x0: Any, model, shapes=None) -> torch.Tensor:
    """[B, C, F, H, W], of pictures [B, C, H, W]: what a sampler of this model in core shows as x0, or its result.

    Audio-video models are sampled as one flat row, of latents of these `shapes` (else the model's; None or a single one
    for all others), and shown as a nested tensor of them; video comes first."""
    shapes = shapes or getattr(model, "latent_shapes", None)
    if getattr(x0, "is_nested", False):
        x0 = x0.unbind()[0]
    elif shapes and len(shapes) > 1:
        x0 = comfy.utils.unpack_latents(x0, shapes)[0]
    return x0.movedim(0, 1).unsqueeze(0) if frames_are_rows(model) else x0


class Steps:
    """Places what a callback shows in the schedule. Samplers choose their own steps, call back several times in one,
    count otherwise, or show a part of the clip: so a step is where its noise level is, and each is met once, in order.

    sigmas: [N + 1]. shape: of the clip's latent. part: whether x0 predictions of another shape were shown.
    """

    def __init__(self, sigmas: torch.Tensor, shape: torch.Size):
        self.levels, self.shape = sigmas.tolist(), shape
        self.part, self._latest = False, 0

    def place(self, index: Any, x0: Any, level: Sent | None) -> int | None:
        """The step (1-based) of a callback's `index` (0-based) and x0, None where it is not in the schedule, or done.

        level: as Line's. The index is believed where the level is none of the schedule's, and within a step of it.
        """
        if getattr(x0, "shape", None) != self.shape:
            self.part = True
            return None
        if level is None:
            return None
        last, level = len(self.levels) - 1, float(level)
        nearest = min(range(last), key=lambda i: abs(self.levels[i] - level))
        own = abs(self.levels[nearest] - level) > 1e-4 * level
        believed = own and isinstance(index, int) and self._latest <= index < last and abs(index - nearest) <= 1
        step = (index if believed else nearest) + 1
        if step <= self._latest:
            return None
        self._latest = step
        return step
