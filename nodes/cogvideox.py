"""CogVideoX Sampler: the released samplers of native CogVideoX as ComfyUI's ordinary SAMPLER and SIGMAS."""

from comfy_api.latest import io

from ..sampling.vp import RULES, takes_raw_input, trailing_sigmas, vp_sampler
from ..trials.foreign import check_choice
from .compat import searchable


class CogVideoXSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightCogVideoXSampler",
            display_name="CogVideoX Sampler",
            category="Foresight/models",
            description="CogVideoX's own samplers and schedule, for SamplerCustomAdvanced or any node that takes a SAMPLER and "
            "SIGMAS. ComfyUI's samplers do not work with native CogVideoX by themselves.",
            inputs=[
                io.Model.Input("model", tooltip="Native CogVideoX (ComfyUI 0.33 or newer)."),
                io.Combo.Input(
                    "rule", options=list(RULES), default="dpm",
                    tooltip="dpm: the 5B model's, adds noise of its own at each step. ddim: the 2B model's, deterministic at eta 0.",
                ),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="The released setting is 50."),
                io.Float.Input("eta", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Noise that ddim adds; dpm has no use for it."),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="Below 1: only the last part, for video to video."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler"), io.Sigmas.Output(display_name="sigmas")],
        ), "cogvideo", "scheduler")  # fmt: skip

    @classmethod
    def execute(cls, model, rule, steps, eta, denoise):
        check_choice("rule", rule, RULES)
        sampling = model.get_model_object("model_sampling")
        if not takes_raw_input(sampling):
            raise ValueError(
                f"this model ({type(model.model).__name__}) is not native CogVideoX, which ComfyUI has from 0.33 on: "
                "use KSamplerSelect and a scheduler node with it."
            )
        whole, timesteps = int(steps / denoise), len(sampling.sigmas)
        if whole > timesteps:
            raise ValueError(
                f"{steps} steps at denoise {denoise} need {whole} timesteps, and this model has {timesteps}: take fewer steps "
                "or a higher denoise."
            )
        sigmas = trailing_sigmas(sampling.sigmas.cpu(), whole)
        return io.NodeOutput(vp_sampler(rule, eta), sigmas[-(steps + 1) :])
