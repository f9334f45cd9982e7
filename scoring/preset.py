"""Detector presets: settings that were fitted to logged runs of one model, scorer and schedule, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

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
                f"this preset was fitted to scores of '{self.scorer}', but the scorer here is '{scorer}', whose scores "
                "mean something else: choose that scorer's preset, or \"own settings\"."
            )


def save_preset(preset: DetectorPreset, path: Path) -> None:
    video = asdict(preset.video)
    document = {
        "schema": SCHEMA, "version": VERSION, "scorer": preset.scorer, "steps": preset.steps, "video": video,
        "fitted": dict(preset.fitted),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_document(path: Path, schema: str, version: int, what: str, command: str) -> dict[str, Any]:
    """The JSON object of a file of ours. Raises ValueError, naming the file, for anything else or another version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no {what}: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise ValueError(f"{path.name} is no {what}: {command} writes them.")
    if document.get("version") != version:
        raise ValueError(
            f"{path.name} is a {what} of version {document.get('version')}, and this pack reads version {version}: "
            "calibrate again, or update the pack."
        )
    return document


def load_preset(path: Path | str) -> DetectorPreset:
    """Raises ValueError, naming the file, for anything but a preset of this version with settings in range."""
    path = Path(path)
    document = read_document(path, SCHEMA, VERSION, "detector preset", "python -m foresight.evaluation calibrate")
    names = {each.name for each in fields(DetectorSettings)}
    video = document.get("video")
    if not isinstance(video, dict) or not video.keys() <= names:
        unknown = sorted(set(video) - names) if isinstance(video, dict) else video
        raise ValueError(f"{path.name} has detector settings that this pack does not know: {unknown}.")
    try:
        settings = DetectorSettings(**{**video, "floors": tuple(video.get("floors", ()))})
        return DetectorPreset(str(document["scorer"]), int(document["steps"]), settings, document.get("fitted", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be used: {error}") from error
