"""Turning files and models into converters and scorers."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.ops
import comfy.sd1_clip
import torch

from ..l2r.checkpoint import load_l2r
from ..l2r.linear import LinearL2R
from ..l2r.pairs import fingerprint
from ..scoring.tokens import clip_tokenizer
from ..scoring.viclip import ViCLIPConfig, described_name, load_viclip
from ..scoring.viclip_scorer import ViCLIPScorer
from ..trials.foreign import check_choice, logger, quoted, writable
from .compat import model_patcher
from .folders import L2R, VICLIP, files, path_of

# The demo's, by the names in their own descriptions, whatever the files are called: they fit no other model.
DEMO, DEMO_SCORER = "foresight-demo-l2r", "foresight-demo-viclip"
AUTO, LINEAR = "auto", "latent_rgb_factors"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
SCORER_HELP = (
    "Put ViClip-InternVid-10M-FLT.pth or ViCLIP-L-14's model.safetensors into models/foresight "
    "(foresight_demo_viclip.safetensors comes with the pack and only knows the demo's shapes)."
)


def managed(network: torch.nn.Module) -> torch.nn.Module:
    """The network, with a `patcher` by which ComfyUI loads its weights with the model that is sampled, and frees them."""
    network.patcher = patcher_of(network)
    return network


def patcher_of(network: torch.nn.Module):
    management = comfy.model_management
    offload = management.text_encoder_offload_device()
    return model_patcher(network.to(offload), management.get_torch_device(), offload)


def load_converter(name: str, model, vae=None) -> torch.nn.Module:
    """The converter by file name, `managed`; "auto" is the trained one for the model's latent format and, where it is
    given, this VAE, else one that was calibrated for it, else the linear one. ValueError where converters of several
    VAEs fit."""
    return managed(_converter(name, model, vae))


def _converter(name: str, model, vae) -> torch.nn.Module:
    if name not in (AUTO, LINEAR):
        return load_l2r(path_of(L2R, name))
    if model is None:
        raise ValueError(
            f"L2R Preview: converter is {quoted(name)}, which is chosen by the model: connect MODEL, or choose a converter file."
        )
    latent_format = model.get_model_object("latent_format")
    if name == AUTO and (converters := kept_converters(type(latent_format).__name__, vae)):
        # Colours of another VAE's converter would be wrong without a word.
        if len({each.metadata.get("vae") for each in converters.values()} - {None}) > 1:
            raise ValueError(
                f"L2R Preview: {writable(', '.join(converters))} in models/foresight_l2r are for different VAEs of "
                f"{type(latent_format).__name__}: connect the VAE of this model, or choose one by name."
            )
        return next(iter(converters.values()))
    if latent_format.latent_rgb_factors is None:
        raise ValueError(
            f"L2R Preview: there is no preview for {type(latent_format).__name__} yet: no trained converter in "
            "models/foresight_l2r, and ComfyUI has no latent_rgb_factors for it. L2R Calibrate makes one from your VAE."
        )
    unfold = latent_format.latent_rgb_factors_reshape
    scale = getattr(latent_format, "spacial_downscale_ratio", 16 if unfold else 8)
    return LinearL2R(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias, scale,
        channels=latent_format.latent_channels if unfold else None, unfold=unfold,
    )  # fmt: skip


def kept_converters(latent_format: str, vae=None) -> dict[str, torch.nn.Module]:
    """By file name: what was trained for this latent format or, without any, what L2R Calibrate has fitted; with a VAE
    only what does not name another. What names its VAE comes first, then what has learned from the most clips, then what
    shows most."""
    # The demo family shares Wan's latent format but not its VAE, so it is used only where it is chosen by name.
    converters = {file: each for file, each in _usable(files(L2R)) if each.name != DEMO}
    own = None if vae is None else fingerprint(vae)
    candidates = {
        file: each for file, each in converters.items()
        if each.metadata.get("latent_format") == latent_format and (own is None or each.metadata.get("vae") in (None, own))
    }  # fmt: skip
    best = {file: each for file, each in candidates.items() if not each.metadata.get("calibrated")} or candidates

    def rank(item):
        described = item[1].metadata
        return described.get("vae") is None, -(described.get("learned") or 0), -(described.get("psnr") or 0)

    return dict(sorted(best.items(), key=rank))


def _usable(names: Iterable[str]) -> Iterator[tuple[str, torch.nn.Module]]:
    for name in names:
        try:
            yield name, load_l2r(path_of(L2R, name))
        except ValueError as error:  # one empty or foreign file must not end previews of every model
            logger.warning("Foresight: %s", error)


def latent_format_of(converter: torch.nn.Module, model):
    """The latent format by which a LATENT becomes model space, from the model or from the converter's own metadata."""
    if model is not None:
        return model.get_model_object("latent_format")
    known = getattr(comfy.latent_formats, str(getattr(converter, "metadata", {}).get("latent_format")), None)
    if not (isinstance(known, type) and issubclass(known, comfy.latent_formats.LatentFormat)):
        raise ValueError("L2R Preview: connect MODEL, so that the latent's scale is known.")
    return known()


def load_scorer(name: str, precision: str) -> ViCLIPScorer:
    check_choice("precision", precision, PRECISIONS)
    dtype = PRECISIONS[precision]
    return scorer_from_file(path_of(VICLIP, name), dtype)


def own_scorer_file() -> str:
    """The ViCLIP in models/foresight that is used where none is connected: the published one, else the only other that
    is there. Never the demo's, which knows nothing but its shapes. ValueError with the way out where there is none."""
    names = {}
    for file in files(VICLIP):
        try:
            names[file] = described_name(path_of(VICLIP, file))
        except ValueError as error:  # one foreign file must not stop the others
            logger.warning("Foresight: %s", error)
    own = {file: name for file, name in names.items() if name != DEMO_SCORER}
    kinds = set(own.values())
    if not own:
        raise ValueError(f"no scorer is connected, and models/foresight has none for this model. {SCORER_HELP}")
    if len(kinds) > 1 and ViCLIPConfig.name not in kinds:
        raise ValueError(
            f"no scorer is connected, and models/foresight has several ({writable(', '.join(own))}): connect ViCLIP "
            "Score with the one you want to scorer."
        )
    return next(file for file, name in own.items() if len(kinds) == 1 or name == ViCLIPConfig.name)


def own_scorer() -> ViCLIPScorer:
    """The scorer of `own_scorer_file`, which is kept from run to run as what a loader node gives is."""
    path = Path(path_of(VICLIP, own_scorer_file()))
    written = path.stat()
    return _kept_scorer(path, written.st_size, written.st_mtime_ns)


@lru_cache(maxsize=1)  # 1.7 GB: of an exchanged file the old one goes
def _kept_scorer(path: Path, *_: int) -> ViCLIPScorer:
    return scorer_from_file(path)


def scorer_from_file(path: str | Path, dtype: torch.dtype = torch.float32) -> ViCLIPScorer:
    """A ViCLIP scorer whose weights ComfyUI manages: `patcher` travels with the model that is being sampled."""
    model = load_viclip(path, comfy.ops.manual_cast, dtype)
    tokenize = clip_tokenizer(Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer"))
    scorer = ViCLIPScorer(model, tokenize, comfy.model_management.text_encoder_offload_device())
    scorer.patcher = patcher_of(model)
    scorer.device = scorer.patcher.load_device
    return scorer


def on_device(scorer):
    """The scorer, its weights back on the device: between sampling runs ComfyUI may have unloaded them."""
    if hasattr(scorer, "patcher"):
        comfy.model_management.load_model_gpu(scorer.patcher)
    return scorer
