"""What the example graphs hold: one Settings for each model family, and where its files come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..demo import preset
from ..demo.world import FRAMES, SIZE

CALIBRATE = "calibrate"


@dataclass(frozen=True)
class Settings:
    """What the graphs of one model family have in common. gate, injection: other widgets of those nodes, by name.

    text_encoder: None is the demo's own. shift: of core's ModelSamplingSD3; None for models without one. width, height,
    length: pixels and frames. converter: a file, "auto", or CALIBRATE for an L2R Calibrate node. rule: of CogVideoX
    Sampler, where core's sampler nodes cannot drive the model.
    low_noise_model: the second expert of Wan 2.2 14B, with low_noise_cfg; None for models that are one.
    image_latent: the clip's size comes from Wan 2.2 5B's own node, which also takes a start image.
    """

    model: str
    vae: str
    scorer: str
    prompt: str
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    shift: float | None
    width: int
    height: int
    length: int
    fps: float
    note: str
    text_encoder: str | None = None
    clip_type: str = "wan"
    rule: str | None = None
    low_noise_model: str | None = None
    low_noise_cfg: float = -1.0
    image_latent: bool = False
    converter: str = "auto"
    negative: str = ""
    seed: int = 0
    tau: float = -1.0
    delta: float = -1.0
    refiner: str = "restart"
    manual_prompt: str = ""
    gate: Mapping[str, Any] = field(default_factory=dict)
    injection: Mapping[str, Any] = field(default_factory=dict)


DEMO = Settings(
    model=preset.TRANSFORMER, vae=preset.VAE, scorer=preset.SCORER, converter=preset.CONVERTER,
    prompt="one yellow ring glides upwards on a brown background",
    steps=preset.STEPS, cfg=preset.CFG, sampler=preset.SAMPLER, scheduler=preset.SCHEDULER, shift=preset.SHIFT,
    width=SIZE, height=SIZE, length=FRAMES, fps=8,
    note="""## Foresight: the demo family

Small models that come with Foresight draw coloured shapes that move. Nothing has to be downloaded, no GPU is needed.
Press **Run**.

Say one or two shapes (*circle, square, triangle, ring, cross*), their colours, a direction and a background:
"a red circle moves left on a white background", "a green square under a blue ring, both standing still".

**Run Report** tells what was seen and done. Set **tau** to 1 to see every trial; -1 is the scorer's own threshold.""",
)  # fmt: skip

_HUB = "https://huggingface.co"
_WAN_21 = f"{_HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_WAN_22 = f"{_HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
_VICLIP = "ViCLIP-L-14.safetensors"
# What the frontend offers when a file is missing: name -> folder and address.
DOWNLOADS = {
    **{
        name: (folder, f"{hub}/{folder}/{name}")
        for hub, folder, name in (
            (_WAN_21, "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors"),
            (_WAN_21, "diffusion_models", "wan2.1_t2v_14B_fp8_scaled.safetensors"),
            (_WAN_22, "diffusion_models", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"),
            (_WAN_22, "diffusion_models", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"),
            (_WAN_22, "diffusion_models", "wan2.2_ti2v_5B_fp16.safetensors"),
            (_WAN_21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
            (_WAN_21, "vae", "wan_2.1_vae.safetensors"),
            (_WAN_22, "vae", "wan2.2_vae.safetensors"),
        )
    },
    "t5xxl_fp16.safetensors": (
        "text_encoders", f"{_HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors"
    ),
    "cogvideox_vae.safetensors": ("vae", f"{_HUB}/Comfy-Org/void-model/resolve/main/vae/cogvideox_vae.safetensors"),
    _VICLIP: ("foresight", f"{_HUB}/OpenGVLab/ViCLIP-L-14-hf/resolve/main/model.safetensors"),
}


_WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def _note(name: str, lines: str, *files: str) -> str:
    def entry(file: str) -> str:
        folder, address = DOWNLOADS[file]
        label = f"[ViCLIP-L-14's model.safetensors]({address}), saved as {file}" if file == _VICLIP else None
        return f"- ComfyUI/models/{folder}: {label or f'[{file}]({address})'}"

    return "\n".join((
        f"## Foresight with {name}", "",
        "A clip that is going to miss its prompt is stopped early and repaired; one that passes is not touched.", "",
        "Put these files here:", "", *map(entry, files), "", lines,
    ))  # fmt: skip


def _wan(name: str, lines: str, **settings: Any) -> Settings:
    """shift, cfg, sampler and scheduler are those of ComfyUI's own templates."""
    shared = {
        "vae": "wan_2.1_vae.safetensors", "text_encoder": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "scorer": _VICLIP,
        "sampler": "uni_pc", "scheduler": "simple", "shift": 8.0, "width": 832, "height": 480, "fps": 16,
        "prompt": "a fox moving quickly in a beautiful winter scenery nature trees mountains daytime tracking camera",
        "negative": _WAN_NEGATIVE,
    }  # fmt: skip
    made = {**shared, **settings}
    files = [made["model"], made.get("low_noise_model"), made["text_encoder"], made["vae"], made["scorer"]]
    return Settings(**made, note=_note(name, lines, *filter(None, files)))


WAN = _wan(
    "Wan 2.1 T2V 1.3B", "Size, length and step count are the paper's (480p, 49 frames, 50 steps).",
    model="wan2.1_t2v_1.3B_fp16.safetensors", steps=50, cfg=6.0, length=49,
)
WAN_14B = _wan(
    "Wan 2.1 T2V 14B", "The window is steps 5 to 9 of 30.",
    model="wan2.1_t2v_14B_fp8_scaled.safetensors", steps=30, cfg=6.0, length=81,
)
WAN_22 = _wan(
    "Wan 2.2 T2V 14B",
    "Both experts are watched as one run: the low-noise model takes over below sigma 0.875 (Wan's own boundary), and "
    "is not even loaded for a clip that is stopped. The window is steps 4 to 6 of 20.",
    model="wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
    low_noise_model="wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", low_noise_cfg=3.5,
    sampler="euler", steps=20, cfg=3.5, length=81,
)  # fmt: skip
WAN_5B = _wan(
    "Wan 2.2 TI2V 5B",
    "The window is steps 4 to 6 of 20. Connect a start image to *Wan22ImageToVideoLatent* for image to video: Trial 1 "
    "is left out then, because the first frame is given, and Trial 2 comes next.",
    model="wan2.2_ti2v_5B_fp16.safetensors", vae="wan2.2_vae.safetensors", image_latent=True,
    steps=20, cfg=5.0, width=1280, height=704, length=121, fps=24,
)  # fmt: skip
# Size, steps, guidance, sampler and schedule of the released 5B model; "simple" over its timesteps is trailing spacing.
COGVIDEOX = Settings(
    model="cogvideox_5b_t2v.safetensors", vae="cogvideox_vae.safetensors", text_encoder="t5xxl_fp16.safetensors",
    clip_type="cogvideox", scorer=_VICLIP, converter=CALIBRATE,
    prompt="a fox moving quickly in a beautiful winter scenery nature trees mountains daytime tracking camera",
    steps=50, cfg=6.0, sampler="dpmpp_2m_sde", scheduler="simple", rule="dpm", shift=None,
    width=720, height=480, length=49, fps=8,
    note=_note(
        "CogVideoX-5B",
        "and *cogvideox_5b_t2v.safetensors* into ComfyUI/models/diffusion_models. The released transformer "
        "(THUDM/CogVideoX-5b, folder *transformer*) has other names inside than ComfyUI reads; this makes the file:\n\n"
        "    python -m foresight.evaluation.convert CogVideoX-5b/transformer cogvideox_5b_t2v.safetensors\n\n"
        "Needs ComfyUI 0.33 or newer. *L2R Calibrate* makes the preview from the VAE when the graph first runs.",
        "t5xxl_fp16.safetensors", "cogvideox_vae.safetensors", _VICLIP,
    ),
)  # fmt: skip
FAMILIES = {
    "demo": DEMO, "wan2.1_t2v_1.3b": WAN, "wan2.1_t2v_14b": WAN_14B, "wan2.2_t2v_14b": WAN_22,
    "wan2.2_ti2v_5b": WAN_5B, "cogvideox_5b": COGVIDEOX,
}  # fmt: skip
