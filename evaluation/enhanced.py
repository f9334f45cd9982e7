"""Methods that spend more evaluations within one run: more steps, self-refinement, latent search.

The finished run is watched by the detector and never stopped, so its row tells what would have been rejected. They need
the models in this process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .bench import Bench, Method, MethodError, Row

ENHANCED = ("steps", "self_refine", "search")
PLANS = ("T2V", "I2V", "Cosmos", "distilled", "light")  # of Self-Refine Sampler (a test holds this to it)
REWARDS = ("alignment", "latent")
SEARCH_SETTINGS = {"method": str, "candidates": int, "beta": float, "budget": int, "steps": int,
                   "reward": lambda name: REWARDS[REWARDS.index(name)]}  # fmt: skip


def enhanced(name: str, kind: str, options: str) -> Method:
    """The method of this name, "kind@options". MethodError."""
    settings = _settings(name, kind, options)

    def run(bench: Bench, seed: int) -> Row:
        from ..sampling.run import monitored_sample
        from ..trials.report import run_report

        family, prompt = bench.backend.family, bench.item.prompt
        result = monitored_sample(_inputs(family, prompt, seed, kind, settings), family.gate(prompt), stop="never")
        return bench.sampled(seed, name, result.latent, run_report(result.verdict))

    return Method(name, run, in_process=True)


def _inputs(family: Any, prompt: str, seed: int, kind: str, settings: dict[str, Any]) -> Any:
    """What the method samples."""
    from ..sampling.search import SearchSampler, SearchSettings
    from ..sampling.self_refine import PRESETS, self_refining

    options = dict(settings)
    steps, reward = options.pop("steps", None), options.pop("reward", "alignment")
    inputs = family.inputs(prompt, seed, steps) if steps else family.inputs(prompt, seed)
    if kind == "self_refine":
        return replace(inputs, sampler=self_refining(inputs.sampler, PRESETS[options["plan"]].settings()))
    if kind == "search":
        search = SearchSettings(**options, at_once=options.get("candidates", SearchSettings.candidates))
        return replace(inputs, sampler=SearchSampler(inputs.sampler, family.reward(prompt, reward), search))
    return inputs


def _settings(name: str, kind: str, text: str) -> dict[str, Any]:
    """The options of a name as settings. MethodError."""
    if kind == "steps":
        if not text.isdigit() or int(text) < 1:
            raise MethodError(f"method {name!r}: write steps@K with a number of steps K.")
        return {"steps": int(text)}
    if kind == "self_refine":
        if text and text not in PLANS:
            raise MethodError(f"method {name!r}: there is no plan {text!r}; plans are {', '.join(PLANS)}.")
        return {"plan": text or "T2V"}
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            settings[option] = SEARCH_SETTINGS[option](value)
        except (KeyError, ValueError):
            choices = ", ".join(SEARCH_SETTINGS)
            raise MethodError(f"method {name!r}: {part!r} is no option=value; options are {choices}.") from None
    return settings
