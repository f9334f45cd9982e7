"""The note beside each example graph: what it is, what to look at, and where its model files come from."""

from __future__ import annotations

from ...evaluation.graph_settings import (
    CAUSAL_FORCING,
    COGVIDEOX,
    DEMO,
    EXAMPLES,
    LONGLIVE,
    SELF_FORCING,
    Settings,
)  # fmt: skip
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
            (_WAN_21, "diffusion_models", "wan2.1_i2v_480p_14B_fp16.safetensors"),
            (_WAN_22, "diffusion_models", "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"),
            (_WAN_22, "diffusion_models", "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"),
            (_WAN_21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
            (_WAN_21, "vae", "wan_2.1_vae.safetensors"),
            (_WAN_22, "vae", "wan2.2_vae.safetensors"),
            (_WAN_21, "clip_vision", "clip_vision_h.safetensors"),
            *((_WAN_22, "loras", lora) for s in EXAMPLES.values() if s.low_noise_model for lora in s.loras),
        )
    },
    "t5xxl_fp16.safetensors": (
        "text_encoders", f"{_HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors"
    ),
    "cogvideox_vae.safetensors": ("vae", f"{_HUB}/Comfy-Org/void-model/resolve/main/vae/cogvideox_vae.safetensors"),
    CAUSAL_FORCING.model: (
        "diffusion_models",
        f"{_HUB}/TalmajM/causal_forcing_framewise_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/"
        f"{CAUSAL_FORCING.model}",
    ),
    _VICLIP: ("foresight", f"{_HUB}/OpenGVLab/ViCLIP-L-14-hf/resolve/main/model.safetensors"),
}
# Files that are nowhere to be had under names that ComfyUI reads: folder, what they are made from, and where that is.
_LONGLIVE = "Efficient-Large-Model/LongLive-1.3B"
CONVERTED = {
    COGVIDEOX.model: ("diffusion_models", "transformer", "THUDM/CogVideoX-5b"),
    SELF_FORCING.model: ("diffusion_models", "self_forcing_dmd.pt", "gdhe17/Self-Forcing"),
    LONGLIVE.model: ("diffusion_models", "longlive_base.pt", _LONGLIVE),
    LONGLIVE.loras[0]: ("loras", "lora.pt", _LONGLIVE),
}

_DEMO = """Small models that come with Foresight draw coloured shapes that move. Nothing has to be downloaded, no GPU is
needed. Press **Run**.

Say one or two shapes (*circle, square, triangle, ring, cross*), their colours, a direction and a background:
"a red circle moves left on a white background", "a green square under a blue ring, both standing still"."""
_STUDENT = (
    " The student of *Demo Models* makes one latent at a time in 4 steps, at shift 5 and CFG 1. Longer clips: a larger "
    "*length*, and prompts that say when the motion turns, below each other (*0: a red circle moves left on a white "
    "background*, *7: a red circle moves right on a white background*), in *Streaming Guider* and in *Chunk Gate*. Its "
    "**tau** and **tries** were found for chunks of this student. For *streaming, diagonal* choose the preset "
    "*Diagonal Distillation* with chunk 1, window 7 and sink 0."
)
# Form of a graph -> its title after the model's name, and what is to be known of it, where that is the same of all.
_FORMS = {
    "side_by_side": (
        "one seed, before and after",
        "**What to look at.** Above, *KSampler* makes the clip of a seed. Below, *KSampler (Foresight)*, with the same "
        "links and values, looks at that clip early: where it falls short of the prompt, other seeds are begun, and "
        "the best goes on. Both clips are shown, and *Run Report* tells what was tried and what it cost.",
    ),
    "one_node": ("everything in one node", ""),
    "drop_in": ("one node replaced", ""),
    "visual_hierarchy": ("the paper's trials, node by node", ""),
    "self_refine": (
        "a clip that is refined while it is sampled",
        "**Self-Refine Sampler** predicts the clip at some early steps, adds fresh noise and predicts again, and keeps "
        "what both agree on: half as many evaluations again as a plain clip. *Enhancer Report* shows where it refined "
        "(white) and what it cost.",
    ),
    "latent_search": (
        "several beginnings, the best finished",
        "**Latent Search Sampler** begins several candidates of the clip, scores them half way and finishes the best, "
        "within a budget of three clips. *Enhancer Report* tells the winner's seed; *Candidate Noise* makes its noise, "
        "to sample it alone.",
    ),
    "seed_audition": (
        "eight seeds a short way, one to the end",
        "**What to look at.** *Seed Audition* samples every seed a fifth of the way and scores what is seen by then; "
        "the best goes on from there. The sheet shows them all. Set **choose** to *by hand* and tick your own in the "
        "*Foresight* tab while it waits.",
    ),
    "watch": (
        "KSampler, watched",
        "**What to look at.** *Foresight Watch* stands between the model and KSampler. It changes and stops nothing: "
        "it says early what it thinks of the clip, and *Run Report* holds that against the finished clip's score.",
    ),
    "calibrate": (
        "previews from your VAE",
        "**What to look at.** *L2R Calibrate* is all there is, and it can be run alone: nothing is sampled. It "
        "learns from the VAE how its latents look (the demo's takes half a minute on two CPU cores). The node says how "
        "good that is and where it is kept, and shows a clip that it has not learned from: as it was, as ComfyUI "
        "previews it, as it is previewed now. From then on previews use it.",
    ),
    "streaming": (
        "chunk by chunk, and back where one falls short",
        "**Streaming Sampler** makes the clip chunk by chunk, and remembers those before in a cache. *Chunk Gate* "
        "looks at each while it is made, and takes back what falls short; *Streaming Report* and the live view tell of "
        "every draw. What falls short is below **tau**, which has to be lower for chunks than for finished clips: the "
        "help of *Chunk Gate* says how to find it.",
    ),
    "extension": (
        "a clip, and as much again behind it",
        "**What to look at.** The first *Streaming Sampler* **goes_on**: it keeps its cache, and the second takes it "
        "over (**previous**, **start**), so that both clips join as if they had been made in one call, to the last "
        "bit. A prompt that begins at chunk 7 (*7: it sits down*) is that of the second. Any clip can be extended: "
        "encode it with *VAE Encode*, connect it as **start**, and leave **previous** open.",
    ),
}  # fmt: skip
_FOUR = (
    "A 4-step LoRA for each expert, CFG 1 and shift 5, as in ComfyUI's own template. The clip is looked at after the "
    "first of its 4 steps, so four more tries cost what one more clip would (**budget** 1)."
)
_STREAMED = "4 steps for each chunk, CFG 1 and shift 5, as published, in 480p at 16 frames a second."
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
    "wan2.1_i2v_14b": (
        "Wan 2.1 I2V 14B",
        "Choose your start image in *Load Image*. Size, length and steps are those of ComfyUI's own template. The "
        "start image enters by the conditioning, as with KSampler.",
    ),
    "wan2.2_t2v_14b_4_steps": ("Wan 2.2 T2V 14B in 4 steps", _FOUR),
    "wan2.2_i2v_14b_4_steps": ("Wan 2.2 I2V 14B in 4 steps", f"Choose your start image in *Load Image*. {_FOUR}"),
    "cogvideox_5b": (
        "CogVideoX-5B",
        "Needs ComfyUI 0.33 or newer. *L2R Calibrate* makes the preview from the VAE when the graph first runs.",
    ),
    "self_forcing_1.3b": ("Self-Forcing 1.3B", _STREAMED),
    "causal_forcing_1.3b": ("Causal-Forcing 1.3B", f"{_STREAMED} This model makes one latent at a time."),
    "causal_forcing_1.3b_i2v": (
        "Causal-Forcing 1.3B from an image",
        "Choose your start image in *Load Image*. It is encoded, and is the first latent of the clip: the model is the "
        f"one for text to video. {_STREAMED}",
    ),
    "longlive_1.3b": (
        "LongLive 1.3B", f"{_STREAMED} It sees 12 latents, of which the first 3 always, so that a clip of any length "
        "takes the same memory.",
    ),
    "longlive_1.3b_long": (
        "LongLive 1.3B, 15 seconds",
        "The prompt changes at chunks 7 and 14 of 20 (*7: the fox stops*; a chunk is 3 latents, 12 frames). What is "
        "seen of the chunks before is read again under the new prompt (**recache**), and *Chunk Gate* holds against "
        f"each prompt what was made for it. {_STREAMED}",
    ),
}  # fmt: skip


def note(form: str, family: str) -> str:
    """Markdown. form: of _FORMS; family: of graph_settings.EXAMPLES."""
    s, (title, form_text) = EXAMPLES[family], _FORMS[form]
    notes = {"one_node": race_note, "visual_hierarchy": paper_note, "drop_in": drop_in_note}
    form_text = notes[form](s) if form in notes else form_text
    if family not in _TEXTS:
        student = _STUDENT if form == "streaming" else ""
        return f"## The demo: {title}\n\n{_DEMO}\n\n{form_text}{student}"
    name, lines = _TEXTS[family]
    return "\n".join((
        f"## {name}: {title}", "", "Put these files here:", "", *map(_entry, _files(s, form)), "", lines, "", form_text,
    ))  # fmt: skip


def _files(s: Settings, form: str) -> list[str]:
    """What a graph loads."""
    if form == "calibrate":
        return [s.model, s.vae]
    return [file for file in (
        s.model, s.low_noise_model, *s.loras, s.text_encoder, s.vae, s.clip_vision, s.scorer) if file]  # fmt: skip


def drop_in_note(s: Settings) -> str:
    """What was replaced, and how to do the same elsewhere."""
    if s.low_noise_model:
        replaced = (
            "The usual graph has two *KSampler (Advanced)*, one for each expert. A clip can only be put aside and "
            "another begun by what sees the whole schedule: so *Two-Expert Guider* joins the experts (**switch_step** "
            "is the first KSampler's end_at_step) and *SamplerCustomAdvanced (Foresight)* stands in the place of both. "
            "With Euler it makes their clip, up to rounding."
        )
    else:
        replaced = (
            "This is a plain graph, in which one node was exchanged: *KSampler (Foresight)* stands where KSampler "
            "stood, with the same sockets and widgets. In a graph of yours, add it beside KSampler, draw the same "
            "links, copy the values, and delete KSampler."
        )
    return (
        f"**What to look at.** {replaced} *Run Report* is only there to look at.\n\n"
        "The clip is looked at early. Where it falls short, other seeds are begun, and the best goes on; **budget** is "
        "what that may cost beyond a plain clip. It is scored against the positive prompt, which the node finds in the "
        "graph; **prompt** takes another text."
    )


def race_note(s: Settings) -> str:
    """What to look at where Foresight Sampler races."""
    own = s.scorer == DEMO.scorer  # its preset comes with the pack
    when = "early, when its preset says" if own else f"once, after step {reached(LOOK, s.steps)} of {s.steps}"
    note = (
        f"**What to look at.** *Foresight Sampler* looks at the clip {when}. "
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
    if file in CONVERTED:
        folder, source, repository = CONVERTED[file]
        return (
            f"- ComfyUI/models/{folder}: {file}, made from *{source}* of [{repository}]({_HUB}/{repository}), in which "
            f"are other names than ComfyUI reads: `python -m foresight.evaluation convert {source} {file}`"
        )
    folder, address = DOWNLOADS[file]
    if file == _VICLIP:
        return f"- ComfyUI/models/{folder}: [ViCLIP-L-14's model.safetensors]({address}), saved as {file}"
    return f"- ComfyUI/models/{folder}: [{file}]({address})"
