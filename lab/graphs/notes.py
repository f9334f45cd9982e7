"""The note beside each example graph: what it is, and where its model files come from."""

from __future__ import annotations

from ...evaluation.graph_settings import FAMILIES

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

_DEMO = """## Foresight: the demo family

Small models that come with Foresight draw coloured shapes that move. Nothing has to be downloaded, no GPU is needed.
Press **Run**.

Say one or two shapes (*circle, square, triangle, ring, cross*), their colours, a direction and a background:
"a red circle moves left on a white background", "a green square under a blue ring, both standing still".

**Run Report** tells what was seen and done. Set **tau** to 1 to see every trial; -1 is the scorer's own threshold."""
# Family -> its name, and the note's last lines.
_TEXTS = {
    "wan2.1_t2v_1.3b": (
        "Wan 2.1 T2V 1.3B", "Size, length and step count are the paper's (480p, 49 frames, 50 steps).",
    ),
    "wan2.1_t2v_14b": ("Wan 2.1 T2V 14B", "The window is steps 5 to 9 of 30."),
    "wan2.2_t2v_14b": (
        "Wan 2.2 T2V 14B",
        "Both experts are watched as one run: the low-noise model takes over below sigma 0.875 (Wan's own boundary), "
        "and is not even loaded for a clip that is stopped. The window is steps 4 to 6 of 20.",
    ),
    "wan2.2_ti2v_5b": (
        "Wan 2.2 TI2V 5B",
        "The window is steps 4 to 6 of 20. Connect a start image to *Wan22ImageToVideoLatent* for image to video: "
        "Trial 1 is left out then, because the first frame is given, and Trial 2 comes next.",
    ),
    "cogvideox_5b": (
        "CogVideoX-5B",
        "and *cogvideox_5b_t2v.safetensors* into ComfyUI/models/diffusion_models. The released transformer "
        "(THUDM/CogVideoX-5b, folder *transformer*) has other names inside than ComfyUI reads; this makes the file:\n\n"
        "    python -m foresight.evaluation.convert CogVideoX-5b/transformer cogvideox_5b_t2v.safetensors\n\n"
        "Needs ComfyUI 0.33 or newer. *L2R Calibrate* makes the preview from the VAE when the graph first runs.",
    ),
}  # fmt: skip


def note(family: str) -> str:
    """Markdown. family: of graph_settings.FAMILIES."""
    if family not in _TEXTS:
        return _DEMO
    (name, lines), s = _TEXTS[family], FAMILIES[family]
    files = [file for file in (s.model, s.low_noise_model, s.text_encoder, s.vae, s.scorer) if file in DOWNLOADS]
    return "\n".join((
        f"## Foresight with {name}", "",
        "A clip that is going to miss its prompt is stopped early and repaired; one that passes is not touched.", "",
        "Put these files here:", "", *map(_entry, files), "", lines,
    ))  # fmt: skip


def _entry(file: str) -> str:
    folder, address = DOWNLOADS[file]
    if file == _VICLIP:
        return f"- ComfyUI/models/{folder}: [ViCLIP-L-14's model.safetensors]({address}), saved as {file}"
    return f"- ComfyUI/models/{folder}: [{file}]({address})"
