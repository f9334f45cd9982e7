"""What is compared: ways to spend model evaluations on a prompt and a seed.

    base                  the plain clip; watched to its end, every step scored, never stopped
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
from dataclasses import dataclass, field
from typing import Any

from ..scoring.detector import Decision
from .backend import (
    GATE_SETTINGS,
    INJECTION_SETTINGS,
    REFINERS,
    Backend,
    InProcess,
    Judge,
    Sampled,
    Scale,
    decide,
    motion,
    named,
    webp,
)
from .suites import Item

Row = dict[str, Any]
BASE = "base"
# The window is the last step, so that every step is scored and nothing is decided before.
WATCH = {"start": 1.0, "end": 1.0}
PROBE_STOP = 0.48  # mean stop of the paper's probes: step 24 of 50 (Table S4)
ENTRY_POINTS = "foresight.evaluation.samplers"
STANDARD = (
    BASE, "efdi", "efdi@refiner=ablation", "trial_1", "trial_2", "regenerate", "regenerate_plain", "reseed",
    "best_of_3", "audition_3",
)  # fmt: skip


class MethodError(Exception):
    """What is wrong with a method's name, and the way out."""


@dataclass(frozen=True)
class Method:
    """run(bench, seed) gives the row; seeds: how many base clips it looks at, from its own seed on."""

    name: str
    run: Callable[[Bench, int], Row]
    in_process: bool = False


@dataclass
class Bench:
    """One prompt on a backend. known: base rows by seed; made: the rows that were added to them here."""

    backend: Backend
    item: Item
    judge: Judge
    known: dict[int, Row]
    keep_clips: bool = True
    made: list[Row] = field(default_factory=list)
    _finished: dict[int, Sampled] = field(default_factory=dict)

    def base(self, seed: int) -> Row:
        """The base row of a seed, sampled where it is not known yet."""
        if seed not in self.known:
            clip = self.base_clip(seed)
            (trial,) = clip.report["trials"]
            trace, sigmas = trial["verdict"]["trace"], clip.sigmas
            trace = [[step, score, sigmas[step - 1] if sigmas else None] for step, score in trace]
            sampling, inspection = trial["seconds"]["sampling"], trial["seconds"]["inspection"]
            decision = decide(Scale.of(clip.report).detector({}), trace, self.backend.steps)
            row = self.finished(seed, BASE, clip) | {
                "trace": trace, **decided(decision), "trial": "0",
                "nfe": trial["nfe_video"], "nfe_plain": trial["nfe_video"], "nfe_single_frame": 0,
                "seconds": sampling, "seconds_plain": sampling, "seconds_inspection": inspection,
                "inspections": len(trace), "inspections_single_frame": 0, "report": clip.report,
                "notes": clip.report["notes"],
            }  # fmt: skip
            self.known[seed] = row
            self.made.append(row)
        return self.known[seed]

    def base_clip(self, seed: int) -> Sampled:
        """The finished base run; sampled again where only its row is known."""
        if seed not in self._finished:
            self._finished[seed] = self.backend.sample(self.item.prompt, seed, WATCH)
        return self._finished[seed]

    def finished(self, seed: int, method: str, clip: Sampled) -> Row:
        """What is known of a finished clip, whatever made it."""
        judged = self.judge(self.item, clip.frames)
        return {
            "prompt_index": self.item.index, "prompt": self.item.prompt, "difficulty": self.item.group, "seed": seed,
            "method": method, "right": judged["right"], "measures": dict(judged["measures"]),
            "final_score": clip.final_score, "motion": motion(clip.frames), "base_seed": None, "notes": [],
            "clip": webp(clip.frames) if self.keep_clips else None,
        }  # fmt: skip

    def shared(self, seed: int, method: str, of: int, **cost: Any) -> Row:
        """A row whose clip is the base clip of the seed `of`. cost: the columns that differ from that row's."""
        plain = self.base(seed)
        row = {k: v for k, v in self.base(of).items() if k not in ("settings", "suite", "meta", "trace", "report")}
        return row | {
            "seed": seed, "method": method, "base_seed": of, "clip": None, "report": None, "notes": [],
            "nfe_plain": plain["nfe_plain"], "seconds_plain": plain["seconds_plain"], "seconds_inspection": 0.0,
            "inspections": 0, **cost,
        }  # fmt: skip

    def resolved(self, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Widgets with a tau that is stated relative to the scorer's own as a number."""
        tau, own = settings.get("tau"), Scale.of(self.base(seed)["report"])
        if not isinstance(tau, str):
            return dict(settings)
        return {**settings, "tau": round(own.tau + float(tau) * own.scale, 4)}

    def decision(self, seed: int, settings: Mapping[str, Any]) -> Decision | None:
        """The detector's on the base run, with these widgets set."""
        detector = Scale.of(self.base(seed)["report"]).detector(settings)
        return decide(detector, self.seen(seed, settings), self.backend.steps)

    def seen(self, seed: int, settings: Mapping[str, Any]) -> list[list]:
        """The points of the base run's trace that are inspected with these widgets set."""
        base = self.base(seed)
        last = Scale.of(base["report"]).detector(settings).window(self.backend.steps)[1]
        every = settings.get("every", 1)
        return [p for p in base["trace"] if p[0] <= last and (p[0] % every == 0 or p[0] == last)]

    def watched(self, seed: int, decision: Decision | None, settings: Mapping[str, Any], share: float) -> Row:
        """Columns of the decision, and the cost of `share` of a plain run that was inspected until then."""
        base = self.base(seed)
        stop = decision.step if decision else self.backend.steps
        seen = [point for point in self.seen(seed, settings) if point[0] <= stop]
        inspection = base["seconds_inspection"] / max(base["inspections"], 1) * len(seen)
        return {
            **decided(decision), "trace": seen, "nfe": round(base["nfe_plain"] * share),
            "seconds": base["seconds_plain"] * share + inspection, "seconds_inspection": inspection,
            "inspections": len(seen),
        }  # fmt: skip


def decided(decision: Decision | None) -> Row:
    if decision is None or decision.rule == "not_inspected":
        return {"predicted_score": None, "stop_step": None, "rule": "not_inspected", "accepted": True}
    return {"predicted_score": decision.predicted_score, "stop_step": decision.step, "rule": decision.rule,
            "accepted": decision.accepted}  # fmt: skip


def hierarchy(name: str, given: Mapping[str, Any], *, inject: bool = True, refine: bool = True) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        base, settings = bench.base(seed), bench.resolved(seed, given)
        decision = bench.decision(seed, settings)
        watched = bench.watched(seed, decision, settings, 1.0)
        if watched["accepted"]:
            return bench.shared(seed, name, seed, **watched)
        clip = bench.backend.sample(bench.item.prompt, seed, settings, inject=inject, refine=refine)
        return bench.finished(seed, name, clip) | reported(clip.report) | {
            "nfe_plain": base["nfe_plain"], "seconds_plain": base["seconds_plain"],
            "trace": watched["trace"],
        }

    return Method(name, run)


def reported(report: Row) -> Row:
    """The columns that a run report gives."""
    first = report["trials"][0]["verdict"]
    traces = [(len(t["verdict"]["trace"]) if t["verdict"] else 0, t["kind"] == "probe") for t in report["trials"]]
    return {
        **({k: first[k] for k in ("predicted_score", "stop_step", "rule", "accepted")} if first else decided(None)),
        "trial": report["trial"], "nfe": report["nfe"], "nfe_single_frame": report["nfe_single_frame"],
        "seconds": report["seconds"],
        "seconds_inspection": sum(trial["seconds"]["inspection"] for trial in report["trials"]),
        "inspections": sum(count for count, probe in traces if not probe),
        "inspections_single_frame": sum(count for count, probe in traces if probe),
        "report": report, "notes": report["notes"],
    }  # fmt: skip


def regenerate(name: str, given: Mapping[str, Any], *, refine: bool) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        base = bench.base(seed)
        tau = bench.resolved(seed, given).get("tau", base["report"]["settings"]["tau"])
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
        return bench.finished(seed, name, clip) | spent | verdict | summed(base, spent) | {
            "nfe_plain": base["nfe_plain"], "seconds_plain": base["seconds_plain"],
        }

    return Method(name, run)


def summed(*rows: Row) -> Row:
    return {name: sum(row[name] for row in rows) for name in ("nfe", "seconds")}


def reseed(name: str, given: Mapping[str, Any]) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        settings = bench.resolved(seed, given)
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


def audition(name: str, given: Mapping[str, Any], count: int) -> Method:
    """The chosen seed is taken up again from its noise, as the node Seed Audition does."""

    def run(bench: Bench, seed: int) -> Row:
        heard, settings = {}, bench.resolved(seed, given)
        for other in range(seed, seed + count):
            decision = bench.decision(other, settings)
            share = decision.step / bench.backend.steps if decision else 1.0
            heard[other] = bench.watched(other, decision, settings, share)
        scores = {other: row["predicted_score"] for other, row in heard.items()}
        best = max(scores, key=lambda other: -2.0 if scores[other] is None else scores[other])
        spent = {name: sum(row[name] for row in heard.values()) for name in ("seconds_inspection", "inspections")}
        cost = summed(*heard.values(), bench.base(best))
        return bench.shared(seed, name, best, **heard[best] | spent | cost)

    return Method(name, run)


def plug_in(name: str, function: Callable[..., Mapping[str, Any]]) -> Method:
    def run(bench: Bench, seed: int) -> Row:
        backend = bench.backend
        assert isinstance(backend, InProcess)  # load_methods has seen to it
        base, begin = bench.base(seed), time.perf_counter()
        found = function(backend.family, bench.item.prompt, seed)
        seconds = time.perf_counter() - begin
        clip = backend.finished(bench.item.prompt, found["latent"], found.get("report"))
        return bench.finished(seed, name, clip) | decided(None) | {
            "trial": None, "rule": None, "accepted": None, "nfe": int(found["nfe"]),
            "nfe_single_frame": int(found.get("nfe_single_frame", 0)), "nfe_plain": base["nfe_plain"],
            "seconds": seconds, "seconds_plain": base["seconds_plain"], "seconds_inspection": 0.0, "inspections": 0,
            "inspections_single_frame": 0, "report": found.get("report"), "notes": list(found.get("notes", ())),
        }  # fmt: skip

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
    known = [*STANDARD, "fixed_step@K", *installed]
    raise MethodError(f"there is no method {name!r}: choose of {', '.join(known)}, or name a plug-in, module:function.")


def _settings(name: str, text: str) -> dict[str, Any]:
    """ "tau=0.26,every=2" as widgets."""
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        widget, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or widget not in (*GATE_SETTINGS, *INJECTION_SETTINGS, "refiner"):
            choices = ", ".join((*GATE_SETTINGS, *INJECTION_SETTINGS, "refiner"))
            raise MethodError(f"method {name!r}: {part!r} is no widget=value; widgets are {choices}.")
        if re.fullmatch(r"[+-]\d*\.?\d+", value) and widget == "tau":
            settings[widget] = value
        elif widget in ("injection_noise", "injection_mask"):
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
