"""KSampler and SamplerCustomAdvanced with a race inside: each takes the place of core's node in a graph that is there."""

from dataclasses import replace

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..sampling.guard import harmless
from ..sampling.inputs import Inputs
from ..sampling.noise import SeededNoise
from ..sampling.race import RaceResult, run_race
from ..sampling.vp import fitting
from ..scoring.graph_words import texts
from ..scoring.inspector import Gate
from ..trials.foreign import check_choice, printable
from ..trials.race import SELF_REFINE
from . import types
from .compat import kept, searchable, show_on_node
from .folders import L2R, RACES, VICLIP, state
from .graph import Checked, Classes, executed
from .inspection import build_gate
from .loaders import AUTO, load_converter, own_scorer, own_scorer_file
from .panel import running
from .races import budget_widgets, race_rules
from .report import told
from .sampling import sampling_inputs
from .widgets import gate_defaults, schedule_steps_widget

WORDS = ("retry", "best of", "seeds", "cancel", "preview", "score")  # what people look for it by
NO_WORDS = (
    "prompt is empty, and no text was found that leads to the positive conditioning (a text that is made while the graph "
    "runs cannot be read there): write into prompt what the clip should show, or connect the text to it."
)


def race_inputs():
    """What both take beside core's own. None of it has to be set or connected."""
    return [
        *budget_widgets(),
        io.String.Input(
            "prompt", optional=True, default="",
            tooltip="What previews are scored against. Empty: the text of the node that encodes the positive prompt; the report "
            "says which.",
        ),
        types.Scorer.Input(
            "scorer", optional=True,
            tooltip="Scores the previews: from ViCLIP Score. Not connected: the ViCLIP in models/foresight.",
        ),
        types.L2R.Input(
            "l2r", optional=True,
            tooltip="Makes the previews: from L2R Preview. Not connected: what its auto takes for this model.",
        ),
        types.Gate.Input(
            "gate", optional=True, tooltip="Instead of scorer, l2r and prompt: theirs, and its tau, from Dynamic Failure Gate."
        ),
    ]  # fmt: skip


class DropIn(Checked):
    """What the two nodes have in common."""

    @classmethod
    def validate_inputs(cls, input_types):
        if not {"scorer", "gate"} & input_types.keys():
            try:
                own_scorer_file()
            except ValueError as error:
                return str(error)
        return super().validate_inputs(input_types)

    @classmethod
    def check(cls, known, graph, id):
        inputs = graph[id]["inputs"]
        prompt = str(known.get("prompt", "made while it runs" if "prompt" in inputs else ""))
        if not prompt.strip() and "gate" not in inputs and {"positive", "guider"} & inputs.keys():
            cls.words(graph, id)

    @classmethod
    def fingerprint_inputs(cls, **_):
        return tuple(map(state, (RACES, VICLIP, L2R)))

    @classmethod
    def race(cls, inputs: Inputs, budget, self_refine, prompt, scorer, l2r, gate) -> tuple[RaceResult, str]:
        """And its report in words, whose beginning stands on the node."""
        check_choice("self_refine", self_refine, SELF_REFINE)
        model = inputs.guider.model_patcher
        gate, source = cls.gate(model, prompt, scorer, l2r, gate)
        rules = race_rules(gate.scorer, model, inputs.whole, budget, self_refine)
        node, taken = getattr(cls.hidden, "unique_id", None), f"Scored against the text of {source}: {printable(gate.prompt)}"
        show_on_node(node, taken)
        with running() as run:
            result = run_race(inputs, gate, rules, observer=run)
            verdict = replace(result.verdict, settings=result.verdict.settings | {"prompt_from": source})
            run.finish(verdict)
        text = told(verdict)
        show_on_node(node, text.partition("\n")[0] + "\n" + taken)
        return replace(result, verdict=verdict), text

    @classmethod
    def gate(cls, model, prompt, scorer, l2r, gate) -> tuple[Gate, str]:
        """And where its prompt is from. ValueError where there is none."""
        if gate is not None and (scorer is not None or l2r is not None):
            raise ValueError("a gate brings a scorer and a converter of its own: connect gate, or scorer and l2r.")
        text, source = (prompt, "the sampler's widget") if prompt.strip() else (gate.prompt, "the gate") if gate else cls.words()
        if gate is not None:
            return replace(gate, prompt=text), source
        if l2r is None:
            try:
                l2r = load_converter(AUTO, model)
            except ValueError as error:
                raise ValueError(f"{error} Then connect it to l2r.") from None
        return build_gate(l2r, own_scorer() if scorer is None else scorer, text, **gate_defaults()), source

    @classmethod
    def words(cls, graph=None, id=None) -> tuple[str, str]:
        """The positive prompt of a node, as its graph has it, and the nodes that encode it. None: what is executed."""
        found = {}
        with harmless("the graph could not be read"):  # nodes of other packs say of themselves what they like
            graph, id = (graph, id) if graph else (executed(cls.hidden), cls.hidden.unique_id)
            found = texts(graph, Classes(), id)
        if not found:
            raise ValueError(NO_WORDS)
        return "\n".join(found), ", ".join(f"node {id} ({graph[id]['class_type']})" for id in dict.fromkeys(found.values()))


class ForesightKSampler(DropIn):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightKSampler",
            display_name="KSampler (Foresight)",
            category="Foresight/sampling",
            description="KSampler that looks at the clip early: where it falls short, other seeds are begun, and the best is "
            "finished. Takes KSampler's place in any video graph; a clip that passes is KSampler's to the last bit.",
            inputs=[
                io.Model.Input("model"),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Of the noise. Other candidates have seeds a million apart.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="As in KSampler."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="As in KSampler."),
                *race_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent"), types.Verdict.Output(display_name="verdict")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        ), "KSampler", *WORDS)  # fmt: skip

    @classmethod
    def execute(
        cls, model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise, budget=0.25,
        self_refine="later", prompt="", scorer=None, l2r=None, gate=None,
    ):  # fmt: skip
        check_choice("sampler_name", sampler_name, comfy.samplers.KSampler.SAMPLERS)
        check_choice("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        # Core's own schedule: some samplers have it a step longer and without the step before the last.
        sigmas = comfy.samplers.KSampler(model, steps, "cpu", sampler_name, scheduler, denoise).sigmas
        if not len(sigmas):
            nothing = "denoise is 0: nothing was sampled, as KSampler does."
            return io.NodeOutput(latent_image, ExecutionBlocker(nothing), ui={"text": [nothing]})
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        sampler = fitting(comfy.samplers.sampler_object(sampler_name), model.get_model_object("model_sampling"))
        inputs = Inputs(SeededNoise(seed), guider, sampler, sigmas, latent_image)
        result, text = cls.race(inputs, budget, self_refine, prompt, scorer, l2r, gate)
        latent = {**result.latent, "samples": kept(result.latent["samples"])}
        return io.NodeOutput(latent, result.verdict, ui={"text": [text]})


class ForesightSamplerCustomAdvanced(DropIn):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightSamplerCustomAdvanced",
            display_name="SamplerCustomAdvanced (Foresight)",
            category="Foresight/sampling",
            description="SamplerCustomAdvanced that looks at the clip early: where it falls short, other seeds are begun, and the "
            "best is finished. Takes its place in any video graph; a clip that passes is the same to the last bit.",
            inputs=[*sampling_inputs(), *race_inputs(), schedule_steps_widget()],
            outputs=[
                io.Latent.Output(display_name="output"),
                io.Latent.Output(display_name="denoised_output"),
                types.Verdict.Output(display_name="verdict"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        ), "SamplerCustomAdvanced", *WORDS)  # fmt: skip

    @classmethod
    def execute(
        cls, noise, guider, sampler, sigmas, latent_image, budget=0.25, self_refine="later", prompt="", scorer=None, l2r=None,
        gate=None, schedule_steps=0,
    ):  # fmt: skip
        inputs = Inputs(noise, guider, sampler, sigmas, latent_image, schedule_steps)
        result, text = cls.race(inputs, budget, self_refine, prompt, scorer, l2r, gate)
        return io.NodeOutput(result.latent, result.x0, result.verdict, ui={"text": [text]})
