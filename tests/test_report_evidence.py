"""The evidence report: what its figures say of runs whose fate is known, and what it does with little or bad input."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sqlite3

import made_evidence
import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from foresight.evaluation.backend import read_webp, webp
from foresight.evaluation.evidence import load
from foresight.evaluation.report import all_tables, main
from foresight.evaluation.report_claims import average_precision, claims, diversity, motion, repairs, verdict
from foresight.evaluation.report_cost import equal_nfe
from foresight.evaluation.report_page import examples
from foresight.evaluation.report_tables import (
    MAIN,
    Paired,
    foresight,
    spread_within,
    table_1,
    table_s2,
    table_s4,
    table_s6,
)
from foresight.evaluation.report_yield import race_at_equal_cost, yields
from foresight.evaluation.results import shown
from foresight.evaluation.store import Store

TABLES = ("table_1", "table_s2", "table_s4", "table_s5", "table_s6", "table_s7", "claims", "repairs", "equal_nfe",
          "foresight", "motion", "proxies", "detectors", "diversity")  # fmt: skip
FILES = ("evidence.md", "evidence.html", "evidence.json", *(f"evidence/{table}.csv" for table in TABLES),
         *(f"evidence/figure_{number}.{kind}" for number in (10, 11, 12, 13, 14) for kind in ("png", "csv")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evidence")
    made_evidence.write(path / "runs.sqlite", 36, 2)
    main([str(path)])
    return path


@pytest.fixture(scope="module")
def evidence(folder):
    return load(folder)


def test_writes_every_table_and_figure(folder):
    assert {name for name in FILES if (folder / name).stat().st_size > 100} == set(FILES)
    for number in (10, 11, 12, 13, 14):
        with Image.open(folder / "evidence" / f"figure_{number}.png") as picture:
            assert picture.width > 300
    whole = json.loads((folder / "evidence.json").read_text())
    assert (whole["schema"], whole["version"], whole["runs"]["base"]) == ("foresight.evidence", 1, 72)
    text = (folder / "evidence.md").read_text()
    for part in ("1", "S2", "S4", "S5", "S6", "S7"):
        assert f"Table {part})" in text
    assert all((folder / name).exists() for name in re.findall(r"!\[\]\((.+?)\)", text))
    assert "Figure 10" in text and "Figure 14" in text and "36 prompts" in text
    assert "nan" not in text.lower().replace("names", "")


def test_the_page_needs_nothing_else_and_shows_the_clips(folder):
    page = (folder / "evidence.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/webp;base64,") > 10 and page.count("data:image/png;base64,") == 5
    clip = re.search(r"data:image/webp;base64,([^\"]+)", page)[1]
    assert Image.open(io.BytesIO(base64.b64decode(clip))).n_frames == 3


def test_what_people_write_in_prompts_cannot_break_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(made_evidence, "WORDS", (("<script>alert(1)</script>",), ("|",), ("\u7ea2",)))
    made_evidence.write(tmp_path / "runs.sqlite", 4, 2, ("base", "efdi"))
    main([str(tmp_path), "--out", str(tmp_path / "other")])
    page = (tmp_path / "other" / "evidence.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "\u7ea2" in page


def test_differences_are_paired_by_prompt_and_seed(evidence):
    pairs = Paired(evidence, "efdi")
    assert all((a["prompt_index"], a["seed"]) == (b["prompt_index"], b["seed"])
               for a, b in zip(pairs.base_rows, pairs.rows, strict=True))  # fmt: skip
    gain = np.asarray([b["final_score"] - a["final_score"] for a, b in zip(pairs.base_rows, pairs.rows, strict=True)])
    cell = pairs.change("final_score")
    assert cell["value"] == pytest.approx(gain.mean())
    by_prompt = [gain[pairs.prompt == index].mean() for index in set(pairs.prompt)]
    clustered = ttest_1samp(by_prompt, 0).confidence_interval(0.95)
    assert (cell["low"], cell["high"]) == pytest.approx((clustered.low, clustered.high), abs=0.002)


def test_table_1_counts_what_was_spent(evidence):
    rows = {row["method"]: row for row in table_1(evidence).rows}
    assert rows["Plain"]["nfe"]["value"] == 0 and rows["Best of 3"]["nfe"]["value"] == pytest.approx(2)
    efdi = list(evidence.rows["efdi"].values())
    spent = sum(row["seconds"] for row in efdi) / sum(row["seconds_plain"] for row in efdi) - 1
    assert rows["+ paper's plan (Trial 2: other noise)"]["seconds"]["value"] == pytest.approx(spent)
    with open(evidence.path.parent / "evidence" / "table_1.csv", newline="") as file:
        first, *_ = csv.DictReader(file)
    assert first["method"] == "Plain" and float(first["good"]) == pytest.approx(rows["Plain"]["good"]["value"])


def test_branches_and_dynamic_against_fixed(evidence):
    branches = {row["branch"]: row for row in table_s4(evidence).rows}
    assert sum(branches[b]["runs"] for b in branches if b != "all") == branches["all"]["runs"] == 72
    assert branches["0"]["good_change"]["value"] == 0
    rows = {row["detector"]: row for row in table_s2(evidence).rows}
    dynamic, fixed = rows["dynamic"], next(row for name, row in rows.items() if name.startswith("fixed"))
    assert abs(dynamic["step"] - fixed["step"]) <= 0.5
    assert dynamic["error"]["value"] - fixed["error"]["value"] == pytest.approx(dynamic["error_change"]["value"])


def test_a_score_that_only_knows_the_prompt_says_nothing_within_it(evidence):
    base, rows = evidence.base, foresight(evidence).rows
    assert rows[0]["detector"] == "the caption alone" and rows[0]["auc_within"]["value"] == 0.5
    at_10 = next(row for row in rows if row["step"] == 10)
    assert at_10["auc_within"]["low"] > 0.5 and at_10["error_within"]["value"] < rows[0]["error_within"]["value"]
    means = np.asarray([base.score[base.prompt == prompt].mean() for prompt in base.prompt])
    assert np.abs(spread_within(means, base.prompt)).max() == pytest.approx(0, abs=1e-12)


def test_rejected_runs_are_compared_with_another_seed(evidence):
    rows = {row["what"]: row for row in repairs(evidence).rows}
    every, seeds = rows["paper's plan, all trials"], rows["another seed instead"]
    assert every["runs"] == seeds["runs"] == sum(not row["accepted"] for row in evidence.rows["efdi"].values())
    assert every["reseeded"]["value"] == pytest.approx(seeds["good"]["value"])
    assert every["good"]["value"] - every["reseeded"]["value"] == pytest.approx(every["over_reseeded"]["value"])


def test_equal_cost_thins_the_dearer_method_out(evidence):
    row = next(row for row in equal_nfe(evidence).rows if row["rival"] == "Best of 3")
    ours, theirs = (Paired(evidence, name) for name in ("efdi", "best_of_3"))
    share = ours.overhead()["value"] / theirs.overhead()["value"]
    assert (row["ours"], row["theirs"]) == (1.0, pytest.approx(share))
    expected = ours.change("good")["value"] - share * theirs.change("good")["value"]
    assert row["change"]["value"] == pytest.approx(expected) and row["change"]["low"] < expected < row["change"]["high"]


def test_claims_are_judged_by_their_intervals(evidence):
    assert verdict({"value": 0.1, "low": 0.01, "high": 0.2}) == "holds"
    assert verdict({"value": 0.1, "low": 0.01, "high": 0.2}, better=-1) == "does not hold"
    assert verdict({"value": 0.1, "low": -0.01, "high": 0.2}) == "open"
    assert verdict(None) == verdict({"value": 0.0, "low": float("nan"), "high": 0.0}) == "cannot be said"
    tables = [make(evidence) for make in (table_1, equal_nfe)]
    rows = {row["claim"]: row for row in claims(evidence, [*tables, motion(evidence)]).rows}
    assert rows["It costs less time than regeneration"]["holds"] == "holds"
    assert rows["Injection takes motion away (a risk, Table S7)"]["holds"] == "holds"
    assert rows["The paper's plan gives more good clips than plain sampling"]["holds"] == "holds"
    assert rows["The paper's plan gives more good clips than plain sampling"]["survives"] != "holds"


def test_average_precision_with_ties():
    assert average_precision(np.array([3.0, 2, 1, 0]), np.array([True, True, False, False])) == 1.0
    assert average_precision(np.ones(4), np.array([True, False, True, False])) == 0.5
    # 1/1 at the first, 2/3 at the second right item.
    assert average_precision(np.array([3.0, 2, 1]), np.array([True, False, True])) == pytest.approx((1 + 2 / 3) / 2)


def test_values_are_written_for_people():
    assert shown({"value": 0.123, "low": 0.1, "high": 0.2}, "percent") == "12.3 % (10.0 to 20.0)"
    assert shown({"value": float("nan"), "low": 0.1, "high": 0.2}, "percent") == shown(None, "number") == "-"
    assert (shown(0.05, "change"), shown(-0.0123, "signed"), shown(3, "count")) == ("+5.0 %", "-0.012", "3")


def test_missing_methods_are_named_and_a_suite_without_a_judge_is_judged_by_tau(tmp_path, capsys):
    made_evidence.write(tmp_path / "runs.sqlite", 12, 2, ("base",), judged=False)
    main([str(tmp_path)])
    text = (tmp_path / "evidence.md").read_text()
    assert "No runs of regenerate" in text and "good by a final score of at least tau (0.22)" in text
    assert "No ceiling beside it" in text
    assert "No other thresholds were run" in text and "efdi" in capsys.readouterr().out
    evidence = load(tmp_path)
    assert evidence.base.failed.tolist() == (evidence.base.score < 0.22).tolist()
    assert set(examples(evidence)) <= {"Good and passed", "Failed and not seen", "Rejected, not repaired",
                                       "Good, rejected all the same"}  # fmt: skip
    assert not table_s6(evidence).rows[1:]


def test_a_ceiling_in_the_folder_is_shown_and_a_broken_one_named(tmp_path):
    made_evidence.write(tmp_path / "runs.sqlite", 3, 2, ("base", "efdi"))
    (tmp_path / "ceiling.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"ceiling\.json cannot be read"):
        main([str(tmp_path)])
    cell = {"value": 0.9, "low": 0.8, "high": 1.0}
    (tmp_path / "ceiling.json").write_text(json.dumps({
        "environment": {"command": "c", "date": "d", "machine": "m"}, "settings": {"branches": 2, "schedule": 50},
        "summary": {"clips": 6, "prompts": 3, "prompts_with_both_outcomes": 2, "good": 0.5,
                    "steps": {"10": {"ceiling": cell, "score": cell, "share_of_ceiling": 1.0}}},
    }))  # fmt: skip
    main([str(tmp_path)])
    assert "| 10 | 0.900 (0.800 to 1.000) |" in (tmp_path / "evidence.md").read_text()
    with open(tmp_path / "evidence" / "foresight.csv", newline="") as file:
        beside = {row["detector"]: row["ceiling"] for row in csv.DictReader(file)}
    assert beside["preview at step 10"] == "0.9" and beside["preview at step 20"] == beside["finished clip"] == ""


def test_bad_databases_are_explained(tmp_path):
    def failing(path):
        with pytest.raises(SystemExit) as raised:
            main([str(path), "--out", str(tmp_path / "out")])
        return str(raised.value)

    assert "there is no database" in failing(tmp_path / "none")
    Store(tmp_path / "empty.sqlite", write=True).close()
    assert "no finished run yet" in failing(tmp_path / "empty.sqlite")
    (tmp_path / "text.sqlite").write_text("This is no database. " * 50)
    assert "text.sqlite" in failing(tmp_path / "text.sqlite")
    made_evidence.write(tmp_path / "old.sqlite", 2, 1)
    with sqlite3.connect(tmp_path / "old.sqlite") as changed:
        changed.execute("PRAGMA user_version = 0")
    assert "schema version 0" in failing(tmp_path / "old.sqlite")
    made_evidence.write(tmp_path / "methods.sqlite", 2, 1, ("efdi",))
    assert "no finished run of the method base" in failing(tmp_path / "methods.sqlite")
    assert not (tmp_path / "out").exists(), "nothing is written for them"


def test_the_race_stands_beside_every_rival_at_equal_cost(tmp_path):
    methods = (*made_evidence.METHODS, "race", "race@budget=0.5,self_refine=all")
    made_evidence.write(tmp_path / "runs.sqlite", prompts=30, methods=methods)
    evidence = load(tmp_path)
    rows = {row["method"]: row for row in yields(evidence).rows}
    raced = {"race", "race: budget=0.5, self_refine=all"}
    assert {name for name in rows if name.startswith("race")} == raced and rows[MAIN["base"]]["nfe"]["value"] == 0
    assert [row["nfe"]["value"] for row in rows.values()] == sorted(row["nfe"]["value"] for row in rows.values())
    beside = {row["rival"]: row for row in race_at_equal_cost(evidence).rows}
    assert MAIN["best_of_3"] in beside and beside[MAIN["reseed"]]["beats"] in ("yes", "no", "open")
    for row in beside.values():
        expected = "yes" if row["change"]["low"] > 0 else "no" if row["change"]["high"] < 0 else "open"
        assert row["beats"] == expected
    main([str(tmp_path)])
    assert (tmp_path / "evidence" / "yield.png").exists()
    series = {line.split(",")[1] for line in (tmp_path / "evidence" / "yield.csv").read_text().splitlines()[1:]}
    assert {"Plain", "Best of 3"} < series
    assert not race_at_equal_cost(load(made_evidence.write(tmp_path / "other.sqlite", prompts=12))).rows


def test_a_clip_that_stands_still_keeps_its_frames():
    frames = np.zeros((7, 16, 16, 3), np.uint8)
    frames[3:5] = 200
    read = read_webp(webp(frames))
    assert read.shape == frames.shape and np.abs(read.astype(int) - frames).max() < 12
    assert len(read_webp(webp(frames[:3]))) == 1


def test_diversity_is_the_difference_of_two_seeds_clips(tmp_path):
    """Plain clips that are black and grey; a method that gives the black one for both seeds, and one without clips."""
    made_evidence.write(tmp_path / "runs.sqlite", prompts=12, seeds=2, methods=("base", "reseed", "best_of_3"))
    with Store(tmp_path / "runs.sqlite", write=True) as store:
        rows = store.rows()
        store.remove(rows)
        black, grey = (webp(np.full((2, 8, 8, 3), value, np.uint8)) for value in (0, 102))
        seeds = sorted({row["seed"] for row in rows})
        for row in rows:
            shared = {"base_seed": seeds[0]} if row["method"] == "reseed" else {"base_seed": None}
            clip = {"base": black if row["seed"] == seeds[0] else grey}.get(row["method"])
            store.add([row | shared | {"clip": clip}], row["meta"])
    table = diversity(load(tmp_path))
    by_method = {row["method"]: row for row in table.rows}
    assert by_method[MAIN["base"]]["apart"]["value"] == pytest.approx(0.4, abs=0.01)
    assert by_method[MAIN["base"]]["same"]["value"] == 0 and by_method[MAIN["base"]]["prompts"] == 12
    same = by_method[MAIN["reseed"]]
    assert (same["apart"]["value"], same["same"]["value"]) == (0, 1)
    assert same["change"]["high"] == pytest.approx(-0.4, abs=0.01)
    assert MAIN["best_of_3"] not in by_method and not table.missing


def test_the_default_is_claimed_against_every_rival(tmp_path):
    made_evidence.write(tmp_path / "runs.sqlite", prompts=30, methods=(*made_evidence.METHODS, "race"))
    evidence = load(tmp_path)
    rows = claims(evidence, all_tables(evidence)[1:]).rows
    claimed = [row for row in rows if row["claim"].startswith("The default race")]
    assert len(claimed) == len(made_evidence.METHODS) - 1
    for row in claimed:
        assert row["holds"] == verdict(row["here"]) and "equal evaluations" in row["claim"]
