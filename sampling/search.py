"""Latent search: several candidates around one noise, of which rewards on half-sampled clips leave one (LatSearch,
Reward-Guided Resampling and Pruning), with beam search and best-of-N to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ..scoring.reward import Reward
from ..scoring.scorer import numbers
from ..trials.observer import SILENT, Decision, Observer
from ..trials.verdict import TrialRecord
from .candidates import Candidate, CandidateEngine
from .guard import harmless
from .line import video_latent
from .noise import following, mixed_noise
from .search_rules import SearchSettings, resampled, survival_weights
from .segments import adds_noise, own_steps
from .self_refine import refuse_caches, remembers
from .vp import require_fitting

FEW = 8  # steps up to which noise that is added on the way outweighs that of the beginning
PICTURED = 6  # candidates whose previews are kept: as many as a report's picture shows


@dataclass(eq=False)
class SearchSampler(comfy.samplers.Sampler):
    """Samples candidates of one clip with `inner` (any SAMPLER), drops those of low reward, and finishes the best.

    Candidate 0 is the plain clip, with the run's own noise and seed. The others have noise mixed with that of seed + i
    (`mixed_noise`), and that seed. The finished clip is the same to the last bit as the inner sampler's with the
    winner's noise and seed, for every sampler that is deterministic for its seed: a candidate that goes on does so from
    a recording of its evaluations, so nothing that a sampler remembers is lost. The callback (previews, the monitor and
    its detector) sees the winner's run only, from its first step.

    result: the report of the latest run, empty before the first. previews: of its best candidates by number, where they
    can be decoded, [F, H, W, 3] uint8 on the CPU. running: opens the observer of a run, who sees each
    candidate at each check. look: decodes x0 predictions for him; the winner's finish is shown where nobody else does
    it (`own`).
    """

    inner: comfy.samplers.Sampler
    reward: Reward
    settings: SearchSettings
    result: dict[str, Any] = field(default_factory=dict)
    previews: dict[int, torch.Tensor] = field(default_factory=dict)
    running: Callable[[], AbstractContextManager[Observer]] = lambda: nullcontext(SILENT)
    look: Callable[[torch.Tensor], torch.Tensor] | None = None
    own: bool = True

    def __post_init__(self):
        if own_steps(self.inner):
            raise ValueError(
                "Latent Search scores at steps of the schedule, but dpm_fast and dpm_adaptive choose their own: "
                "connect another SAMPLER."
            )
        if isinstance(self.inner, SearchSampler):
            raise ValueError("a Latent Search cannot search within another: connect a SAMPLER that is none.")

    def around(self, inner: comfy.samplers.Sampler) -> SearchSampler:
        """The same search with another inner sampler; both report to one `result`, and keep one set of previews."""
        return replace(self, inner=inner)

    def shown_to(self, observer: Observer, look: Callable[[torch.Tensor], torch.Tensor] | None) -> SearchSampler:
        """The same search within a run that has an observer already."""
        return replace(self, running=lambda: nullcontext(observer), look=look or self.look, own=False)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
        disable_pbar=False,
    ):
        refuse_caches(extra_args, "Latent Search")
        if remembers(extra_args.get("model_options", {})):
            raise ValueError(
                "Latent Search samples its candidates by turns, but a node in the model's path keeps something from "
                "step to step (APG's momentum), which would get from one to the other: take that node out."
            )
        require_fitting(self.inner, model_wrap.inner_model.model_sampling)
        clips = len(video_latent(noise, model_wrap.inner_model))
        if clips != 1:
            raise ValueError(
                f"Latent Search looks for one clip at a time, but the latent is a batch of {clips}: set its "
                "batch_size to 1 and queue it once for each seed."
            )
        if not noise.any():
            raise ValueError(
                "Latent Search has no noise to vary: connect RandomNoise. In a graph with a sampler node for each "
                "expert, search in the first."
            )
        at_once = 1 if len(noise) > 1 else self.settings.at_once  # frames that are rows would become one longer clip
        engine = CandidateEngine(self.inner, model_wrap, sigmas, extra_args, latent_image, denoise_mask, at_once)
        self.result.clear()
        self.previews.clear()
        with self.running() as observer:
            search = _Search(self.settings, self.reward, engine, observer, self.look, self.previews)
            try:
                winner = search.run(noise, extra_args.get("seed") or 0)
                follow, searched = search.followed(winner, callback) if self.own else callback, engine.evaluations
                samples = engine.finish(winner, follow, disable_pbar)
                if self.own:
                    observer.conclude(TrialRecord(winner.name, "finish", nfe_video=engine.evaluations - searched))
                return samples
            finally:
                self.result.update(search.report())


@dataclass(eq=False)
class _Contender(Candidate):
    """weight: the accumulated softmax weights. rewards: by step (1-based). dropped_at: the step where the search gave
    it up, None while it is alive."""

    index: int = 0
    weight: float = 0.0
    rewards: dict[int, float] = field(default_factory=dict)
    dropped_at: int | None = None
    why: str | None = None

    @property
    def name(self) -> str:
        return f"candidate {self.index}"

    def drop(self, step: int, why: str) -> None:
        self.dropped_at, self.why, self.calls, self.x0 = step, why, [], None

    def report(self) -> dict[str, Any]:
        return {
            "candidate": self.index, "seed": self.seed, "weight": round(self.weight, 6),
            "rewards": {str(step): reward if math.isfinite(reward) else None for step, reward in self.rewards.items()},
            "dropped_at": self.dropped_at, "why": self.why,
        }  # fmt: skip


@dataclass
class _Search:
    """One run of the search."""

    settings: SearchSettings
    reward: Reward
    engine: CandidateEngine
    observer: Observer = SILENT
    look: Callable[[torch.Tensor], torch.Tensor] | None = None
    previews: dict[int, torch.Tensor] = field(default_factory=dict)
    candidates: list[_Contender] = field(default_factory=list)
    population: dict[int, list[int]] = field(default_factory=dict)
    costs: list[int] | None = None
    notes: list[str] = field(default_factory=list)

    def run(self, noise: torch.Tensor, seed: int) -> _Contender:
        """The winner, ready to be finished."""
        with harmless("how the prompt is read cannot be told"):
            self.notes += getattr(self.reward, "notes", ())
        settings = self.settings
        steps = len(self.engine.sigmas) - 1
        if steps <= FEW and adds_noise(self.engine.inner):  # AutoRefiner (arXiv 2512.11203), section 3.3
            self.notes.append(
                f"the sampler adds noise at each of its {steps} steps, which dilutes that of the beginning: a search "
                "for good beginnings brings less here than with a sampler that adds none"
            )
        checks = settings.checks(steps)
        self.costs = self.engine.costs(noise)
        if self.costs is None or not all(self.costs[check] for check in checks):
            self.costs = None
            self.notes.append("nothing was searched: the sampler does not show the steps that are to be scored")
            self.candidates.append(_Contender(seed, noise))
            return self.candidates[0]
        if 0 < settings.budget < self.costs[-1]:
            raise ValueError(
                f"budget is {settings.budget}, but one clip alone takes {self.costs[-1]} model evaluations with this "
                "sampler: raise the budget, or take fewer steps."
            )
        shapes = getattr(self.model, "latent_shapes", None)
        for i in range(settings.candidates):
            own = following(seed, i)
            mixture = mixed_noise(noise, own, settings.beta, shapes) if i else noise
            self.candidates.append(_Contender(own, mixture, index=i))
        live = self.candidates
        self.population[0] = [each.index for each in live]
        if len(live) > 1:
            self.engine.bar = comfy.utils.ProgressBar(self.most)
        done = 0
        for check in checks:
            if len(live) == 1:
                break  # nothing is left to choose
            live = self._affordable(live, done, check)
            self._advance(live, check, checks[-1])
            live = self._choose(live, check, check == checks[-1], seed)
            best = sorted(self.candidates, key=lambda each: (each in live, each.weight), reverse=True)
            for each in best[PICTURED:]:
                self.previews.pop(each.index, None)
            self.population[check] = [each.index for each in live]
            done = check
        self._end(live[0], True)
        return live[0]

    def _advance(self, live: list[_Contender], check: int, last: int) -> None:
        """Each candidate to the check, where it is shown as soon as it is there."""
        ahead = list(live)
        while ahead:
            group, ahead = ahead[: self.engine.at_once], ahead[self.engine.at_once :]
            for each in group:
                if not each.rewards:
                    details = {"candidate": each.index, "seed": each.seed, "look_step": last}
                    self.observer.begin(each.name, "search", steps=len(self.engine.sigmas) - 1, details=details)
            self.engine.advance(group, check, self.costs[check])
            for each in group:
                frames = self._show(each.x0, check, each.name)
                if frames is not None:
                    self.previews[each.index] = (frames * 255).round().byte().cpu()

    def _show(self, x0: torch.Tensor | None, step: int, trial: str) -> torch.Tensor | None:
        frames = None
        if self.look is not None and x0 is not None:
            with harmless(f"step {step} was not shown"):
                frames = self.look(video_latent(x0, self.model))
        self.observer.step(step, None, frames, trial)
        if self.observer.take() is Decision.STOP:
            raise comfy.model_management.InterruptProcessingException()
        return frames

    def _end(self, each: _Contender, accepted: bool) -> None:
        if each.rewards:
            record = TrialRecord(
                each.name, "search", accepted=accepted, steps=each.steps, nfe_video=self.costs[each.steps]
            )
            self.observer.conclude(record)

    def _drop(self, each: _Contender, step: int, why: str) -> None:
        each.drop(step, why)
        self._end(each, False)

    def followed(self, winner: _Contender, callback: Callable | None) -> Callable:
        """The callback, and the winner's way to its end for the observer."""
        steps = len(self.engine.sigmas) - 1
        details = {"candidate": winner.index, "seed": winner.seed}
        self.observer.begin(winner.name, "finish", steps=steps, details=details)

        def follow(index, x0, x, total_steps):
            if callback is not None:
                callback(index, x0, x, total_steps)
            wanted = index + 1 == total_steps or self.observer.wants_picture()
            self._show(x0 if wanted else None, index + 1, winner.name)

        return follow

    @property
    def model(self) -> Any:
        return self.engine.guider.inner_model

    @property
    def most(self) -> int:
        """Model evaluations that the search and the finished clip can take in all."""
        settings, costs = self.settings, self.costs
        last = costs[settings.checks(len(costs) - 1)[-1]]
        most = settings.candidates * last + costs[-1] - last
        return min(most, settings.budget) if settings.budget else most

    def _affordable(self, live: list[_Contender], done: int, check: int) -> list[_Contender]:
        """Those that the budget allows as far as the next check, with what it takes to finish one of them kept back."""
        if not self.settings.budget:
            return live
        rest = self.settings.budget - self.engine.evaluations - (self.costs[-1] - self.costs[check])
        count = rest // (self.costs[check] - self.costs[done])
        ranked = sorted(live, key=lambda each: (-each.weight, each.index))
        for each in ranked[count:]:
            self._drop(each, done, "budget")
        return sorted(ranked[:count], key=lambda each: each.index)

    def _choose(self, live: list[_Contender], check: int, last: bool, seed: int) -> list[_Contender]:
        rewards = self._rewards(live, check)
        for each, reward in zip(live, rewards.tolist(), strict=True):
            each.rewards[check] = reward
            self.observer.step(check, reward, None, each.name)
        scored = [each for each in live if math.isfinite(each.rewards[check])]
        if not scored:
            # At the first check this is candidate 0, the plain clip.
            survivors = [max(live, key=lambda each: (each.weight, -each.index))]
        else:
            rewards = rewards[rewards.isfinite()]
            weights = survival_weights(rewards, self.settings.temperature, self.settings.scale)
            for each, weight in zip(scored, weights.tolist(), strict=True):
                each.weight += weight
            if self.settings.method == "resampling":
                (state,) = np.random.SeedSequence((seed, check)).generate_state(1, np.uint64)
                draws = torch.Generator("cpu").manual_seed(int(state))
                survivors = [scored[i] for i in resampled(weights, draws)]
                if last:
                    survivors = [max(survivors, key=lambda each: each.weight)]
            else:
                best = rewards.argsort(descending=True, stable=True).tolist()
                survivors = [scored[i] for i in sorted(best[: 1 if last else -(-len(best) // 2)])]
        for each in live:
            if each not in survivors:
                self._drop(each, check, "reward" if each in scored else "no reward")
            each.x0 = None
        return survivors

    def _rewards(self, live: list[_Contender], check: int) -> torch.Tensor:
        """[n], NaN where a candidate cannot be judged. Whatever breaks a reward must not break the clip (promise 2)."""
        rewards = torch.full((len(live),), math.nan)
        finite = numbers([each.x0 is not None and torch.isfinite(each.x0).all() for each in live])
        sound = [i for i, whole in enumerate(finite) if whole]
        if len(sound) < len(live):
            self.notes.append(f"step {check}: the predictions of {len(live) - len(sound)} candidate(s) are not finite")
        if not sound:
            return rewards
        with harmless(f"step {check} has no rewards") as failure:
            x0 = torch.cat([video_latent(live[i].x0, self.model) for i in sound])
            scores = self.reward.score(x0, float(self.engine.sigmas[check - 1]), check)
            rewards[sound] = scores.detach().float().cpu().reshape(len(sound))
            if not rewards[sound].isfinite().all():
                self.notes.append(f"step {check}: not all rewards are finite")
        if failure.message:
            self.notes.append(failure.message)
        return rewards

    def report(self) -> dict[str, Any]:
        """JSON. population: candidates that are left after each step that was scored. A candidate's clip alone: its
        seed, and the noise that Candidate Noise makes of the run's noise, its number and beta."""
        settings = self.settings
        live = [each for each in self.candidates if each.dropped_at is None]
        winner = live[0] if len(live) == 1 else None
        if self.costs and self.engine.evaluations > self.most:
            self.notes.append(f"the sampler took more model evaluations than it showed before: not {self.most} at most")
        return {
            "method": settings.method, "reward": self.reward.name, "beta": settings.beta,
            "winner": winner and winner.index, "winner_seed": winner and winner.seed,
            "population": {str(step): alive for step, alive in self.population.items()},
            "candidates": [each.report() for each in self.candidates],
            "nfe": self.engine.evaluations, "nfe_plain": self.costs[-1] if self.costs else None,
            "nfe_most": self.most if self.costs else None, "budget": settings.budget or None, "notes": self.notes,
        }  # fmt: skip
