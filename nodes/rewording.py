"""VLM Prompt Refiner, the node: Trial 2's better prompt."""

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..refiner.base import Rewording, RewordingRequest
from ..sampling.hierarchy import reword
from ..sampling.noise import reseeded
from . import types
from .back_ends import BACK_END_TIP, BACK_ENDS, DEFAULT, NONE, asked, back_end_widgets, check_back_end, make_reworder
from .compat import searchable
from .graph import Checked
from .panel import running


def encode(clip, text: str):
    """CLIPTextEncode's own call. ValueError where a checkpoint without a text encoder has given None."""
    if clip is None:
        raise ValueError("clip is None: the checkpoint has no text encoder. Load one (Load CLIP) and connect it.")
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class PromptRefiner(Checked):
    elsewhere = ("endpoint",)

    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightPromptRefiner",
            display_name="VLM Prompt Refiner",
            category="Foresight/paper",
            description="Looks at the failed preview and states the prompt better, or draws other noise. The ablation and restart "
            "back ends need no model and no network.",
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("prompt", multiline=True, tooltip="The prompt that failed."),
                io.String.Input("negative", multiline=True, default="", tooltip="The negative prompt that went with it."),
                io.Image.Input("preview", tooltip="Of the rejected run."),
                types.Verdict.Input("verdict", tooltip="Of the probe or of the rejected run: what has happened so far."),
                types.Scorer.Input("scorer", tooltip="Says how well the preview fits each wording."),
                io.Combo.Input("back_end", options=list(BACK_ENDS), default=DEFAULT, tooltip=BACK_END_TIP),
                io.Noise.Input("noise", optional=True, tooltip="Of the rejected run, for back ends that draw it anew."),
                *back_end_widgets(),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(display_name="negative"),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative_conditioning"),
                io.String.Output(display_name="report"),
                types.Verdict.Output(display_name="verdict"),
                io.Noise.Output(display_name="noise"),
            ],
        ), "retry", "reword", "enhance prompt", "llm")

    @classmethod
    def validate_inputs(cls, input_types, endpoint=NONE):
        return super().validate_inputs(input_types)  # what is named here, ComfyUI leaves to us

    @classmethod
    def check(cls, known, graph, id):
        check_back_end(known.get("back_end"), known.get("endpoint"))

    @classmethod
    def fingerprint_inputs(cls, back_end=None, endpoint=None, **_):
        return asked(back_end, endpoint)

    @classmethod
    def execute(
        cls, clip, prompt, negative, preview, verdict, scorer, back_end=DEFAULT, noise=None, vlm=None, endpoint=NONE,
        manual_prompt="",
    ):  # fmt: skip
        reworder = make_reworder(back_end, scorer, vlm, endpoint, manual_prompt)
        rejected = verdict.history[0].best
        request = RewordingRequest(
            prompt, negative, preview, rejected and rejected.predicted_score, noise and noise.seed,
            verdict.settings.get("model"),
        )  # fmt: skip

        def sampled_with(answer: Rewording):
            return encode(clip, answer.prompt), encode(clip, answer.negative), reseeded(noise, answer.seed)

        with running(verdict) as run:
            following, answer = reword(request, reworder, verdict, sampled_with, run)
            run.finish(following)
        record = following.record
        report = record.message or record.details["reasoning"]
        positive, negative_conditioning, noise = answer or (encode(clip, prompt), encode(clip, negative), noise)
        noise = noise or ExecutionBlocker("Connect NOISE to get it back, drawn anew.")
        return io.NodeOutput(
            record.prompt, record.negative, positive, negative_conditioning, report, following, noise
        )
