"""The figures of the main job's page, on runs whose outcome is known beforehand."""

from __future__ import annotations

import pytest

from foresight.lab.experiments.main_job import environment, markdown, summarize


def made_up(prompt: int, seed: int, right: bool, accepted: bool, final: bool, rival: bool, trial: str) -> dict:
    score = 0.4 + 0.01 * seed if accepted else 0.1 + 0.01 * seed
    return {
        "prompt_index": prompt, "prompt": f"a {('red', 'blue', 'green')[prompt % 3]} circle moves left",
        "difficulty": ("easy", "medium", "hard")[prompt % 3], "seed": seed, "right_base": right, "accepted": accepted,
        "predicted_score": score, "stop_step": 10, "rule": "slope", "trace": [[step, score] for step in range(1, 15)],
        "nfe_plain": 50, "seconds_plain": 1.0, "trial": trial, "right_final": final, "right_reseed": rival,
        "nfe": 50 if accepted else 100, "nfe_single_frame": 0, "seconds": 1.0 if accepted else 2.0,
        "nfe_reseed": 50 if accepted else 75,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    # Each prompt: two good clips that pass, a good one that is rejected and kept by both, a failure that the hierarchy
    # repairs, one that only reseeding repairs, and one that is not seen.
    outcomes = (
        (True, True, True, True, "0"), (True, True, True, True, "0"), (True, False, True, True, "1"),
        (False, False, True, False, "1"), (False, False, False, True, "2"), (False, True, False, False, "0"),
    )  # fmt: skip
    return [made_up(prompt, seed, *outcome) for prompt in range(6) for seed, outcome in enumerate(outcomes)]


def test_summary_counts_what_was_repaired_spoiled_and_spent(runs):
    summary = summarize(runs)
    detector, every = summary["detector"], summary["all_trials"]
    assert (summary["runs"], summary["prompts"]) == (36, 6)
    assert (detector["failures_caught"]["count"], detector["failures_caught"]["of"]) == (12, 18)
    assert (detector["good_clips_rejected"]["count"], detector["good_clips_rejected"]["of"]) == (6, 18)
    assert (every["repaired"]["count"], every["repaired"]["of"]) == (6, 12)
    assert (every["repaired_by_reseeding"]["count"], every["spoiled"]["count"]) == (6, 0)
    assert summary["trials"]["1"]["repaired"]["value"] == 1
    assert summary["trials"]["2"]["repaired"]["value"] == 0
    assert summary["right"]["hierarchy"]["value"] == pytest.approx(24 / 36)
    assert summary["right"]["hierarchy_minus_base"]["value"] == pytest.approx(6 / 36)
    assert summary["cost"]["nfe_overhead"]["value"] == pytest.approx(0.5)
    # Within a prompt: right .40 .41 .12 against wrong .13 .14 .45, of nine pairs four are in order.
    assert detector["auc_within_prompt"]["value"] == pytest.approx(4 / 9)
    assert detector["auc_text_only"]["value"] == pytest.approx(0.5)  # every prompt fails alike


def test_page_states_the_same_figures(runs):
    summary = summarize(runs)
    pytest.importorskip("comfyui_version")
    page = markdown({"summary": summary, "settings": {"seeds": 6}, "environment": environment("the command")})
    assert "12 of 18" in page
    assert "| 1 | 12 | 100.0 %" in page
    assert "nan" not in page


def test_no_rejected_run_is_no_error(runs):
    accepted = [run for run in runs if run["accepted"]]
    page = markdown({"summary": summarize(accepted), "settings": {"seeds": 3}, "environment": environment("c")})
    assert "none" in page
