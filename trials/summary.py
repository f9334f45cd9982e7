"""A run report in words: what the text widget shows, and the lines the picture shares with it."""

from __future__ import annotations

import math
from typing import Any

# Trial and kind of the last record -> what became of the run.
_OUTCOMES = {
    ("1", "inject"): "Rejected, then redone by Trial 1 from a single frame",
    ("2", "sample"): "Rejected, then redone by Trial 2 with a refined prompt",
    ("2->1", "inject"): "Rejected twice, then redone by Trial 2->1 with a refined prompt, from a single frame",
    ("0", "plain"): "Rejected, then sampled plainly: no trial could help",
    ("2", "plain"): "Rejected twice, then sampled plainly with the refined prompt",
}
_KINDS = {
    "sample": "video",
    "probe": "single frame",
    "refine": "prompt refinement",
    "inject": "video from the anchor",
    "plain": "video, not inspected",
    "candidate": "video",
    "finish": "gone on with",
}
COLUMNS = ("Trial", "What", "Verdict", "Predicted", "Stop step", "Rule", "NFE", "Seconds")


def headline(report: dict[str, Any]) -> str:
    """One line: what became of the run."""
    if report["candidates"]:
        return _race_headline(report)
    last = report["trials"][-1]
    trial, kind, verdict = last["trial"], last["kind"], last["verdict"]
    if kind == "sample" and verdict and not verdict["accepted"]:
        return f"Trial {trial} was rejected: this video is predicted to fail"
    if kind == "probe":
        outcome = "gives an anchor" if verdict and verdict["accepted"] else "is not better than the video by delta"
        return f"Trial {trial}: the single frame {outcome}"
    if kind == "refine":
        if report["final_seed"] != report["seed"]:
            return "Trial 2: other noise was drawn"
        return f"Trial 2: the prompt {'was' if report['refined_prompt'] else 'could not be'} refined"
    if (trial, kind) == ("0", "plain") and len(report["trials"]) == 1:
        return "Sampled plainly, without inspection"
    if (trial, kind) == ("0", "sample"):
        has_score = verdict and verdict["predicted_score"] is not None
        return "Passed: the run was not touched" if has_score else "Passed without a score: the run was not touched"
    outcome = _OUTCOMES[trial, kind]
    if report["final_seed"] != report["seed"]:
        outcome = outcome.replace("a refined prompt", "other noise").replace("the refined prompt", "other noise")
    return outcome


def _race_headline(report: dict[str, Any]) -> str:
    tried = report["candidates"]
    row = next(row for row in tried if row["state"] == "delivered")
    if row["candidate"] == 1 and len(tried) == 1:
        return "Passed: the run was not touched" if row["score"] is not None else "Passed without a score: not touched"
    below = "" if report["accepted"] else ", still below what is asked"
    refined = ", self-refined" if row["self_refined"] else ""
    return f"{len(tried)} tried: candidate {row['candidate']} (seed {row['seed']}{refined}) is delivered{below}"


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of COLUMNS for each executed trial, in order."""
    return [_row(trial) for trial in report["trials"]]


def totals(report: dict[str, Any]) -> str:
    """One line: model evaluations and time, beside those of a plain run."""
    plain = [f"plain {report['nfe_plain']}"] if report["nfe_plain"] else []
    worst = [f"at most {report['nfe_worst_case']}"] if report["nfe_worst_case"] else []
    compared = f" ({', '.join(plain + worst)})" if plain or worst else ""
    estimate = report["seconds_plain_estimate"]
    about = "" if estimate is None else f" (plain about {estimate:.1f} s)"
    return f"{report['nfe']} NFE{compared}, {report['seconds']:.1f} s{about}"


def expense(usage: dict[str, Any]) -> str:
    """One line: what a model's answer to Trial 2 has cost."""
    parts = [f"{usage['profile']} ({usage['model']}), {usage['attempts']} attempt(s)"] if "profile" in usage else []
    tokens = [f"{usage[key]} {key.replace('_', ' ')}" for key in ("prompt_tokens", "completion_tokens") if key in usage]
    price = [] if usage.get("price") is None else [f"price {usage['price']:.2g}"]
    return ", ".join(parts + tokens + price)


def score(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def report_text(report: dict[str, Any]) -> str:
    """The report as plain text, a line for each trial. `report` is what trials.report.run_report gives."""
    lines = [headline(report)]
    if report["prompt"]:
        lines.append(f"Prompt: {report['prompt']}")
    if report["refined_prompt"] not in (None, report["prompt"]):
        lines.append(f"Refined: {report['refined_prompt']}")
    if report["refined_negative"] and report["refined_negative"] != report["negative"]:
        lines.append(f"Refined negative: {report['refined_negative']}")
    for trial, what, verdict, predicted, stop, rule, nfe, seconds in rows(report):
        judgement = f": {verdict}" if verdict != "-" else ""
        if predicted != "-":
            judgement += f", predicted {predicted} at step {stop} ({rule})"
        name = trial.capitalize() if report["candidates"] else f"Trial {trial}"
        lines.append(f"{name}, {what}{judgement}; {nfe} NFE, {seconds} s")
    if report["final_seed"] != report["seed"]:
        lines.append(f"Seed: {report['seed']}, then {report['final_seed']}")
    if report["final_score"] is not None:
        lines.append(f"Final score: {score(report['final_score'])}")
    lines += [f"Asked: {expense(usage)}" for trial in report["trials"] if (usage := trial["details"].get("usage"))]
    lines.append(totals(report))
    lines += [f"Note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _row(trial: dict[str, Any]) -> tuple[str, ...]:
    verdict = trial["verdict"]
    judgement = ("-", "-", "-", "-")
    if verdict:
        step = verdict["stop_step"]
        accepted, rejected = ("used", "not used") if trial["kind"] == "probe" else ("accepted", "rejected")
        judgement = (
            accepted if verdict["accepted"] else rejected,
            score(verdict["predicted_score"]),
            "-" if step is None else str(step),
            verdict["rule"].replace("_", " "),
        )
    nfe = trial["nfe_video"] + trial["nfe_single_frame"]
    what = _KINDS[trial["kind"]]
    if trial["kind"] == "refine" and not trial.get("succeeded", True):
        what = "prompt not refined"
    return trial["trial"], what, *judgement, str(nfe), f"{sum(trial['seconds'].values()):.1f}"
