"""The run report: one JSON document that says what a run did, decided and cost."""

from __future__ import annotations

import json
import math
from typing import Any

from .verdict import ItemVerdict, TrialRecord, Verdict

SCHEMA = "foresight.run_report"
VERSION = 1


def run_report(verdict: Verdict) -> dict[str, Any]:
    """The report of everything that led to `verdict`, ready for json.dumps (no NaN, no tensors).

    Keys: schema, version, prompt, negative, refined_prompt, refined_negative, seed, final_seed, settings, trials,
    trial, accepted, predicted_score, final_score, nfe, nfe_video, nfe_single_frame, nfe_plain, nfe_worst_case, seconds,
    seconds_plain_estimate, notes. `accepted` is the last verdict that was passed: an injected run is not judged again
    (paper, section 3.2), so after it `accepted` still tells of the run that it replaced. `final_seed`: of the finished
    clip's noise, which Trial 2 or a race may have drawn anew. `candidates`: of a race, in the order in which they were
    tried, with what became of each; empty for the paper's plan. `final_score`: of the finished clip's L2R preview after
    a race, and of its frames once Run Report has them; `final_score_of` says which.
    """
    records, settings = verdict.history, dict(verdict.settings)
    worst_case, raced = settings.pop("worst_case", None), settings.pop("raced", [])
    delivered = next((row["candidate"] for row in raced if row["state"] == "delivered"), None)
    judgements = [
        record for record in records
        if record.best and (record.kind == "sample" or record.trial == f"candidate {delivered}")
    ]  # fmt: skip
    accepted = judgements[-1].accepted if judgements else True
    rewordings = [record for record in records if record.kind == "refine" and record.accepted]
    reworded = rewordings[-1] if rewordings else None
    seed, other_seed = settings.pop("seed", None), reworded and reworded.details.get("seed")
    other_seed = settings.pop("final_seed", other_seed)
    steps = settings.get("steps")
    per_step = _evaluations_per_step(records)
    nfe_plain = next((record.details["nfe_plain"] for record in records if "nfe_plain" in record.details), None)
    nfe_plain = settings.pop("nfe_plain", nfe_plain)
    enhanced = nfe_plain is not None  # self-refinement or search: evaluations are no longer in step with the steps
    nfe_video = sum(record.nfe_video for record in records)
    nfe_single_frame = sum(record.nfe_single_frame for record in records)
    return finite(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "prompt": settings.pop("prompt", None),
            "negative": settings.pop("negative", None),
            "refined_prompt": reworded and reworded.prompt,
            "refined_negative": reworded and reworded.negative,
            "seed": seed,
            "final_seed": seed if other_seed is None else other_seed,
            "final_score": settings.pop("final_score", None),
            "final_score_of": "preview",
            "settings": settings,
            "trials": [_trial(record) for record in records],
            "trial": records[-1].trial,
            "candidates": raced,
            "accepted": settings.pop("accepted", accepted),
            "predicted_score": judgements[-1].best.predicted_score if judgements else None,
            "nfe": nfe_video + nfe_single_frame,
            "nfe_video": nfe_video,
            "nfe_single_frame": nfe_single_frame,
            "nfe_plain": nfe_plain if enhanced else steps and math.ceil(steps * per_step),
            "nfe_worst_case": worst_case if enhanced else worst_case and math.ceil(worst_case * per_step),
            "seconds": sum(sum(record.seconds.values()) for record in records),
            "seconds_plain_estimate": _plain_seconds(records, steps, nfe_plain),
            "notes": [f"{_name(record)}: {record.message}" for record in records if record.message],
        }
    )


def with_final_score(report: dict[str, Any], final: float | None) -> dict[str, Any]:
    """The report once the finished clip's frames are scored. Where no floor has judged a race, its final score does."""
    row = next((row for row in report["candidates"] if row["state"] == "delivered"), None)
    tau, accepted, final = report["settings"].get("tau"), report["accepted"], finite(final)
    if row and row["floor"] is None and not row["by_hand"] and None not in (final, tau):
        accepted = final >= tau
    return report | {"final_score": final, "final_score_of": "frames", "accepted": accepted}


def _name(record: TrialRecord) -> str:
    raced = record.kind in ("candidate", "finish")
    return record.trial.capitalize() if raced else f"Trial {record.trial}, {record.kind}"


def to_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)


def _trial(record: TrialRecord) -> dict[str, Any]:
    best = record.best
    return {
        "trial": record.trial,
        "kind": record.kind,
        "succeeded": record.accepted,
        "verdict": best and {**_item(best), "accepted": record.accepted, "message": record.message},
        "items": [_item(item) for item in record.items] if len(record.items) > 1 else [],
        "nfe_video": record.nfe_video,
        "nfe_single_frame": record.nfe_single_frame,
        "seconds": {part: record.seconds.get(part, 0.0) for part in ("sampling", "inspection", "refinement")},
        "details": record.details,
    }


def _item(item: ItemVerdict) -> dict[str, Any]:
    return {
        "accepted": item.accepted,
        "predicted_score": item.predicted_score,
        "stop_step": item.stop_step,
        "rule": item.rule,
        "trace": [[step, score] for step, score in item.trace],
    }


def _evaluations_per_step(records: tuple[TrialRecord, ...]) -> float:
    """1 for most samplers, up to 2 for those that look ahead (heun, dpm_2)."""
    done = [record for record in records if record.steps]
    evaluations = sum(record.nfe_video + record.nfe_single_frame for record in done)
    return evaluations / sum(record.steps for record in done) if done else 1.0


def _plain_seconds(records: tuple[TrialRecord, ...], steps: int | None, evaluations: int | None) -> float | None:
    """Seconds that plain sampling would have taken, from this run's own time per video step; where a step is not always
    the same evaluations, per evaluation of the `evaluations` that plain sampling takes."""
    video = [record for record in records if record.nfe_video and record.steps]
    whole = evaluations if evaluations is not None else steps
    done = sum(record.nfe_video if evaluations is not None else record.steps for record in video)
    return sum(record.seconds.get("sampling", 0.0) for record in video) / done * whole if done and whole else None


def finite(value: Any) -> Any:
    """JSON has no NaN: scores that were not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
