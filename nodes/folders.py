"""Where ComfyUI looks for this pack's files: its own model folders, and the weights that come with the pack."""

import hashlib
import os
from pathlib import Path

import folder_paths

from ..files.documents import MOST_BYTES
from ..trials.foreign import printable, quoted

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
VICLIP, L2R, PRESETS, REWARD = "foresight", "foresight_l2r", "foresight_presets", "foresight_reward"
RACES, REFINERS = "foresight_races", "foresight_refiners"
DEMO = {"diffusion_models": "demo/diffusion_models", "vae": "demo/vae"}  # of core's folders
EXTENSIONS = {
    VICLIP: {".safetensors", ".sft", ".pth"}, L2R: {".safetensors", ".sft"}, PRESETS: {".json"},
    REWARD: {".safetensors", ".sft"}, RACES: {".json"}, REFINERS: {".safetensors", ".sft"},
}  # fmt: skip


def register() -> None:
    """Adds models/foresight (ViCLIP), models/foresight_l2r, models/foresight_presets (of the gate),
    models/foresight_reward, models/foresight_races (presets of the race) and models/foresight_refiners (of a stream's
    noise), and what of the demo family belongs in them. Its model and VAE are added to core's folders only where there
    are no others: a node of its own loads them anywhere."""
    for folder, extensions in EXTENSIONS.items():
        # Behind what extra_model_paths.yaml names: which of that is_default, core does not keep.
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
        # Without extensions every file would be listed.
        folder_paths.folder_names_and_paths[folder] = (folder_paths.get_folder_paths(folder), extensions)
    own_models = any(map(folder_paths.get_filename_list, ("checkpoints", *DEMO)))
    ours = {VICLIP: "demo/viclip", L2R: "l2r", PRESETS: "demo/presets", REWARD: "demo/reward", RACES: "demo/races"}
    for folder, weights in (ours if own_models else ours | DEMO).items():
        folder_paths.add_model_folder_path(folder, str(WEIGHTS / weights))


def files(folder: str) -> list[str]:
    """By name; what comes with the pack last, so that a widget's first choice is the user's own."""
    return sorted(folder_paths.get_filename_list(folder), key=lambda name: from_pack(folder, name))


def from_pack(folder: str, name: str) -> bool:
    path = folder_paths.get_full_path(folder, name)
    return path is not None and Path(path).is_relative_to(WEIGHTS)


def state(folder: str, name: str | None = None) -> str:
    """What a node's fingerprint_inputs says of a file, or of all of a folder: other once one is written anew, is added
    or is gone. JSON counts by its content, for which no clip is made again; weights are too large for that."""
    digest = hashlib.sha256()
    for each in files(folder) if name is None else [name]:
        digest.update(repr(each).encode())
        try:
            path = Path(path_of(folder, each))
            written = path.stat()
            small = path.suffix == ".json" and written.st_size <= MOST_BYTES and path.is_file()
            digest.update(path.read_bytes() if small else repr((written.st_size, written.st_mtime_ns)).encode())
        except (OSError, ValueError):  # the run itself will say so
            digest.update(b"gone")
    return digest.hexdigest()


def writable(folder: str) -> str:
    """The first of a folder's places that can be written to, but not the pack's own; where none can, the first."""
    places = [place for place in folder_paths.get_folder_paths(folder) if not Path(place).is_relative_to(WEIGHTS)]
    return next((place for place in places if _can_be_written(Path(place))), places[0])


def _can_be_written(place: Path) -> bool:
    return os.access(next(each for each in (place, *place.parents) if each.exists()), os.W_OK | os.X_OK)


def path_of(folder: str, name: str) -> str:
    """The full path of a file that `files` lists. Raises ValueError for any other name."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        there = printable(", ".join(files(folder)), 2000) or "nothing"
        raise ValueError(f"{quoted(name)} is not in models/{folder}: put it there, or choose another file (there: {there}).")
    return path


def check_file(folder: str, name: object, *others: str) -> None:
    """ValueError where a widget names no file of the folder, nor one of its other choices. None: it names none yet."""
    if name is not None and name not in others:
        path_of(folder, str(name))
