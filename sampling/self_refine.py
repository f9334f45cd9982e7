"""Self-refining video sampling: Predict and Perturb with an uncertainty mask (Self-Refining Video Sampling, section on
uncertainty-aware P&P). Numbers that the paper leaves open are those of its authors' code."""

from __future__ import annotations

import copy
import dis
import itertools
import math
import re
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ..trials.foreign import check_choice, quoted
from .line import Line
from .noise_space import NoiseSpace
from .segments import Segments, require_ksampler

CERTAIN = 0.999  # share of certain places at which a step's passes end early (authors' code)
THRESHOLDS = ("absolute", "quantile")
# Their single step is one evaluation and needs no history. Where passes are made, all other samplers take Euler's step,
# as with the authors, who use UniPC's schedule and Euler's steps.
FIRST_ORDER = (
    "sample_euler", "sample_euler_ancestral", "sample_euler_cfg_pp", "sample_euler_ancestral_cfg_pp", "sample_lcm",
    "sample_ddpm",
)  # fmt: skip
_STAGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*:\s*(\d+)\s*")


@dataclass(frozen=True)
class Stage:
    """`passes` extra passes at each step whose middle lies in start..end, shares of the schedule (0..1)."""

    start: float
    end: float
    passes: int


def parse_plan(text: str, steps: int) -> tuple[Stage, ...]:
    """Stages from "2-5:3, 6-13:1": first step - last step : extra passes, 0-based and inclusive as the authors write
    them, on a schedule of `steps` steps. ValueError for what cannot be read, lies outside, or overlaps. Empty: none."""
    stages, steps_so_far = [], set()
    for part in filter(str.strip, re.split("[,;]", text)):
        match = _STAGE.fullmatch(part)
        if match is None:
            raise ValueError(f"plan: {quoted(part.strip())} is not first-last:passes, for example 2-5:3, 6-13:1.")
        first, last, passes = map(int, match.groups())
        if not first <= last < steps:
            raise ValueError(f"plan: {part.strip()} is not within steps 0 to {steps - 1} of its {steps}-step schedule.")
        if not steps_so_far.isdisjoint(range(first, last + 1)):
            raise ValueError(f"plan: {part.strip()} overlaps another stage; each step belongs to one at most.")
        steps_so_far.update(range(first, last + 1))
        stages.append(Stage(first / steps, (last + 1) / steps, passes))
    return tuple(stages)


@dataclass(frozen=True)
class Preset:
    """plan: as `parse_plan` reads it, on `steps` steps; tau: in units of the model's latent."""

    plan: str
    steps: int
    tau: float

    def settings(self, **changes: Any) -> SelfRefineSettings:
        return SelfRefineSettings(stages=parse_plan(self.plan, self.steps), **{"tau": self.tau, **changes})


# The authors' settings (inference_pnp.py for Wan 2.2, Cosmos 2.5); "distilled" is Wan2GP's for 8-step LTX-2 ("2-6:2",
# which counts steps from 1 and the first pass too); "light" is ours, the first extra pass of T2V's first stage: most of
# what the whole plan gains for a fifth of its evaluations (docs/evidence.md).
PRESETS = {
    "T2V": Preset("2-5:3, 6-13:1", 40, 0.2),
    "I2V": Preset("1-5:3, 6-13:1", 40, 0.0),
    "Cosmos": Preset("3-8:2, 9-15:1", 35, 0.5),
    "distilled": Preset("1-5:1", 8, 0.1),
    "light": Preset("2-6:1", 50, 0.2),
}


@dataclass(frozen=True)
class SelfRefineSettings:
    """stages: the plan. tau: where two predictions of a step differ by less, in latent units ("absolute") or than this
    share of all places ("quantile", for latents of another scale), the clip is certain and left as it is; 0 refines
    everywhere, infinity (quantile: 1) nowhere. norm: p of the change, 1 or 2. schedule_steps: see `inputs.Inputs`."""

    stages: tuple[Stage, ...]
    tau: float = 0.2
    threshold: str = "absolute"
    norm: int = 1
    schedule_steps: int = 0

    def __post_init__(self):
        check_choice("threshold", self.threshold, THRESHOLDS)
        if math.isnan(self.tau) or self.tau < 0 or (self.threshold == "quantile" and self.tau > 1):
            raise ValueError(f"tau is {self.tau}: set it to 0 or more, and as a quantile between 0 and 1.")
        if self.norm not in (1, 2):
            raise ValueError(f"norm is {self.norm}: choose 1 (the authors') or 2.")

    @property
    def off(self) -> bool:
        """Whether no place could ever change, so that passes would be for nothing."""
        return math.isinf(self.tau) or (self.threshold == "quantile" and self.tau == 1)

    def passes(self, step: int, steps: int) -> int:
        """Extra passes at a step (0-based) of `steps`."""
        middle = (step + 0.5) / steps
        return 0 if self.off else next((s.passes for s in self.stages if s.start <= middle < s.end), 0)

    def evaluations(self, steps: int) -> int:
        """Model evaluations of a whole run of `steps` with a first-order sampler, at most."""
        return steps + sum(self.passes(step, steps) for step in range(steps))


@dataclass
class SelfRefineResult:
    """What the latest run did. nfe: model evaluations. passes: by self-refined step (0-based), extra
    passes. certain: by such step, share of places that were certain in the end. places: [B, F, H, W], the share of all
    extra passes that each place took (0..1), None before the first."""

    nfe: int = 0
    passes: dict[int, int] = field(default_factory=dict)
    certain: dict[int, float] = field(default_factory=dict)
    places: torch.Tensor | None = None

    def report(self) -> dict[str, Any]:
        return {
            "nfe": self.nfe, "passes": {str(step + 1): n for step, n in self.passes.items()},
            "certain": {str(step + 1): round(share, 4) for step, share in self.certain.items()},
        }


class SelfRefine:
    """A sampler function that self-refines: at the plan's steps it predicts x0, adds fresh noise at the same level and
    predicts again, several times; places where two predictions agree keep the first.

    Entered in mid-run (injection) it finds its place in the schedule by the noise level.
    """

    __name__ = "self_refine"  # ComfyUI logs it

    def __init__(self, inner: comfy.samplers.KSAMPLER, settings: SelfRefineSettings):
        self.inner = inner
        self.settings = settings
        self.result = SelfRefineResult()
        self._model = lambda: None  # of the latest run; held weakly, because a SAMPLER outlives the models it samples

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None, **_):
        refuse_caches(extra_args, "Self-Refine")
        if model is not self._model():
            self._model, self.result = weakref.ref(model), SelfRefineResult()
        line = Line(len(x))  # it also looks for the user's cancel: a pass has no callback, where core does
        try:
            with line.on(model.inner_model, (extra_args or {}).get("model_options", {})):
                return self._refine(Segments(self.inner, model, sigmas, extra_args, callback, disable), x)
        finally:
            self.result.nfe += line.evaluations

    def _refine(self, segments: Segments, x: torch.Tensor) -> torch.Tensor:
        model, sigmas = segments.model, segments.sigmas
        whole = getattr(model, "sigmas", sigmas)
        first = _index(whole, sigmas[0])
        steps = self.settings.schedule_steps or len(whole) - 1
        space, done = NoiseSpace.of(model.inner_model.inner_model.model_sampling), 0
        for step, passes in enumerate(extra_passes(self.settings, space, sigmas, steps, first)):
            if passes:
                x = segments.advance(x, done, step)
                x = self._predict_and_perturb(segments, space, x, step, first + step, passes)
                done = step + 1
        return segments.advance(x, done, len(sigmas) - 1)

    def _predict_and_perturb(
        self, segments: Segments, space: NoiseSpace, x: torch.Tensor, step: int, at: int, passes: int
    ) -> torch.Tensor:
        """x at step -> x at the next one. at: the step's number in the whole schedule."""
        places = _Places.of(segments, x)
        single = segments if _name(segments.inner) in FIRST_ORDER else replace(segments, inner=EULER)
        certain = done = torch.zeros_like(x, dtype=torch.bool)
        extra = torch.zeros_like(x)
        x0 = following = info = None
        for n in range(passes + 1):
            if n:
                x = space.renoise(x0, self._noise(segments, x, at, n), segments.sigmas[step])
            infos = []
            advanced = replace(single, callback=infos.append, disable=True).advance(x, step, step + 1)
            new, info = infos[0]["denoised"], infos[0]
            if n:
                certain = certain | done | self._agree(new, x0, places)  # once certain, certain for the step
                new, advanced = torch.where(certain, x0, new), torch.where(certain, following, advanced)
                extra += ~certain
            x0, following = new, advanced
            shares = places.share(certain)
            done = _like(shares > CERTAIN, x)
            if done.all():
                break
        self.result.passes[at], self.result.certain[at] = n, float(shares.mean())
        self._remember(places.video(extra), n)
        if segments.callback is not None:
            segments.callback({**info, "i": step, "denoised": x0})
        return following

    def _agree(self, new: torch.Tensor, old: torch.Tensor, places: _Places) -> torch.Tensor:
        """Where the change of the prediction, ||new - old||_p / C over the channels, is below tau; shaped as x."""
        change = places.per_place(new - old, self.settings.norm)
        tau = self.settings.tau
        if self.settings.threshold == "quantile":
            tau = places.quantile(change, tau)
        return change < tau

    def _noise(self, segments: Segments, x: torch.Tensor, step: int, n: int) -> torch.Tensor:
        """Fresh noise as x. Drawn from the seed, the item and the pass, on the CPU: an item's does not depend on what
        stands beside it in the batch. Item b of a run with seed s is drawn as the single run with seed s + b."""
        seed = segments.extra_args.get("seed") or 0
        items = []
        for item in range(x.shape[0]):
            (state,) = np.random.SeedSequence(((seed + item) % 2**64, step, n)).generate_state(1, np.uint64)
            generator = torch.Generator("cpu").manual_seed(int(state))
            items.append(torch.randn(x.shape[1:], generator=generator, dtype=torch.float32))
        return torch.stack(items).to(x)

    def _remember(self, extra: torch.Tensor, passes: int) -> None:
        """extra: [B, F, H, W], extra passes of a step by place."""
        result, total = self.result, sum(self.result.passes.values())
        before = 0 if result.places is None else result.places * (total - passes)
        result.places = (before + extra.cpu()) / total


@dataclass(frozen=True)
class _Places:
    """A latent's places: what is decided for all channels together. Boolean maps have the latent's own shape.

    shapes: of the parts of an audio-video latent, which is sampled as one flat row; None for all others. free: what a
    mask leaves to be sampled, None without one; the rest cannot change and is not counted.
    """

    shapes: Any
    free: torch.Tensor | None

    @classmethod
    def of(cls, segments: Segments, x: torch.Tensor) -> _Places:
        shapes = getattr(segments.model.inner_model.inner_model, "latent_shapes", None)
        mask = segments.extra_args.get("denoise_mask")
        return cls(shapes if shapes and len(shapes) > 1 else None, None if mask is None else (mask > 0).expand_as(x))

    def per_place(self, change: torch.Tensor, norm: int) -> torch.Tensor:
        """The p-norm over the channels, by their number; the same for all channels of a place."""
        parts = comfy.utils.unpack_latents(change, self.shapes) if self.shapes else [change]
        parts = [
            torch.linalg.vector_norm(part.float(), norm, dim=1, keepdim=True).div(part.shape[1]).expand_as(part)
            for part in parts
        ]
        return comfy.utils.pack_latents(parts)[0] if self.shapes else parts[0]

    def share(self, certain: torch.Tensor) -> torch.Tensor:
        """[B]: the share of certain places among those that are free."""
        if self.free is None:
            return certain.flatten(1).float().mean(1)
        free = self.free.flatten(1)
        return (certain.flatten(1) & free).sum(1) / free.sum(1).clamp(min=1)

    def quantile(self, change: torch.Tensor, q: float) -> torch.Tensor:
        """The q-quantile of each item's change over its free places, which broadcasts against the latent."""
        levels = []
        for item, row in enumerate(change):
            values = (row if self.free is None else row[self.free[item]]).flatten().sort().values
            levels.append(values[int(q * (len(values) - 1))] if len(values) else row.new_zeros(()))
        return _like(torch.stack(levels), change)

    def video(self, places: torch.Tensor) -> torch.Tensor:
        """[B, F, H, W] of a map that is the same for all channels."""
        part = comfy.utils.unpack_latents(places, self.shapes)[0] if self.shapes else places
        return part[:, 0] if part.ndim == 5 else part[:, :1]


EULER = comfy.samplers.ksampler("euler")


def extra_passes(
    settings: SelfRefineSettings, space: NoiseSpace, sigmas: torch.Tensor, steps: int, first: int = 0
) -> list[int]:
    """At most, at each step of `sigmas`, whose first is step `first` (0-based) of a schedule of `steps`. None at pure
    noise, which leaves nothing of a prediction: where a flow begins, and with few steps the plan's only one."""
    return [
        settings.passes(step, steps) if space.coefficients(sigma)[0] > 0 else 0
        for step, sigma in enumerate(sigmas[:-1], first)
    ]


def self_refining(inner: comfy.samplers.Sampler, settings: SelfRefineSettings) -> comfy.samplers.KSAMPLER:
    """The sampler with self-refinement; its sampler_function is the SelfRefine. ValueError for what is no KSAMPLER."""
    refining = copy.copy(require_ksampler(inner, "Self-Refine"))
    refining.sampler_function = SelfRefine(inner, settings)
    return refining


def caches(model_options: dict[str, Any]) -> bool:
    """Whether the model skips evaluations that look alike, by what it remembers of the steps before."""
    return "easycache" in model_options.get("transformer_options", {})  # LazyCache's key too


def remembers(model_options: dict[str, Any]) -> bool:
    """Whether what the model answers depends on what it was asked before, so that a run of it cannot be left and gone
    on with: a cache, or a function in its path that writes to what it keeps from step to step (APG's momentum)."""
    functions = [value for name, value in model_options.items() if name.endswith("_function")]
    return caches(model_options) or any(map(_writes, itertools.chain(*map(_listed, functions))))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _writes(function: Any) -> bool:
    """Whether it assigns to a variable of the function that has made it (nonlocal)."""
    code = getattr(function, "__code__", None)
    kept = set(getattr(code, "co_freevars", ()))
    lines = dis.get_instructions(code) if kept else ()
    return any(line.opname == "STORE_DEREF" and line.argval in kept for line in lines)


def refuse_caches(extra_args: dict[str, Any] | None, name: str) -> None:
    """EasyCache and its kin take the same level twice, or two clips in turn, for a clip that stands still."""
    if caches((extra_args or {}).get("model_options", {})):
        raise ValueError(
            f"{name} does not work with EasyCache and LazyCache, which skip evaluations that look alike: take that "
            "node out of the model's path."
        )


def _like(items: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[B], one value an item, so that it broadcasts against x."""
    return items.view(-1, *[1] * (x.ndim - 1))


def _name(sampler: comfy.samplers.KSAMPLER) -> str:
    return getattr(sampler.sampler_function, "__name__", "")


def _index(sigmas: torch.Tensor, sigma: torch.Tensor) -> int:
    """The step that begins at sigma; a part of the schedule is a slice of it, so levels are equal exactly."""
    places = (sigmas == sigma).nonzero()
    return int(places[0]) if len(places) else 0
