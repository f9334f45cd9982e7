"""One call of a guider, as ComfyUI's SamplerCustomAdvanced makes it, with a monitor as its sampler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args

from ..scoring.inspector import Gate
from .compat import RATIOS
from .guard import harmless
from .inputs import Inputs, Latent
from .line import video_latent
from .monitor import MonitorSampler
from .noise import SeededNoise
from .vp import require_fitting

KEY = "foresight"


def guided_sample(
    inputs: Inputs, monitor: MonitorSampler, guider, shown_by: Gate | None = None
) -> tuple[Latent, Latent]:
    """SamplerCustomAdvanced's own sequence of calls: bit-for-bit equality with it is promise 1. shown_by: makes the
    preview that core shows on the node."""
    require_fitting(inputs.sampler, guider.model_patcher.get_model_object("model_sampling"))
    guider = copy.copy(guider)  # what a sampler sets on it for a step must not outlive a run that is stopped there
    if not hasattr(guider, "cfg"):
        guider.cfg = 1.0  # ComfyUI 0.33 logs it; guiders of other packs may have none
    latent = inputs.latent.copy()
    ratios = {name: latent.pop(name, None) for name in RATIOS}
    latent["samples"] = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"], **ratios)
    x0_output: dict[str, torch.Tensor] = {}
    callback = preview_callback(guider.model_patcher, inputs.steps, x0_output, shown_by)
    seeded = isinstance(inputs.noise, SeededNoise)
    with inputs.noise.sampling(latent) if seeded else nullcontext(inputs.noise.generate_noise(latent)) as noise:
        samples = guider.sample(
            noise, latent["samples"], monitor, inputs.sigmas, denoise_mask=latent.get("noise_mask"), callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=inputs.noise.seed,
        )
    out = {**latent, "samples": samples.to(comfy.model_management.intermediate_device())}
    if "x0" not in x0_output:
        return out, out
    x0 = guider.model_patcher.model.process_latent_out(x0_output["x0"].cpu())
    return out, {**latent, "samples": x0}


def preview_callback(patcher, steps: int, x0_output: dict[str, torch.Tensor], shown_by: Gate | None) -> Callable:
    """Core's own callback; where its previews are on, L2R makes them instead of the linear map: the middle frame and
    not the first, and also for models of which core has no map. Whoever has chosen TAESD keeps it."""
    methods = (LatentPreviewMethod.Auto, LatentPreviewMethod.Latent2RGB)
    if shown_by is None or args.preview_method not in methods:
        return latent_preview.prepare_callback(patcher, steps, x0_output)
    bar = comfy.utils.ProgressBar(steps)

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        x0_output["x0"] = x0
        preview = None
        with harmless(f"step {step + 1} has no preview"):
            image = latent_preview.preview_to_image(shown_by.still(video_latent(x0, patcher.model)), do_scale=False)
            preview = ("JPEG", image, latent_preview.MAX_PREVIEW_RESOLUTION)
        bar.update_absolute(step + 1, total_steps, preview)

    return callback


def attached(guider, *judges):
    """A copy of the guider whose model is `accompanied` by gate and reward."""
    model = accompanied(guider.model_patcher, *judges)
    if model is guider.model_patcher:
        return guider
    guider = copy.copy(guider)
    guider.model_patcher = model
    return guider


def accompanied(model, *judges):
    """A clone of the MODEL that brings the judges' own weights along, beside those it brings already, so that ComfyUI
    budgets memory for all. Where there is none for them it is sampled alone: they judge from where their weights are,
    or the report says why not."""
    patchers = [patcher for judge in judges for patcher in getattr(judge, "patchers", ())]
    if not patchers:
        return model
    model = model.clone()
    together = {each.model: each for each in (*model.get_additional_models_with_key(KEY), *patchers)}  # clones are one
    model.set_additional_models(KEY, list(together.values()))
    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    model.remove_wrappers_with_key(kind, KEY)
    model.add_wrapper_with_key(kind, KEY, _load)
    return model


def _load(executor, model, *args, **kwargs):
    with harmless("scorer and converter were not loaded beside the model") as failure:
        return executor(model, *args, **kwargs)
    failure.error = None  # its traceback holds what was loaded until then
    for patcher in model.get_additional_models_with_key(KEY):
        with harmless("what was loaded of them was not unloaded"):
            patcher.detach()
    model.remove_additional_models(KEY)
    return executor(model, *args, **kwargs)
