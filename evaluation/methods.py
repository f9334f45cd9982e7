"""What is compared: ways to spend model evaluations on a prompt and a seed.

    base                  the plain clip; watched to its end, every step scored, never stopped
    race                  the default of Foresight Sampler (evaluation/raced.py): seeds in turn, looked at early
    efdi                  the paper's method: the whole hierarchy, with the nodes' default refiner (restart);
                          efdi@refiner=ablation: one that keeps the noise and changes the words, as the paper's does
    trial_1, trial_2      only single-frame injection; only the refiner
    fixed_step@K          the hierarchy, decided by the score of step K alone (and the probe's at its own mean step, 24
                          of 50)
    regenerate            the paper's rival: a finished clip that scores below tau is thrown away, the prompt refined
                          looking at it, and generated anew from another seed
    regenerate_plain      the same without refining
    reseed                what the detector rejects is stopped, and another seed run to its end
    best_of_N             N clips finished, the best by final score kept
    audition_N            N seeds watched up to the detector's decision, the best by predicted score run to its end
    steps@K               the plain clip with K steps
    self_refine           the plain clip self-refined (Self-Refine's plan T2V; self_refine@PLAN: another of its presets)
    search@name=value     latent search: method, candidates, beta, budget as in Latent Search Sampler, reward=alignment
                          or latent, steps, e.g. search@candidates=8,budget=150
    NAME@widget=value     efdi, trial_1, trial_2, reseed, regenerate or audition_N with other settings, e.g.
                          efdi@tau=0.26 or efdi@injection_strength=0.5,injection_mask=first frame; tau=+0.04 is
                          above the scorer's own, in ViCLIP-L's units

"Another seed" is the next one up. Whatever the detector lets pass is the base clip to the last bit, so it is taken
from there and not sampled again; the same goes for other seeds' plain clips.

A plug-in is a function(family, prompt, seed) -> {"latent": LATENT, "nfe": int} and, if it likes, "nfe_single_frame",
"notes" (strings) and "report"; it is named as `module:function`, or by an entry point of the group
`foresight.evaluation.samplers`. `family` is demo_family.DemoFamily or the evaluation's own.
"""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from .backend import GATE_SETTINGS, INJECTION_SETTINGS, REFINERS, named
from .bench import BASE, Bench, Method, MethodError, Row, reported, summed
from .enhanced import ENHANCED, enhanced
from .raced import raced

PROBE_STOP = 0.48  # mean stop of the paper's probes: step 24 of 50 (Table S4)
ENTRY_POINTS = "foresight.evaluation.samplers"
STANDARD = (
    BASE, "efdi", "efdi@refiner=ablation", "trial_1", "trial_2", "regenerate", "regenerate_plain", "reseed",
    "best_of_3", "audition_3",
)  # fmt: skip


def hierarchy(name: str, widgets: Mapping[str, Any], *, inject: bool = True, refine: bool = True) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        settings = bench.resolved(seed, widgets)
        decision = bench.decision(seed, settings)
        watched = bench.watched(seed, decision, settings, 1.0)
        if watched["accepted"]:
            return bench.shared(seed, name, seed, **watched)
        clip = bench.backend.sample(bench.item.prompt, seed, settings, inject=inject, refine=refine)
        return bench.finished(seed, name, clip) | reported(clip.report) | {"trace": watched["trace"]}

    return Method(name, run)


def regenerate(name: str, widgets: Mapping[str, Any], *, refine: bool) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        base = bench.base(seed)
        tau = bench.resolved(seed, widgets).get("tau", base["report"]["settings"]["tau"])
        verdict = {
            "predicted_score": base["final_score"], "stop_step": bench.backend.steps, "rule": "final_score",
            "accepted": base["final_score"] >= tau, "trace": None,
        }  # fmt: skip
        if verdict["accepted"]:
            return bench.shared(seed, name, seed, **verdict)
        if not refine:
            other = bench.base(seed + 1)
            return bench.shared(seed, name, seed + 1, **verdict, **summed(base, other))
        clip = bench.backend.regenerate(bench.item.prompt, seed + 1, bench.base_clip(seed))
        spent = reported(clip.report)
        return bench.finished(seed, name, clip) | spent | verdict | summed(base, spent)

    return Method(name, run)


def reseed(name: str, widgets: Mapping[str, Any]) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        settings = bench.resolved(seed, widgets)
        decision = bench.decision(seed, settings)
        whole = bench.watched(seed, decision, settings, 1.0)
        if whole["accepted"]:
            return bench.shared(seed, name, seed, **whole)
        spent = bench.watched(seed, decision, settings, decision.step / bench.backend.steps)
        return bench.shared(seed, name, seed + 1, **spent | summed(spent, bench.base(seed + 1)))

    return Method(name, run)


def best_of(name: str, count: int) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        rows = {other: bench.base(other) for other in range(seed, seed + count)}
        best = max(rows, key=lambda other: rows[other]["final_score"])
        verdict = {"predicted_score": rows[best]["final_score"], "stop_step": bench.backend.steps,
                   "rule": "final_score", "accepted": True, "trace": None}  # fmt: skip
        return bench.shared(seed, name, best, **verdict, **summed(*rows.values()))

    return Method(name, run)


def audition(name: str, widgets: Mapping[str, Any], count: int) -> Method:
    """The chosen seed is taken up again from its noise, as the node Seed Audition does."""

    def run(bench: Bench, seed: int) -> Row:
        rows, settings = {}, bench.resolved(seed, widgets)
        for other in range(seed, seed + count):
            decision = bench.decision(other, settings)
            share = decision.step / bench.backend.steps if decision else 1.0
            rows[other] = bench.watched(other, decision, settings, share)
        scores = {other: row["predicted_score"] for other, row in rows.items()}
        best = max(scores, key=lambda other: -2.0 if scores[other] is None else scores[other])
        spent = {name: sum(row[name] for row in rows.values()) for name in ("seconds_inspection", "inspections")}
        cost = summed(*rows.values(), bench.base(best))
        return bench.shared(seed, name, best, **rows[best] | spent | cost)

    return Method(name, run)


def plug_in(name: str, function: Callable[..., Mapping[str, Any]]) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        bench.base(seed)
        begin = time.perf_counter()
        clip = function(bench.backend.family, bench.item.prompt, seed)
        cost = {"nfe": int(clip["nfe"]), "nfe_single_frame": int(clip.get("nfe_single_frame", 0)),
                "seconds": time.perf_counter() - begin}  # fmt: skip
        row = bench.sampled(seed, name, clip["latent"], None, **cost)
        return row | {"report": clip.get("report"), "notes": list(clip.get("notes", ()))}

    return Method(name, run, in_process=True)


def plug_ins() -> dict[str, importlib.metadata.EntryPoint]:
    """What is installed, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def load_method(name: str, steps: int) -> Method:
    """The method of this name, on schedules of `steps` steps. MethodError."""
    if ":" in name:
        try:
            return plug_in(name, named(name, "the method"))
        except ValueError as error:
            raise MethodError(str(error)) from None
    if name in (installed := plug_ins()):
        return plug_in(name, installed[name].load())
    kind, _, rest = name.partition("@")
    counted = re.fullmatch(r"(best_of|audition)_(\d+)", kind)
    if counted and int(counted[2]) < 2:
        raise MethodError(f"method {name!r}: the number of seeds must be 2 or more.")
    if kind == "fixed_step":
        if not rest.isdigit() or not 1 <= int(rest) <= steps:
            raise MethodError(f"method {name!r}: write fixed_step@K with a step K from 1 to {steps}.")
        share, probe = int(rest) / steps, PROBE_STOP
        # Inspecting each K-th step leaves the detector nothing but step K to decide on.
        return hierarchy(name, {"start": share, "end": share, "every": int(rest), "single_start": probe,
                                "single_end": probe})  # fmt: skip
    if kind in ENHANCED:
        return enhanced(name, kind, rest)
    if kind == "race":
        return raced(name, rest)
    settings = _settings(name, rest)
    if kind == BASE and not rest:
        return Method(BASE, lambda bench, seed: bench.base(seed))
    if kind in ("efdi", "trial_1", "trial_2"):
        return hierarchy(name, settings, inject=kind != "trial_2", refine=kind != "trial_1")
    if kind in ("regenerate", "regenerate_plain"):
        return regenerate(name, settings, refine=kind == "regenerate")
    if kind == "reseed":
        return reseed(name, settings)
    if counted and counted[1] == "audition":
        return audition(name, settings, int(counted[2]))
    if counted and not rest:
        return best_of(name, int(counted[2]))
    known = [*STANDARD, "race", "fixed_step@K", *ENHANCED, *installed]
    raise MethodError(f"there is no method {name!r}: choose of {', '.join(known)}, or name a plug-in, module:function.")


def _settings(name: str, text: str) -> dict[str, Any]:
    """ "tau=0.26,every=2" as widgets."""
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        widget, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or widget not in (*GATE_SETTINGS, *INJECTION_SETTINGS, "refiner"):
            choices = ", ".join((*GATE_SETTINGS, *INJECTION_SETTINGS, "refiner"))
            raise MethodError(f"method {name!r}: {part!r} is no widget=value; widgets are {choices}.")
        if re.fullmatch(r"[+-]\d*\.?\d+", value) and widget == "tau" or widget in ("injection_noise", "injection_mask"):
            settings[widget] = value
        elif widget == "refiner":
            if value not in REFINERS:
                raise MethodError(f"method {name!r}: refiner is {value!r}; choose one of {', '.join(REFINERS)}.")
            settings[widget] = value
        else:
            try:
                settings[widget] = int(value) if re.fullmatch(r"-?\d+", value) else float(value)
            except ValueError:
                raise MethodError(f"method {name!r}: {widget} is {value!r}, which is no number.") from None
    return settings
