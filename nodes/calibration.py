"""L2R Calibrate: a converter from the user's own VAE, in seconds."""

import datetime
import os
from collections.abc import Iterator
from itertools import count, islice

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..l2r.calibration import calibration_clips
from ..l2r.checkpoint import load_fit, load_l2r, save_l2r
from ..l2r.decode import decode
from ..l2r.fit import AffineFit, check_pair, key_frames, psnr, refine
from ..l2r.pairs import encoded, fingerprint, spatial, temporal, whole_latents
from . import types
from .folders import L2R

CLIPS, HELD_OUT = 24, 6  # procedural clips, and those of them that only measure
GROUPS = 4  # latent frames a clip, beside the first
ROWS = 20_000  # latents of a clip to learn from: about a second on two cores
LATENTS = 8  # a side of a clip: enough to see past a neighbourhood's edges, and quick on a CPU


class L2RCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ForesightL2RCalibrate",
            display_name="L2R Calibrate",
            category="Foresight",
            description="Makes a latent-to-RGB converter for any video VAE in seconds: it encodes pictures made on the spot, and "
            "finds the map back to their pixels. Nothing is downloaded. It can also learn from your finished clips.",
            inputs=[
                io.Model.Input("model", tooltip="The model whose latents are to be seen: it knows their scale."),
                io.Vae.Input("vae", optional=True, tooltip="Its VAE; only the encoder is used. Not needed with a latent."),
                io.Image.Input("images", optional=True, tooltip="A clip of your own to learn from as well; it is passed on."),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="What the images were decoded from: then nothing has to be encoded. Put the node after VAE Decode.",
                ),
                io.Int.Input(
                    "refine_seconds", default=0, min=0, max=3600,
                    tooltip="0: the closed-form fit alone. Otherwise it is trained for about so long after that.",
                ),
                io.Boolean.Input(
                    "save", default=True,
                    tooltip="Keep it in models/foresight_l2r (unless a better one for this VAE is there), where L2R Preview's "
                    "auto finds it.",
                ),
                io.Boolean.Input(
                    "learn", default=False,
                    tooltip="With a latent: add this clip to all that the kept converter has learned from, and keep the result. "
                    "Takes about a second a clip.",
                ),
            ],
            outputs=[
                types.L2R.Output(display_name="l2r"), io.Float.Output(display_name="psnr"),
                io.Image.Output(display_name="images"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae=None, images=None, latent=None, refine_seconds=0, save=True, learn=False):
        latent_format = model.get_model_object("latent_format")
        path = path_of_kept(latent_format, vae)
        kept = kept_at(path)
        if latent is not None:
            if images is None:
                raise ValueError("a latent alone has no pixels to learn: connect the images it was decoded to as well.")
            own = decoded(latent_format, latent["samples"], images[..., :3])
        elif vae is not None:
            own = None if images is None else encoded(vae, latent_format, whole_latents(vae, images[..., :3]))
        else:
            raise ValueError("connect a VAE, or a latent and the images it was decoded to.")
        fit = load_fit(path) if kept and learn and latent is not None else None
        bar = comfy.utils.ProgressBar(CLIPS + 100)
        source = None if vae is None else procedural_pairs(vae, latent_format)
        pairs = []
        for pair in islice(() if fit or vae is None else source, CLIPS):
            pairs.append(pair)
            bar.update(1)
        held_out, pairs = pairs[:HELD_OUT], pairs[HELD_OUT:] + ([own] if own else [])
        fit = fit or AffineFit(pairs[0][0].shape[1], check_pair(*pairs[0]))
        for pair in pairs:
            fit.add(*pair, limit=ROWS)
        converter = fit.solve()

        def quality_of(each) -> float:
            return psnr(each, held_out) if held_out else seen_quality(each, *own)

        if refine_seconds:

            def progress(share: float) -> None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(CLIPS + round(100 * share))

            @torch.inference_mode()
            def fresh():
                return next(source)

            refined = refine(
                converter, pairs, refine_seconds, device=comfy.model_management.get_torch_device(),
                fresh=None if vae is None else fresh, on_progress=progress,
            )  # fmt: skip
            # A few steps are worse than none, and how many there are is the machine's.
            converter = max(converter, refined, key=quality_of)
        described = {
            "latent_format": type(latent_format).__name__, "calibrated": True, "vae": fingerprint(vae) if vae else None,
            "name": f"{type(latent_format).__name__}, calibrated", "refine_seconds": refine_seconds,
            "own_images": 0 if images is None else len(images), "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        if held_out:
            quality, described["held_out"] = quality_of(converter), f"{HELD_OUT} procedural clips"
        else:  # what the converter made of this clip before it learned it
            quality = quality_of(kept or converter)
            described["held_out"] = "each clip before it was learned" if kept else "the clip itself"
        converter.metadata = described | {"psnr": round(quality, 2)}
        if learn and latent is not None:
            converter.metadata["learned"] = (kept.metadata.get("learned", 0) if kept else 0) + 1
        if save and worth_keeping(converter, kept):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            save_l2r(converter, path, fit=fit)
        return io.NodeOutput(converter, quality, images if images is not None else ExecutionBlocker(None))


def procedural_pairs(vae, latent_format) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs without end, of clips as long and as large as this VAE needs for a few latents each way."""
    groups = GROUPS if temporal(vae) > 1 else 0
    frames, size = groups * temporal(vae) + 1, LATENTS * spatial(vae)
    for seed in count():
        for clip in calibration_clips(CLIPS, frames, size, seed):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield encoded(vae, latent_format, clip)


def decoded(latent_format, samples: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair of a LATENT and the IMAGE that VAE Decode made of it."""
    latent = latent_format.process_in(samples if samples.ndim == 5 else samples.unsqueeze(2)).float().cpu()
    frames = images.float().cpu().unflatten(0, (len(latent), -1))
    return latent, key_frames(frames, latent.shape[2])


def seen_quality(converter, latent: torch.Tensor, frames: torch.Tensor) -> float:
    """PSNR in dB of a few frames of a pair: decoding all of a long clip would take longer than learning it."""
    some = sorted({0, latent.shape[2] // 2, latent.shape[2] - 1})
    error = decode(converter, latent, some).cpu() - frames[:, some]
    return float(-10 * error.square().mean().clamp_min(1e-10).log10())


def path_of_kept(latent_format, vae) -> str:
    """Where the converter for this VAE is kept; without a VAE there is one for each latent format."""
    name = type(latent_format).__name__
    return os.path.join(folder_paths.get_folder_paths(L2R)[0], f"{name}_{fingerprint(vae) if vae else 'any'}.safetensors")


def kept_at(path: str):
    """The converter that is kept there, if there is a whole one."""
    try:
        return load_l2r(path) if os.path.exists(path) else None
    except ValueError:
        return None


def worth_keeping(converter, kept) -> bool:
    """What has learned from one more clip is; a fresh fit only where nothing learned or better is kept."""
    if kept is None or "learned" in converter.metadata:
        return True
    return "learned" not in kept.metadata and converter.metadata["psnr"] > kept.metadata.get("psnr", 0)
