"""Foresight Sampler: the race, and the paper's whole hierarchy, in one node."""

import comfy.samplers
from comfy_api.latest import io

from ..sampling.experts import T2V_BOUNDARY
from ..sampling.hierarchy import run_hierarchy
from ..sampling.inputs import Inputs
from ..sampling.noise import SeededNoise
from ..sampling.race import run_race
from ..sampling.vp import fitting
from ..trials.foreign import check_choice
from ..trials.race import SELF_REFINE
from . import types
from .back_ends import (
    BACK_END_TIP,
    BACK_ENDS,
    DEFAULT,
    NONE,
    OFF,
    asked,
    back_end_widgets,
    check_back_end,
    make_reworder,
)
from .compat import searchable
from .experts import two_experts
from .folders import RACES, state
from .graph import Checked
from .inspection import build_gate, check_gate
from .panel import running
from .races import PAPER, RACE, race_rules, race_widgets
from .report import told
from .rewording import encode
from .sampling import preview_or_block
from .widgets import OWN, detector_widgets, expert_widgets, injection_settings, injection_widgets, threshold_widgets


class ForesightSampler(Checked):
    elsewhere = ("endpoint",)

    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightSampler",
            display_name="Foresight Sampler",
            category="Foresight/sampling",
            description="Samples a clip and looks at it early. Where it falls short it is put aside, other seeds are begun, and "
            "the best is finished (plan race); or it is repaired by the paper's trials: a single frame injected, a refined "
            "prompt, or both (plan paper). A clip that passes is the plain sampler's to the last bit.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True,
                    tooltip="What the clip should show; previews are scored against it.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", dynamic_prompts=True, tooltip="What the clip should not show.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Of the noise. A race goes on with seeds a million apart; the paper's trials start from the same.",
                ),
                io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Of the schedule; windows are shares of it."),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Classifier-free guidance scale."
                ),
                io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, tooltip="As in KSampler."),
                io.Latent.Input("latent_image"),
                types.Scorer.Input("scorer", tooltip="Scores the previews: from ViCLIP Score."),
                types.L2R.Input("l2r", tooltip="Makes the previews: from L2R Preview."),
                io.Combo.Input(
                    "refiner", options=[*BACK_ENDS, OFF], default=DEFAULT,
                    tooltip=f"paper: who states the prompt better in Trial 2. {BACK_END_TIP} off: only single frames are tried.",
                ),
                io.Boolean.Input(
                    "inject", default=True,
                    tooltip="paper: Trial 1, start again from a single frame. With this and the refiner off, runs are only watched.",
                ),
                *threshold_widgets(),
                *detector_widgets(),
                *injection_widgets(),
                io.Model.Input(
                    "low_noise_model", optional=True,
                    tooltip="Wan 2.2 14B: the low-noise expert; `model` is then the high-noise one.",
                ),
                *expert_widgets(),
                *back_end_widgets(),
                io.Sampler.Input(
                    "sampler", optional=True,
                    tooltip="Samples instead of sampler_name: from Self-Refine Sampler, or with plan paper from Latent Search Sampler.",
                ),
                *race_widgets(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                types.Verdict.Output(display_name="verdict"),
                io.Image.Output(display_name="preview"),
            ],
        ), "retry", "best of", "seeds", "cancel", "preview", "KSampler")  # fmt: skip

    @classmethod
    def validate_inputs(cls, input_types, endpoint=NONE):
        return super().validate_inputs(input_types)  # what is named here, ComfyUI leaves to us

    @classmethod
    def check(cls, known, graph, id):
        check_back_end(known.get("refiner"), known.get("endpoint"), (*BACK_ENDS, OFF))
        check_gate(known)

    @classmethod
    def fingerprint_inputs(cls, refiner=None, endpoint=None, plan=RACE, **_):
        return ("" if plan == PAPER else state(RACES), asked(refiner, endpoint))

    @classmethod
    def execute(
        cls, model, clip, prompt, negative, seed, steps, cfg, sampler_name, scheduler, latent_image, scorer, l2r, refiner,
        inject, low_noise_model=None, low_noise_cfg=OWN, boundary=T2V_BOUNDARY, switch_step=0, vlm=None, endpoint=NONE,
        manual_prompt="", sampler=None, plan=RACE, budget=0.25, self_refine="later", **settings,
    ):  # fmt: skip
        check_choice("plan", plan, (RACE, PAPER))
        check_choice("self_refine", self_refine, SELF_REFINE)
        reworder = make_reworder(refiner, scorer, vlm, endpoint, manual_prompt)
        check_choice("sampler_name", sampler_name, comfy.samplers.SAMPLER_NAMES)
        check_choice("scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES)
        injection = injection_settings(**{k: settings.pop(k) for k in list(settings) if k.startswith("injection_")})
        gate = build_gate(l2r, scorer, prompt, **settings)

        def guider(positive_text, negative_text):
            if low_noise_model is not None:
                guide = two_experts(model, low_noise_model, cfg, low_noise_cfg, boundary, switch_step)
            else:
                guide = comfy.samplers.CFGGuider(model)
                guide.set_cfg(cfg)
            guide.set_conds(encode(clip, positive_text), encode(clip, negative_text))
            return guide

        model_sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, steps).cpu()
        if sampler is None:
            sampler = fitting(comfy.samplers.sampler_object(sampler_name), model_sampling)
        inputs = Inputs(SeededNoise(seed), guider(prompt, negative), sampler, sigmas, latent_image)
        with running() as run:
            if plan == RACE:
                result = run_race(inputs, gate, race_rules(scorer, model, steps, budget, self_refine), observer=run)
                preview = preview_or_block(result)
            else:
                result = run_hierarchy(
                    inputs, gate, guider, negative=negative, reworder=reworder,
                    injection=injection if inject else None, observer=run,
                )  # fmt: skip
                preview = preview_or_block(result.base.verdict)
            run.finish(result.verdict)
        text = told(result.verdict)
        return io.NodeOutput(result.latent, result.verdict, preview, ui={"text": [text]})
