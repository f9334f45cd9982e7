"""The paper's cost model with its own numbers (section B.2, Tables S3 and S4), and the same model for anybody's.

A *branch* is the path that a run took: "0" passed untouched, "1" was injected, "2" was restarted with a reworded
prompt, "2->1" was restarted, failed again and was injected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

BRANCHES = ("0", "1", "2", "2->1")


@dataclass(frozen=True)
class PrimitiveTimes:
    """Mean seconds of each primitive operation (Table S3)."""

    video_step: float
    video_inspection: float
    single_frame_step: float
    single_frame_inspection: float
    refinement: float


@dataclass(frozen=True)
class CostModel:
    """What was measured of a model: `times` in seconds, `steps` of the schedule, the detector's mean stop steps, and
    how many runs took each branch (`samples`)."""

    name: str
    times: PrimitiveTimes
    steps: int
    video_stop: float
    single_frame_stop: float
    samples: Mapping[str, float]

    @property
    def plain_seconds(self) -> float:
        """A run without inspection; what all overheads are shares of."""
        return self.steps * self.times.video_step

    @property
    def runs(self) -> float:
        return sum(self.samples.values())

    @property
    def rejected(self) -> float:
        """The share of runs that the detector rejected."""
        return 1 - self.samples.get("0", 0) / self.runs

    def counts(self, branch: str) -> dict[str, float]:
        """How often each primitive operation runs in a branch, on average (Table S4).

        An injected video starts at the second timestep and runs N - 1 steps. As in the table, a Trial 2 that passes
        counts the inspections of its first attempt only; the restart's, at most `video_stop` more, are under 0.2 % of a
        run there.
        """
        steps, stop = self.steps, self.video_stop
        video, attempts, probes, refinements = {
            "0": (steps, 1, 0, 0), "1": (stop + steps - 1, 1, 1, 0), "2": (stop + steps, 1, 1, 1),
            "2->1": (2 * stop + steps - 1, 2, 2, 1),
        }[branch]  # fmt: skip
        frames = probes * self.single_frame_stop
        return {"video_step": video, "video_inspection": attempts * stop, "single_frame_step": frames,
                "single_frame_inspection": frames, "refinement": refinements}  # fmt: skip

    def seconds(self, branch: str) -> float:
        """Of a run that takes this branch."""
        counts, times = self.counts(branch), self.times
        return (
            counts["video_step"] * times.video_step + counts["video_inspection"] * times.video_inspection
            + counts["single_frame_step"] * times.single_frame_step
            + counts["single_frame_inspection"] * times.single_frame_inspection
            + counts["refinement"] * times.refinement
        )  # fmt: skip

    def per_sample(self, branch: str) -> float:
        """Extra time of a run that takes this branch, as a share of a plain run."""
        return self.seconds(branch) / self.plain_seconds - 1

    def overhead(self) -> float:
        """Mean extra time over all runs, as a share of a plain run (the paper's 0.1655 and 0.2030)."""
        return sum(count * self.per_sample(branch) for branch, count in self.samples.items()) / self.runs

    def regeneration(self, failed: float) -> float:
        """Mean extra time when the share `failed` of finished clips is refined and sampled anew (section 4.1)."""
        return failed * (1 + self.times.refinement / self.plain_seconds)

    def at(self, rejected: float) -> CostModel:
        """The same model when the share `rejected` is rejected: the rest keeps its division between the trials."""
        if not 0 <= rejected <= 1:
            raise ValueError(f"rejected is {rejected}, but it is a share of all runs: set it between 0 and 1.")
        others = {branch: self.samples.get(branch, 0) for branch in BRANCHES[1:]}
        if rejected and not sum(others.values()):
            raise ValueError(f"{self.name}: no run was rejected, so how failures divide between the trials is unknown.")
        scale = rejected * self.runs / (sum(others.values()) or 1)
        samples = {"0": (1 - rejected) * self.runs} | {branch: scale * count for branch, count in others.items()}
        return replace(self, samples=samples)

    def range_at(self, rejected: float) -> tuple[float, float]:
        """Overheads at the share `rejected` if all of it ended in the cheapest and in the dearest trial."""
        prices = [self.per_sample(branch) for branch in BRANCHES[1:]]
        passed = (1 - rejected) * self.per_sample("0")
        return passed + rejected * min(prices), passed + rejected * max(prices)

    def method_overhead(self, method: str, failed: float) -> float:
        """Extra time of an evaluation method: base, efdi, regenerate or best_of_N."""
        if method == "base":
            return 0.0
        if method == "efdi":
            return self.overhead()
        if method == "regenerate":
            return self.regeneration(failed)
        head, _, count = method.rpartition("_")
        if head == "best_of" and count.isdigit() and int(count) > 0:
            return int(count) - 1.0
        raise ValueError(f"the cost model knows base, efdi, regenerate and best_of_N, not '{method}'.")


# Table S3 (times, mean stops) and Table S4 (runs by branch, of 946).
PAPER = {
    model.name: model
    for model in (
        CostModel("CogVideoX-5B", PrimitiveTimes(4.343, 0.0392, 0.405, 0.0218, 8.541), 50, 11.05, 24.0,
                  dict(zip(BRANCHES, (562, 91, 125, 168), strict=True))),
        CostModel("Wan2.1-1.3B", PrimitiveTimes(1.460, 0.0392, 0.103, 0.0218, 8.541), 50, 10.33, 24.0,
                  dict(zip(BRANCHES, (509, 106, 151, 180), strict=True))),
    )
}  # fmt: skip
# Clips that the paper regenerated, of 946. It prints only their overheads, 43.73 % and 51.25 % (Table 1), which no
# other whole numbers give.
REGENERATED = {"CogVideoX-5B": 398, "Wan2.1-1.3B": 434}


def table_s4(model: CostModel) -> list[dict[str, Any]]:
    """One row a branch: runs, mean counts of each primitive, seconds, and overheads as shares."""
    return [
        {
            "branch": branch, "runs": model.samples.get(branch, 0), "of": model.runs, **model.counts(branch),
            "seconds": model.seconds(branch), "per_sample_overhead": model.per_sample(branch),
            "overall_overhead": model.samples.get(branch, 0) / model.runs * model.per_sample(branch),
        }
        for branch in BRANCHES
    ]  # fmt: skip


def suite_cost(
    model: CostModel, methods: Iterable[str], prompts: int, seeds: int, gpus: int, failed: float
) -> dict[str, Any]:
    """What a suite takes: seconds of sampling in all, and hours until the last of `gpus` is done.

    Each GPU runs one ComfyUI and takes one run at a time, so the last run may start when all others are done: hours
    is at most the even share plus one run of the dearest method. Decoding and loading are not counted.
    """
    if min(prompts, seeds, gpus) < 1:
        raise ValueError(f"prompts, seeds and gpus are {prompts}, {seeds} and {gpus}: each must be at least 1.")
    runs = prompts * seeds
    seconds = {name: runs * model.plain_seconds * (1 + model.method_overhead(name, failed)) for name in methods}
    total, longest = sum(seconds.values()), max(seconds.values()) / runs
    return {
        "runs": runs, "seconds_by_method": seconds, "gpu_hours": total / 3600,
        "hours": total / gpus / 3600, "hours_at_most": (total / gpus + longest) / 3600,
    }  # fmt: skip


def from_reports(reports: Iterable[Mapping[str, Any]], name: str = "your runs") -> CostModel:
    """The cost model of logged hierarchy runs (trials.report.run_report documents, inspected; at least one).

    Seconds of a primitive are its total over its count. A primitive that never ran costs 0: no branch that would need
    it was taken either. ValueError when no report holds an inspected run.
    """
    primitives = tuple(PrimitiveTimes.__annotations__)
    spent, count = dict.fromkeys(primitives, 0.0), dict.fromkeys(primitives, 0)
    stops: dict[str, list[int]] = {"sample": [], "probe": []}
    samples, steps = dict.fromkeys(BRANCHES, 0), 0
    for report in reports:
        base = report["trials"][0]
        if base["kind"] != "sample" or not base["verdict"] or base["verdict"]["stop_step"] is None:
            continue
        branch = report["trial"]
        if branch == "0" and len(report["trials"]) > 1:
            branch = "2"  # nothing could help: stopped and sampled from the start, which costs what Trial 2 does
        samples[branch] += 1
        steps = steps or report["settings"].get("schedule_steps") or report["settings"].get("steps") or 0
        for trial in report["trials"]:
            verdict, seconds = trial["verdict"], trial["seconds"]
            what = "single_frame" if trial["kind"] == "probe" else "video"
            for primitive, part, times in (
                (f"{what}_step", "sampling", trial["nfe_single_frame"] + trial["nfe_video"]),
                (f"{what}_inspection", "inspection", len(verdict["trace"]) if verdict else 0),
                ("refinement", "refinement", int(trial["kind"] == "refine")),
            ):
                spent[primitive] += seconds[part]
                count[primitive] += times
            if verdict and verdict["stop_step"] and trial["kind"] in stops:
                stops[trial["kind"]].append(verdict["stop_step"])
    if not sum(samples.values()):
        raise ValueError("there is no inspected run to measure: run the method efdi with this database first.")
    times = PrimitiveTimes(**{name: spent[name] / count[name] if count[name] else 0.0 for name in primitives})
    mean = {kind: sum(each) / len(each) if each else 0.0 for kind, each in stops.items()}
    return CostModel(name, times, steps, mean["sample"], mean["probe"], samples)
