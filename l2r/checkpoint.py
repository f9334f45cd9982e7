"""L2R checkpoints: safetensors, with a JSON description under the metadata key `foresight.l2r`."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from ..files.fields import FileError
from ..files.weights import Weights, open_weights, write_weights
from .fit import AffineFit
from .model import L2R
from .subpixel import SubpixelL2R

KEY, SUMS = "foresight.l2r", "fit."
MOST_BYTES = 1 << 30  # with the sums of a fit to 128 channels at scale 32 it is a tenth of that
PAPER, SUBPIXEL = "paper", "subpixel"  # the two layouts; files that name none are the paper's


def save_l2r(
    model: L2R | SubpixelL2R, path: str | Path, metadata: Mapping[str, object] | None = None,
    fit: AffineFit | None = None,
) -> None:
    """Writes the converter in half precision. metadata: JSON values, e.g. name, latent format, figures. fit: the sums
    that it was solved from, so that later clips can be added to them. OSError where it cannot be written."""
    layout: dict[str, object] = {"architecture": PAPER}
    if isinstance(model, SubpixelL2R):
        layout = {"architecture": SUBPIXEL, "width": model.width}
    described = {**model.metadata, **(metadata or {}), **layout, "channels": model.channels, "scale": model.scale}
    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    if fit is not None:
        tensors |= {SUMS + "gram": fit.gram, SUMS + "moment": fit.moment}
        described |= {"fit_rows": fit.rows, "fit_clips": fit.clips}
    write_weights(Path(path), tensors, KEY, described)


def load_l2r(path: str | Path) -> L2R | SubpixelL2R:
    """A converter in fp32 and eval mode, described by `.metadata`. Raises FileError for any other file."""
    with _opened(path) as weights:
        return _converter(weights)


def load_fit(path: str | Path) -> AffineFit | None:
    """The sums that a converter was solved from; None where its file has none. FileError as for load_l2r."""
    with _opened(path) as weights:
        model, described = _converter(weights), weights.description
        if "fit_rows" not in described.entries:
            return None
        rows, size = described.whole("fit_rows", 1, 10**15), 18 * model.channels + 1
        for name, shape in {"gram": (size, size), "moment": (size, 3 * model.scale**2)}.items():
            if weights.shapes.get(SUMS + name) != shape:
                raise described.wrong(f"the tensor '{SUMS}{name}' is not of shape {list(shape)}")
        fit = AffineFit(model.channels, model.scale)
        fit.rows, fit.clips = rows, described.whole("fit_clips", 0, 10**9)
        fit.gram, fit.moment = (weights.get(SUMS + name).double() for name in ("gram", "moment"))
        weights.finite(SUMS + "gram", fit.gram)
        weights.finite(SUMS + "moment", fit.moment)
        return fit


def _opened(path: str | Path) -> AbstractContextManager[Weights]:
    return open_weights(Path(path), KEY, "L2R converter", "Make it again, or take it out of its folder.", MOST_BYTES)


def _converter(weights: Weights) -> L2R | SubpixelL2R:
    described = weights.description
    if described is None:
        raise FileError(
            f"{weights.file} is no L2R converter (it lacks the metadata '{KEY}'): L2R checkpoints come with this pack "
            "or from its training command. Take it out of its folder."
        )
    for name in ("name", "latent_format", "vae"):
        described.text(name, None)
    described.flag("calibrated", False)
    described.whole("learned", 0, 10**9, None)
    described.number("psnr", -1000, 1000, None)
    channels, scale = described.whole("channels", 1, 1024), described.whole("scale", 1, 64)
    layout = described.choice("architecture", (PAPER, SUBPIXEL), PAPER)
    with torch.device("meta"):
        if layout == PAPER:
            model = L2R(channels, scale, described.entries)
        else:
            model = SubpixelL2R(channels, scale, described.whole("width", 0, 1024), described.entries)
    names = {name: name for name in weights.shapes if not name.startswith(SUMS)}
    weights.load_into(model, names, misfit="does not fit the L2R layout it describes")
    for name, tensor in model.state_dict().items():
        weights.finite(name, tensor)
    return model.eval()
