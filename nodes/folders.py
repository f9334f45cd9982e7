"""Where ComfyUI looks for this pack's files: its own model folders, and the weights that come with the pack."""

import os
from pathlib import Path

import folder_paths

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
VICLIP, L2R, PRESETS, REWARD = "foresight", "foresight_l2r", "foresight_presets", "foresight_reward"
RACES = "foresight_races"
EXTENSIONS = {
    VICLIP: {".safetensors", ".sft", ".pth"}, L2R: {".safetensors", ".sft"}, PRESETS: {".json"},
    REWARD: {".safetensors", ".sft"}, RACES: {".json"},
}  # fmt: skip


def register() -> None:
    """Adds models/foresight (ViCLIP), models/foresight_l2r, models/foresight_presets (of the gate),
    models/foresight_reward and models/foresight_races (presets of the race), and the demo family to the folders it belongs in."""
    for folder, extensions in EXTENSIONS.items():
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder), is_default=True)
        # Paths that extra_model_paths.yaml has already put there stay; without extensions every file would be listed.
        folder_paths.folder_names_and_paths[folder] = (folder_paths.get_folder_paths(folder), extensions)
    for folder, weights in {
        VICLIP: "demo/viclip", L2R: "l2r", PRESETS: "demo/presets", REWARD: "demo/reward",
        RACES: "demo/races",
        "diffusion_models": "demo/diffusion_models", "vae": "demo/vae",
    }.items():  # fmt: skip
        folder_paths.add_model_folder_path(folder, str(WEIGHTS / weights))


def files(folder: str) -> list[str]:
    return folder_paths.get_filename_list(folder)


def path_of(folder: str, name: str) -> str:
    """The full path of a file that `files` lists. Raises ValueError for any other name."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        there = ", ".join(files(folder)) or "nothing"
        raise ValueError(f"'{name}' is not in models/{folder}: put it there, or choose another file (there: {there}).")
    return path
