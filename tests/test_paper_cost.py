"""The cost model against the paper's printed tables, and its predictions for other settings."""

from __future__ import annotations

import made_evidence
import pytest

from foresight.evaluation import cost as cost_command
from foresight.evaluation.cost import main
from foresight.evaluation.evidence import load
from foresight.evaluation.paper_cost import BRANCHES, PAPER, REGENERATED, from_reports, suite_cost, table_s4

COGVIDEOX, WAN = PAPER["CogVideoX-5B"], PAPER["Wan2.1-1.3B"]


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


@pytest.mark.parametrize(
    "model, base, overall, contributions, regenerated, times_less",
    [(COGVIDEOX, "217.15", "16.55", ("0.12", "2.41", "4.09", "9.94"), "43.73", "2.64"),
     (WAN, "73.00", "20.30", ("0.30", "2.61", "5.91", "11.48"), "51.25", "2.52")],
)  # fmt: skip
def test_gives_the_papers_tables_to_the_printed_digit(model, base, overall, contributions, regenerated, times_less):
    rows = table_s4(model)
    assert f"{model.plain_seconds:.2f}" == base
    assert percent(model.overhead()) == overall  # Table 1
    assert tuple(percent(row["overall_overhead"]) for row in rows) == contributions  # Table S4, last column
    assert sum(row["overall_overhead"] for row in rows) == pytest.approx(model.overhead())
    again = model.regeneration(REGENERATED[model.name] / model.runs)
    assert percent(again) == regenerated  # Table 1
    assert f"{float(regenerated) / float(overall):.2f}" == times_less


@pytest.mark.parametrize(
    "model, seconds, overheads",
    [(COGVIDEOX, ("217.58", "271.47", "284.36", "338.68"), ("0.20", "25.02", "30.95", "55.97")),
     (WAN, ("73.40", "90.02", "100.02", "117.04"), ("0.55", "23.32", "37.02", "60.34"))],
)  # fmt: skip
def test_prices_each_branch_as_table_s4_does(model, seconds, overheads):
    assert tuple(f"{model.seconds(branch):.2f}" for branch in BRANCHES) == seconds
    assert tuple(percent(model.per_sample(branch)) for branch in BRANCHES) == overheads


def test_regenerated_counts_are_the_only_ones_that_fit():
    for model, printed in ((COGVIDEOX, "43.73"), (WAN, "51.25")):
        fitting = [n for n in range(947) if percent(model.regeneration(n / 946)) == printed]
        assert fitting == [REGENERATED[model.name]]


def test_a_higher_share_of_rejections_costs_more_and_stays_within_its_range():
    assert COGVIDEOX.at(COGVIDEOX.rejected).overhead() == pytest.approx(COGVIDEOX.overhead())
    costs = [COGVIDEOX.at(share / 10).overhead() for share in range(11)]
    assert costs == sorted(costs)
    assert percent(costs[0]) == "0.20"  # inspection alone
    for share in (0.0, 0.3, 1.0):
        low, high = WAN.range_at(share)
        assert low <= WAN.at(share).overhead() <= high
    # Table S6 prints 32.61 % for tau .26: by this model about four of five clips are rejected there.
    share = next(s for s in range(100) if COGVIDEOX.at(s / 100).overhead() > 0.3261)
    assert 75 <= share <= 85
    with pytest.raises(ValueError, match="rejected is 1.2"):
        WAN.at(1.2)


def test_the_suite_on_64_gpus():
    cost = suite_cost(WAN, ("base", "efdi"), prompts=946, seeds=5, gpus=64, failed=0.46)
    assert cost["runs"] == 4730
    assert cost["gpu_hours"] == pytest.approx(4730 * 73.0 * (2 + 0.2030) / 3600, rel=1e-3)
    assert cost["hours"] == pytest.approx(cost["gpu_hours"] / 64)
    assert cost["hours"] < cost["hours_at_most"] < cost["hours"] + 0.05
    one = suite_cost(WAN, ("best_of_3",), 1, 1, 1, 0.0)
    assert one["seconds_by_method"]["best_of_3"] == pytest.approx(3 * 73.0)
    with pytest.raises(ValueError, match="'magic'"):
        suite_cost(WAN, ("magic",), 1, 1, 1, 0.0)
    with pytest.raises(ValueError, match="gpus"):
        suite_cost(WAN, ("base",), 946, 1, 0, 0.0)


def trial(name, kind, video=0, frame=0, sampling=0.0, looks=0, stop=None, refinement=0.0, accepted=True):
    verdict = stop and {"stop_step": stop, "trace": [[k, 0.2] for k in range(1, looks + 1)], "accepted": accepted}
    return {
        "trial": name, "kind": kind, "nfe_video": video, "nfe_single_frame": frame, "verdict": verdict,
        "seconds": {"sampling": sampling, "inspection": 0.0392 * looks, "refinement": refinement},
    }  # fmt: skip


def test_measures_the_primitives_of_logged_runs():
    settings = {"steps": 50, "schedule_steps": 50}
    passed = {"trial": "0", "settings": settings, "trials": [trial("0", "sample", 50, 0, 73.0, 10, 10)]}
    injected = {"trial": "1", "settings": settings, "trials": [
        trial("0", "sample", 12, 0, 12 * 1.46, 12, 12, accepted=False), trial("1", "probe", 0, 24, 24 * 0.103, 24, 24),
        trial("1", "inject", 49, 0, 49 * 1.46)]}  # fmt: skip
    refined = {"trial": "2", "settings": settings, "trials": [
        trial("0", "sample", 11, 0, 11 * 1.46, 11, 11, accepted=False), trial("1", "probe", 0, 24, 24 * 0.103, 24, 24),
        trial("2", "refine", refinement=8.541), trial("2", "sample", 50, 0, 73.0, 11, 11)]}  # fmt: skip
    hopeless = {"trial": "0", "settings": settings, "trials": [
        trial("0", "sample", 11, 0, 11 * 1.46, 11, 11, accepted=False), trial("0", "plain", 50, 0, 73.0)]}  # fmt: skip
    blind = {"trial": "0", "settings": settings, "trials": [trial("0", "sample", 50, 0, 73.0)]}
    model = from_reports([passed, injected, refined, hopeless, blind])
    assert model.times.video_step == pytest.approx(1.46)
    assert model.times.video_inspection == pytest.approx(0.0392)
    assert model.times.single_frame_step == pytest.approx(0.103)
    assert model.times.refinement == pytest.approx(8.541)
    assert (model.steps, model.video_stop, model.single_frame_stop) == (50, 11.0, 24.0)
    assert dict(model.samples) == {"0": 1, "1": 1, "2": 2, "2->1": 0}
    with pytest.raises(ValueError, match="no inspected run"):
        from_reports([blind])


def test_the_command_prints_the_papers_table_and_the_suite(capsys):
    main(["--like", "Wan2.1-1.3B", "--prompts", "946", "--gpus", "64"])
    printed = capsys.readouterr().out
    assert "73.00 s (50 steps)" in printed and "over all runs: 20.30 %" in printed
    assert "| 2->1 | 180/946 | 69.66 | 20.66 | 48 | 48 | 1 | 117.04 | 60.34 % | 11.48 % |" in printed
    assert "base 19.2, efdi 23.1, regenerate 29.0, best_of_3 57.5" in printed
    main([])
    assert "16.55 %" in (printed := capsys.readouterr().out) and "20.30 %" in printed
    main(["--like", "CogVideoX-5B", "--rejected", "0", "--video-step", "1.96"])
    assert "over all runs: 0.44 %" in capsys.readouterr().out  # 11.05 inspections in 98 s


def test_what_another_tau_would_cost_on_ones_own_runs(tmp_path, capsys):
    database = made_evidence.write(tmp_path / "runs.sqlite", 30, 2, ("base", "efdi"))
    evidence = load(database)
    model = cost_command.measured(evidence)
    assert model.times.video_step == pytest.approx(1.46) and model.times.refinement == pytest.approx(8.541)
    logged = list(evidence.rows["efdi"].values())
    assert model.rejected == pytest.approx(sum(not row["accepted"] for row in logged) / len(logged))
    rows = cost_command.at_thresholds(evidence, model, (0.0, 0.18, 0.22, 0.26))
    assert [row["rejected"] for row in rows] == sorted(row["rejected"] for row in rows) and rows[0]["rejected"] == 0
    assert rows[2]["rejected"] == pytest.approx(model.rejected)
    assert rows[2]["overhead"] == pytest.approx(model.overhead(), abs=0.01)
    assert all(row["low"] <= row["overhead"] <= row["high"] for row in rows)
    main([str(tmp_path), "--tau", "0.26"])
    assert "| 0.26 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tau", "0.26"], "--tau needs a database"), (["none.sqlite"], "there is no database"),
        (["--steps", "0"], "--steps is 0"), (["--video-step", "-1"], "below 0"), (["--rejected", "2"], "rejected is 2"),
        (["--prompts", "5", "--gpus", "0"], "gpus"), (["--prompts", "5", "--methods", "magic"], "'magic'"),
    ],
)  # fmt: skip
def test_the_command_names_what_is_wrong(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_the_command_needs_runs_of_the_method(tmp_path):
    made_evidence.write(tmp_path / "runs.sqlite", 2, 1, ("base",))
    with pytest.raises(SystemExit, match="no runs of the method efdi"):
        main([str(tmp_path)])
