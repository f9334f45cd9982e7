"""The most model evaluations that the hierarchy can spend."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluations:
    """Model evaluations (NFE; one CFG step counts 1), video and single-frame apart: their prices differ."""

    video: int
    single_frame: int


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
