"""Detector presets: settings that were fitted to logged runs of one model, scorer and schedule, as a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files.documents import read_document, write_document
from ..files.fields import Fields, FileError
from ..trials.foreign import quoted
from .detector import DetectorSettings

SCHEMA, VERSION = "foresight.detector_preset", 1


@dataclass(frozen=True)
class DetectorPreset:
    """scorer: the name of the scorer whose scores the settings are in. steps: the schedule length they were fitted on.
    fitted: how they were made and what they reached on prompts that were held out, for people to read."""

    scorer: str
    steps: int
    video: DetectorSettings
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def check(self, scorer: str) -> None:
        """Raises ValueError where another scorer is in use: its scores have another scale."""
        if scorer != self.scorer:
            raise ValueError(
                f"this preset was fitted to scores of {quoted(self.scorer)}, but the scorer here is {quoted(scorer)}, "
                "whose scores mean something else: choose that scorer's preset, or \"own settings\"."
            )


def save_preset(preset: DetectorPreset, path: Path) -> None:
    write_document(path, {
        "schema": SCHEMA, "version": VERSION, "scorer": preset.scorer, "steps": preset.steps,
        "video": asdict(preset.video), "fitted": dict(preset.fitted),
    })  # fmt: skip


def load_preset(path: Path | str) -> DetectorPreset:
    """Raises FileError for anything but a preset of this version with settings in range."""
    document = read_document(
        Path(path), SCHEMA, VERSION, "detector preset", "python -m foresight.evaluation calibrate"
    )
    video = document.inner("video")
    video.only([each.name for each in fields(DetectorSettings)])
    try:
        settings = DetectorSettings(**{each.name: _setting(video, each) for each in fields(DetectorSettings)})
    except FileError:
        raise
    except ValueError as error:
        raise video.wrong(f"in video, {error}") from error
    fitted = document.inner("fitted", {}).entries
    return DetectorPreset(document.text("scorer"), document.whole("steps", 1, 10_000), settings, fitted)


def _setting(video: Fields, setting: Field) -> float | int | bool | tuple[float, ...]:
    if setting.type is int:
        return video.whole(setting.name, 1, 10_000, setting.default)
    if setting.type is bool:
        return video.flag(setting.name, setting.default)
    if setting.type is float:
        return video.number(setting.name, -1000, 1000, setting.default)
    return video.numbers(setting.name, range(10_001), -1000, 1000, setting.default)
