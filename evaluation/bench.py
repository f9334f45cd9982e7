"""The bench that a method works at: one prompt on a backend, its base runs, and what becomes a row of the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..scoring.detector import Decision
from .backend import Backend, InProcess, Judge, Sampled, Scale, decide, motion, webp
from .suites import Item

Row = dict[str, Any]
Measure = Callable[[Any, Item, Sampled], Mapping[str, Any]]
Cell = tuple[str, int]  # method and seed: one result of a prompt
BASE = "base"
LIGHT = "self_refine@light"
REUSED = (BASE, LIGHT)  # rows that other methods look at, so that they are handed on where they are there
# The window is the last step, so that every step is scored and nothing is decided before.
WATCH = {"start": 1.0, "end": 1.0}


class MethodError(Exception):
    """What is wrong with a method's name, and the way out."""


@dataclass(frozen=True)
class Method:
    """run(bench, seed) gives the row. in_process: it needs the models in this process, not a server's."""

    name: str
    run: Callable[[Bench, int], Row]
    in_process: bool = False


@dataclass
class Bench:
    """One prompt on a backend. known: rows by method and seed; added: those that were made here. measure(family, item,
    clip): further figures of clips that are finished in this process."""

    backend: Backend
    item: Item
    judge: Judge
    known: dict[Cell, Row]
    keep_clips: bool = True
    measure: Measure | None = None
    added: list[Row] = field(default_factory=list)
    _memory: dict[Any, Any] = field(default_factory=dict)

    def base(self, seed: int) -> Row:
        """The base row of a seed, sampled where it is not known yet."""
        if (BASE, seed) not in self.known:
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
            self._add(row)
        return self.known[BASE, seed]

    def row(self, method: Method, seed: int) -> Row:
        """What a method gives on a seed, made where it is not known yet."""
        if (method.name, seed) not in self.known:
            row = method.run(self, seed)
            if (method.name, seed) not in self.known:  # base has added its own
                self._add(row)
        return self.known[method.name, seed]

    def _add(self, row: Row) -> None:
        self.known[row["method"], row["seed"]] = row
        self.added.append(row)

    def base_clip(self, seed: int) -> Sampled:
        """The finished base run; sampled again where only its row is known."""
        return self.once((BASE, seed), lambda: self.backend.sample(self.item.prompt, seed, WATCH))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all methods that ask for `key` on this prompt."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def finished(self, seed: int, method: str, clip: Sampled) -> Row:
        """What is known of a finished clip, whatever made it."""
        judged = self.judge(self.item, clip.frames)
        measures = dict(judged["measures"])
        if self.measure and clip.latent is not None:
            measures |= self.measure(self.backend.family, self.item, clip)
        plain = self.known.get((BASE, seed), {"nfe_plain": self.backend.steps, "seconds_plain": None})
        return {
            "prompt_index": self.item.index, "prompt": self.item.prompt, "difficulty": self.item.group, "seed": seed,
            "method": method, "right": judged["right"], "measures": measures,
            "final_score": clip.final_score, "motion": motion(clip.frames), "base_seed": None, "notes": [],
            "clip": webp(clip.frames) if self.keep_clips else None,
            "nfe_plain": plain["nfe_plain"], "seconds_plain": plain["seconds_plain"],
        }  # fmt: skip

    def sampled(self, seed: int, method: str, latent: Any, report: Row | None, **columns: Any) -> Row:
        """The row of a latent that a method has sampled in this process. report: of trials.report, which tells what it
        cost; columns: those that differ from it, all of the cost where there is none."""
        backend = self.backend
        assert isinstance(backend, InProcess)  # load_method has seen to it
        clip = backend.finished(self.item.prompt, latent, report)
        unknown = decided(None) | {"trial": None, "rule": None, "accepted": None, "nfe_single_frame": 0,
                                   "seconds_inspection": 0.0, "inspections": 0, "inspections_single_frame": 0}
        return self.finished(seed, method, clip) | (reported(report) if report else unknown) | {
            "report": clip.report, **columns}

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
        return decide(detector, self.inspected(seed, settings), self.backend.steps)

    def inspected(self, seed: int, settings: Mapping[str, Any]) -> list[list]:
        """The points of the base run's trace that are inspected with these widgets set."""
        base = self.base(seed)
        last = Scale.of(base["report"]).detector(settings).window(self.backend.steps)[1]
        every = settings.get("every", 1)
        return [p for p in base["trace"] if p[0] <= last and (p[0] % every == 0 or p[0] == last)]

    def watched(self, seed: int, decision: Decision | None, settings: Mapping[str, Any], share: float) -> Row:
        """Columns of the decision, and the cost of `share` of a plain run that was inspected until then."""
        base = self.base(seed)
        stop = decision.step if decision else self.backend.steps
        trace = [point for point in self.inspected(seed, settings) if point[0] <= stop]
        inspection = base["seconds_inspection"] / max(base["inspections"], 1) * len(trace)
        return {
            **decided(decision), "trace": trace, "nfe": round(base["nfe_plain"] * share),
            "seconds": base["seconds_plain"] * share + inspection, "seconds_inspection": inspection,
            "inspections": len(trace),
        }  # fmt: skip


def decided(decision: Decision | None) -> Row:
    if decision is None or decision.rule == "not_inspected":
        return {"predicted_score": None, "stop_step": None, "rule": "not_inspected", "accepted": True}
    return {"predicted_score": decision.predicted_score, "stop_step": decision.step, "rule": decision.rule,
            "accepted": decision.accepted}  # fmt: skip


def reported(report: Row) -> Row:
    """The columns that a run report gives."""
    first = report["trials"][0]["verdict"]
    traces = [(len(t["verdict"]["trace"]) if t["verdict"] else 0, t["kind"] == "probe") for t in report["trials"]]
    return {
        **({k: first[k] for k in ("predicted_score", "stop_step", "rule", "accepted")} if first else decided(None)),
        "trace": first and first["trace"], "trial": report["trial"], "seconds": report["seconds"], "nfe": report["nfe"],
        "nfe_single_frame": report["nfe_single_frame"],
        "seconds_inspection": sum(trial["seconds"]["inspection"] for trial in report["trials"]),
        "inspections": sum(count for count, probe in traces if not probe),
        "inspections_single_frame": sum(count for count, probe in traces if probe),
        "report": report, "notes": report["notes"],
    }  # fmt: skip


def summed(*rows: Row) -> Row:
    return {name: sum(row[name] for row in rows) for name in ("nfe", "seconds")}
