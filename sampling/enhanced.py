"""Self-refinement and latent search as parts of a SAMPLER: which it holds, and how it is sampled without them."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import torch

from ..trials.observer import Observer
from .injection import Injection, InjectionSampler
from .search import SearchSampler
from .self_refine import SelfRefine


def unsearched(sampler: comfy.samplers.Sampler) -> comfy.samplers.Sampler:
    """Without its search: for what one candidate has to show (a probe, an audition)."""
    return sampler.inner if isinstance(sampler, SearchSampler) else sampler


def self_refinement(sampler: comfy.samplers.Sampler) -> SelfRefine | None:
    function = getattr(unsearched(sampler), "sampler_function", None)
    return function if isinstance(function, SelfRefine) else None


def plain(sampler: comfy.samplers.Sampler) -> comfy.samplers.Sampler:
    """The sampler that the user began with; the same object where nothing was added to it."""
    refining = self_refinement(sampler)
    return refining.inner if refining else unsearched(sampler)


def shown(
    sampler: comfy.samplers.Sampler, observer: Observer, look: Callable[[torch.Tensor], torch.Tensor] | None
) -> comfy.samplers.Sampler:
    """The sampler, whose search shows its candidates to whoever watches the run. look: decodes x0 predictions."""
    return sampler.shown_to(observer, look) if isinstance(sampler, SearchSampler) else sampler


def injected(sampler: comfy.samplers.Sampler, injection: Injection) -> comfy.samplers.Sampler:
    """With an anchor injected into every candidate."""
    inner = InjectionSampler(unsearched(sampler), injection)
    return sampler.around(inner) if isinstance(sampler, SearchSampler) else inner
