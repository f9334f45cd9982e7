"""The claims of AutoRefiner and of equal cost, held against intervals; the page of `lab/experiments/refiner.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...evaluation.results import number, percent
from .common import made_by
from .streaming_claims import BETTER, EQUAL, RIGHT, SAME, WORSE, Claim
from .streaming_page import claims_told, here, table

NONE = "none"
MATCHED, REWARDED = "dmd", "reward"
MOTION, ALIKE = "motion", "alike"
LATER = "chunks after the first are nearly determined by it, so that less is left to refine"
STILL = "the world has one speed, which a prompt states: more motion is no better clip"


def _ablations(mode: str) -> Iterator[Claim]:
    """The paper's, which are by matching, held against files of one mode."""
    whole = f"path_{mode}"
    for step, level, total in ((1, 750, "84.61"), (2, 500, "84.43"), (3, 250, "84.40")):
        yield Claim(f"step {step}, {mode}", f"By {mode}: refining at {level} alone is worse than at all steps",
                    f"{total} and 84.72 (Table 3)", f"{whole}_step{step}", whole, **WORSE)  # fmt: skip
    for name, what, total in (
        ("blind", "neither history nor prediction", "84.37"), ("history", "history alone", "84.39"),
        ("prediction", "the prediction alone", "84.41"),
    ):  # fmt: skip
        yield Claim(f"{name}, {mode}", f"By {mode}: a refiner that sees {what} is worse than one that sees both",
                    f"{total} and 84.72 (Table 4)", f"{whole}_{name}", whole, **WORSE, flatters=LATER)  # fmt: skip
    yield Claim(f"rank, {mode}", f"By {mode}: rank 32 is as good as rank 8 (within {100 * SAME:.0f} points)",
                "84.38 83.97 84.25 84.72 for 16 32 64 128, no order (Table 6)", f"{whole}_rank32", f"{whole}_rank8",
                **EQUAL, flatters="the network is 128 wide")  # fmt: skip


CLAIMS = (
    Claim("matching", "The refiner, by matching, makes better clips than none", "total 84.05 to 84.72 (Table 1)",
          "path_dmd", NONE, RIGHT, **BETTER),
    Claim("start, matching", "Refining the first noise, by matching, makes none better", "84.05 to 83.76 (Table 1)",
          "start_dmd", NONE, RIGHT, low=-1.0, high=SAME),
    Claim("weights, matching", "LoRA on the student, by matching, makes it worse",
          "84.05 to 82.10 (Table 1; but CausVid 83.06 to 83.43)", "weights_dmd", NONE, RIGHT, **WORSE),
    Claim("path over start", "By matching, the path is better refined than the first noise",
          "84.72 and 83.76 (Table 1)", "path_dmd", "start_dmd", RIGHT, **BETTER),
    Claim("reward", "The refiner, by reward, fits the text better than none", "Tag2Text 52.83 to 57.63 (Table 2)",
          "path_reward", NONE, RIGHT, **BETTER),
    Claim("reward, start", "By reward, the path is better refined than the first noise", "57.63 and 54.00 (Table 2)",
          "path_reward", "start_reward", RIGHT, **BETTER, flatters=LATER),
    Claim("reward, weights", "By reward, the refiner is better than LoRA on the student", "57.63 and 50.73 (Table 2)",
          "path_reward", "weights_reward", RIGHT, **BETTER),
    Claim("hacked", "LoRA on the student, by reward, loses right clips: it hacks the reward",
          "52.83 to 50.73 (Table 2)", "weights_reward", NONE, RIGHT, **WORSE),
    Claim("best of 5", "Best of 5, at 146 forwards, fits the text better than the refiner", "60.68 and 57.63 (Table 2)",
          "best of 5 by chunk, latent reward", "path_reward", RIGHT, **BETTER),
    Claim("path of 5", f"Search over path is no better than best of 5 (within {100 * SAME:.0f} points)",
          "60.47 and 60.68 (Table 2)", "search over path of 5, latent reward", "best of 5 by chunk, latent reward",
          RIGHT, **EQUAL),
    Claim("motion", "The refiner, by reward, adds motion", "degree 69.44 to 79.17 (Table 2)", "path_reward", NONE,
          MOTION, **BETTER, flatters=STILL),
    Claim("motion, start", "Refining the first noise, by reward, takes motion", "69.44 to 30.56 (Table 2)",
          "start_reward", NONE, MOTION, **WORSE, flatters=STILL),
    Claim("motion, weights", "LoRA on the student, by reward, takes motion", "69.44 to 0.00 (Table 2)",
          "weights_reward", NONE, MOTION, **WORSE, flatters=STILL),
    Claim("alike, weights", "LoRA on the student, by reward, makes clips of a prompt alike",
          "DINO .8577 to .9039 (Table 7)", "weights_reward", NONE, ALIKE, **BETTER),
    Claim("alike", "The refiner, by reward, makes them less alike than LoRA on the student",
          ".8597 and .9039 (Table 7)", "path_reward", "weights_reward", ALIKE, **WORSE),
    *_ablations(MATCHED), *_ablations(REWARDED),
    Claim("cost, steps", "At equal forwards (55), the refiner is better than seven steps", "not there",
          "path_reward", "7 steps instead of 4", RIGHT, **BETTER),
    Claim("cost, race", "At equal forwards (55 and 54), the refiner is better than the best of three beginnings",
          "not there", "path_reward", "3 starts of 2 chunks, latent reward", RIGHT, **BETTER),
)  # fmt: skip


def summary(document: Mapping[str, Any]) -> str:
    """What docs/streaming.md tells of it."""
    told = "; ".join(
        f"{row['name']} {percent(row['right'])} by {row['forwards']} forwards"
        + (f", {percent(row['right']['change'], signed=True)}" if row["name"] != NONE else "")
        for row in document["rows"] if row["what"] != "race"
    )  # fmt: skip
    lines = [
        f"Right clips of {document['prompts']} {document['split']} prompts, and the change against no refiner on the "
        f"same prompts and seeds: {told}. [All arms](results/refiner_streams.md).", "",
        *claims_told(document["claims"]),
    ]  # fmt: skip
    return "\n".join(lines)


def markdown(document: Mapping[str, Any]) -> str:
    lines = [
        "# Noise refiners of streams", "",
        f"Up to {document['prompts']} {document['split']} prompts and so many seeds each of the student "
        f"{document['student']}, the same noise for all arms. In columns of changes: against no refiner, on the same "
        "prompts and seeds, in points of right clips and as it is for the others. Forwards are all of them, those for "
        "the cache included; one of a refiner has twice the tokens. alike: cosine of the scorer's features of two "
        "clips of a prompt. Motion is how much pixels change from frame to frame, in thousandths of white. Seconds are "
        f"those that one thread was at work. {made_by(document)}", "",
        "## Claims", "",
        "A claim holds where the whole interval of the paired difference is on its side, does not hold where it is on "
        "the other, and is open otherwise, or where it was not run. The paper's scores are VBench's and this world's "
        "are a program's: directions can be compared, and sizes cannot.", "",
    ]  # fmt: skip
    lines += table(("claim", "the paper", "here", "", "what this world hides or flatters"), [
        (claim["claim"], claim["paper"], here(claim), claim["verdict"], claim["flatters"])
        for claim in document["claims"]
    ])  # fmt: skip

    def change(row: Mapping[str, Any], name: str) -> str:
        return number(row[name]["change"]) if name in row else "-"

    lines += ["## Arms", ""]
    lines += table(
        ("arm", "clips", "forwards", "right", "change", "motion, change", "alike, change", "latent reward, change",
         "noise changed by", "seconds a clip"),
        [(row["name"], f"{row['prompts']} x {row['seeds']}", row["forwards"], percent(row["right"]),
          percent(row["right"]["change"], signed=True), change(row, "motion"), change(row, "alike"),
          change(row, "latent reward"), f"{row.get('noise_changed_by', 0):.3f}",
          f"{row['seconds']:.3f}" if "seconds" in row else "-") for row in document["rows"]],
    )  # fmt: skip
    if document["curves"]:
        lines += ["## Trainings", "", "Figures on validation prompts; a reward that rises while right clips fall was "
                  "hacked.", ""]  # fmt: skip
        made = []
        for name, recipe in document["curves"].items():
            at = {column: place for place, column in enumerate(recipe["curve_columns"])}
            first, last = recipe["curve"][0], recipe["curve"][-1]
            made.append((name, recipe["rank"], recipe["strength"], recipe["steps"], recipe["minutes"], *(
                f"{first[at[column]]} to {last[at[column]]}" for column in ("right", "reward", "change"))))  # fmt: skip
        lines += table(("recipe", "rank", "strength", "steps", "minutes", "right, first to last",
                        "reward, first to last", "noise changed by"), made)  # fmt: skip
    return "\n".join(lines)
