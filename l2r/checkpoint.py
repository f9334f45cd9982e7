"""L2R checkpoints: safetensors, with a JSON description under the metadata key `foresight.l2r`."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .fit import AffineFit
from .model import L2R
from .subpixel import SubpixelL2R

KEY, SUMS = "foresight.l2r", "fit."
PAPER, SUBPIXEL = "paper", "subpixel"  # the two layouts; files that name none are the paper's


def save_l2r(
    model: L2R | SubpixelL2R, path: str | Path, metadata: Mapping[str, object] | None = None,
    fit: AffineFit | None = None,
) -> None:
    """Writes the converter in half precision. metadata: JSON values, e.g. name, latent format, figures. fit: the sums
    that it was solved from, so that later clips can be added to them."""
    layout: dict[str, object] = {"architecture": PAPER}
    if isinstance(model, SubpixelL2R):
        layout = {"architecture": SUBPIXEL, "width": model.width}
    described = {**model.metadata, **(metadata or {}), **layout, "channels": model.channels, "scale": model.scale}
    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    if fit is not None:
        tensors |= {SUMS + "gram": fit.gram, SUMS + "moment": fit.moment}
        described |= {"fit_rows": fit.rows, "fit_clips": fit.clips}
    save_file(tensors, path, {KEY: json.dumps(described)})


def _empty(described: Mapping[str, object]) -> L2R | SubpixelL2R:
    channels, scale = int(described["channels"]), int(described["scale"])
    match described.get("architecture", PAPER):
        case "subpixel":
            return SubpixelL2R(channels, scale, int(described["width"]), described)
        case "paper":
            return L2R(channels, scale, described)
        case other:
            raise KeyError(f"architecture {other!r} is unknown here; update Foresight")


def load_l2r(path: str | Path) -> L2R | SubpixelL2R:
    """A converter in fp32 and eval mode, described by `.metadata`. Raises ValueError for any other file."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {}).get(KEY, "null"))
            state = {name: file.get_tensor(name).float() for name in file.keys() if not name.startswith(SUMS)}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is no whole safetensors file ({error}): copy or train it again.") from error
    if not isinstance(described, dict):
        raise ValueError(
            f"{path.name} is no L2R converter (it lacks the metadata '{KEY}'): L2R checkpoints come with this pack or "
            "from its training command."
        )
    try:
        with torch.device("meta"):
            model = _empty(described)
        model.load_state_dict(state, assign=True)
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name} does not fit the L2R layout it describes: make it again, or take it out of its folder "
            f"({error})."
        ) from error
    return model.eval()


def load_fit(path: str | Path) -> AffineFit | None:
    """The sums that a converter was solved from; None where its file has none. ValueError as for load_l2r."""
    described = load_l2r(path).metadata
    if "fit_rows" not in described:
        return None
    fit = AffineFit(int(described["channels"]), int(described["scale"]))
    fit.rows, fit.clips = int(described["fit_rows"]), int(described["fit_clips"])
    with safe_open(path, "pt") as file:
        fit.gram, fit.moment = file.get_tensor(SUMS + "gram"), file.get_tensor(SUMS + "moment")
    return fit
