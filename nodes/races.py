"""Rules of a race from the widgets: a preset where one was fitted to this scorer and model, ranks alone elsewhere."""

import math
from pathlib import Path

from comfy_api.latest import io

from ..sampling.records import model_family
from ..scoring.race_preset import load_race_preset
from ..trials.foreign import logger
from ..trials.race import SELF_REFINE, Rules
from .folders import RACES, files, from_pack, path_of

RACE, PAPER = "race", "paper"


def race_widgets():
    return [
        io.Combo.Input(
            "plan", options=[RACE, PAPER], default=RACE, optional=True,
            tooltip="race: looks at the clip early; where it falls short, other seeds are begun and the best goes on. paper: the "
            "published hierarchy of trials (refiner, inject and the detector's settings are its own).",
        ),
        *budget_widgets("race: "),
    ]


def budget_widgets(plan=""):
    """plan: what their tooltips begin with, where they belong to one plan of several."""
    return [
        io.Float.Input(
            "budget", default=0.25, min=0.0, max=10.0, step=0.05, round=0.001, optional=True,
            tooltip=f"{plan}model evaluations beyond a plain clip's, as a share. With a preset for this model and scorer that is the "
            "average, and a single clip may take more (the report says how much at most); without one it is the most.",
        ),
        io.Combo.Input(
            "self_refine", options=list(SELF_REFINE), default="later", optional=True,
            tooltip=f"{plan}which candidates are lightly self-refined (5 more evaluations on 50 steps). later: all but the first, "
            "which stays the plain clip of its seed. all: the first too; brings most, but then no clip is the plain one.",
        ),
    ]  # fmt: skip


def race_rules(scorer, model, steps: int, budget: float, self_refine: str) -> Rules:
    """model: a MODEL. The preset is found by scorer, model class and steps among models/foresight_races; of several that
    fit the one with the nearest number of steps counts, then the user's own, then the newest. ValueError for a budget
    that is none."""
    if not 0 <= budget < math.inf:
        raise ValueError(f"budget is {budget}: it is a share of a plain clip's evaluations, 0 or more.")
    found = []
    for file in files(RACES):
        try:
            preset, written = load_race_preset(path := path_of(RACES, file)), Path(path).stat().st_mtime_ns
        except (OSError, ValueError) as error:  # one broken file must not stop races of every model
            logger.warning("Foresight: %s", error)
            continue
        if preset.fits(scorer.name, model_family(model), steps) and (rules := preset.rules(self_refine, budget, file)):
            found.append((abs(math.log(preset.steps / steps)), from_pack(RACES, file), -written, file, rules))
    return min(found, key=lambda each: each[:-1])[-1] if found else Rules.ranks(budget, self_refine)
