"""VLM Prompt Refiner: Trial 2's better prompt."""

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..refiner.ablation import AblationRefiner
from ..refiner.base import RefinementRequest
from ..refiner.restart import RestartRefiner
from ..sampling.hierarchy import refine, reseeded
from . import types
from .compat import check_choice
from .panel import running

ABLATION, RESTART, OFF = "ablation", "restart", "off"
BACK_ENDS = (ABLATION, RESTART)
BACK_END_TIP = "ablation: emphasises what the preview lacks, by the scorer alone. restart: same prompt, other noise."


class ScoringRefiner(AblationRefiner):
    """Brings the scorer's weights back to the device: between sampling runs ComfyUI may have unloaded them."""

    def refine(self, request):
        if hasattr(self.scorer, "patcher"):
            comfy.model_management.load_model_gpu(self.scorer.patcher)
        return super().refine(request)


def make_refiner(back_end: str, scorer):
    """The refiner by its name in the widget; None when it is off."""
    check_choice("refiner", back_end, (*BACK_ENDS, OFF))
    return {ABLATION: lambda: ScoringRefiner(scorer), RESTART: RestartRefiner, OFF: lambda: None}[back_end]()


def encode(clip, text: str):
    """CLIPTextEncode's own call."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class PromptRefiner(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ForesightPromptRefiner",
            display_name="VLM Prompt Refiner",
            category="Foresight",
            description="Looks at the failed preview and states the prompt better. The ablation back end needs no model and "
            "no network: it finds the phrase that the preview lacks, puts it first and weights it.",
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("prompt", multiline=True, tooltip="The prompt that failed."),
                io.String.Input("negative", multiline=True, default="", tooltip="The negative prompt that went with it."),
                io.Image.Input("preview", tooltip="Of the rejected run."),
                types.Verdict.Input("verdict", tooltip="Of the probe or of the rejected run: what has happened so far."),
                types.Scorer.Input("scorer", tooltip="Says how well the preview fits each wording."),
                io.Combo.Input("back_end", options=list(BACK_ENDS), default=ABLATION, tooltip=BACK_END_TIP),
                io.Noise.Input("noise", optional=True, tooltip="Of the rejected run, for back ends that draw it anew."),
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
        )

    @classmethod
    def execute(cls, clip, prompt, negative, preview, verdict, scorer, back_end=ABLATION, noise=None):
        rejected = verdict.history[0].best
        request = RefinementRequest(
            prompt, negative, preview, rejected and rejected.predicted_score, noise and noise.seed
        )
        with running(verdict) as run:
            refined = refine(request, make_refiner(back_end, scorer), verdict, run)
            run.finish(refined)
        record = refined.record
        report = record.message or record.details["reasoning"]
        noise = reseeded(noise, record.details.get("seed")) or ExecutionBlocker("Connect NOISE to get it back, drawn anew.")
        positive, negative_conditioning = encode(clip, record.prompt), encode(clip, record.negative)
        return io.NodeOutput(
            record.prompt, record.negative, positive, negative_conditioning, report, refined, noise
        )
