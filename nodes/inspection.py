"""L2R Preview, ViCLIP Score and Dynamic Failure Gate: what the inspector is made of."""

from dataclasses import replace

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..l2r.decode import decode
from ..scoring.detector import DetectorSettings
from ..scoring.inspector import Gate, check_prompt
from ..scoring.preset import load_preset
from ..trials.foreign import check_choice, logger
from . import types
from .compat import advanced, searchable
from .folders import L2R, PRESETS, VICLIP, check_file, files, path_of, state
from .graph import Checked
from .loaders import (
    AUTO,
    LINEAR,
    PRECISIONS,
    SCORER_HELP,
    latent_format_of,
    load_converter,
    load_scorer,
    on_device,
)
from .widgets import OWN, OWN_SETTINGS, detector_widgets, preset_widget, threshold_widgets


class L2RPreview(Checked):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightL2RPreview",
            display_name="L2R Preview",
            category="Foresight/inspection",
            description="The latent-to-RGB converter that makes previews while a clip is sampled: one frame a latent frame.",
            inputs=[
                io.Combo.Input(
                    "converter", options=[AUTO, LINEAR, *files(L2R)], default=AUTO,
                    tooltip="auto: the trained converter for the model's latent format, else a calibrated one, else its "
                    "latent_rgb_factors with smooth upsampling. Choose the demo's converter by name for the demo model.",
                ),
                io.Model.Input("model", optional=True, tooltip="Needed by auto and latent_rgb_factors."),
                io.Latent.Input("latent", optional=True, tooltip="A latent to look at; the preview comes out as IMAGE."),
                io.Vae.Input("vae", optional=True, tooltip="With auto: take only a converter that was made for this VAE."),
            ],
            outputs=[types.L2R.Output(display_name="l2r"), io.Image.Output(display_name="preview")],
        ), "preview", "latent to rgb", "taesd")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        check_file(L2R, known.get("converter", AUTO), AUTO, LINEAR)

    @classmethod
    def fingerprint_inputs(cls, converter=None, **_):
        return "" if converter == LINEAR else state(L2R, None if converter == AUTO else converter)

    @classmethod
    def execute(cls, converter, model=None, latent=None, vae=None):
        l2r = load_converter(converter, model, vae)
        if latent is None:
            return io.NodeOutput(l2r, ExecutionBlocker("L2R Preview gives an image only when a LATENT is connected."))
        samples = latent_format_of(l2r, model).process_in(latent["samples"])
        samples = samples if samples.ndim == 5 else samples.unsqueeze(2)
        frames = decode(l2r, samples.float()).flatten(0, 1)
        return io.NodeOutput(l2r, frames.to(comfy.model_management.intermediate_device()))  # as core's VAE Decode


class ViCLIPScore(Checked):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightViCLIPScore",
            display_name="ViCLIP Score",
            category="Foresight/inspection",
            description="Text-video alignment as VBench's overall consistency computes it. " + SCORER_HELP,
            inputs=[
                io.Combo.Input("weights", options=files(VICLIP), tooltip=SCORER_HELP),
                *advanced(
                    io.Combo.Input(
                        "precision", options=list(PRECISIONS), default="fp32",
                        tooltip="fp32 equals VBench; fp16 halves the memory (1.7 to 0.9 GB) and moves scores by about 0.001.",
                    )
                ),
                io.Image.Input("images", optional=True, tooltip="Frames of a clip to score against the prompt."),
                io.String.Input("prompt", optional=True, default="", multiline=True, tooltip="What the frames should show."),
            ],
            outputs=[types.Scorer.Output(display_name="scorer"), io.Float.Output(display_name="score")],
        ), "score", "alignment", "clip score", "quality")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        check_file(VICLIP, known.get("weights"))

    @classmethod
    def fingerprint_inputs(cls, weights=None, **_):
        return state(VICLIP, weights)

    @classmethod
    def execute(cls, weights, precision="fp32", images=None, prompt=""):
        scorer = load_scorer(weights, precision)
        if images is None:
            return io.NodeOutput(scorer, ExecutionBlocker("ViCLIP Score gives a score only when images are connected."))
        for note in scorer.reading(prompt).notes:
            logger.warning("Foresight: %s", note)
        return io.NodeOutput(scorer, score_images(scorer, images, prompt))


def score_images(scorer, images, prompt: str) -> float:
    return float(on_device(scorer).score(images[..., :3], scorer.encode_text(prompt)))


def build_gate(l2r, scorer, prompt, tau, delta, start, end, single_start, single_end, every, **rules) -> Gate:
    """A Gate from the widgets of `detector_widgets` and `threshold_widgets`."""
    rules |= {"tau": scorer.tau if tau == OWN else tau, "scale": getattr(scorer, "scale", 1.0)}
    patience = rules.pop("patience")
    return Gate(
        l2r, scorer, prompt,
        video=DetectorSettings.video(start=start, end=end, patience=patience, **rules),
        # The paper's probe is judged more conservatively than the video: one more score in a row.
        single_frame=DetectorSettings.single_frame(start=single_start, end=single_end, patience=patience + 1, **rules),
        delta=scorer.delta if delta == OWN else delta,
        every=every,
    )  # fmt: skip


def check_gate(known) -> None:
    """ValueError for what `build_gate` would refuse of its widgets. known: as in `Checked.check`."""
    check_prompt(str(known.get("prompt", "linked")))
    for make, start, end in ((DetectorSettings.video, "start", "end"), (DetectorSettings.single_frame, "single_start", "single_end")):
        if {start, end} <= known.keys():
            make(start=known[start], end=known[end])


class FailureGate(Checked):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightFailureGate",
            display_name="Dynamic Failure Gate",
            category="Foresight/paper",
            description="Decides early, from the scores of the first steps, whether a clip will match its prompt.",
            inputs=[
                types.L2R.Input("l2r", tooltip="Makes the previews: from L2R Preview."),
                types.Scorer.Input("scorer", tooltip="Scores the previews: from ViCLIP Score."),
                io.String.Input("prompt", multiline=True, tooltip="What previews are scored against: the user's own words."),
                *threshold_widgets(),
                *detector_widgets(),
                preset_widget(),
            ],
            outputs=[types.Gate.Output(display_name="gate")],
        ), "cancel", "early stop", "threshold", "preview")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        check_gate(known)
        check_file(PRESETS, known.get("preset"), OWN_SETTINGS)

    @classmethod
    def fingerprint_inputs(cls, preset=None, **_):
        return "" if preset == OWN_SETTINGS else state(PRESETS, preset)

    @classmethod
    def execute(cls, l2r, scorer, prompt, preset=OWN_SETTINGS, **settings):
        check_choice("preset", preset, (OWN_SETTINGS, *files(PRESETS)))
        gate = build_gate(l2r, scorer, prompt, **settings)
        if preset != OWN_SETTINGS:
            detector = load_preset(path_of(PRESETS, preset))
            detector.check(scorer.name)
            gate = replace(gate, video=detector.video)
        return io.NodeOutput(gate)
