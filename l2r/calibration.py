"""What L2R Calibrate does: a converter for a VAE, kept where previews find it, better with each clip."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.fields import FileError, file_name
from ..trials.foreign import logger, printable
from .checkpoint import load_fit, load_l2r, save_l2r
from .clips import procedural_clips
from .decode import decode
from .fit import AffineFit, check_pair, key_frames, psnr, quality, refine
from .pairs import channels, encoded, fingerprint, spatial, temporal, whole_latents

CLIPS, HELD_OUT = 24, 6  # procedural clips, and those of them that only measure
GROUPS = 4  # latent frames a clip, beside the first
ROWS = 20_000  # latents of a clip to learn from: about a second on two cores
SEEN = 256  # pixels: what is lower is shown larger
LATENTS = 8  # a side of a clip: enough to see past a neighbourhood's edges, and quick on a CPU

Pair = tuple[Tensor, Tensor]


def calibrate(
    vae: Any, latent_format: Any, images: Tensor | None, samples: Tensor | None, folder: str | Path, *,
    seconds: float = 0, save: bool = True, learn: bool = False, device: torch.device | str = "cpu",
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[nn.Module, float]:
    """A converter, and its PSNR in dB: on procedural clips held out, or on the images where there is no VAE. Where it
    could not be kept, its metadata say why as "not_kept"; else they say as "kept" where it is, or why it is not.

    vae: as ComfyUI loads it, or None with samples. images: a clip [T, H, W, 3] in 0..1 to learn from as well; samples:
    the latent it was decoded from, in the VAE's space. seconds: of refinement. save: into folder, unless a better one
    is there; learn: with samples, add the clip to all that the one there has learned. ValueError for what does not
    belong together.
    """
    path = path_of(folder, latent_format, vae)
    own = own_pair(vae, latent_format, images, samples)
    kept, fit = load_kept(path, channels(latent_format), check_pair(*own) if own else spatial(vae))
    learn = learn and samples is not None
    fit = fit if learn else None
    source = iter(()) if vae is None else procedural_pairs(vae, latent_format)
    making = 0.2 if seconds else 1.0  # share of the work
    pairs = []
    for pair in islice(source, 0 if fit else CLIPS):
        pairs.append(pair)
        on_progress(making * len(pairs) / CLIPS)
    held_out, pairs = pairs[:HELD_OUT], pairs[HELD_OUT:] + ([own] if own else [])
    fit = fit or AffineFit(pairs[0][0].shape[1], check_pair(*pairs[0]))
    for pair in pairs:
        fit.add(*pair, limit=ROWS)
    converter = fit.solve()

    def measured(candidate: nn.Module) -> float:
        return quality(candidate, held_out) if held_out else quality_of_some(candidate, *own)

    if seconds:
        refined = refine(
            converter, pairs, seconds, device=device, on_progress=lambda share: on_progress(making + 0.8 * share),
            fresh=None if vae is None else torch.inference_mode()(lambda: next(source)),
        )  # fmt: skip
        # A few steps are worse than none, and how many there are is the machine's.
        converter = max(converter, refined, key=measured)
    if held_out:
        value, measured_on = measured(converter), f"{HELD_OUT} procedural clips"
    else:  # what the converter made of this clip before it learned it
        value = measured(kept or converter)
        measured_on = "each clip before it was learned" if kept else "the clip itself"
    name = type(latent_format).__name__
    converter.metadata = {
        "latent_format": name, "calibrated": True, "vae": fingerprint(vae) if vae else None,
        "name": f"{name}, calibrated", "refine_seconds": seconds, "own_images": 0 if images is None else len(images),
        "date": datetime.date.today().isoformat(), "held_out": measured_on, "psnr": round(value, 2),
    }  # fmt: skip
    if learn:
        converter.metadata["learned"] = ((kept and kept.metadata.get("learned")) or 0) + 1
    if not save:
        converter.metadata["kept"] = "Not kept, because save is off."
    elif not worth_keeping(converter, kept):
        converter.metadata["kept"] = f"Not kept: {printable(str(path))} is there already, and no worse."
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_l2r(converter, path, fit=fit)
            converter.metadata["kept"] = f"Kept as {printable(str(path))}."
        except OSError as error:  # the work is done, and goes on without the file
            converter.metadata["not_kept"] = (
                f"{file_name(path)} could not be written to {printable(str(path.parent))} ({printable(str(error))}): "
                "make the folder writable or free some space, and run L2R Calibrate again to keep it."
            )
            logger.warning("Foresight: %s", converter.metadata["not_kept"])
    return converter, value


@torch.no_grad()
def before_and_after(
    vae: Any, latent_format: Any, images: Tensor | None, samples: Tensor | None, *converters: nn.Module
) -> Tensor:
    """[1, H, W, 3] in 0..1: a frame, and beside it what each converter makes of its latent. Of a procedural clip that
    `calibrate` holds out, or of the images where there is no VAE."""
    pair = next(procedural_pairs(vae, latent_format)) if vae else own_pair(vae, latent_format, images, samples)
    latent, frames = pair[0][:1], pair[1][:1]
    middle = [latent.shape[2] // 2]
    shown = [frames[:, middle].cpu(), *(decode(each, latent, middle).cpu() for each in converters)]
    row = torch.cat([each[0] for each in shown], dim=2).clamp(0, 1)
    larger = max(1, SEEN // row.shape[1])
    return row.repeat_interleave(larger, 1).repeat_interleave(larger, 2)


def own_pair(vae: Any, latent_format: Any, images: Tensor | None, samples: Tensor | None) -> Pair | None:
    """The user's clip as latents and frames: those it was decoded from, or encoded anew."""
    if samples is not None:
        if images is None:
            raise ValueError("a latent alone has no pixels to learn: connect the images it was decoded to as well.")
        return decoded(latent_format, samples, images[..., :3])
    if vae is None:
        raise ValueError("connect a VAE, or a latent and the images it was decoded to.")
    return None if images is None else encoded(vae, latent_format, whole_latents(vae, images[..., :3]))


def procedural_pairs(vae: Any, latent_format: Any) -> Iterator[Pair]:
    """Pairs without end, of clips as long and as large as this VAE needs for a few latents each way."""
    groups = GROUPS if temporal(vae) > 1 else 0
    frames, size = groups * temporal(vae) + 1, LATENTS * spatial(vae)
    for seed in count():
        for clip in procedural_clips(CLIPS, frames, size, seed):
            yield encoded(vae, latent_format, clip)


def decoded(latent_format: Any, samples: Tensor, images: Tensor) -> Pair:
    """A pair of a latent in the VAE's space and what the VAE's decoder made of it."""
    latent = latent_format.process_in(samples if samples.ndim == 5 else samples.unsqueeze(2)).float().cpu()
    frames = images.float().cpu().unflatten(0, (len(latent), -1))
    return latent, key_frames(frames, latent.shape[2])


def quality_of_some(converter: nn.Module, latent: Tensor, frames: Tensor) -> float:
    """PSNR in dB of a few frames of a pair: decoding all of a long clip would take longer than learning it."""
    some = sorted({0, latent.shape[2] // 2, latent.shape[2] - 1})
    return psnr(decode(converter, latent, some).cpu(), frames[:, some]).mean().item()


def path_of(folder: str | Path, latent_format: Any, vae: Any) -> Path:
    """Where the converter for this VAE is kept; without a VAE there is one for each latent format."""
    return Path(folder) / f"{type(latent_format).__name__}_{fingerprint(vae) if vae else 'any'}.safetensors"


def load_kept(path: Path, channels: int, scale: int) -> tuple[nn.Module | None, AffineFit | None]:
    """The converter that is kept there, if there is a whole one, and the sums that it was solved from, if it has them.
    ValueError where it is for other latents: what it has learned is not to be lost without a word."""
    if not path.exists():
        return None, None
    try:
        kept, fit = load_l2r(path), load_fit(path)
    except FileError as error:
        logger.warning("Foresight: %s L2R Calibrate begins anew.", error)
        return None, None
    if (kept.channels, kept.scale) != (channels, scale):
        raise ValueError(
            f"{file_name(path)} is for latents of {kept.channels} channels at scale {kept.scale}, and these have "
            f"{channels} channels at scale {scale}: take it out of models/foresight_l2r, and calibrate from the start."
        )
    return kept, fit


def worth_keeping(converter: nn.Module, kept: nn.Module | None) -> bool:
    """What has learned from one more clip is; a fresh fit only where nothing learned or better is kept."""
    if kept is None or "learned" in converter.metadata:
        return True
    return not kept.metadata.get("learned") and converter.metadata["psnr"] > (kept.metadata.get("psnr") or 0)
