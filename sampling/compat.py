"""Every difference between ComfyUI versions that sampling has to know, and nothing else; those of nodes are in
nodes/compat.py. From 0.33 on there is what is said to be newer; 0.3.75 is the oldest that is tried."""

import inspect

import comfy.k_diffusion.sampling
import comfy.model_sampling
import comfy.sample

# The parameterization of native CogVideoX, which is newer; models of it take x_t as it is.
RAW_INPUT = getattr(comfy.model_sampling, "V_PREDICTION_DDPM", None)
# Those that start from a picture instead of noise.
FROM_PICTURES = tuple(
    getattr(comfy.model_sampling, name) for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
    if hasattr(comfy.model_sampling, name)
)  # fmt: skip
# What newer cores note of an empty latent, and fit it to the model by.
RATIOS = [name for name in inspect.signature(comfy.sample.fix_empty_latent_channels).parameters if "ratio" in name]
# Core's own sampler for causal Wan, and the class of its models, which are newer.
CAUSAL_WAN = hasattr(comfy.k_diffusion.sampling, "sample_ar_video")
