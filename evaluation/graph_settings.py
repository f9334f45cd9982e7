"""The settings of each model family in the example graphs; evaluations sample with the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..demo import preset
from ..demo.world import FRAMES, SIZE

# Who offers the pack's nodes where they are missing: our registry name and version.
PACK = {"cnr_id": "foresight-video", "ver": "0.1.0"}
CALIBRATE = "calibrate"


@dataclass(frozen=True)
class Settings:
    """What the graphs of one model family have in common. gate, injection: other widgets of those nodes, by name.
    plan: of Foresight Sampler; the visual hierarchy is the paper's.

    text_encoder: None is the demo's own. shift: of core's ModelSamplingSD3; None for models without one. width, height,
    length: pixels and frames. converter: a file, "auto", or CALIBRATE for an L2R Calibrate node. rule: of CogVideoX
    Sampler, where core's sampler nodes cannot drive the model.
    low_noise_model: the second expert of Wan 2.2 14B, with low_noise_cfg; None for models that are one.
    image_latent: the clip's size comes from Wan 2.2 5B's own node, which also takes a start image.
    start_image: the clip begins with this file of the input folder, through WanImageToVideo; clip_vision: what else
    reads it, where the model wants that. loras: one for each model. switch_step: after which the second expert takes
    over; 0 is by noise level. race: widgets of the drop-ins.
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
    text_encoder: str | None = None
    clip_type: str = "wan"
    rule: str | None = None
    low_noise_model: str | None = None
    low_noise_cfg: float = -1.0
    image_latent: bool = False
    start_image: str | None = None
    clip_vision: str | None = None
    loras: tuple[str, ...] = ()
    switch_step: int = 0
    converter: str = "auto"
    negative: str = ""
    seed: int = 0
    tau: float = -1.0
    delta: float = -1.0
    plan: str = "race"
    refiner: str = "restart"
    manual_prompt: str = ""
    gate: Mapping[str, Any] = field(default_factory=dict)
    injection: Mapping[str, Any] = field(default_factory=dict)
    race: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamedSettings(Settings):
    """Of a causal model. stream: widgets of Streaming Sampler; start_image is what the clip begins with. recache: of
    Streaming Guider. chunk_gate: further widgets of Chunk Gate."""

    stream: Mapping[str, Any] = field(default_factory=dict)
    recache: bool = True
    chunk_gate: Mapping[str, Any] = field(default_factory=dict)


DEMO = Settings(
    model=preset.TRANSFORMER, vae=preset.VAE, scorer=preset.SCORER, converter=preset.CONVERTER,
    prompt="one yellow ring glides upwards on a brown background",
    steps=preset.STEPS, cfg=preset.CFG, sampler=preset.SAMPLER, scheduler=preset.SCHEDULER, shift=preset.SHIFT,
    width=SIZE, height=SIZE, length=FRAMES, fps=8,
)  # fmt: skip
# Of the length that the student was trained on, and as it was trained: what was made keeps the prompt of then.
DEMO_STREAMED = StreamedSettings(**vars(DEMO) | {
    "model": preset.STREAMER, "shift": preset.STREAM_SHIFT, "cfg": preset.STREAM_CFG, "steps": preset.STREAM_STEPS,
    "length": preset.STREAM_FRAMES,
    "stream": {"preset": "Self-Forcing", "chunk": 1, "window": preset.STREAM_LATENTS}, "recache": False,
    "tau": preset.STREAM_TAU, "chunk_gate": {"tries": preset.STREAM_TRIES},
})  # fmt: skip

_VICLIP = "ViCLIP-L-14.safetensors"
_PROMPT = "a fox moving quickly in a beautiful winter scenery nature trees mountains daytime tracking camera"
_WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


# shift, cfg, sampler and scheduler are those of ComfyUI's own templates; size, length and steps the paper's.
WAN = Settings(
    model="wan2.1_t2v_1.3B_fp16.safetensors", vae="wan_2.1_vae.safetensors", scorer=_VICLIP,
    text_encoder="umt5_xxl_fp8_e4m3fn_scaled.safetensors", prompt=_PROMPT, negative=_WAN_NEGATIVE,
    steps=50, cfg=6.0, sampler="uni_pc", scheduler="simple", shift=8.0, width=832, height=480, length=49, fps=16,
)  # fmt: skip
WAN_14B = replace(WAN, model="wan2.1_t2v_14B_fp8_scaled.safetensors", steps=30, length=81)
WAN_22 = replace(
    WAN, model="wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", cfg=3.5,
    low_noise_model="wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", low_noise_cfg=3.5,
    sampler="euler", steps=20, length=81,
)  # fmt: skip
WAN_5B = replace(
    WAN, model="wan2.2_ti2v_5B_fp16.safetensors", vae="wan2.2_vae.safetensors", image_latent=True,
    steps=20, cfg=5.0, width=1280, height=704, length=121, fps=24,
)  # fmt: skip
# Size, steps, guidance, sampler and schedule of the released 5B model; "simple" over its timesteps is trailing spacing.
COGVIDEOX = Settings(
    model="cogvideox_5b_t2v.safetensors", vae="cogvideox_vae.safetensors", text_encoder="t5xxl_fp16.safetensors",
    clip_type="cogvideox", scorer=_VICLIP, converter=CALIBRATE, prompt=_PROMPT,
    steps=50, cfg=6.0, sampler="dpmpp_2m_sde", scheduler="simple", rule="dpm", shift=None,
    width=720, height=480, length=49, fps=8,
)  # fmt: skip
FAMILIES = {
    "demo": DEMO, "wan2.1_t2v_1.3b": WAN, "wan2.1_t2v_14b": WAN_14B, "wan2.2_t2v_14b": WAN_22,
    "wan2.2_ti2v_5b": WAN_5B, "cogvideox_5b": COGVIDEOX,
}  # fmt: skip
START = "example.png"  # an image that ComfyUI brings
# Of the drop-in's graphs, as ComfyUI's own templates have these models. Of four steps the look comes after the first
# (how much that tells has not been measured), and a budget of a quarter would pay for one more candidate alone.
_FEW = {"budget": 1.0, "self_refine": "off"}
_LORA = "wan2.2_{}_lightx2v_4steps_lora_{}_{}_noise.safetensors"
_FEW_STEPS = replace(
    WAN_22, steps=4, cfg=1.0, low_noise_cfg=-1.0, shift=5.0, switch_step=2, width=640, height=640, race=_FEW,
    loras=tuple(_LORA.format("t2v", "v1.1", noise) for noise in ("high", "low")),
)  # fmt: skip
# Causal models, as they were published: 81 frames (21 latents) are what they were trained on, CFG 1 and shift 5 theirs.
SELF_FORCING = StreamedSettings(**vars(WAN) | {
    "model": "self_forcing_dmd.safetensors", "negative": "", "cfg": 1.0, "shift": 5.0,
    "length": 81, "steps": 4, "stream": {"preset": "Self-Forcing"},
})  # fmt: skip
CAUSAL_FORCING = replace(
    SELF_FORCING, model="causal_forcing-framewise.safetensors", stream={"preset": "Causal-Forcing"}
)
LONGLIVE = replace(
    SELF_FORCING, model="longlive_base.safetensors", loras=("longlive_lora.safetensors",),
    stream={"preset": "LongLive"},
)  # fmt: skip
EXAMPLES = FAMILIES | {
    "self_forcing_1.3b": SELF_FORCING, "causal_forcing_1.3b": CAUSAL_FORCING, "longlive_1.3b": LONGLIVE,
    "causal_forcing_1.3b_i2v": replace(CAUSAL_FORCING, start_image=START),
    "longlive_1.3b_long": replace(
        LONGLIVE, length=237, prompt=f"{_PROMPT}\n7: the fox stops beside a frozen lake and looks up, while it begins "
        "to snow\n14: the fox curls up in the falling snow and closes its eyes, close-up",
    ),
    "demo_streamed": DEMO_STREAMED,
    "demo_retried": replace(DEMO, seed=6),  # whose clip misses its prompt, and another seed's does not
    "wan2.1_i2v_14b": replace(
        WAN, model="wan2.1_i2v_480p_14B_fp16.safetensors", start_image=START, clip_vision="clip_vision_h.safetensors",
        steps=20, width=512, height=512, length=33,
    ),
    "wan2.2_t2v_14b_4_steps": _FEW_STEPS,
    "wan2.2_i2v_14b_4_steps": replace(
        _FEW_STEPS, model="wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", start_image=START,
        low_noise_model="wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
        loras=tuple(_LORA.format("i2v", "v1", noise) for noise in ("high", "low")),
    ),
}  # fmt: skip
