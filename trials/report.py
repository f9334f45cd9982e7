"""The run report: one JSON document that says what a run did, decided and cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .verdict import ItemVerdict, TrialRecord, Verdict

SCHEMA = "foresight.run_report"
VERSION = 1


class Report(dict):
    """A document that leaves as JSON: it is `safe` by being one. What is known later is added with |."""

    def __init__(self, values: Mapping[str, Any]):
        super().__init__(safe(values))

    def __or__(self, more: Mapping[str, Any]) -> Report:
        return Report({**self, **more})


def safe(value: Any) -> Any:
    """Any value as strict JSON that can be written as UTF-8: a number that is not finite becomes None, half an emoji
    the character that stands for what cannot be read, numpy's numbers plain ones, whatever else there is its text."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case Mapping():
            return {safe(str(key)): safe(item) for key, item in value.items()}
        case list() | tuple():
            return [safe(item) for item in value]
    return safe(value.item() if getattr(value, "shape", None) == () else str(value))


def run_report(verdict: Verdict) -> Report:
    """The report of everything that led to `verdict`.

    Keys: schema, version, prompt, negative, refined_prompt, refined_negative, seed, final_seed, settings, trials,
    trial, accepted, decided_by, predicted_score, final_score, final_scores, closer, nfe, nfe_video, nfe_single_frame,
    nfe_plain, nfe_worst_case, seconds, seconds_plain_estimate, notes. `accepted` is of what is delivered, and
    `decided_by` says what it rests on: "detector", "floor" (of a race's look), "final score" (against tau, where
    nothing else has judged the finished clip: in a race without floors, and of the paper's plan after a rejection),
    "hand", "nothing" (nothing could be scored, which passes), or "ranks": what came out of a race without floors, or of
    trials after a rejection, and was not scored; `accepted` is None then. `final_seed`: of the finished clip's noise,
    which Trial 2 or a race may have drawn anew. `candidates`: of a race, in the order in which they were tried, with
    what became of each; empty for the paper's plan. `final_score`: of the finished clip, the best of `final_scores`,
    which has one for each item of the batch; by its L2R preview, or by its frames once Run Report has them;
    `final_score_of` says which. None and empty where nothing was finished. `closer`: the trial and score of the best
    clip that was left, where that is above the final score; else None.
    """
    records, settings = verdict.history, dict(verdict.settings)
    worst_case, raced = settings.pop("worst_case", None), settings.pop("raced", [])
    delivered = _delivered(raced)
    last = _last(records, delivered)
    finals = [safe(score) for score in last.finals]
    final = safe(settings.pop("final_score", last.final))
    judgements = [
        record for record in records if record.best
        and (record.kind == "sample" or (delivered and record.trial == f"candidate {delivered['candidate']}"))
    ]  # fmt: skip
    accepted, decided_by = _decided(delivered, judgements, last, settings.get("tau"), final)
    rewordings = [record for record in records if record.kind == "refine" and record.accepted]
    reworded = rewordings[-1] if rewordings else None
    seed, other_seed = settings.pop("seed", None), reworded and reworded.details.get("seed")
    other_seed = settings.pop("final_seed", other_seed)
    steps = settings.get("steps")
    per_step = _evaluations_per_step(records)
    known = [record.details["nfe_plain"] for record in records if "nfe_plain" in record.details]
    nfe_plain = settings.pop("nfe_plain", known[0] if known else None)
    # With self-refinement or search, evaluations are no longer in step with the steps.
    enhanced = bool(known) or nfe_plain is not None
    nfe_video = sum(record.nfe_video for record in records)
    nfe_single_frame = sum(record.nfe_single_frame for record in records)
    return Report(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "prompt": settings.pop("prompt", None),
            "negative": settings.pop("negative", None),
            "refined_prompt": reworded and reworded.prompt,
            "refined_negative": reworded and reworded.negative,
            "seed": seed,
            "final_seed": seed if other_seed is None else other_seed,
            "final_score": final,
            "final_score_of": "preview",
            "final_scores": finals,
            "closer": _closer(records, last, final),
            "settings": settings,
            "trials": [_trial(record) for record in records],
            "trial": records[-1].trial,
            "candidates": raced,
            "accepted": accepted,
            "decided_by": decided_by,
            "predicted_score": judgements[-1].best.predicted_score if judgements else None,
            "nfe": nfe_video + nfe_single_frame,
            "nfe_video": nfe_video,
            "nfe_single_frame": nfe_single_frame,
            "nfe_plain": nfe_plain if enhanced else steps and math.ceil(steps * per_step),
            "nfe_worst_case": worst_case if enhanced else worst_case and math.ceil(worst_case * per_step),
            "seconds": sum(sum(record.seconds.values()) for record in records),
            "seconds_plain_estimate": _plain_seconds(records, steps, nfe_plain),
            "notes": [
                *(settings.get("text_notes") or ()),
                *(f"{_name(record)}: {record.message}" for record in records if record.message),
            ],
        }
    )


def with_final_score(report: Report, *finals: float) -> Report:
    """The report once the finished clip's frames are scored, item by item. Where only the final score judges, it does
    so anew."""
    final = safe(max(filter(math.isfinite, finals), default=math.nan))
    report = report | {"final_score": final, "final_score_of": "frames", "final_scores": list(finals)}
    if not all(map(math.isfinite, finals)):
        report = with_note(report, "the finished clip's score is not a number")
    if report["decided_by"] in ("ranks", "final score"):
        accepted, decided_by = _by_final_score(report["settings"].get("tau"), final)
        report = report | {"accepted": accepted, "decided_by": decided_by}
    return report


def with_note(report: Report, note: str) -> Report:
    return report | {"notes": [*report["notes"], note]}


def _delivered(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((row for row in rows if row["state"] == "delivered"), None)


def _last(records: tuple[TrialRecord, ...], delivered: dict[str, Any] | None) -> TrialRecord:
    """Of what is delivered: the last record, of a race that of the candidate's finish."""
    name = delivered and f"candidate {delivered['candidate']}"
    return next((record for record in reversed(records) if record.trial == name), records[-1])


def _closer(records: tuple[TrialRecord, ...], last: TrialRecord, final: float | None) -> dict[str, Any] | None:
    """The best of the clips that were begun and left, if it was ahead of the one that was finished."""
    others = {}
    for record in records:
        score = record.final if record.finals else record.best and record.best.predicted_score
        if record.trial != last.trial and record.kind != "probe" and score is not None and math.isfinite(score):
            others[record.trial] = score
    best = max(others, key=others.__getitem__, default=None)
    ahead = None not in (best, final) and others[best] > final
    return {"trial": best, "score": others[best]} if ahead else None


def _decided(
    delivered: dict[str, Any] | None, judgements: list[TrialRecord], last: TrialRecord, tau: float | None,
    final: float | None,
) -> tuple[bool | None, str]:
    """`accepted` and `decided_by`."""
    if row := delivered:
        if row["by_hand"]:
            return row["by_hand"] == "accepted", "hand"
        if row["floor"] is not None:
            return (True, "nothing") if row["score"] is None else (row["score"] >= row["floor"], "floor")
        return _by_final_score(tau, final)
    if last.kind in ("inject", "plain") and judgements:  # after a rejection, and not judged on its way
        return _by_final_score(tau, final)
    if not judgements or judgements[-1].best.rule == "not_inspected":
        return True, "nothing"
    by_hand = judgements[-1].best.rule.startswith("user_")
    return judgements[-1].accepted, "hand" if by_hand else "detector"


def _by_final_score(tau: float | None, final: float | None) -> tuple[bool | None, str]:
    return (None, "ranks") if None in (final, tau) else (final >= tau, "final score")


def _name(record: TrialRecord) -> str:
    raced = record.kind in ("candidate", "finish")
    return record.trial.capitalize() if raced else f"Trial {record.trial}, {record.kind}"


def to_json(report: Report) -> str:
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

