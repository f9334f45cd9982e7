"""The page of `lab/experiments/refiner.py`: arms, claims beside the paper's figures, how the trainings went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...evaluation.results import number, percent
from .common import made_by

HOLDS, NOT, OPEN = "holds", "does not hold", "open"


@dataclass(frozen=True)
class Claim:
    """What AutoRefiner says, its figures, and where it shows here: the change of `measure` of an arm against no
    refiner, or against a rival; up: whether it should rise."""

    text: str
    paper: str
    arm: str
    measure: str
    up: bool
    rival: str = ""

    def verdict(self, rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
        """(here, whether it holds). An interval that holds 0, or a row that is missing, leaves it open; two arms are
        told apart by their changes' intervals, which is stricter than a paired test."""
        sides = [rows.get(name, {}).get(self.measure) for name in (self.arm, *([self.rival] if self.rival else []))]
        if None in sides:
            return "not run", OPEN
        own = sides[0]["change"]
        low, high = own["low"], own["high"]
        here = number(own)
        if self.rival:
            other = sides[1]["change"]
            low, high, here = own["low"] - other["high"], own["high"] - other["low"], f"{here} and {number(other)}"
        rises, falls = low > 0, high < 0
        return here, OPEN if not (rises or falls) else HOLDS if rises == self.up else NOT


CLAIMS = (
    Claim("The refiner, by matching, makes better clips than none", "total 84.05 to 84.72 (Table 1)",
          "path_dmd", "right", True),
    Claim("Refining the first noise, by matching, does not help", "84.05 to 83.76 (Table 1)",
          "start_dmd", "right", False),
    Claim("LoRA on the student, by matching, makes it worse", "84.05 to 82.10 (Table 1; CausVid 83.06 to 83.43)",
          "weights_dmd", "right", False),
    Claim("The refiner, by reward, fits the text better", "Tag2Text 52.83 to 57.63 (Table 2)",
          "path_reward", "right", True),
    Claim("The refiner, by reward, adds motion", "degree 69.44 to 79.17; PSNR 17.52 to 14.25 (Tables 2, 7)",
          "path_reward", "motion", True),
    Claim("Refining the first noise, by reward, takes motion", "degree 69.44 to 30.56 (Table 2)",
          "start_reward", "motion", False),
    Claim("LoRA on the student, by reward, takes motion", "degree 69.44 to 0.00 (Table 2)",
          "weights_reward", "motion", False),
    Claim("LoRA on the student, by reward, makes clips alike", "DINO .8577 to .9039 (Table 7)",
          "weights_reward", "alike", True),
    Claim("LoRA on the student, by reward, loses right clips (it hacks the reward)", "section 4.2",
          "weights_reward", "right", False),
    Claim("Best of 5, which takes five times as many forwards, fits the text better than the refiner",
          "Tag2Text 60.68 and 57.63 (Table 2)", "best of 5 by chunk, latent reward", "right", True, "path_reward"),
    Claim("All steps are better refined than one alone", "84.72; 750: 84.61, 500: 84.43, 250: 84.40 (Table 3)",
          "path_dmd", "right", True, "path_dmd_step1"),
    Claim("The refiner has to see history and prediction", "84.72; none 84.37 (Table 4)",
          "path_dmd", "right", True, "path_dmd_blind"),
)  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    rows = {row["name"]: row for row in document["rows"]}
    lines = [
        "# Noise refiners of streams", "",
        f"{document['prompts']} {document['split']} prompts, up to five clips each of the student {document['student']}"
        ", the same noise for all arms. In columns of changes: against no refiner, on the same prompts and seeds, in "
        "points of right clips and as it is for the others. Forwards are all of them, those for the cache included; "
        "one of a refiner has twice the tokens. alike: cosine of the scorer's features of two clips of a prompt. "
        f"{made_by(document)}", "",
        "| arm | forwards | right | change | motion, change | alike, change | latent reward, change | "
        "noise changed by | seconds a clip |", "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip

    def change(row: Mapping[str, Any], name: str) -> str:
        return number(row[name]["change"]) if name in row else "-"

    for row in rows.values():
        gain = percent(row["right"]["change"], signed=True)
        lines.append(
            f"| {row['name']} | {row['forwards']} | {percent(row['right'])} | {gain} | {change(row, 'motion')} | "
            f"{change(row, 'alike')} | {change(row, 'latent reward')} | {row.get('noise_changed_by', 0):.3f} | "
            f"{row.get('seconds', 0):.3f} |"
        )
    lines += ["", "## The paper's claims", "", "| claim | the paper | here (change) | |", "|---|---|---|---|"]
    for claim in CLAIMS:
        here, verdict = claim.verdict(rows)
        lines.append(f"| {claim.text} | {claim.paper} | {here} | {verdict} |")
    lines += ["", "Its scores are VBench's and this world's are a program's: a row says whether the direction is the "
              "same. Where both sides of a row are arms, the sum of their intervals decides.", ""]  # fmt: skip
    if document["curves"]:
        lines += ["## Trainings", "", "Figures on validation prompts; a reward that rises while right clips fall was "
                  "hacked.", "", "| recipe | rank | steps | minutes | right, first to last | reward, first to last |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for name, made in document["curves"].items():
            at = {column: place for place, column in enumerate(made["curve_columns"])}
            first, last = made["curve"][0], made["curve"][-1]
            lines.append(f"| {name} | {made['rank']} | {made['steps']} | {made['minutes']} | " + " | ".join(
                f"{first[at[column]]} to {last[at[column]]}" for column in ("right", "reward")) + " |")  # fmt: skip
        lines.append("")
    return "\n".join(lines)
