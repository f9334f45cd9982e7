"""What the example graphs are put together from: models, prompts, inspectors, clips and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...demo import preset
from ...evaluation.graph_settings import CALIBRATE, DEMO, Settings
from .graph import WIDTH, Graph, Link


@dataclass(frozen=True)
class Models:
    model: Link
    vae: Link
    clip: Link  # False where nothing is sampled
    experts: dict[str, Any]  # what ForesightSampler and Two-Expert Guider take besides; empty for models that are one


def load_models(graph: Graph, s: Settings, sampled: bool = True) -> Models:
    """sampled: with what a prompt and a schedule need."""
    graph.group("Models", column=1)
    own = {file: {"model": name} for name, file in preset.MODELS.items() if file != DEMO.model}
    demo = None if s.text_encoder else graph.add("ForesightDemoTextEncoder", **own.get(s.model, {}))

    def shifted(file: str, lora: str | None, **title: str) -> Link:
        if demo and file in preset.MODELS.values():
            model = demo[1]
        else:
            model = graph.add("UNETLoader", unet_name=file, weight_dtype="default", **title)[0]
        if lora:
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)[0]
        return model if s.shift is None or not sampled else graph.add("ModelSamplingSD3", model=model, shift=s.shift)[0]

    experts, loras = {}, (*s.loras, None, None)
    if s.low_noise_model:
        model = shifted(s.model, loras[0], title="Load Diffusion Model (high noise)")
        low = shifted(s.low_noise_model, loras[1], title="Load Diffusion Model (low noise)")
        experts = {"low_noise_model": low, "low_noise_cfg": s.low_noise_cfg}
        experts |= {"switch_step": s.switch_step} if s.switch_step else {}
    else:
        model = shifted(s.model, loras[0])
    clip = demo or sampled and graph.add("CLIPLoader", clip_name=s.text_encoder, type=s.clip_type, device="default")
    vae = demo[2] if demo and s.vae == DEMO.vae else graph.add("VAELoader", vae_name=s.vae)[0]
    return Models(model, vae, clip and clip[0], experts)


def encode_texts(graph: Graph, clip: Link, prompt: Link | str, negative: Link | str) -> dict[str, Link]:
    return {
        name.lower(): graph.add("CLIPTextEncode", title=f"CLIP Text Encode ({name} Prompt)", clip=clip, text=text,
                                colour=colour)[0]
        for name, text, colour in (("Positive", prompt, "green"), ("Negative", negative, "red"))
    }  # fmt: skip


def add_guider(graph: Graph, model: Link, experts: Mapping[str, Any], **conditions: Any) -> Link:
    if experts:
        return graph.add("ForesightTwoExpertGuider", high_noise_model=model, **conditions, **experts)[0]
    return graph.add("CFGGuider", model=model, **conditions)[0]


def add_sampling(graph: Graph, s: Settings, model: Link) -> dict[str, Link]:
    """noise, sampler and sigmas."""
    noise = graph.add("RandomNoise", noise_seed=s.seed)[0]
    if s.rule:
        own = graph.add("ForesightCogVideoXSampler", model=model, rule=s.rule, steps=s.steps)
        return {"noise": noise, "sampler": own[0], "sigmas": own[1]}
    sampler = graph.add("KSamplerSelect", sampler_name=s.sampler)[0]
    sigmas = graph.add("BasicScheduler", model=model, scheduler=s.scheduler, steps=s.steps, denoise=1.0)[0]
    return {"noise": noise, "sampler": sampler, "sigmas": sigmas}


def add_converter(graph: Graph, s: Settings, family: Models) -> Link:
    if s.converter == CALIBRATE:
        return graph.add("ForesightL2RCalibrate", model=family.model, vae=family.vae)[0]
    # "auto" asks the model for its latent format and takes what fits the VAE; one chosen by name knows its own.
    needs = {"model": family.model, "vae": family.vae} if s.converter == "auto" else {}
    return graph.add("ForesightL2RPreview", converter=s.converter, **needs)[0]


def add_inspector(graph: Graph, s: Settings, family: Models, column: int) -> tuple[Link, Link]:
    graph.group("Inspector", column)
    return add_converter(graph, s, family), graph.add("ForesightViCLIPScore", weights=s.scorer)[0]


def add_size(graph: Graph, s: Settings, vae: Link, column: int) -> Link:
    graph.group("Clip size", column)
    size = {"width": s.width, "height": s.height, "length": s.length}
    if s.image_latent:
        return graph.add("Wan22ImageToVideoLatent", vae=vae, **size, batch_size=1)[0]
    return graph.add("EmptyHunyuanLatentVideo", **size, batch_size=1)[0]


def add_first_latents(graph: Graph, s: Settings, vae: Link, column: int) -> dict[str, Link]:
    """What a stream begins with: its start image, at the clip's size."""
    if not s.start_image:
        return {}
    graph.group("Start image", column)
    image = graph.add("LoadImage", image=s.start_image, size=(WIDTH, 320))[0]
    sized = graph.add(
        "ImageScale", image=image, upscale_method="lanczos", width=s.width, height=s.height, crop="center")[0]
    return {"start": graph.add("VAEEncode", pixels=sized, vae=vae)[0]}


def add_start(graph: Graph, s: Settings, family: Models) -> tuple[dict[str, Link], Link]:
    """Positive and negative, and the latent; with a start image both come through core's node for it."""
    if not s.start_image:
        latent = add_size(graph, s, family.vae, column=2)
        graph.group("Prompt", column=2)
        return encode_texts(graph, family.clip, s.prompt, s.negative), latent
    graph.group("Start image", column=1)
    needs = {"start_image": graph.add("LoadImage", image=s.start_image, size=(WIDTH, 320))[0]}
    if s.clip_vision:
        reader = graph.add("CLIPVisionLoader", clip_name=s.clip_vision)[0]
        needs["clip_vision_output"] = graph.add(
            "CLIPVisionEncode", clip_vision=reader, image=needs["start_image"], crop="none")[0]
    graph.group("Prompt", column=2)
    texts = encode_texts(graph, family.clip, s.prompt, s.negative)
    graph.group("Clip size", column=2)
    size = {"width": s.width, "height": s.height, "length": s.length, "batch_size": 1}
    started = graph.add("WanImageToVideo", **texts, vae=family.vae, **size, **needs)
    return {"positive": started[0], "negative": started[1]}, started[2]


def add_clip(graph: Graph, s: Settings, latent: Link, vae: Link, prefix: str = "foresight") -> Link:
    """The clip's frames."""
    frames = graph.add("VAEDecode", samples=latent, vae=vae)[0]
    graph.add("SaveAnimatedWEBP", images=frames, filename_prefix=prefix, fps=s.fps, lossless=False, quality=90,
              method="default", size=(WIDTH, 400))  # fmt: skip
    return frames


def add_result(
    graph: Graph, s: Settings, column: int, latent: Link, vae: Link, scorer: Link | None, **run: Link
) -> None:  # fmt: skip
    """run: the verdict, or the watch."""
    graph.group("Result", column)
    frames = add_clip(graph, s, latent, vae)
    judge = {"scorer": scorer} if scorer else {}
    report = graph.add("ForesightRunReport", **run, images=frames, **judge)
    graph.group("Report", column + 1)
    graph.add("SaveImage", images=report[0], filename_prefix="foresight_report", size=(620, 480))
    graph.add("PreviewAny", source=report[1], size=(620, 330))


def own_inspector(graph: Graph, s: Settings, family: Models) -> dict[str, Link]:
    """What a drop-in does not find by itself."""
    if s.converter == "auto":
        return {}
    if s.converter == CALIBRATE:
        graph.group("Preview", column=2)
        return {"l2r": add_converter(graph, s, family)}
    return dict(zip(("l2r", "scorer"), add_inspector(graph, s, family, 2), strict=True))


def ksampler_inputs(s: Settings, model: Link, texts: Mapping[str, Link], latent: Link) -> dict[str, Any]:
    return {"model": model, "seed": s.seed, "steps": s.steps, "cfg": s.cfg, "sampler_name": s.sampler,
            "scheduler": s.scheduler, **texts, "latent_image": latent, "denoise": 1.0}  # fmt: skip


def add_gate(graph: Graph, s: Settings, family: Models) -> tuple[Link, dict[str, Link], Link, Link]:
    """Gate, conditions, latent and scorer."""
    l2r, scorer = add_inspector(graph, s, family, column=2)
    texts, latent = add_start(graph, s, family)
    graph.group("Gate", column=3)
    gate = graph.add(
        "ForesightFailureGate", l2r=l2r, scorer=scorer, prompt=s.prompt, tau=s.tau, delta=s.delta, **s.gate)[0]
    return gate, texts, latent, scorer
