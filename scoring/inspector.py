"""The real-time inspector: x0 prediction -> preview -> alignment score -> decision (paper, section 3.1, Figure 2)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..l2r.decode import decode
from ..trials.verdict import ItemVerdict
from .detector import Detector, DetectorSettings
from .scorer import Scorer, numbers, patchers_of


@dataclass(frozen=True)
class Observation:
    """One inspected step. scores: one a batch item. x0: [B, C, F, H, W] in model space, of which previews are made.

    frames: of the best item those that were scored, for whoever shows them; not kept in `last`. decoded: item by item,
    where they are all of the clip's, so that nothing is decoded twice; empty elsewhere.
    """

    step: int
    sigma: float
    scores: tuple[float, ...]
    x0: torch.Tensor
    frames: torch.Tensor | None = None
    decoded: tuple[torch.Tensor, ...] = ()


def video(x0: torch.Tensor) -> torch.Tensor:
    """[B, C, F, H, W], also of an image model's [B, C, H, W]."""
    return x0 if x0.ndim == 5 else x0.unsqueeze(2)


def check_prompt(prompt: str) -> None:
    """ValueError for one that nothing can be scored against."""
    if not prompt.strip():
        raise ValueError("prompt is empty: there is nothing to score previews against. Enter the clip's prompt.")


@dataclass(frozen=True)
class Gate:
    """Everything that inspection needs; makes a fresh Inspector for every run.

    prompt is what the previews are scored against: always the user's own words, also after rewording, so that a
    reworded prompt cannot lower the bar (paper, A.1, scores the original prompt as well). delta is the margin by which
    a single frame must beat the rejected video (section 3.2). every: inspect each n-th step of the schedule. at: these
    steps alone instead.
    """

    l2r: torch.nn.Module
    scorer: Scorer
    prompt: str
    video: DetectorSettings
    single_frame: DetectorSettings
    delta: float = 0.05
    every: int = 1
    at: tuple[int, ...] = ()

    def __post_init__(self):
        check_prompt(self.prompt)
        if not 0 <= self.delta <= 2:
            raise ValueError(f"delta is {self.delta}, but it is a difference of cosines: set it between 0 and 2.")
        if self.every < 1:
            raise ValueError(f"every is {self.every}: inspect each step (1) or each n-th (2 or more).")

    @property
    def patchers(self) -> tuple:
        """Of converter and scorer, where ComfyUI manages their weights."""
        return patchers_of(self.l2r, self.scorer)

    def inspector(self, steps: int, available: int | None = None, *, single_frame: bool = False) -> Inspector:
        """For a run of the first `available` of `steps` steps (default: all)."""
        settings = self.single_frame if single_frame else self.video
        return Inspector(self, settings, steps, available or steps)

    def looks(self, floors: Mapping[int, float | None], steps: int) -> Gate:
        """Looks at the steps that `floors` has alone, the earliest first, and rejects what scores below the floor
        there; None, of a single look: below tau."""
        first, last = min(floors), max(floors)
        # The detector has a floor for each step of its window, of which those between two looks are never asked for.
        least = [floors[max(look for look in floors if look <= step)] for step in range(first, last + 1)]
        least = () if None in least else tuple(least)
        return replace(self, at=tuple(floors), video=replace(
            self.video, start=first / steps, end=last / steps, floors=least,
        ))  # fmt: skip

    def decode(self, latent: torch.Tensor, frames: list[int] | None = None) -> torch.Tensor:
        """Frames of one item [1, C, F, H, W], model space: [F, sH, sW, 3] in 0..1 on its device."""
        # Where ComfyUI has not loaded it with the model (no room, a latent on the CPU) it goes where the latent is: of
        # 1 MiB that is cheaper than to ask for room in the middle of sampling, for which the model might have to go.
        return decode(self.l2r.to(latent.device), latent.float(), frames)[0]

    def look(self, x0: torch.Tensor) -> torch.Tensor:
        """What the scorer would see of an x0 prediction's first item."""
        latent = video(x0)[:1]
        return self.decode(latent, self.scorer.looks_at(latent.shape[2]))

    def judge(self, x0: torch.Tensor) -> tuple[tuple[float, ...], tuple[torch.Tensor, ...]]:
        """Of a finished clip's last x0 prediction, item by item: its score, NaN where it is not finite, and the frames
        that were scored, [F, sH, sW, 3] in 0..1 on the CPU."""
        latent = video(x0)
        text, indices = self.scorer.encode_text(self.prompt), self.scorer.looks_at(latent.shape[2])
        clips = [self.decode(item, indices) for item in latent.split(1)]
        scores, _ = self.scores(clips, text, latent)
        return scores, tuple(frames.cpu() for frames in clips)

    def scores(
        self, clips: Sequence[torch.Tensor], text: torch.Tensor, latent: torch.Tensor
    ) -> tuple[tuple[float, ...], bool]:
        """Of the frames of each item of a latent, NaN where the item is not finite; and whether all are. What all of
        it takes from the device comes in one copy."""
        items = [torch.isfinite(item).all() for item in latent.split(1)]
        told = numbers([*items, *(self.scorer.score(frames, text) for frames in clips)])
        finite, scores = told[: len(items)], told[len(items) :]
        return tuple(s if sound else math.nan for s, sound in zip(scores, finite, strict=True)), all(finite)

    def still(self, x0: torch.Tensor) -> torch.Tensor:
        """The middle frame of an x0 prediction's first item, [sH, sW, 3]."""
        latent = video(x0)[:1]
        return self.decode(latent, [latent.shape[2] // 2])[0]


@dataclass
class Inspector:
    """Watches one run, the first `available` of `steps` steps: L2R, scorer and a detector for each batch item."""

    gate: Gate
    settings: DetectorSettings
    steps: int
    available: int
    seconds: float = 0.0
    last: Observation | None = None  # the latest step that was scored
    message: str | None = None  # why inspection failed, if it did
    overruled: tuple[bool, int] | None = None  # a person's own decision, and its step
    _detectors: list[Detector] = field(default_factory=list)
    _text: torch.Tensor | None = None

    def wants(self, step: int) -> bool:
        """Whether this step (1-based) is to be inspected: those of the gate, and always the last of the window."""
        last = min(self.settings.window(self.steps)[1], self.available)
        looked_at = step in self.gate.at if self.gate.at else step % self.gate.every == 0
        return not self.decided and step <= last and (looked_at or step == last)

    @property
    def decided(self) -> bool:
        if self.overruled:
            return True
        return bool(self._detectors) and all(detector.decision for detector in self._detectors)

    @property
    def rejected(self) -> bool:
        """True once every item of the batch is rejected."""
        if self.overruled:
            return not self.overruled[0]
        return self.decided and not any(detector.decision.accepted for detector in self._detectors)

    def observe(self, step: int, sigma: float, x0: torch.Tensor) -> Observation:
        """Scores the x0 prediction of a step and lets the detectors decide.

        x0: [B, C, F, H, W] (or [B, C, H, W]) in model space; never written to. Raises whatever L2R or the scorer
        raises, and ValueError for an x0 prediction that is not finite: the caller then calls `skip`.
        """
        begin = time.perf_counter()
        try:
            latent = video(x0)
            if self._text is None:
                self._text = self.gate.scorer.encode_text(self.gate.prompt)
            indices = self.gate.scorer.looks_at(latent.shape[2])
            clips = tuple(self.gate.decode(item, indices) for item in latent.split(1))
            scores, finite = self.gate.scores(clips, self._text, latent)
            if not finite:
                raise ValueError(f"the x0 prediction of step {step} is not finite")
            best = clips[scores.index(max(scores))]
            decoded = clips if len(indices) == latent.shape[2] else ()
            self.last = Observation(step, sigma, scores, latent.clone(), decoded=decoded)
            if not all(map(math.isfinite, scores)):
                self.message = f"step {step}: the score is not finite"
            self._decide(step, self.last.scores)
        finally:
            self.seconds += time.perf_counter() - begin
        return replace(self.last, frames=best)

    def overrule(self, step: int, accepted: bool, items: int) -> None:
        """A person decides for all `items` of the batch, whatever was decided before."""
        if not self._detectors:
            self._detectors = [Detector(self.settings, self.steps, self.available) for _ in range(items)]
        self.overruled = accepted, step

    def preview(self, item: int) -> torch.Tensor:
        """All frames of a batch item at the last inspected step, [F, sH, sW, 3] in 0..1, on the CPU."""
        begin = time.perf_counter()
        try:
            decoded = self.last.decoded
            return (decoded[item] if decoded else self.gate.decode(self.last.x0[item : item + 1])).cpu()
        finally:
            self.seconds += time.perf_counter() - begin

    def skip(self, step: int, reason: str, items: int = 1) -> None:
        """Counts a step whose inspection failed as seen, so that the window still ends."""
        self.message = reason
        self._decide(step, (math.nan,) * items)

    def _decide(self, step: int, scores: tuple[float, ...]) -> None:
        if not self._detectors:
            self._detectors = [Detector(self.settings, self.steps, self.available) for _ in scores]
        for detector, score in zip(self._detectors, scores, strict=True):
            if detector.decision is None:
                detector.observe(step, score)

    def items(self) -> tuple[ItemVerdict, ...]:
        """The verdict on each item; an item on which nothing was decided passes as "not_inspected"."""
        verdicts = []
        for detector in self._detectors:
            decision, trace = detector.decision, tuple(detector.trace)
            if self.overruled:
                accepted, step = self.overruled
                score = decision.predicted_score if decision else trace[-1][1] if trace else None
                verdicts.append(ItemVerdict(accepted, score, step, "user_accept" if accepted else "user_reject", trace))
            elif decision is None or decision.rule == "not_inspected":
                score = trace[-1][1] if trace else None
                verdicts.append(ItemVerdict(True, score, None, "not_inspected", trace))
            else:
                verdicts.append(
                    ItemVerdict(decision.accepted, decision.predicted_score, decision.step, decision.rule, trace)
                )
        return tuple(verdicts)
