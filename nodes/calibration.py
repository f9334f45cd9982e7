"""L2R Calibrate: a converter from the user's own VAE, in seconds."""

import datetime
import os

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..l2r.calibration import calibration_clips
from ..l2r.checkpoint import load_l2r, save_l2r
from ..l2r.fit import fit_affine, psnr, refine
from ..l2r.pairs import encoded, fingerprint, temporal, whole_latents
from . import types
from .folders import L2R

CLIPS, HELD_OUT = 24, 6  # procedural clips, and those of them that only measure
GROUPS = 4  # latent frames a clip, beside the first
LATENTS = 8  # a side of a clip: enough to see past a neighbourhood's edges, and quick on a CPU


class L2RCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ForesightL2RCalibrate",
            display_name="L2R Calibrate",
            category="Foresight",
            description="Makes a latent-to-RGB converter for any video VAE in seconds: it encodes pictures made on the spot, and "
            "finds the map back to their pixels. Nothing is downloaded.",
            inputs=[
                io.Model.Input("model", tooltip="The model whose latents are to be seen: it knows their scale."),
                io.Vae.Input("vae", tooltip="Its VAE; only the encoder is used."),
                io.Image.Input("images", optional=True, tooltip="A clip of your own to learn from as well."),
                io.Int.Input(
                    "refine_seconds", default=0, min=0, max=3600,
                    tooltip="0: the closed-form fit alone. Otherwise it is trained for about so long after that.",
                ),
                io.Boolean.Input(
                    "save", default=True,
                    tooltip="Keep it in models/foresight_l2r (unless a better one for this VAE is there), where L2R Preview's "
                    "auto finds it.",
                ),
            ],
            outputs=[types.L2R.Output(display_name="l2r"), io.Float.Output(display_name="psnr")],
        )

    @classmethod
    def execute(cls, model, vae, images=None, refine_seconds=0, save=True):
        latent_format = model.get_model_object("latent_format")
        bar = comfy.utils.ProgressBar(CLIPS + 100)
        pairs = []
        for clip in procedural_clips(vae):
            comfy.model_management.throw_exception_if_processing_interrupted()
            pairs.append(encoded(vae, latent_format, clip))
            bar.update(1)
        held_out, pairs = pairs[:HELD_OUT], pairs[HELD_OUT:]
        if images is not None:
            pairs.append(encoded(vae, latent_format, whole_latents(vae, images[..., :3])))
        converter = fit_affine(pairs)
        if refine_seconds:

            def progress(share: float) -> None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(CLIPS + round(100 * share))

            converter = refine(converter, pairs, refine_seconds, on_progress=progress)
        quality = psnr(converter, held_out)
        name = type(latent_format).__name__
        converter.metadata = {
            "name": f"{name}, calibrated", "latent_format": name, "calibrated": True, "vae": fingerprint(vae),
            "psnr": round(quality, 2), "held_out": f"{HELD_OUT} procedural clips", "refine_seconds": refine_seconds,
            "own_images": 0 if images is None else len(images), "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        if save:
            keep(converter)
        return io.NodeOutput(converter, quality)


def procedural_clips(vae) -> torch.Tensor:
    """[CLIPS, T, P, P, 3]: as long and as large as this VAE needs for a few latents each way."""
    groups = GROUPS if temporal(vae) > 1 else 0
    return calibration_clips(CLIPS, groups * temporal(vae) + 1, LATENTS * vae.spacial_compression_decode())


def keep(converter) -> None:
    """Writes the converter under a name of its latent format and VAE; a better one that is there stays."""
    described = converter.metadata
    folder = folder_paths.get_folder_paths(L2R)[0]
    path = os.path.join(folder, f"{described['latent_format']}_{described['vae']}.safetensors")
    if os.path.exists(path):
        try:
            if load_l2r(path).metadata.get("psnr", 0) >= described["psnr"]:
                return
        except ValueError:
            pass  # not a whole file: it is replaced
    os.makedirs(folder, exist_ok=True)
    save_l2r(converter, path)
