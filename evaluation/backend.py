"""How a run of an evaluation is made: the node Foresight Sampler's work, in this process's ComfyUI or elsewhere.

Every built-in method is this one call with other settings, so that results made in process, over ComfyUI's API and on
other machines are the same.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageSequence

from ..demo.judge import judge
from ..scoring.detector import Decision, Detector, DetectorSettings
from .suites import Item

# Widgets of Foresight Sampler that a method may set (a test holds this to the node).
GATE_SETTINGS = (
    "tau", "delta", "start", "end", "single_start", "single_end", "patience", "every", "reject_margin",
    "give_up_margin", "accept_margin", "stable_range",
)  # fmt: skip
INJECTION_SETTINGS = (
    "injection_start", "injection_steps", "injection_noise", "injection_mask", "injection_strength",
)  # fmt: skip
REFINERS = ("restart", "ablation")  # those that need nothing besides; regeneration always takes the latter
VIDEO_RULES = ("start", "end", "patience", "reject_margin", "give_up_margin", "accept_margin", "stable_range")
CLIP_WIDTH = 256  # pixels of the clips that the database keeps
CLIP_MILLISECONDS = 125


@dataclass(frozen=True)
class Sampled:
    """A finished run. frames: [F, H, W, 3] uint8, as SaveImage would write them; final_score: of the frames before they
    were rounded. sigmas: [steps] of the schedule, empty where unknown. report: of trials.report, or None. source: what
    the backend that made it needs to go on from it; in this process the frames before they were rounded, and latent
    (LATENT) beside them."""

    frames: np.ndarray
    final_score: float
    report: dict[str, Any] | None
    sigmas: tuple[float, ...] = ()
    source: Any = None
    latent: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scale:
    """What is the scorer's own: its threshold and the spread of its scores (see DetectorSettings)."""

    tau: float
    scale: float

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Scale:
        """From the report of a run with the scorer's own threshold."""
        return cls(report["settings"]["tau"], report["settings"]["scale"])

    def detector(self, settings: Mapping[str, Any]) -> DetectorSettings:
        """Of the video, with these widgets set."""
        rules = {name: settings[name] for name in VIDEO_RULES if name in settings}
        return DetectorSettings.video(tau=settings.get("tau", self.tau), scale=self.scale, **rules)


def decide(settings: DetectorSettings, trace: list, steps: int) -> Decision | None:
    """What the detector decides on the trace [[step, score, ...], ...] of a watched run; None if it ends too early."""
    detector = Detector(settings, steps)
    scores = {step: score for step, score, *_ in trace}
    for step in range(1, detector.last + 1):  # a step that could not be scored counts as seen, as in the run itself
        if decision := detector.observe(step, scores.get(step, math.nan)):
            return decision
    return None


class Backend(Protocol):
    """steps: of the schedule. family: the models in this process, for methods that plug in; None elsewhere."""

    steps: int
    family: Any | None

    def sample(
        self, prompt: str, seed: int, settings: Mapping[str, Any], *, inject: bool = False, refine: bool = False
    ) -> Sampled:
        """The hierarchy with these widgets set; with both trials off the run is watched to its end."""

    def regenerate(self, prompt: str, seed: int, failed: Sampled) -> Sampled:
        """A plain run, scored against `prompt`, of the words that the refiner finds looking at a finished clip."""

    def where(self) -> tuple[str, dict[str, str]]:
        """machine and versions."""


class InProcess:
    """family: what DemoFamily has: steps, scorer, gate(prompt, **settings), guider(prompt, negative), inputs(prompt,
    seed), decode(latent) -> [F, H, W, 3] in 0..1, and, if the model wants one, a negative prompt. The methods steps and
    search ask for inputs(prompt, seed, steps) and reward(prompt, name) as well."""

    def __init__(self, family: Any):
        self.family = family
        self.steps = family.steps
        self.negative = getattr(family, "negative", "")

    @torch.inference_mode()
    def sample(
        self, prompt: str, seed: int, settings: Mapping[str, Any], *, inject: bool = False, refine: bool = False
    ) -> Sampled:
        from ..nodes.back_ends import DEFAULT, make_reworder
        from ..sampling.hierarchy import run_hierarchy
        from ..sampling.injection import InjectionSettings
        from ..trials.report import run_report

        gate = self.family.gate(prompt, **{k: v for k, v in settings.items() if k in GATE_SETTINGS})
        injection = InjectionSettings(
            **{k.removeprefix("injection_"): v for k, v in settings.items() if k in INJECTION_SETTINGS}
        )
        inputs = self.family.inputs(prompt, seed)
        refiner = make_reworder(settings.get("refiner", DEFAULT), self.family.scorer) if refine else None
        result = run_hierarchy(
            inputs, gate, self.family.guider, negative=self.negative, reworder=refiner,
            injection=injection if inject else None,
        )  # fmt: skip
        sigmas = tuple(round(float(sigma), 6) for sigma in inputs.sigmas[:-1])
        return self.finished(prompt, result.latent, run_report(result.verdict), sigmas)

    @torch.inference_mode()
    def regenerate(self, prompt: str, seed: int, failed: Sampled) -> Sampled:
        from ..refiner.ablation import AblationReworder
        from ..refiner.base import RewordingRequest
        from ..sampling.hierarchy import reword
        from ..sampling.run import monitored_sample
        from ..trials.report import run_report
        from ..trials.verdict import Verdict

        request = RewordingRequest(prompt, self.negative, failed.source, failed.final_score)
        nothing_yet = Verdict((), {"prompt": prompt, "negative": self.negative})
        refiner = AblationReworder(self.family.scorer)
        refined, inputs = reword(request, refiner, nothing_yet, lambda answer: self.family.inputs(answer.prompt, seed))
        result = monitored_sample(inputs or self.family.inputs(prompt, seed), previous=refined)
        return self.finished(prompt, result.latent, run_report(result.verdict))

    @torch.inference_mode()
    def finished(self, prompt: str, latent: Any, report: dict | None, sigmas: tuple[float, ...] = ()) -> Sampled:
        frames = self.family.decode(latent).cpu()
        score = float(self.family.scorer.score(frames, self.family.scorer.encode_text(prompt)))
        return Sampled(as_saved(frames), score, report and report | {"final_score": score}, sigmas, frames, latent)

    def where(self) -> tuple[str, dict[str, str]]:
        from .results import environment

        here = environment("")
        return here["machine"], {name: here[name] for name in ("comfyui", "torch", "python")}


def as_saved(frames: torch.Tensor) -> np.ndarray:
    """[..., 3] in 0..1 -> uint8, rounded as ComfyUI's SaveImage does."""
    return np.clip(255.0 * frames.numpy(), 0, 255).astype(np.uint8)


def motion(frames: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, 0..1. A still clip has 0; flicker counts as well as motion."""
    if len(frames) < 2:
        return 0.0
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() / 255)


def webp(frames: np.ndarray) -> bytes:
    """An animated WebP, scaled down to CLIP_WIDTH."""
    height, width = frames.shape[1:3]
    pictures = list(map(Image.fromarray, frames))
    if width > CLIP_WIDTH:
        pictures = [picture.resize((CLIP_WIDTH, round(height * CLIP_WIDTH / width))) for picture in pictures]
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=CLIP_MILLISECONDS, loop=0, quality=85
    )
    return file.getvalue()


def read_webp(data: bytes) -> np.ndarray:
    """What `webp` wrote: [F, H, W, 3] uint8, with its losses. Equal neighbours are one picture there, shown
    longer; a clip that never changes comes back as one frame."""
    frames: list[np.ndarray] = []
    with Image.open(io.BytesIO(data)) as clip:
        for picture in ImageSequence.Iterator(clip):
            frame = np.asarray(picture.convert("RGB"))  # how long it is shown is known once it is read
            frames += [frame] * max(1, round(picture.info.get("duration", 0) / CLIP_MILLISECONDS))
    return np.stack(frames)


Judge = Callable[[Item, np.ndarray], Mapping[str, Any]]


def demo_judge(item: Item, frames: np.ndarray) -> Mapping[str, Any]:
    """{"right": bool or None, "measures": {name: float}} of frames [F, H, W, 3] uint8: what every judge gives. Measures
    are the judge's smallest margin of each kind of attribute."""
    if item.scene is None:
        return {"right": None, "measures": {}}
    verdict = judge(torch.from_numpy(frames), item.scene)
    measures: dict[str, float] = {}
    for name, margin in verdict.margins.items():
        kind = name.split()[-1]
        measures[kind] = min(measures.get(kind, 1.0), round(float(margin), 4))
    return {"right": bool(verdict.right), "measures": measures}


def no_judge(item: Item, frames: np.ndarray) -> Mapping[str, Any]:
    return {"right": None, "measures": {}}


def named(reference: str, purpose: str) -> Any:
    """What "module:name" refers to. ValueError."""
    module, colon, name = reference.partition(":")
    try:
        if not colon:
            raise ValueError("it has no colon")
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{purpose} {reference!r} cannot be loaded ({error}): write it as module:name.") from None
