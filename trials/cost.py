"""What a trial costs: the paper's cost model (section B.2, Tables S3 and S4) and the bound of the hierarchy.

A *branch* is the path a run took: "0" passed untouched, "1" was injected, "2" was restarted with a refined prompt,
"2->1" was restarted, failed again and was injected.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
class Counts:
    """How often each primitive operation runs; means over many runs need not be whole numbers."""

    video_steps: float
    video_inspections: float
    single_frame_steps: float
    single_frame_inspections: float
    refinements: float

    def seconds(self, times: PrimitiveTimes) -> float:
        return (
            self.video_steps * times.video_step
            + self.video_inspections * times.video_inspection
            + self.single_frame_steps * times.single_frame_step
            + self.single_frame_inspections * times.single_frame_inspection
            + self.refinements * times.refinement
        )


@dataclass(frozen=True)
class Evaluations:
    """Model evaluations (NFE; one CFG step counts 1), video and single-frame apart: their prices differ."""

    video: int
    single_frame: int


def branch_counts(branch: str, steps: int, video_stop: float, single_frame_stop: float) -> Counts:
    """Mean execution counts of a branch (Table S4).

    steps: schedule length N. video_stop, single_frame_stop: mean step at which the detector stopped. An injected video
    starts at the second timestep and runs N - 1 steps. As in the table, a Trial 2 that passes counts the inspections of
    its first attempt only; the restart's, at most `video_stop` more, are under 0.2 % of a run there.
    """
    match branch:
        case "0":
            return Counts(steps, video_stop, 0, 0, 0)
        case "1":
            return Counts(video_stop + steps - 1, video_stop, single_frame_stop, single_frame_stop, 0)
        case "2":
            return Counts(video_stop + steps, video_stop, single_frame_stop, single_frame_stop, 1)
        case "2->1":
            return Counts(2 * video_stop + steps - 1, 2 * video_stop, 2 * single_frame_stop, 2 * single_frame_stop, 1)
    raise ValueError(f"unknown branch {branch!r}; branches are {', '.join(BRANCHES)}")


def branch_cost(branch: str, times: PrimitiveTimes, steps: int, video_stop: float, single_frame_stop: float) -> float:
    """Mean seconds of one run that takes this branch."""
    return branch_counts(branch, steps, video_stop, single_frame_stop).seconds(times)


def branch_overhead(
    branch: str, times: PrimitiveTimes, steps: int, video_stop: float, single_frame_stop: float
) -> float:
    """Extra time of a branch as a fraction of a plain run (0.25 = 25 % longer)."""
    return branch_cost(branch, times, steps, video_stop, single_frame_stop) / (steps * times.video_step) - 1


def overall_overhead(
    samples: Mapping[str, int], times: PrimitiveTimes, steps: int, video_stop: float, single_frame_stop: float
) -> float:
    """Mean extra time over all runs, as a fraction of a plain run; `samples` says how many runs took each branch."""
    total = sum(samples.values())
    if total <= 0:
        raise ValueError("no runs to average over: every branch has 0 samples")
    run = (times, steps, video_stop, single_frame_stop)
    return sum(count * branch_overhead(branch, *run) for branch, count in samples.items()) / total


def worst_case_nfe(steps: int, video_budget: int, single_frame_budget: int) -> Evaluations:
    """The most evaluations the hierarchy can spend: two videos abandoned at their budget, two probes, one whole video.

    The last video of branch 2->1 usually starts at the second step, but it runs all its steps where a probe gave no
    anchor, the injection is weakened or Trial 1 is switched off.
    """
    return Evaluations(2 * min(video_budget, steps) + steps, 2 * min(single_frame_budget, steps))


def worst_case_enhanced(video: int, candidate: int) -> int:
    """The same with self-refinement or latent search, which spend most of their evaluations before the detector can
    stop a run: three videos of `video` evaluations at most, and two probes of one `candidate` each."""
    return 3 * video + 2 * candidate
