"""The run report as a picture, drawn without a display."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from foresight.trials.picture import cards, report_figure
from foresight.trials.report import run_report, with_final_score
from foresight.trials.summary import KINDS, RULES, report_text, rows
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
    TrialRecord("2->1", "inject", nfe_video=49, steps=49, seconds={"sampling": 70.0}, finals=(0.25,)),
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
        "Trial 0, clip: rejected at step 11, stays below the threshold, predicted score 0.180; 11 evaluations, 10.5 s",
        "Trial 1, single frame: not used at step 24, the score has settled, predicted score 0.190; 24 evaluations, "
        "10.5 s",
        "Trial 2, better prompt; 0 evaluations, 2.0 s",
        "Trial 2, clip: rejected at step 14, the window's best score, predicted score 0.200; 14 evaluations, 10.5 s",
        "Trial 2->1, single frame: used at step 24, the score has settled, predicted score 0.260; 24 evaluations, "
        "10.5 s",
        "Trial 2->1, clip from the frame; 49 evaluations, 70.0 s",
        "Final score: 0.250 by its preview (tau 0.220)",
        "122 model evaluations (NFE; plain 50, at most 138), 114.0 s (plain about 60.8 s)",
    ]


UNKNOWN = "; it was not scored, so whether it matches its prompt is not known"


def ended(*finals):
    return (*INJECTED[:2], TrialRecord("1", "inject", finals=finals))


def done(trial, rule, final, **details):
    """A finished run that was judged on its way."""
    return (sample(trial, rule != "early_reject", 0.15, 10, rule, nfe=50, finals=(final,), details=details),)


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
        ((*FULL[:2], *PLAIN), f"Rejected, then sampled plainly: no trial could help{UNKNOWN}"),
        (INJECTED, f"Rejected, then redone by Trial 1 from a single frame{UNKNOWN}"),
        (ended(0.3), "Rejected, then redone by Trial 1 from a single frame"),
        (ended(0.2),
         "Rejected, then redone by Trial 1 from a single frame, its final score 0.200 still below tau 0.220"),
        (ended(0.1),
         "Rejected, then redone by Trial 1 from a single frame, its final score 0.100 still below tau 0.220, and below "
         "the 0.180 of Trial 0, which was left"),
        (ended(0.1, 0.3),
         "Rejected, then redone by Trial 1 from a single frame, item 1 of the batch still below tau 0.220"),
        (done("0", "early_accept", 0.3), "Passed: the run was not touched"),
        (done("0", "early_accept", 0.3, search={"winner": 1}, self_refine={"nfe": 9}),
         "Passed: the run was searched for and self-refined"),
        (done("0", "user_accept", 0.1, self_refine={"nfe": 9}),
         "Accepted by hand: the run was self-refined, its final score 0.100 still below tau 0.220"),
        (done("0", "early_reject", 0.3), "Trial 0 was rejected, and sampled to its end all the same"),
    ],
)
def test_the_headline_says_what_became_of_the_run(records, expected):
    assert report_text(report(records)).splitlines()[0] == expected


@pytest.mark.parametrize("finals, accepted", [((0.25,), True), ((0.1,), False), ((0.1, 0.3), True), ((), None)])
def test_after_a_rejection_the_end_is_what_counts(finals, accepted):
    """The base run was rejected; whether what is delivered matches is what its final score says."""
    assert report(ended(*finals))["accepted"] is accepted
    assert report(ended(*finals))["final_scores"] == list(finals)


def test_each_item_of_a_batch_has_its_own_scores():
    items = (ItemVerdict(False, 0.1, 11, "early_reject"), ItemVerdict(True, 0.3, 10, "early_accept"))
    text = report_text(report((TrialRecord("0", "sample", items, nfe_video=50, steps=50, finals=(0.15, 0.31)),)))
    assert text.splitlines()[0] == "Passed: the run was not touched, item 1 of the batch still below tau 0.220"
    for line in (
        "  Item 1: rejected, stays below the threshold, predicted score 0.100",
        "  Item 2: accepted, stays above the threshold, predicted score 0.300",
        "Item 1: final score 0.150, still below tau 0.220", "Item 2: final score 0.310",
    ):  # fmt: skip
        assert line in text.splitlines()


def test_the_finished_clip_stands_beside_what_was_left():
    red, green, blue = (np.eye(3)[i] * np.ones((5, 8, 8, 1)) for i in range(3))
    raced_too = raced(ASIDE, tried(2, "delivered", 0.3))
    for document, names in ((raced_too, ("candidate 1", "candidate 2")), (report(ended(0.3)), ("0", "1"))):
        previews = dict(zip(names, (red, green), strict=True))
        shown = cards(document, previews, [blue, blue])
        assert [each.name for each in shown[:2]] == ["the finished clip, item 1", "the finished clip, item 2"]
        assert len(shown) == 4 and shown[0].finished and not shown[2].finished
        picture = report_figure(document, previews, blue)
        for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
            assert (picture == colour).all(-1).mean() > 0.01


def test_the_reports_words_are_the_panels():
    panel = json.loads((Path(__file__).parent.parent / "locales/en/main.json").read_text(encoding="utf-8"))["foresight"]
    assert {*KINDS.values(), *RULES.values()} <= panel.keys()


RACE = {
    "plan": "race", "look_step": 6, "looks": [{"step": 6, "floor": 0.2, "floor_self_refined": 0.25}],
    "race_preset": "mine.json", "final_seed": 8,
    "final_score": 0.3, "worst_case": 75, "nfe_plain": 50, "accepted": True,
}  # fmt: skip


def tried(number, state, score, **more):
    row = {"candidate": number, "seed": 6 + number, "self_refined": number > 1, "floor": 0.25 if number > 1 else 0.2,
           "look_step": 6, "score": score, "by_hand": None, "nfe": 6 + 4 * (number > 1), "state": state,
           "final_score": 0.3 if state != "put aside" else None}  # fmt: skip
    return row | more


def raced(*rows, resumed=(), **changes):
    """The report of a race; resumed: the candidates that were put aside first, and finished all the same."""
    records = []
    for row in rows:
        trial = f"candidate {row['candidate']}"
        aside = row["state"] == "put aside" or row["candidate"] in resumed
        items = (ItemVerdict(not aside, row["score"], 6, "budget", ((6, row["score"]),)),)
        records.append(TrialRecord(trial, "candidate", items, not aside, row["nfe"], steps=6, seconds=SECONDS))
        if row["candidate"] in resumed:
            records.append(TrialRecord(trial, "finish", nfe_video=44, steps=44, seconds=SECONDS))
    return report(tuple(records), **RACE | changes, raced=list(rows))


ASIDE, ALSO = tried(1, "put aside", 0.1), tried(2, "put aside", 0.2)


@pytest.mark.parametrize(
    "rows, resumed, expected",
    [
        ([tried(1, "delivered", 0.3)], (), "Passed: the run was not touched."),
        ([tried(1, "delivered", 0.3, self_refined=True)], (), "Passed: self-refined from its start."),
        ([tried(1, "delivered", None)], (), "Passed without a score: the run was not touched."),
        ([tried(1, "delivered", 0.3, floor=None)], (1,), "The only candidate: the run was not touched."),
        ([tried(1, "delivered", 0.1)], (1,),
         "Still below its floor, but the budget allows no other candidate: candidate 1 is delivered."),
        ([ASIDE, tried(2, "delivered", 0.3)], (), "Candidate 2 of 2 is delivered: it passed at step 6."),
        ([ASIDE, tried(2, "delivered", None)], (),
         "Candidate 2 of 2 is delivered: it could not be scored, which passes."),
        ([ASIDE, tried(2, "delivered", 0.2)], (2,),
         "None of 2 passed: candidate 2, nearest to its floor at step 6, is delivered, still below it."),
        ([tried(1, "delivered", 0.3, floor=None), ALSO | {"floor": None}], (1,),
         "Candidate 1 of 2 is delivered, the best at step 6."),
        ([tried(1, "finished", 0.1), tried(2, "delivered", 0.3)], (1,),
         "Candidate 2 of 2 is delivered, the better of two finished clips."),
        ([ASIDE, tried(2, "delivered", None, by_hand="accepted")], (), "Accepted by hand: candidate 2 is delivered."),
        ([tried(1, "delivered", None, by_hand="rejected")], (1,),
         "All were rejected by hand: candidate 1 is delivered, because something must be."),
    ],
)  # fmt: skip
def test_the_headline_of_a_race_says_what_is_delivered_why_and_for_how_much(rows, resumed, expected):
    document = raced(*rows, resumed=resumed)
    nfe = document["nfe"]
    assert report_text(document).splitlines()[0] == (
        f"{expected} It took {nfe} model evaluations; a plain clip 50, this race at most 75."
    )
    assert ("not touched" in report_text(document)) == (len(rows) == 1 and "not touched" in expected)
    previews = {f"candidate {row['candidate']}": np.zeros((5, 8, 8, 3)) for row in rows}
    assert 0.01 < ink(report_figure(document, previews, np.zeros((9, 8, 8, 3)))) < 0.8
    assert report_figure(document, {}).shape == (800, 1200, 3)


def test_text_tells_a_race():
    assert report_text(raced(ASIDE, tried(2, "delivered", 0.3))).splitlines()[1:] == [
        "Prompt: a red circle above a blue square",
        "After step 6 of 50 the preview of each candidate is scored against the prompt; below its floor (0.200, "
        "self-refined 0.250; from mine.json) it is put aside and the next seed is tried.",
        "Candidate 1, seed 7: 0.100, floor 0.200: put aside; 6 evaluations, 10.5 s",
        "Candidate 2, seed 8, self-refined: 0.300, floor 0.250: delivered; 10 evaluations, 10.5 s",
        "Final score: 0.300 by its preview (tau 0.220)",
        "16 model evaluations (NFE; plain 50, at most 75), 21.0 s (plain about 62.5 s)",
    ]


def test_a_final_score_below_tau_is_said():
    document = with_final_score(raced(tried(1, "delivered", 0.3)), 0.1)
    assert "its final score 0.100 still below tau 0.220" in report_text(document).splitlines()[0]
    assert document["accepted"], "the floor has judged"
    by_rank = with_final_score(raced(tried(1, "delivered", 0.3, floor=None), resumed=(1,)), 0.1)
    assert not by_rank["accepted"] and "by its frames" in report_text(by_rank)
    assert with_final_score(by_rank, float("nan"))["final_score"] is None


def test_a_race_of_many_candidates_fits_and_keeps_the_delivered_one():
    many = [tried(n, "put aside", 0.1) for n in range(1, 40)] + [tried(40, "delivered", 0.3)]
    previews = {f"candidate {row['candidate']}": np.full((5, 8, 8, 3), 0.5) for row in many}
    previews["candidate 40"] = np.zeros((5, 8, 8, 3))
    picture = report_figure(raced(*many), previews)
    assert (picture == (21, 128, 61)).all(-1).mean() > 0.001  # its green frame
    assert picture.shape == (800, 1200, 3)


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


def test_broken_previews_are_drawn_black():
    assert report_figure(report(PASSED), {"0": np.full((5, 8, 8, 3), np.nan)}).shape == (800, 1200, 3)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (5, 8, 8, 1), (5, 0, 8, 3), (5, 8, 8), (1, 5, 8, 8, 3)])
@pytest.mark.parametrize("known", [PASSED, UNSEEN])
def test_what_is_no_clip_is_left_out(known, shape):
    picture = report_figure(report(known), {"0": np.zeros(shape)}, np.zeros(shape))
    assert np.array_equal(picture, report_figure(report(known), {}))


def test_a_fourth_channel_is_not_shown():
    preview = np.full((5, 8, 8, 4), 0.5)
    plain = report_figure(report(PASSED), {"0": preview[..., :3]})
    assert np.array_equal(report_figure(report(PASSED), {"0": preview}), plain)


@pytest.mark.parametrize("why", ["missing", "a backend that there is not"])
def test_without_matplotlib_the_picture_says_so(monkeypatch, caplog, why):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise ValueError("Key backend: 'nonsense' is not a valid value")

    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None if why == "missing" else Broken(name))
    picture = report_figure(report(PASSED), {})
    assert picture.shape == (800, 1200, 3) and picture.dtype == np.uint8 and (picture < 128).any()
    assert "matplotlib cannot be loaded" in caplog.text


def test_pyplot_stays_out():
    code = "import sys, foresight.trials.picture; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
