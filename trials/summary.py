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
# Kinds of trials and rules of the detector, in the panel's words (web/runs.js).
KINDS = {
    "sample": "clip", "probe": "single frame", "refine": "better prompt", "inject": "clip from the frame",
    "plain": "clip, not judged",
}  # fmt: skip
RULES = {
    "early_reject": "stays below the threshold", "give_up": "falls below the threshold",
    "early_accept": "stays above the threshold", "stable_stop": "the score has settled",
    "budget": "the window's best score", "below_floor": "below the calibrated floor",
    "not_inspected": "could not be judged", "user_accept": "you accepted it", "user_reject": "you rejected it",
}  # fmt: skip
_ADDITIONS = {"search": "searched for", "self_refine": "self-refined"}  # keys of a trial's details
COLUMNS = ("Trial", "What", "Verdict", "Predicted", "Stop step", "Why", "Evaluations", "Seconds")
RACE_COLUMNS = ("Candidate", "Seed", "Self-refined", "Score at its look", "Floor", "State", "Evaluations", "Seconds")


def headline(report: dict[str, Any]) -> str:
    """One line: what became of the run, and how it ended."""
    if not report["candidates"]:
        return _ladder_headline(report) + _still(report)
    nfe, plain, most = (report[key] for key in ("nfe", "nfe_plain", "nfe_worst_case"))
    cost = f"It took {nfe} model evaluations; a plain clip {plain}, this race at most {most}."
    return f"{_why(report)}{_still(report)}. {cost}"


def _ladder_headline(report: dict[str, Any]) -> str:
    last = report["trials"][-1]
    trial, kind, verdict = last["trial"], last["kind"], last["verdict"]
    if kind == "sample" and verdict and not verdict["accepted"]:
        if report["final_scores"]:
            return f"Trial {trial} was rejected, and sampled to its end all the same"
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
        if verdict and verdict["rule"] == "user_accept":
            passed = "Accepted by hand"
        else:
            passed = "Passed" if has_score else "Passed without a score"
        done = [word for key, word in _ADDITIONS.items() if last["details"].get(key)]
        return f"{passed}: the run was {' and '.join(done) or 'not touched'}"
    outcome = _OUTCOMES[trial, kind]
    if report["final_seed"] != report["seed"]:
        outcome = outcome.replace("a refined prompt", "other noise").replace("the refined prompt", "other noise")
    return outcome


def _still(report: dict[str, Any]) -> str:
    """What is to be said of the end beside how it came about: what is below tau, or below what was left for it."""
    least, final, closer = report["settings"].get("tau"), report["final_score"], report["closer"]
    said = ""
    if None not in (least, final):
        below = [i for i, each in enumerate(report["final_scores"], 1) if each is not None and each < least]
        if final < least:
            said = f", its final score {final:.3f} still below tau {least:.3f}"
        elif below:
            said = f", item {' and '.join(map(str, below))} of the batch still below tau {least:.3f}"
    if closer:
        said += f", and below the {closer['score']:.3f} of {named(closer['trial'])}, which was left"
    if report["accepted"] is None:
        said += "; it was not scored, so whether it matches its prompt is not known"
    return said


def named(trial: str) -> str:
    return trial if trial.startswith("candidate") else f"Trial {trial}"


def _why(report: dict[str, Any]) -> str:
    tried = report["candidates"]
    row = next(row for row in tried if row["state"] == "delivered")
    name, step = f"candidate {row['candidate']}", row["look_step"]
    aside = any(trial["trial"] == name and trial["kind"] == "finish" for trial in report["trials"])
    if row["by_hand"] == "accepted":
        return f"Accepted by hand: {name} is delivered"
    if row["by_hand"] == "rejected":
        return f"All were rejected by hand: {name} is delivered, because something must be"
    below = aside and row["floor"] is not None
    if len(tried) == 1:
        if below:
            return f"Still below its floor, but the budget allows no other candidate: {name} is delivered"
        if row["floor"] is None:
            outcome = "The only candidate"
        else:
            outcome = "Passed" if row["score"] is not None else "Passed without a score"
        return f"{outcome}: {'self-refined from its start' if row['self_refined'] else 'the run was not touched'}"
    if sum(other["state"] != "put aside" for other in tried) > 1:
        return f"{name.capitalize()} of {len(tried)} is delivered, the better of two finished clips"
    if below:
        return f"None of {len(tried)} passed: {name}, nearest to its floor at step {step}, is delivered, still below it"
    if aside:
        return f"{name.capitalize()} of {len(tried)} is delivered, the best at step {step}"
    unseen = "could not be scored, which passes" if row["score"] is None else f"passed at step {step}"
    return f"{name.capitalize()} of {len(tried)} is delivered: it {unseen}"


def race_rules(report: dict[str, Any]) -> str:
    """One line: how candidates were judged."""
    settings = report["settings"]
    looks = settings["looks"]
    steps = " and ".join(str(look["step"]) for look in looks)
    look = f"After step {steps} of {settings['steps']} the preview of each candidate is scored against the prompt"
    if settings["race_preset"] is None:
        return f"{look}; no floors are fitted to this model, so the best of them goes on."
    each = " and ".join(f"{score(look['floor'])}, self-refined {score(look['floor_self_refined'])}" for look in looks)
    floors = f"{each}; from {settings['race_preset']}"
    return f"{look}; below its floor ({floors}) it is put aside and the next seed is tried."


def _race_row(report: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    state = row["state"] if row["state"] != "finished" else f"finished, final score {score(row['final_score'])}"
    seconds = sum(
        sum(trial["seconds"].values())
        for trial in report["trials"] if trial["trial"] == f"candidate {row['candidate']}"
    )  # fmt: skip
    return (
        str(row["candidate"]), str(row["seed"]), "yes" if row["self_refined"] else "no", score(row["score"]),
        score(row["floor"]), f"{row['by_hand']} by hand, {state}" if row["by_hand"] else state, str(row["nfe"]),
        f"{seconds:.1f}",
    )  # fmt: skip


def columns(report: dict[str, Any]) -> tuple[str, ...]:
    """Heads of `rows`."""
    return RACE_COLUMNS if report["candidates"] else COLUMNS


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of `columns` for each candidate of a race, else for each executed trial, in order."""
    if report["candidates"]:
        return [_race_row(report, row) for row in report["candidates"]]
    return [_row(trial) for trial in report["trials"]]


def _beside(report: dict[str, Any]) -> str:
    """Model evaluations of a plain run, and the most that this one could take."""
    plain, most = report["nfe_plain"], report["nfe_worst_case"]
    return ", ".join(([f"plain {plain}"] if plain else []) + ([f"at most {most}"] if most else []))


def totals(report: dict[str, Any]) -> str:
    """One line: model evaluations and time, beside those of a plain run."""
    estimate = report["seconds_plain_estimate"]
    about = "" if estimate is None else f" (plain about {estimate:.1f} s)"
    beside = _beside(report)
    return f"{report['nfe']} model evaluations (NFE{beside and f'; {beside}'}), {report['seconds']:.1f} s{about}"


def expense(usage: dict[str, Any]) -> str:
    """One line: what a model's answer to Trial 2 has cost."""
    parts = [f"{usage['profile']} ({usage['model']}), {usage['attempts']} attempt(s)"] if "profile" in usage else []
    tokens = [f"{usage[key]} {key.replace('_', ' ')}" for key in ("prompt_tokens", "completion_tokens") if key in usage]
    price = [] if usage.get("price") is None else [f"price {usage['price']:.2g}"]
    return ", ".join(parts + tokens + price)


def final_score(report: dict[str, Any]) -> str:
    tau = report["settings"].get("tau")
    wanted = "" if tau is None else f" (tau {tau:.3f})"
    return f"{score(report['final_score'])} by its {report['final_score_of']}{wanted}"


def below(report: dict[str, Any], final: float | None) -> bool:
    """Whether a final score is still below tau."""
    tau = report["settings"].get("tau")
    return None not in (tau, final) and final < tau


def end(report: dict[str, Any], final: float | None) -> str:
    """A final score, and whether it is still below tau."""
    return score(final) + (f", still below tau {report['settings']['tau']:.3f}" if below(report, final) else "")


def score(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def report_text(report: dict[str, Any]) -> str:
    """The report as plain text, a line for each trial. `report` is what trials.report.run_report gives."""
    lines = [headline(report)]
    if report["prompt"]:
        source = report["settings"].get("prompt_from")
        lines.append(f"Prompt{source and f', from {source}' or ''}: {report['prompt']}")
        read = report["settings"].get("scored_text")
        if pieces := report["settings"].get("scored_pieces"):
            lines.append(f"Scored against its words, in {len(pieces)} pieces: {' | '.join(pieces)}")
        elif read not in (None, " ".join(report["prompt"].split())):
            lines.append(f"Scored against its words: {read or '(none)'}")
    if report["refined_prompt"] not in (None, report["prompt"]):
        lines.append(f"Refined: {report['refined_prompt']}")
    if report["refined_negative"] and report["refined_negative"] != report["negative"]:
        lines.append(f"Refined negative: {report['refined_negative']}")
    if report["candidates"]:
        lines.append(race_rules(report))
    if report["candidates"]:
        lines += [_race_line(*cells) for cells in rows(report)]
    else:
        for cells, trial in zip(rows(report), report["trials"], strict=True):
            lines += [_line(*cells), *_items(trial)]
    if report["final_seed"] != report["seed"] and not report["candidates"]:
        lines.append(f"Seed: {report['seed']}, then {report['final_seed']}")
    if report["final_score"] is not None:
        lines.append(f"Final score: {final_score(report)}")
    if len(report["final_scores"]) > 1:
        lines += [f"Item {i}: final score {end(report, each)}" for i, each in enumerate(report["final_scores"], 1)]
    lines += [f"Asked: {expense(usage)}" for trial in report["trials"] if (usage := trial["details"].get("usage"))]
    lines.append(totals(report))
    lines += [f"Note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _items(trial: dict[str, Any]) -> list[str]:
    """A line for each item of a batch that was judged."""
    return [
        f"  Item {i}: {'accepted' if item['accepted'] else 'rejected'}, {RULES[item['rule']]}, predicted score "
        f"{score(item['predicted_score'])}"
        for i, item in enumerate(trial["items"], 1)
    ]


def _race_line(number, seed, self_refined, at_look, floor, state, nfe, seconds) -> str:
    refined = ", self-refined" if self_refined == "yes" else ""
    against = "" if floor == "-" else f", floor {floor}"
    return f"Candidate {number}, seed {seed}{refined}: {at_look}{against}: {state}; {nfe} evaluations, {seconds} s"


def _line(trial, what, verdict, predicted, stop, why, nfe, seconds) -> str:
    judgement = "" if verdict == "-" else f": {verdict}"
    if stop != "-":
        judgement += f" at step {stop}"
    if why != "-":
        judgement += f", {why}"
    if predicted != "-":
        judgement += f", predicted score {predicted}"
    return f"Trial {trial}, {what}{judgement}; {nfe} evaluations, {seconds} s"


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
            RULES[verdict["rule"]],
        )
    nfe = trial["nfe_video"] + trial["nfe_single_frame"]
    what = KINDS[trial["kind"]]
    if trial["kind"] == "refine" and not trial.get("succeeded", True):
        what = "no better prompt"
    return trial["trial"], what, *judgement, str(nfe), f"{sum(trial['seconds'].values()):.1f}"
