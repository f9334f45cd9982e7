"""Race presets: look, floors and number of candidates that were fitted to logged runs of one model and scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files.documents import read_document, write_document
from ..files.fields import Fields, FileError
from ..trials.foreign import quoted
from ..trials.race import SELF_REFINE, Look, RaceSettings, Rules

SCHEMA, VERSION = "foresight.race_preset", 2


@dataclass(frozen=True)
class FittedRace:
    """What was fitted for one budget. budget: evaluations beyond a plain clip's, as a share, that races took on average
    where it was fitted; most: that one can take at most. candidates, last_look: see trials.race.RaceSettings."""

    budget: float
    most: float
    candidates: int
    looks: tuple[Look, ...]
    last_look: float | None = None

    def __post_init__(self):
        numbers = [(name, value) for name, value in vars(self).items() if name != "looks" and value is not None]
        for name, value in [*numbers, *(pair for look in self.looks for pair in vars(look).items())]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name} is {quoted(value)}: it must be a finite number")
        shares = [look.share for look in self.looks]
        if not shares or not 0 < shares[0] <= shares[-1] <= 1 or sorted(set(shares)) != shares:
            raise ValueError(f"looks are at {shares}: shares of the schedule, above 0, at most 1, the earliest first")
        if not isinstance(self.candidates, int) or not 1 <= self.candidates <= 64:
            raise ValueError(f"candidates is {self.candidates}: set it between 1 and 64")
        if not 0 <= self.budget <= self.most:
            raise ValueError(f"budget is {self.budget} and most {self.most}: 0 <= budget <= most")


@dataclass(frozen=True)
class RacePreset:
    """scorer: whose scores the floors are in. model: the class in core that it was fitted on, e.g. "WAN21". steps: of
    the schedule. races: by self_refine, cheapest first. fitted: how it was made and what it reached, for people."""

    scorer: str
    model: str
    steps: int
    races: Mapping[str, tuple[FittedRace, ...]]
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, scorer: str, model: str, steps: int) -> bool:
        """Whether its floors mean something here: the same scorer and model, on a schedule of half to twice its steps
        (on others the same share of the schedule shows something else)."""
        return (self.scorer, self.model) == (scorer, model) and self.steps <= 2 * steps <= 4 * self.steps

    def race(self, self_refine: str, budget: float) -> FittedRace | None:
        """The dearest that `budget` allows on average; None where not even the cheapest does."""
        return max(
            (race for race in self.races.get(self_refine, ()) if race.budget <= budget + 1e-9),
            key=lambda race: race.budget, default=None,
        )

    def rules(self, self_refine: str, budget: float, file: str | None = None) -> Rules | None:
        """Of the dearest race that `budget` allows. file: the preset's name, for the report."""
        race = self.race(self_refine, budget)
        if race is None:
            return None
        settings = RaceSettings(race.candidates, self_refine, race.last_look)
        return Rules(settings, race.looks, preset=file)


def save_race_preset(preset: RacePreset, path: Path) -> None:
    write_document(path, {"schema": SCHEMA, "version": VERSION, **asdict(preset)})


def load_race_preset(path: Path | str) -> RacePreset:
    """Raises FileError for anything but a race preset of this version with settings in range."""
    command = "python -m foresight.evaluation calibrate --objective yield"
    document = read_document(Path(path), SCHEMA, VERSION, "race preset", command)
    races = document.inner("races")
    for mode in races.entries:
        if mode not in SELF_REFINE:
            raise races.wrong(f"races has {quoted(mode)}: choose of {', '.join(SELF_REFINE)}")
    raced = {mode: tuple(map(_race, races.rows(mode, 1000))) for mode in races.entries}
    scorer, model, steps = document.text("scorer"), document.text("model"), document.whole("steps", 1, 10_000)
    return RacePreset(scorer, model, steps, raced, document.inner("fitted", {}).entries)


def _race(row: Fields) -> FittedRace:
    row.only([each.name for each in fields(FittedRace)])
    try:
        return FittedRace(
            row.number("budget", 0, 1000), row.number("most", 0, 1000), row.whole("candidates", 1, 64),
            tuple(map(_look, row.rows("looks", 8))), row.number("last_look", -1000, 1000, None),
        )  # fmt: skip
    except FileError:
        raise
    except ValueError as error:
        raise row.wrong(f"in {row.where.rstrip('.')}, {error}") from error


def _look(row: Fields) -> Look:
    row.only([each.name for each in fields(Look)])
    return Look(*(row.number(name, -1000, 1000) for name in ("share", "floor", "floor_self_refined")))
