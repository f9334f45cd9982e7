"""The example graphs: one node that does everything, the paper's hierarchy of nodes, and the enhancers.

    api_graph("demo_visual_hierarchy", client.object_info(), prompt="a red circle moves left", seed=7)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...evaluation.graph_settings import CALIBRATE, DEMO, FAMILIES, Settings
from ...evaluation.graphs import ObjectInfo, fill_defaults
from ...evaluation.server import Prompt
from .graph import WIDTH, Graph, Link, Node
from .notes import DROP_IN_NOTE, REFINE_NOTE, SEARCH_NOTE, STREAM_NOTE, note, paper_note, race_note


@dataclass(frozen=True)
class _Family:
    model: Link
    vae: Link
    clip: Link
    experts: dict[str, Any]  # what ForesightSampler and Two-Expert Guider take besides; empty for models that are one


def _family(graph: Graph, s: Settings) -> _Family:
    graph.group("Models", column=1)
    demo = None if s.text_encoder else graph.add("ForesightDemoTextEncoder")

    def shifted(file: str, **title: str) -> Link:
        if demo and file == DEMO.model:
            model = demo[1]
        else:
            model = graph.add("UNETLoader", unet_name=file, weight_dtype="default", **title)[0]
        return model if s.shift is None else graph.add("ModelSamplingSD3", model=model, shift=s.shift)[0]

    experts = {}
    if s.low_noise_model:
        model = shifted(s.model, title="Load Diffusion Model (high noise)")
        low = shifted(s.low_noise_model, title="Load Diffusion Model (low noise)")
        experts = {"low_noise_model": low, "low_noise_cfg": s.low_noise_cfg}
    else:
        model = shifted(s.model)
    clip = demo or graph.add("CLIPLoader", clip_name=s.text_encoder, type=s.clip_type, device="default")
    vae = demo[2] if demo and s.vae == DEMO.vae else graph.add("VAELoader", vae_name=s.vae)[0]
    return _Family(model, vae, clip[0], experts)


def _texts(graph: Graph, clip: Link, prompt: Link | str, negative: Link | str) -> dict[str, Link]:
    return {
        name.lower(): graph.add("CLIPTextEncode", title=f"CLIP Text Encode ({name} Prompt)", clip=clip, text=text,
                                colour=colour)[0]
        for name, text, colour in (("Positive", prompt, "green"), ("Negative", negative, "red"))
    }  # fmt: skip


def _guider(graph: Graph, model: Link, experts: Mapping[str, Any], **conditions: Any) -> Link:
    if experts:
        return graph.add("ForesightTwoExpertGuider", high_noise_model=model, **conditions, **experts)[0]
    return graph.add("CFGGuider", model=model, **conditions)[0]


def _sampling(graph: Graph, s: Settings, model: Link) -> dict[str, Link]:
    """noise, sampler and sigmas."""
    noise = graph.add("RandomNoise", noise_seed=s.seed)[0]
    if s.rule:
        own = graph.add("ForesightCogVideoXSampler", model=model, rule=s.rule, steps=s.steps)
        return {"noise": noise, "sampler": own[0], "sigmas": own[1]}
    sampler = graph.add("KSamplerSelect", sampler_name=s.sampler)[0]
    sigmas = graph.add("BasicScheduler", model=model, scheduler=s.scheduler, steps=s.steps, denoise=1.0)[0]
    return {"noise": noise, "sampler": sampler, "sigmas": sigmas}


def _inspector(graph: Graph, s: Settings, family: _Family, column: int) -> tuple[Link, Link]:
    graph.group("Inspector", column)
    if s.converter == CALIBRATE:
        l2r = graph.add("ForesightL2RCalibrate", model=family.model, vae=family.vae)
    else:
        # "auto" asks the model for its latent format and takes what fits the VAE; one chosen by name knows its own.
        needs = {"model": family.model, "vae": family.vae} if s.converter == "auto" else {}
        l2r = graph.add("ForesightL2RPreview", converter=s.converter, **needs)
    scorer = graph.add("ForesightViCLIPScore", weights=s.scorer)
    return l2r[0], scorer[0]


def _clip_size(graph: Graph, s: Settings, vae: Link, column: int) -> Link:
    graph.group("Clip size", column)
    size = {"width": s.width, "height": s.height, "length": s.length}
    if s.image_latent:
        return graph.add("Wan22ImageToVideoLatent", vae=vae, **size, batch_size=1)[0]
    return graph.add("EmptyHunyuanLatentVideo", **size, batch_size=1)[0]


def _result(
    graph: Graph, s: Settings, column: int, latent: Link, verdict: Link, vae: Link, scorer: Link | None
) -> None:  # fmt: skip
    graph.group("Result", column)
    frames = graph.add("VAEDecode", samples=latent, vae=vae)[0]
    graph.add("SaveAnimatedWEBP", images=frames, filename_prefix="foresight", fps=s.fps, lossless=False, quality=90,
              method="default", size=(WIDTH, 400))  # fmt: skip
    judge = {"scorer": scorer} if scorer else {}
    report = graph.add("ForesightRunReport", verdict=verdict, images=frames, **judge)
    graph.group("Report", column + 1)
    graph.add("SaveImage", images=report[0], filename_prefix="foresight_report", size=(620, 480))
    graph.add("PreviewAny", source=report[1], size=(620, 330))


def one_node(graph: Graph, s: Settings) -> None:
    graph.note += f"\n\n{race_note(s)}"
    family = _family(graph, s)
    l2r, scorer = _inspector(graph, s, family, column=2)
    latent = _clip_size(graph, s, family.vae, column=2)
    graph.group("Sample, look early, finish the best", column=3)
    sampler = graph.add(
        "ForesightSampler", model=family.model, clip=family.clip, prompt=s.prompt, negative=s.negative, seed=s.seed,
        steps=s.steps, cfg=s.cfg, sampler_name=s.sampler, scheduler=s.scheduler, latent_image=latent, scorer=scorer,
        l2r=l2r, refiner=s.refiner, manual_prompt=s.manual_prompt, tau=s.tau, delta=s.delta, **s.gate, **s.injection,
        **family.experts, plan=s.plan, size=(420, None),
    )  # fmt: skip
    _result(graph, s, 4, sampler[0], sampler[1], family.vae, scorer)


def drop_in(graph: Graph, s: Settings) -> None:
    """A plain graph, in which one node takes KSampler's place: scorer and converter load themselves, but the demo's."""
    graph.note += f"\n\n{DROP_IN_NOTE}"
    family = _family(graph, s)
    own = {} if s.converter == "auto" else dict(zip(("l2r", "scorer"), _inspector(graph, s, family, 2), strict=True))
    latent = _clip_size(graph, s, family.vae, column=2)
    graph.group("Prompt", column=2)
    texts = _texts(graph, family.clip, s.prompt, s.negative)
    graph.group("In KSampler's place", column=3)
    sampler = graph.add(
        "ForesightKSampler", model=family.model, seed=s.seed, steps=s.steps, cfg=s.cfg, sampler_name=s.sampler,
        scheduler=s.scheduler, **texts, latent_image=latent, denoise=1.0, **own,
    )  # fmt: skip
    _result(graph, s, 4, sampler[0], sampler[1], family.vae, own.get("scorer"))


def hierarchy(
    graph: Graph, s: Settings, column: int, *, model: Link, clip: Link, noise: Link, sampler: Link, sigmas: Link,
    latent_image: Link, l2r: Link, scorer: Link, prompt: Link | str, negative: Link | str, cfg: Link | float,
    tau: Link | float, delta: Link | float, experts: Mapping[str, Any],
) -> tuple[Node, Node]:  # fmt: skip
    """The paper's trials as nodes. Returns the first Trial Switch (latent, verdict) and the base run (preview).

    experts: the low-noise model of two, and its widgets; `model` is then the high-noise one.
    """
    graph.group("Prompt and gate", column)
    guider = _guider(graph, model, experts, **_texts(graph, clip, prompt, negative), cfg=cfg)
    gate = graph.add("ForesightFailureGate", l2r=l2r, scorer=scorer, prompt=prompt, tau=tau, delta=delta, **s.gate)[0]
    inputs = {"noise": noise, "sampler": sampler, "sigmas": sigmas, "latent_image": latent_image}

    def sample(title: str, **connected: Link) -> Node:
        return graph.add("ForesightMonitoredSampler", title=f"Monitored Sampler ({title})", **{**inputs, **connected})

    def probe(title: str, **connected: Link) -> Node:
        title = f"Single-Frame Probe ({title})"
        return graph.add("ForesightSingleFrameProbe", title=title, gate=gate, **{**inputs, **connected})

    def inject(title: str, anchor: Link) -> Link:
        return graph.add("ForesightLatentInjector", title=f"Latent Injector ({title})", anchor=anchor, **s.injection)[0]

    def switch(title: str, verdict: Link, accepted: Node, rejected: Node, slots: tuple[int, int]) -> Node:
        """`slots`: where `rejected` gives its latent and its verdict."""
        latent, story = slots
        return graph.add(
            "ForesightTrialSwitch", title=f"Trial Switch {title}", verdict=verdict, on_accept=accepted[0],
            on_reject=rejected[latent], accept_verdict=accepted[3], reject_verdict=rejected[story],
        )  # fmt: skip

    graph.group("Trial 0: sample and watch", column + 1)
    base = sample("base", guider=guider, gate=gate)
    graph.group("Trial 1: a single frame", column + 1)
    first = probe("1", guider=guider, verdict=base[3])
    with_frame = sample("1", guider=guider, injection=inject("1", first[0]))
    graph.group("Trial 2: a refined prompt", column + 2)
    refiner = graph.add(
        "ForesightPromptRefiner", clip=clip, prompt=prompt, negative=negative, preview=base[4], verdict=first[1],
        scorer=scorer, back_end=s.refiner, noise=noise, manual_prompt=s.manual_prompt,
    )  # fmt: skip
    title = "Two-Expert Guider (refined)" if experts else "CFGGuider (refined)"
    guider = _guider(graph, model, experts, positive=refiner[2], negative=refiner[3], cfg=cfg, title=title)
    inputs["noise"] = refiner[6]  # the refiner may have drawn it anew
    again = sample("2", guider=guider, gate=gate, previous=refiner[5])
    graph.group("Trial 2→1: both", column + 2)
    second = probe("2→1", guider=guider, verdict=again[3])
    last = sample("2→1", guider=guider, injection=inject("2→1", second[0]))
    graph.group("Which trial's clip", column + 3)
    third = switch("3: refined clip passed?", again[3], again, last, (0, 3))
    second_switch = switch("2: single frame better?", first[1], with_frame, third, (0, 1))
    return switch("1: base clip passed?", base[3], base, second_switch, (0, 1)), base


def visual_hierarchy(graph: Graph, s: Settings) -> None:
    graph.note += f"\n\n{paper_note(s)}"
    family = _family(graph, s)
    l2r, scorer = _inspector(graph, s, family, column=1)
    graph.group("Prompt", column=2)
    words = [
        graph.add("PrimitiveStringMultiline", title=title, value=text, colour=colour)[0]
        for title, text, colour in (("Prompt", s.prompt, "green"), ("Negative prompt", s.negative, "red"))
    ]
    latent = _clip_size(graph, s, family.vae, column=2)
    graph.group("Sampling", column=2)
    inputs = _sampling(graph, s, family.model)
    switch, _ = hierarchy(
        graph, s, 3, model=family.model, clip=family.clip, **inputs, latent_image=latent, l2r=l2r, scorer=scorer,
        prompt=words[0], negative=words[1], cfg=s.cfg, tau=s.tau, delta=s.delta, experts=family.experts,
    )  # fmt: skip
    _result(graph, s, 6, switch[0], switch[1], family.vae, scorer)


def _enhanced(graph: Graph, s: Settings, enhance: Callable[[Link, Link], Node]) -> None:
    """A plain graph whose sampler `enhance`(sampler, gate) has wrapped; the detector only reports."""
    family = _family(graph, s)
    l2r, scorer = _inspector(graph, s, family, column=2)
    latent = _clip_size(graph, s, family.vae, column=2)
    graph.group("Prompt", column=3)
    texts = _texts(graph, family.clip, s.prompt, s.negative)
    guider = _guider(graph, family.model, family.experts, **texts, cfg=s.cfg)
    gate = graph.add(
        "ForesightFailureGate", l2r=l2r, scorer=scorer, prompt=s.prompt, tau=s.tau, delta=s.delta, **s.gate)[0]
    graph.group("Sampling", column=4)
    inputs = _sampling(graph, s, family.model)
    enhanced = enhance(inputs["sampler"], gate)
    run = graph.add(
        "ForesightMonitoredSampler", **inputs | {"sampler": enhanced[0]}, guider=guider, latent_image=latent, gate=gate,
        on_reject="report only",
    )  # fmt: skip
    report = graph.add("ForesightEnhancerReport", sampler=enhanced[0], latent=run[0])
    _result(graph, s, 5, report[0], run[3], family.vae, scorer)
    graph.group("What was refined or searched", column=6)
    if enhanced.type == "ForesightSelfRefineSampler":
        graph.add("PreviewImage", images=report[1])
    graph.add("PreviewAny", source=report[3], size=(620, 330))


def self_refine(graph: Graph, s: Settings) -> None:
    graph.note += f"\n\n{REFINE_NOTE}"
    _enhanced(graph, s, lambda sampler, _: graph.add("ForesightSelfRefineSampler", sampler=sampler, preset="T2V"))


def latent_search(graph: Graph, s: Settings) -> None:
    graph.note += f"\n\n{SEARCH_NOTE}"
    _enhanced(graph, s, lambda sampler, gate: graph.add(
        "ForesightLatentSearchSampler", sampler=sampler, gate=gate, budget=3 * s.steps))


def streaming(graph: Graph, s: Settings) -> None:
    """The clip by single latents, each over a short schedule of its own, under a Chunk Gate."""
    graph.note += f"\n\n{STREAM_NOTE}"
    family = _family(graph, s)
    l2r, scorer = _inspector(graph, s, family, column=2)
    latent = _clip_size(graph, s, family.vae, column=2)
    graph.group("Prompts by chunk, and the gate", column=3)
    guider = graph.add(
        "ForesightStreamingGuider", model=family.model, clip=family.clip, prompts=s.prompt, negative=s.negative,
        cfg=s.cfg)[0]
    gate = graph.add("ForesightChunkGate", l2r=l2r, scorer=scorer, prompt=s.prompt, looks="4, last", tau=s.tau)[0]
    graph.group("Chunk by chunk", column=4)
    noise = graph.add("RandomNoise", noise_seed=s.seed)[0]
    sigmas = graph.add("BasicScheduler", model=family.model, scheduler=s.scheduler, steps=8, denoise=1.0)[0]
    stream = graph.add("ForesightStreamingSampler", preset="sigmas", chunk=1, chunk_gate=gate)[0]
    run = graph.add(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=stream, sigmas=sigmas, latent_image=latent)
    report = graph.add("ForesightStreamingReport", sampler=stream, latent=run[0])
    graph.group("Result", column=5)
    frames = graph.add("VAEDecode", samples=report[0], vae=family.vae)[0]
    graph.add("SaveAnimatedWEBP", images=frames, filename_prefix="foresight", fps=s.fps, lossless=False, quality=90,
              method="default", size=(WIDTH, 400))  # fmt: skip
    graph.add("PreviewAny", source=report[2], size=(620, 330))


FORMS: dict[Callable[[Graph, Settings], None], tuple[str, ...]] = {
    one_node: tuple(FAMILIES),
    visual_hierarchy: tuple(FAMILIES),
    self_refine: ("demo", "wan2.1_t2v_1.3b", "wan2.2_t2v_14b"),
    latent_search: ("demo", "wan2.1_t2v_1.3b"),
    drop_in: ("demo", "wan2.1_t2v_1.3b"),
    streaming: ("demo",),
}
GRAPHS = {f"{family}_{form.__name__}": (form, family) for form, families in FORMS.items() for family in families}


def graph(name: str, **overrides: Any) -> Graph:
    """A graph of GRAPHS with other Settings."""
    form, family = GRAPHS[name]
    result = Graph(note(family))
    form(result, replace(FAMILIES[family], **overrides))
    return result


def api_graph(name: str, object_info: ObjectInfo, **overrides: Any) -> Prompt:
    """The prompt for ComfyUI's API: widgets that the graph leaves open stand at the server's defaults."""
    return fill_defaults(graph(name, **overrides).prompt(), object_info)
