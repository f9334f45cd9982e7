"""The note beside each example graph: what it is, what to look at, and where its model files come from."""

from __future__ import annotations

from ...evaluation.graph_settings import DEMO, FAMILIES, Settings
from ...scoring.detector import DetectorSettings, reached
from ...trials.race import LOOK

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

**Run Report** tells what was seen, what was done and what it cost."""
DROP_IN_NOTE = (
    "**What to look at.** This is a plain graph, in which one node was exchanged: *KSampler (Foresight)* stands where "
    "KSampler stood, with the same sockets and widgets. In a graph of yours, add it beside KSampler, draw the same "
    "links, copy the values, and delete KSampler. *Run Report* is only there to look at.\n\n"
    "The clip is looked at early. Where it falls short, other seeds are begun, and the best goes on; **budget** is "
    "what that may cost beyond a plain clip. It is scored against the positive prompt, which the node finds in the "
    "graph; **prompt** takes another text."
)
REFINE_NOTE = (
    "**Self-Refine Sampler** predicts the clip at some early steps, adds fresh noise and predicts again, and keeps "
    "what both agree on: half as many evaluations again as a plain clip. *Enhancer Report* shows where it refined "
    "(white) and what it cost."
)
SEARCH_NOTE = (
    "**Latent Search Sampler** begins several candidates of the clip, scores them half way and finishes the best, "
    "within a budget of three clips. *Enhancer Report* tells the winner's seed; *Candidate Noise* makes its noise, to "
    "sample it alone."
)
STREAM_NOTE = (
    "**Streaming Sampler** makes the clip latent by latent, and remembers those before in a cache. *Chunk Gate* looks "
    "at each while it is made, and takes back what falls short; *Streaming Report* and the live view tell of every "
    "draw. The demo's model was not trained to be streamed, so few of these clips are right: with a model that was, "
    "choose its preset instead of *sigmas*, and CFG 1."
)
# Family -> its name, and what is to be known of it.
_TEXTS = {
    "wan2.1_t2v_1.3b": (
        "Wan 2.1 T2V 1.3B", "Size, length and step count are the paper's (480p, 49 frames, 50 steps).",
    ),
    "wan2.1_t2v_14b": ("Wan 2.1 T2V 14B", "81 frames in 30 steps, as in ComfyUI's own template."),
    "wan2.2_t2v_14b": (
        "Wan 2.2 T2V 14B",
        "Both experts are watched as one run: the low-noise model takes over below sigma 0.875 (Wan's own boundary), "
        "and is not even loaded before a clip goes on beyond it.",
    ),
    "wan2.2_ti2v_5b": (
        "Wan 2.2 TI2V 5B",
        "Connect a start image to *Wan22ImageToVideoLatent* for image to video. (The paper's Trial 1 is left out then, "
        "because the first frame is given.)",
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
        "A clip is looked at early. One that passes is not touched; one that will miss its prompt is not paid for.",
        "", "Put these files here:", "", *map(_entry, files), "", lines,
    ))  # fmt: skip


def race_note(s: Settings) -> str:
    """What to look at where Foresight Sampler races."""
    own = s.scorer == DEMO.scorer  # its preset comes with the pack
    when = "early, when its preset says" if own else f"after step {reached(LOOK, s.steps)} of {s.steps}"
    note = (
        f"**What to look at.** *Foresight Sampler* looks at the clip once, {when}. "
        "Where it falls short, the next seeds are tried, and the best goes on. The live view and *Run Report* show "
        "every candidate: its picture at the look, its score, what became of it. Compare **NFE** with *plain*."
        "\n\nThe node's last widgets: **plan** (*paper*: the published trials instead), **budget** (what may be spent "
        "beyond a plain clip) and **self_refine** (which candidates are lightly refined)."
    )
    if own:
        return note
    return note + (
        "\n\nNo preset for this model comes with the pack: ranks decide, and the budget is the most that is spent. The "
        "node's help says how to fit one to your own clips."
    )


def paper_note(s: Settings) -> str:
    """What to look at where the paper's trials are nodes."""
    start, end = DetectorSettings.video().window(s.steps)
    return (
        "**What to look at.** The paper's trials, each a group of nodes. The gate decides at steps "
        f"{start} to {end} of {s.steps}; each *Trial Switch* runs only the branch that the verdict asks for. "
        "Set **tau** to 1 to see every trial; -1 is the scorer's own threshold."
    )


def _entry(file: str) -> str:
    folder, address = DOWNLOADS[file]
    if file == _VICLIP:
        return f"- ComfyUI/models/{folder}: [ViCLIP-L-14's model.safetensors]({address}), saved as {file}"
    return f"- ComfyUI/models/{folder}: [{file}]({address})"
