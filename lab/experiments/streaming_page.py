"""The page of `lab/experiments/streaming.py`: its tables, and the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.results import number, percent
from .common import made_by
from .stream_gate import VALIDATED
from .streaming_claims import HOLDS, LAST, NOT, OPEN, RIGHT

TITLES = {
    "students": "Students, the causal model that they start from, and the demo's transformer",
    "gate": "The gate and its rivals, at equal mean forwards",
    "long gate": "The gate on clips of three times the trained length, by part",
    "schedules": "Schedules (paper, Tables 3, 5 and 6)",
    "turns": "Prompts that change half way",
    "ablation": "Trained without a part (paper, Tables 2 and 9; Figure 5a)",
    "long": "Long rollouts, by segment",
    "history": "Noise of the history (paper, Figure 5a)",
    "window": "Window and sink (paper, Table 4)",
}
NOTES = {
    "students": "The demo's transformer makes 17 frames at once, the others 25 latent by latent, so that its motion "
    "has less to go wrong: the row says what the world's own model is worth, not what a stream of it would be.",
    "gate": "Scored as the node Chunk Gate does in this family: previews (L2R) of the clip so far, by the demo's "
    "ViCLIP; judged by the program, which no plan asks. Plans with a floor have the one at which they spent what "
    "the name says on {validated} validation prompts; forwards are what they spent here. A chunk is drawn at most 5 "
    "times, and twice where chunks are taken back; a clip is begun at most 16 times; nothing spends more than three "
    "times the plain stream on a clip.",
    "long gate": "Clips of the four-step student as `dev.py demo --streaming` makes them: 21 latents, of prompts that "
    "state a motion; objects turn at latents 7, 13 and 19, and the prompt with them; window 7. The demo's gate has the "
    "settings of its graph, which were found on validation prompts. all parts: the share of parts that are right; "
    "against no gate: of that, paired by prompt.",
    "schedules": "One student, trained for 4322222 alone: other rows are also further from its training.",
    "turns": "Objects turn back, stop or set out at the fifth latent, and the prompt with them; prompts whose objects "
    "all stay still are left out. In the first part all is still open, what a scene shows as well; the later one is "
    "nearly determined by it, but for the motion.",
    "ablation": "Rows with other steps of training than ablation_full cannot be compared with it, and no claim does.",
    "long": "Objects turn whenever they have come as far as a clip of 7 latents lets them, and the prompt with them; "
    "window 7, no sink. Segments after the first show what the first has settled, so they lose right clips and gain "
    "none.",
}  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines] + [""]


def _long(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        lines += [f"{row['name']}, {row['forwards']:g} forwards, {row['prompts']} prompts:", ""]
        lines += table(("segment", "right", "saturation", "motion"), [
            (at, percent(each["right"]), number(each["saturation"]), number(each["motion"]))
            for at, each in enumerate(row["segments"], 1)
        ])  # fmt: skip
    return lines


def _arms(name: str, rows: Sequence[Mapping[str, Any]], trained: Mapping[str, Mapping[str, str]]) -> list[str]:
    columns = ["arm", "prompts", "forwards", "right", "against its own", "motion", "seconds a clip"]
    parted, told = name == "turns", name == "ablation"
    columns[4:4] = ["first part", "later part"] if parted else []
    columns += ["steps of training"] if told else []
    lines = []
    for row in rows:
        line = [row["name"], row["prompts"], f"{row['forwards']:g}", percent(row["right"]),
                percent(row["change"], signed=True) if "change" in row else "-", number(row["motion"]),
                f"{row['seconds']:.3f}"]  # fmt: skip
        line[4:4] = [percent(row["segments"][0]["right"]), percent(row["later_right"])] if parted else []
        line += [trained.get(row["name"].split(",")[0], {}).get("steps", "-")] if told else []
        lines.append(line)
    return table(columns, lines)


def _parts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    count = max(len(row["segments"]) for row in rows)
    parts = [f"part {at + 1}" for at in range(count)]
    columns = ["arm", "prompts", "forwards", *parts, "all parts", "against no gate", "whole clips"]
    return table(columns, [
        (row["name"], row["prompts"], f"{row['forwards']:g}", *(percent(each["right"]) for each in row["segments"]),
         percent(row["parts_right"]), percent(row["parts_change"], signed=True) if "parts_change" in row else "-",
         percent(row["right"]))
        for row in rows
    ])  # fmt: skip


def summary(document: Mapping[str, Any]) -> str:
    """What docs/streaming.md tells of it."""
    rows = {row["name"]: row for row in document["tables"].get("students", [])}
    lines = [
        f"Right clips of {document['prompts']} {document['split']} prompts: " + "; ".join(
            f"{name} steps {percent(row['right'])} by {row['forwards']:g} forwards" for name, row in rows.items()
        ) + ". [All tables](results/streaming_students.md).", "", *claims_told(document["claims"]),
    ]  # fmt: skip
    return "\n".join(lines)


def claims_told(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many hold, and those that were run."""
    run = [claim for claim in claims if claim["here"]]
    found = [claim["verdict"] for claim in run]
    counts = ", ".join(f"{verdict}: {found.count(verdict)}" for verdict in (HOLDS, NOT, OPEN))
    return [
        f"Of {len(claims)} claims {len(run)} were run ({counts}):", "",
        *table(("claim", "the papers", "here", ""),
               [(claim["claim"], claim["paper"], here(claim), claim["verdict"]) for claim in run]),
    ]  # fmt: skip


def here(claim: Mapping[str, Any]) -> str:
    """What was found of a claim: shares of clips in points, all else as it is."""
    cell = claim["here"]
    if cell is None:
        return "not run"
    return percent(cell, signed=True) if claim["measure"] in (RIGHT, LAST) else number(cell)


def markdown(document: Mapping[str, Any]) -> str:
    lines = [
        "# Streaming students of the demo world", "",
        f"Up to {document['prompts']} {document['split']} prompts, one clip each, the same noise for all arms of a "
        "table; a clip is right where every segment is. Forwards are all of them, those for the cache included (with "
        "guidance both sides count as one). Motion is the judge's: pixels a frame that objects go the way which their "
        "prompt states, where it states one; 1 is what the world does. against its own: paired, points of right clips. "
        f"{made_by(document)}", "",
        "## Claims", "",
        "A claim holds where the whole interval is on its side, does not hold where it is on the other, and is open "
        "otherwise, or where it was not run. here: the difference in points of right clips (half the forwards: the "
        "ratio; motion and drift: as they are). The papers' scores are VBench's, so directions can be compared, and "
        "sizes cannot.", "",
    ]  # fmt: skip
    lines += table(("claim", "the papers", "here", "", "what this world flatters"), [
        (claim["claim"], claim["paper"], here(claim), claim["verdict"], claim["flatters"])
        for claim in document["claims"]
    ])  # fmt: skip
    for name, title in TITLES.items():
        if rows := document["tables"].get(name):
            lines += [f"## {title}", ""]
            if name in NOTES:
                lines += [NOTES[name].format(validated=VALIDATED), ""]
            lines += {"long": _long, "long gate": _parts}[name](rows) if name in ("long", "long gate") else _arms(
                name, rows, document["trained"])  # fmt: skip
    if times := document["timings"]:
        slowest = next(row for row in times if row["name"].startswith("whole"))["all"]
        lines += ["## Time of one clip alone", "",
                  "Seconds of one thread, medians of rounds in which all take their turn; decoding is left out. The "
                  "demo's transformer shows nothing before it is done, and makes two thirds of the frames.",
                  ""]  # fmt: skip
        lines += table(("what", "first chunk, s", "all, s", "first chunk against the transformer's clip"), [
            (row["name"], f"{row['first']:.3f}", f"{row['all']:.3f}", f"{row['first'] / slowest:.3f}") for row in times
        ])  # fmt: skip
    return "\n".join(lines)
