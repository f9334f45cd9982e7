"""This process's ComfyUI: where it is, how it becomes importable, and what commands load with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def comfyui_path() -> Path:
    """The ComfyUI in COMFYUI_PATH, or the one that `python dev.py` has set up."""
    path = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".foresight" / "comfyui-0.3.75").resolve()
    if not (path / "main.py").exists():
        raise SystemExit(f"no ComfyUI in {path}: run `python dev.py demo` once, or set COMFYUI_PATH")
    return path


def load_comfyui() -> None:
    """Makes ComfyUI importable."""
    path = comfyui_path()
    # In front: this checkout also has a folder named `nodes`, which ComfyUI's own `import nodes` must not find.
    sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def load_vae(path: Path, latent_format: str) -> tuple[Any, Any, torch.device]:
    """A VAE as VAELoader makes it, the latent format of that name (a class of comfy/latent_formats.py), and the device
    that ComfyUI works on. SystemExit for a name that ComfyUI does not have."""
    load_comfyui()
    import comfy.latent_formats
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    if not hasattr(comfy.latent_formats, latent_format):
        raise SystemExit(f"ComfyUI has no latent format {latent_format!r}: see comfy/latent_formats.py for the names")
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
    return vae, getattr(comfy.latent_formats, latent_format)(), comfy.model_management.get_torch_device()
