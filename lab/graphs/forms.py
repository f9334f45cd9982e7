"""The example graphs: one node that does everything, drop-ins, the paper's hierarchy of nodes, and the enhancers.

    api_graph("demo_visual_hierarchy", client.object_info(), prompt="a red circle moves left", seed=7)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...evaluation.graph_settings import DEMO, EXAMPLES, FAMILIES, Settings, StreamedSettings
from ...evaluation.graphs import ObjectInfo, fill_defaults
from ...evaluation.server import Prompt
from .graph import Graph, Link, Node
from .notes import note
from .parts import (
    add_clip,
    add_first_latents,
    add_gate,
    add_guider,
    add_inspector,
    add_result,
    add_sampling,
    add_size,
    add_start,
    encode_texts,
    ksampler_inputs,
    load_models,
    own_inspector,
)  # fmt: skip


def one_node(graph: Graph, s: Settings) -> None:
    family = load_models(graph, s)
    l2r, scorer = add_inspector(graph, s, family, column=2)
    latent = add_size(graph, s, family.vae, column=2)
    graph.group("Sample, look early, finish the best", column=3)
    sampler = graph.add(
        "ForesightSampler", model=family.model, clip=family.clip, prompt=s.prompt, negative=s.negative, seed=s.seed,
        steps=s.steps, cfg=s.cfg, sampler_name=s.sampler, scheduler=s.scheduler, latent_image=latent, scorer=scorer,
        l2r=l2r, refiner=s.refiner, manual_prompt=s.manual_prompt, tau=s.tau, delta=s.delta, **s.gate, **s.injection,
        **family.experts, plan=s.plan, size=(420, None),
    )  # fmt: skip
    add_result(graph, s, 4, sampler[0], family.vae, scorer, verdict=sampler[1])


def drop_in(graph: Graph, s: Settings) -> None:
    """A plain graph, in which one node takes KSampler's place: scorer and converter load themselves, but the demo's.

    Two experts are joined by a guider, and the place is SamplerCustomAdvanced's.
    """
    family = load_models(graph, s)
    own = own_inspector(graph, s, family)
    texts, latent = add_start(graph, s, family)
    if family.experts:
        graph.group("Both experts, one schedule", column=3)
        guider = add_guider(graph, family.model, family.experts, **texts, cfg=s.cfg)
        inputs = add_sampling(graph, s, family.model)
        graph.group("In the place of both KSamplers", column=4)
        sampler = graph.add(
            "ForesightSamplerCustomAdvanced", **inputs, guider=guider, latent_image=latent, **s.race, **own,
        )  # fmt: skip
        verdict = sampler[2]
    else:
        graph.group("In KSampler's place", column=3)
        sampler = graph.add("ForesightKSampler", **ksampler_inputs(s, family.model, texts, latent), **s.race, **own)
        verdict = sampler[1]
    add_result(graph, s, 5, sampler[0], family.vae, own.get("scorer"), verdict=verdict)


def side_by_side(graph: Graph, s: Settings) -> None:
    """One seed by KSampler and by the node that takes its place."""
    family = load_models(graph, s)
    own = own_inspector(graph, s, family)
    texts, latent = add_start(graph, s, family)
    inputs = ksampler_inputs(s, family.model, texts, latent)
    graph.group("Before: KSampler", column=3)
    plain = graph.add("KSampler", **inputs)
    graph.group("After: one node replaced", column=3)
    raced = graph.add("ForesightKSampler", **inputs, **own)
    graph.group("What KSampler makes", column=4)
    add_clip(graph, s, plain[0], family.vae, "plain")
    add_result(graph, s, 5, raced[0], family.vae, own.get("scorer"), verdict=raced[1])


def seed_audition(graph: Graph, s: Settings) -> None:
    family = load_models(graph, s)
    gate, texts, latent, _ = add_gate(graph, s, family)
    guider = add_guider(graph, family.model, family.experts, **texts, cfg=s.cfg)
    inputs = {name: link for name, link in add_sampling(graph, s, family.model).items() if name != "noise"}
    graph.group("Many seeds a short way", column=4)
    audition = graph.add(
        "ForesightSeedAudition", guider=guider, **inputs, latent_image=latent, gate=gate, seed=s.seed, size=(420, None),
    )  # fmt: skip
    graph.group("Result", column=5)
    add_clip(graph, s, audition[0], family.vae)
    graph.group("All seeds, as they were scored", column=6)
    graph.add("SaveImage", images=audition[1], filename_prefix="foresight_seeds", size=(620, 480))
    graph.add("PreviewAny", source=audition[3], size=(620, 330))


def watch(graph: Graph, s: Settings) -> None:
    family = load_models(graph, s)
    gate, texts, latent, scorer = add_gate(graph, s, family)
    graph.group("KSampler, watched", column=4)
    watched = graph.add("ForesightWatch", model=family.model, gate=gate)
    sampler = graph.add("KSampler", **ksampler_inputs(s, watched[0], texts, latent))
    add_result(graph, s, 5, sampler[0], family.vae, scorer, watch=watched[1])


def calibrate(graph: Graph, s: Settings) -> None:
    family = load_models(graph, s, sampled=False)
    graph.group("A preview from this VAE", column=2)
    # The demo brings its converter; one that is kept for its VAE could be taken for that of the user's Wan.
    keep = {"save": False} if s.converter == DEMO.converter else {}
    graph.add("ForesightL2RCalibrate", model=family.model, vae=family.vae, **keep, size=(420, 480))


def hierarchy(
    graph: Graph, s: Settings, column: int, *, model: Link, clip: Link, noise: Link, sampler: Link, sigmas: Link,
    latent_image: Link, l2r: Link, scorer: Link, prompt: Link | str, negative: Link | str, cfg: Link | float,
    tau: Link | float, delta: Link | float, experts: Mapping[str, Any],
) -> tuple[Node, Node]:  # fmt: skip
    """The paper's trials as nodes. Returns the first Trial Switch (latent, verdict) and the base run (preview).

    experts: the low-noise model of two, and its widgets; `model` is then the high-noise one.
    """
    graph.group("Prompt and gate", column)
    guider = add_guider(graph, model, experts, **encode_texts(graph, clip, prompt, negative), cfg=cfg)
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
    guider = add_guider(graph, model, experts, positive=refiner[2], negative=refiner[3], cfg=cfg, title=title)
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
    family = load_models(graph, s)
    l2r, scorer = add_inspector(graph, s, family, column=1)
    graph.group("Prompt", column=2)
    words = [
        graph.add("PrimitiveStringMultiline", title=title, value=text, colour=colour)[0]
        for title, text, colour in (("Prompt", s.prompt, "green"), ("Negative prompt", s.negative, "red"))
    ]
    latent = add_size(graph, s, family.vae, column=2)
    graph.group("Sampling", column=2)
    inputs = add_sampling(graph, s, family.model)
    switch, _ = hierarchy(
        graph, s, 3, model=family.model, clip=family.clip, **inputs, latent_image=latent, l2r=l2r, scorer=scorer,
        prompt=words[0], negative=words[1], cfg=s.cfg, tau=s.tau, delta=s.delta, experts=family.experts,
    )  # fmt: skip
    add_result(graph, s, 6, switch[0], family.vae, scorer, verdict=switch[1])


def _enhanced(graph: Graph, s: Settings, enhance: Callable[[Link, Link], Node]) -> None:
    """A plain graph whose sampler `enhance`(sampler, gate) has wrapped; the detector only reports."""
    family = load_models(graph, s)
    l2r, scorer = add_inspector(graph, s, family, column=2)
    latent = add_size(graph, s, family.vae, column=2)
    graph.group("Prompt", column=3)
    texts = encode_texts(graph, family.clip, s.prompt, s.negative)
    guider = add_guider(graph, family.model, family.experts, **texts, cfg=s.cfg)
    gate = graph.add(
        "ForesightFailureGate", l2r=l2r, scorer=scorer, prompt=s.prompt, tau=s.tau, delta=s.delta, **s.gate)[0]
    graph.group("Sampling", column=4)
    inputs = add_sampling(graph, s, family.model)
    enhanced = enhance(inputs["sampler"], gate)
    run = graph.add(
        "ForesightMonitoredSampler", **inputs | {"sampler": enhanced[0]}, guider=guider, latent_image=latent, gate=gate,
        on_reject="report only",
    )  # fmt: skip
    report = graph.add("ForesightEnhancerReport", sampler=enhanced[0], latent=run[0])
    add_result(graph, s, 5, report[0], family.vae, scorer, verdict=run[3])
    graph.group("What was refined or searched", column=6)
    if enhanced.type == "ForesightSelfRefineSampler":
        graph.add("PreviewImage", images=report[1])
    graph.add("PreviewAny", source=report[3], size=(620, 330))


def self_refine(graph: Graph, s: Settings) -> None:
    _enhanced(graph, s, lambda sampler, _: graph.add("ForesightSelfRefineSampler", sampler=sampler, preset="T2V"))


def latent_search(graph: Graph, s: Settings) -> None:
    _enhanced(graph, s, lambda sampler, gate: graph.add(
        "ForesightLatentSearchSampler", sampler=sampler, gate=gate, budget=3 * s.steps))


def _streams(graph: Graph, s: StreamedSettings, calls: Sequence[tuple[Mapping[str, Any], int]]) -> None:
    """A clip chunk by chunk under a Chunk Gate, in one call or more, each of which goes on with the one before. calls:
    for each its widgets of Streaming Sampler, and the frames of the clip by then."""
    family = load_models(graph, s)
    start = add_first_latents(graph, s, family.vae, column=1)
    l2r, scorer = add_inspector(graph, s, family, column=2)
    latents = [add_size(graph, replace(s, length=length), family.vae, column=2) for _, length in calls]
    graph.group("Prompts by chunk, and the gate", column=3)
    guider = graph.add(
        "ForesightStreamingGuider", model=family.model, clip=family.clip, prompts=s.prompt, negative=s.negative,
        cfg=s.cfg, recache=s.recache)[0]
    gate = graph.add("ForesightChunkGate", l2r=l2r, scorer=scorer, prompt=s.prompt, tau=s.tau, **s.chunk_gate)[0]
    graph.group("Noise", column=3)
    noise = graph.add("RandomNoise", noise_seed=s.seed)[0]
    sigmas = graph.add("BasicScheduler", model=family.model, scheduler=s.scheduler, steps=s.steps, denoise=1.0)[0]
    for number, ((widgets, _), latent) in enumerate(zip(calls, latents, strict=True)):
        graph.group("What goes on from there" if number else "Chunk by chunk", column=4 + number)
        stream = graph.add("ForesightStreamingSampler", **widgets, **start, chunk_gate=gate)[0]
        run = graph.add(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=stream, sigmas=sigmas, latent_image=latent)
        report = graph.add("ForesightStreamingReport", sampler=stream, latent=run[0])
        start = {"start": report[0], "previous": stream}
    graph.group("Result", column=4 + len(calls))
    add_clip(graph, s, report[0], family.vae)
    graph.add("PreviewAny", source=report[2], size=(620, 330))


def streaming(graph: Graph, s: StreamedSettings) -> None:
    _streams(graph, s, [(s.stream, s.length)])


def extension(graph: Graph, s: StreamedSettings) -> None:
    """A clip in one call, and as many latents again in a second one."""
    _streams(graph, s, [(s.stream | {"goes_on": True}, s.length), (s.stream, 2 * s.length + 3)])


FORMS: dict[Callable[[Graph, Settings], None], tuple[str, ...]] = {
    one_node: tuple(FAMILIES),
    visual_hierarchy: tuple(FAMILIES),
    self_refine: ("demo", "wan2.1_t2v_1.3b", "wan2.2_t2v_14b"),
    latent_search: ("demo", "wan2.1_t2v_1.3b"),
    drop_in: (
        "demo", "wan2.1_t2v_1.3b", "wan2.1_i2v_14b", "wan2.2_t2v_14b_4_steps", "wan2.2_i2v_14b_4_steps", "cogvideox_5b",
    ),
    seed_audition: ("demo", "wan2.1_t2v_1.3b"),
    watch: ("demo", "wan2.1_t2v_1.3b"),
    calibrate: ("demo", "wan2.1_t2v_1.3b", "cogvideox_5b"),
    streaming: (
        "self_forcing_1.3b", "causal_forcing_1.3b", "causal_forcing_1.3b_i2v", "longlive_1.3b",
        "longlive_1.3b_long",
    ),
    extension: ("longlive_1.3b",),
}  # fmt: skip
# The frontend calls a graph by its file's name and sorts by it: what a newcomer should open stands first.
GRAPHS = {
    "1_start_here": (side_by_side, "demo_retried"), "demo_streaming": (streaming, "demo_streamed"),
} | {
    f"{family}_{form.__name__}": (form, family) for form, families in FORMS.items() for family in families
}  # fmt: skip


def graph(name: str, **overrides: Any) -> Graph:
    """A graph of GRAPHS with other Settings."""
    form, family = GRAPHS[name]
    result = Graph(note(form.__name__, family))
    form(result, replace(EXAMPLES[family], **overrides))
    return result


def api_graph(name: str, object_info: ObjectInfo, **overrides: Any) -> Prompt:
    """The prompt for ComfyUI's API: widgets that the graph leaves open stand at the server's defaults."""
    return fill_defaults(graph(name, **overrides).prompt(), object_info)
