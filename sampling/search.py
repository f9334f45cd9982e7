"""Latent search: several candidates around one noise, of which rewards on half-sampled clips leave one (LatSearch,
Reward-Guided Resampling and Pruning), with beam search and best-of-N to compare with."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ..scoring.reward import Reward
from ..trials.foreign import check_choice, quoted
from .candidates import Candidate, CandidateEngine
from .guard import harmless
from .line import video_latent
from .noise import following, mixed_noise
from .segments import own_steps
from .self_refine import refuse_caches
from .vp import require_fitting

METHODS = ("resampling", "beam", "best of N")
SCALES = ("spread", "raw")


def parse_schedule(text: str, steps: int) -> tuple[float, ...]:
    """Shares of the schedule from "10, 15, 20": the steps after which candidates are scored, 0-based as the authors
    write them, on a schedule of `steps` steps. ValueError for what cannot be read or lies outside."""
    parts = [part.strip() for part in re.split("[,;]", text) if part.strip()]
    if not parts or not all(part.isdecimal() and len(part) < 9 and int(part) < steps for part in parts):
        raise ValueError(f"schedule is {quoted(text)}: enter steps from 0 to {steps - 1}, for example 10, 15, 20.")
    return tuple(sorted({(int(part) + 1) / steps for part in parts}))


@dataclass(frozen=True)
class SearchSettings:
    """The defaults are the authors': 6 candidates, scored after steps 10, 15 and 20 (0-based) of 50, beta 0.1.

    method: "resampling" is the paper's; "beam" keeps the better half at each check; "best of N" scores finished clips.
    beta: share of new noise in a candidate; 1: each is the clip of its own seed, seed + i. temperature: of the softmax,
    above 0; scale: rewards are divided by their spread between the candidates of the check ("spread": cosines and
    learned scores then mean the same to the softmax, which the paper's sum of three standardised scores does by itself)
    or not ("raw"). budget: the most model evaluations of a run, 0 for no bound. at_once: candidates in one model call,
    which costs memory and saves time. schedule_steps: see `inputs.Inputs`.
    """

    candidates: int = 6
    method: str = "resampling"
    schedule: tuple[float, ...] = parse_schedule("10, 15, 20", 50)
    beta: float = 0.1
    temperature: float = 1.0
    scale: str = "spread"
    budget: int = 0
    at_once: int = 1
    schedule_steps: int = 0

    def __post_init__(self):
        for name, options in (("method", METHODS), ("scale", SCALES)):
            check_choice(name, getattr(self, name), options)
        if self.candidates < 1 or self.at_once < 1 or self.budget < 0:
            raise ValueError(
                f"candidates is {self.candidates}, at_once {self.at_once} and budget {self.budget}: the first two "
                "count from 1, and a budget of 0 is none."
            )
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}: set it between 0 (all the same) and 1 (seeds of their own).")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}: set it above 0; less trusts the reward more.")

    def checks(self, available: int) -> list[int]:
        """Steps (1-based) whose x0 predictions are scored, of the `available` first ones."""
        if self.method == "best of N":
            return [available]
        whole = self.schedule_steps or available
        checks = sorted({max(1, round(share * whole)) for share in self.schedule})
        if checks[0] > available:
            raise ValueError(
                f"the search first scores after step {checks[0]}, but only {available} steps are sampled here: score "
                "earlier."
            )
        return [step for step in checks if step <= available]


@dataclass(eq=False)
class SearchSampler(comfy.samplers.Sampler):
    """Samples candidates of one clip with `inner` (any SAMPLER), drops those of low reward, and finishes the best.

    Candidate 0 is the plain clip, with the run's own noise and seed. The others have noise mixed with that of seed + i
    (`mixed_noise`), and that seed. The finished clip is the same to the last bit as the inner sampler's with the
    winner's noise and seed, for every sampler that is deterministic for its seed: a candidate that goes on does so from
    a recording of its evaluations, so nothing that a sampler remembers is lost. The callback (previews, the monitor and
    its detector) sees the winner's run only, from its first step.

    result: the report of the latest run, empty before the first.
    """

    inner: comfy.samplers.Sampler
    reward: Reward
    settings: SearchSettings
    result: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if own_steps(self.inner):
            raise ValueError(
                "Latent Search scores at steps of the schedule, but dpm_fast and dpm_adaptive choose their own: "
                "connect another SAMPLER."
            )
        if isinstance(self.inner, SearchSampler):
            raise ValueError("a Latent Search cannot search within another: connect a SAMPLER that is none.")

    def around(self, inner: comfy.samplers.Sampler) -> SearchSampler:
        """The same search with another inner sampler; both report to one `result`."""
        return replace(self, inner=inner)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
        disable_pbar=False,
    ):
        refuse_caches(extra_args, "Latent Search")
        require_fitting(self.inner, model_wrap.inner_model.model_sampling)
        if noise.shape[0] != 1:
            raise ValueError(
                f"Latent Search looks for one clip at a time, but the latent is a batch of {noise.shape[0]}: set its "
                "batch_size to 1 and queue it once for each seed."
            )
        if not noise.any():
            raise ValueError(
                "Latent Search has no noise to vary: connect RandomNoise. In a graph with a sampler node for each "
                "expert, search in the first."
            )
        engine = CandidateEngine(
            self.inner, model_wrap, sigmas, extra_args, latent_image, denoise_mask, self.settings.at_once
        )
        shapes = getattr(model_wrap.inner_model, "latent_shapes", None)
        search = _Search(self.settings, self.reward, engine, shapes)
        self.result.clear()
        try:
            winner = search.run(noise, extra_args.get("seed") or 0)
            return engine.finish(winner, callback, disable_pbar)
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
    shapes: Any
    candidates: list[_Contender] = field(default_factory=list)
    population: dict[int, list[int]] = field(default_factory=dict)
    costs: list[int] | None = None
    notes: list[str] = field(default_factory=list)

    def run(self, noise: torch.Tensor, seed: int) -> _Contender:
        """The winner, ready to be finished."""
        with harmless("how the prompt is read cannot be told"):
            self.notes += getattr(self.reward, "notes", ())
        settings = self.settings
        checks = settings.checks(len(self.engine.sigmas) - 1)
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
        for i in range(settings.candidates):
            own = following(seed, i)
            mixture = mixed_noise(noise, own, settings.beta, self.shapes) if i else noise
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
            self.engine.advance(live, check, self.costs[check])
            live = self._choose(live, check, check == checks[-1], seed)
            self.population[check] = [each.index for each in live]
            done = check
        return live[0]

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
            each.drop(done, "budget")
        return sorted(ranked[:count], key=lambda each: each.index)

    def _choose(self, live: list[_Contender], check: int, last: bool, seed: int) -> list[_Contender]:
        rewards = self._rewards(live, check)
        for each, reward in zip(live, rewards.tolist(), strict=True):
            each.rewards[check] = reward
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
                each.drop(check, "reward" if each in scored else "no reward")
            each.x0 = None
        return survivors

    def _rewards(self, live: list[_Contender], check: int) -> torch.Tensor:
        """[n], NaN where a candidate cannot be judged. Whatever breaks a reward must not break the clip (promise 2)."""
        rewards = torch.full((len(live),), math.nan)
        sound = [i for i, each in enumerate(live) if each.x0 is not None and torch.isfinite(each.x0).all()]
        if len(sound) < len(live):
            self.notes.append(f"step {check}: the predictions of {len(live) - len(sound)} candidate(s) are not finite")
        if not sound:
            return rewards
        with harmless(f"step {check} has no rewards") as failure:
            x0 = torch.cat([video_latent(live[i].x0, self.shapes) for i in sound])
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


def survival_weights(rewards: torch.Tensor, temperature: float, scale: str = "spread") -> torch.Tensor:
    """[n], sum 1: softmax(rewards / temperature); scale: see SearchSettings."""
    rewards = rewards.double()
    if scale == "spread" and len(rewards) > 1:
        rewards = (rewards - rewards.mean()) / rewards.std(correction=0).clamp(min=1e-12)
    return torch.softmax(rewards / temperature, 0)


def resampled(weights: torch.Tensor, generator: torch.Generator) -> list[int]:
    """As many draws with replacement as there are candidates, of which each is kept once: candidate i stays with
    probability 1 - (1 - w_i)^n, and there are never more than before (paper, resampling stage; authors' code)."""
    draws = torch.multinomial(weights, len(weights), replacement=True, generator=generator)
    return sorted(set(draws.tolist()))
