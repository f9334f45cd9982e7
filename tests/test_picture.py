"""The run report as a picture, drawn without a display."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from foresight.trials.picture import report_figure
from foresight.trials.report import run_report
from foresight.trials.summary import report_text, rows
from foresight.trials.verdict import ItemVerdict, TrialRecord, Verdict

SETTINGS = {
    "prompt": "a red circle above a blue square", "negative": "", "steps": 50, "seed": 7, "tau": 0.22, "delta": 0.05,
    "video_window": [8, 14], "single_frame_window": [20, 30], "worst_case": 138,
}  # fmt: skip
SECONDS = {"sampling": 10.0, "inspection": 0.5}


def judged(accepted, score, step, rule, trace=None):
    trace = trace or [(k, score - 0.05 / k) for k in range(1, (step or 3) + 1)]
    return (ItemVerdict(accepted, score, step, rule, tuple(trace)),)


def sample(trial, accepted, score, step, rule, nfe=11, **more):
    items = judged(accepted, score, step, rule, more.pop("trace", None))
    return TrialRecord(trial, "sample", items, accepted, nfe_video=nfe, steps=nfe, seconds=SECONDS, **more)


def probe(trial, accepted, score):
    items = judged(accepted, score, 24, "stable_stop")
    return TrialRecord(trial, "probe", items, accepted, nfe_single_frame=24, steps=24, seconds=SECONDS)


PASSED = (sample("0", True, 0.27, 10, "early_accept", nfe=50),)
FULL = (
    sample("0", False, 0.18, 11, "early_reject"),
    probe("1", False, 0.19),
    TrialRecord("2", "refine", prompt="(a blue square:1.3), a red circle", negative="", seconds={"refinement": 2.0}),
    sample("2", False, 0.2, 14, "budget", nfe=14),
    probe("2->1", True, 0.26),
    TrialRecord("2->1", "inject", nfe_video=49, steps=49, seconds={"sampling": 70.0}),
)
UNSEEN = (
    sample("0", True, None, None, "not_inspected", 50, trace=[(1, float("nan")), (2, 0.1)], message="out of memory"),
)
PLAIN = (TrialRecord("0", "plain", nfe_video=50, steps=50, seconds=SECONDS),)
REFUSED = TrialRecord("2", "refine", accepted=False, message="no")
INJECTED = (FULL[0], probe("1", True, 0.3), TrialRecord("1", "inject"))


def report(records, **settings):
    return run_report(Verdict(records, settings={**SETTINGS, **settings}))


def ink(picture):
    """Share of pixels that are not white."""
    return float((picture < 250).any(-1).mean())


@pytest.mark.parametrize("records", [PASSED, FULL, UNSEEN, PLAIN, FULL[:1], FULL[:3], FULL[:5]])
def test_any_report_can_be_drawn_and_told(records):
    previews = {"0": torch.full((5, 8, 8, 3), 0.5), "1": np.zeros((1, 4, 6, 3))} if records is FULL else {}
    picture = report_figure(report(records), previews)
    assert picture.shape == (800, 1200, 3) and picture.dtype == np.uint8
    assert 0.01 < ink(picture) < 0.6
    text = report_text(report(records))
    assert all(f"Trial {record.trial}" in text for record in records)


def test_text_tells_the_whole_hierarchy():
    assert report_text(report(FULL)).splitlines() == [
        "Rejected twice, then redone by Trial 2->1 with a refined prompt, from a single frame",
        "Prompt: a red circle above a blue square",
        "Refined: (a blue square:1.3), a red circle",
        "Trial 0, video: rejected, predicted 0.180 at step 11 (early reject); 11 NFE, 10.5 s",
        "Trial 1, single frame: not used, predicted 0.190 at step 24 (stable stop); 24 NFE, 10.5 s",
        "Trial 2, prompt refinement; 0 NFE, 2.0 s",
        "Trial 2, video: rejected, predicted 0.200 at step 14 (budget); 14 NFE, 10.5 s",
        "Trial 2->1, single frame: used, predicted 0.260 at step 24 (stable stop); 24 NFE, 10.5 s",
        "Trial 2->1, video from the anchor; 49 NFE, 70.0 s",
        "122 NFE (plain 50, at most 138), 114.0 s (plain about 60.8 s)",
    ]


@pytest.mark.parametrize(
    "records, expected",
    [
        (PASSED, "Passed: the run was not touched"),
        (UNSEEN, "Passed without a score: the run was not touched"),
        (PLAIN, "Sampled plainly, without inspection"),
        (FULL[:1], "Trial 0 was rejected: this video is predicted to fail"),
        (FULL[:2], "Trial 1: the single frame is not better than the video by delta"),
        (FULL[:3], "Trial 2: the prompt was refined"),
        ((*FULL[:2], REFUSED), "Trial 2: the prompt could not be refined"),
        ((*FULL[:2], *PLAIN), "Rejected, then sampled plainly: no trial could help"),
        (INJECTED, "Rejected, then redone by Trial 1 from a single frame"),
    ],
)
def test_the_headline_says_what_became_of_the_run(records, expected):
    assert report_text(report(records)).splitlines()[0] == expected


def test_messages_and_missing_scores_are_told():
    text = report_text(report(UNSEEN))
    assert "Note: Trial 0, sample: out of memory" in text
    assert rows(report(UNSEEN))[0][3:5] == ("-", "-")
    assert "nan" not in text.lower()


def test_prompts_are_drawn_as_they_are():
    # Two dollar signs are no formula, and a prompt of any length leaves the table where it is.
    long = "$x_{1$ costs $5 " * 200
    assert report_figure(report(PASSED, prompt=long), {}).shape == (800, 1200, 3)
    short = report_figure(report(PASSED, prompt="a dog"), {})
    tall = report_figure(report(PASSED, prompt=long), {})
    assert np.array_equal(short[-60:], tall[-60:])


def test_previews_appear_in_their_colours():
    preview = np.zeros((5, 8, 8, 3), np.uint8)
    preview[..., 0] = 255
    picture = report_figure(report(PASSED), {"0": preview})
    assert (picture == (255, 0, 0)).all(-1).mean() > 0.02
    as_float = report_figure(report(PASSED), {"0": preview / 255})
    assert np.array_equal(picture, as_float)
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        report_figure(report(PASSED), {"0": preview[0]})


def test_broken_previews_are_drawn_black():
    assert report_figure(report(PASSED), {"0": np.full((5, 8, 8, 3), np.nan)}).shape == (800, 1200, 3)
    empty = report_figure(report(PASSED), {"0": np.zeros((0, 8, 8, 3))})
    assert np.array_equal(empty, report_figure(report(PASSED), {}))


def test_pyplot_stays_out():
    code = "import sys, foresight.trials.picture; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
