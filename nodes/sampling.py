"""Monitored Sampler, Single-Frame Probe, Latent Injector and Trial Switch: the hierarchy as a graph."""

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..sampling.injection import Anchor, Injection
from ..sampling.inputs import Inputs
from ..sampling.probe import single_frame_probe
from ..sampling.run import monitored_sample
from ..trials.foreign import check_choice
from . import types
from .compat import AnyType, searchable
from .panel import running
from .widgets import injection_settings, injection_widgets, schedule_steps_widget

STOP, REPORT_ONLY = "stop", "report only"


def sampling_inputs():
    """As SamplerCustomAdvanced has them."""
    return [
        io.Noise.Input("noise"),
        io.Guider.Input("guider"),
        io.Sampler.Input("sampler"),
        io.Sigmas.Input("sigmas"),
        io.Latent.Input("latent_image"),
    ]


def preview_or_block(verdict):
    if verdict.preview is None:
        return ExecutionBlocker("This run was not inspected, so there is no preview: connect a GATE.")
    return verdict.preview


class MonitoredSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightMonitoredSampler",
            display_name="Monitored Sampler",
            category="Foresight/paper",
            description="SamplerCustomAdvanced that watches the clip and stops when it is going to fail. A clip that passes "
            "is the same to the last bit.",
            inputs=[
                *sampling_inputs(),
                types.Gate.Input("gate", optional=True, tooltip="Without a gate this is the plain sampler."),
                types.Injection.Input("injection", optional=True, tooltip="Start from a probed frame (Trial 1)."),
                types.Verdict.Input(
                    "previous", optional=True,
                    tooltip="The verdict that led here, for the report. After a failed refinement the clip is sampled plainly.",
                ),
                io.Combo.Input(
                    "on_reject", options=[STOP, REPORT_ONLY], default=STOP,
                    tooltip="stop: leave a failing run at once. report only: judge it, and sample it to the end.",
                ),
                io.Boolean.Input("keep_steps", default=False, tooltip="Give the x0 predictions of all steps as a batch."),
                schedule_steps_widget(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Latent.Output(display_name="x0"),
                io.Latent.Output(display_name="steps_x0"),
                types.Verdict.Output(display_name="verdict"),
                io.Image.Output(display_name="preview"),
            ],
        ), "cancel", "early stop", "preview", "SamplerCustomAdvanced")  # fmt: skip

    @classmethod
    def execute(
        cls, noise, guider, sampler, sigmas, latent_image, gate=None, injection=None, previous=None, on_reject=STOP,
        keep_steps=False, schedule_steps=0,
    ):  # fmt: skip
        check_choice("on_reject", on_reject, (STOP, REPORT_ONLY))
        if injection is not None and injection.anchor.latent is None:
            # The probe failed; what is left of its trial is the plain run, as in the all-in-one node.
            gate, injection, previous = None, None, injection.anchor.verdict
        inputs = Inputs(noise, guider, sampler, sigmas, latent_image, schedule_steps)
        with running(injection.anchor.verdict if injection else previous) as run:
            result = monitored_sample(
                inputs, gate, injection, previous=previous, stop="rejected" if on_reject == STOP else "never",
                keep_steps=keep_steps, observer=run,
            )  # fmt: skip
            run.finish(result.verdict)
        steps = result.steps_x0 or ExecutionBlocker("Switch keep_steps on to get the x0 prediction of each step.")
        return io.NodeOutput(result.latent, result.x0, steps, result.verdict, preview_or_block(result.verdict))


class SingleFrameProbe(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightSingleFrameProbe",
            display_name="Single-Frame Probe",
            category="Foresight/paper",
            description="Samples one frame of the same prompt: does the model get at least a still right? Accepted when it "
            "beats the rejected clip by the gate's delta; after a refinement, whenever there is a frame at all.",
            inputs=[
                *sampling_inputs(),
                types.Gate.Input("gate", tooltip="The gate that rejected the run; it has the probe's own window."),
                types.Verdict.Input("verdict", tooltip="Of the run that was rejected."),
                schedule_steps_widget(),
            ],
            outputs=[
                types.Anchor.Output(display_name="anchor"),
                types.Verdict.Output(display_name="verdict"),
                io.Image.Output(display_name="preview"),
            ],
        ), "retry", "single frame", "preview")

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, gate, verdict, schedule_steps=0):
        inputs = Inputs(noise, guider, sampler, sigmas, latent_image, schedule_steps)
        with running(verdict) as run:
            anchor, probed = single_frame_probe(inputs, gate, verdict, run)
            run.finish(probed)
        return io.NodeOutput(anchor or Anchor(None, probed), probed, preview_or_block(probed))


class LatentInjector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightLatentInjector",
            display_name="Latent Injector",
            category="Foresight/paper",
            description="Starts a clip from a probed frame instead of from pure noise (the paper's Algorithm 1).",
            inputs=[types.Anchor.Input("anchor", tooltip="From Single-Frame Probe."), *injection_widgets()],
            outputs=[types.Injection.Output(display_name="injection")],
        ), "retry", "first frame", "anchor")

    @classmethod
    def execute(cls, anchor, **settings):
        return io.NodeOutput(Injection(anchor, injection_settings(**settings)))


class TrialSwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightTrialSwitch",
            display_name="Trial Switch",
            category="Foresight/paper",
            description="Passes on what the verdict asks for. The other branch never runs.",
            inputs=[
                types.Verdict.Input("verdict", tooltip="Decides which branch is needed."),
                AnyType.Input("on_accept", lazy=True, tooltip="Passed on when the verdict is accepted."),
                AnyType.Input("on_reject", lazy=True, tooltip="Passed on when the verdict is rejected."),
                *(
                    types.Verdict.Input(
                        name, optional=True, lazy=True,
                        tooltip=f"The verdict of the {branch} branch, so that the report at the end tells the whole story.",
                    )
                    for name, branch in (("accept_verdict", "on_accept"), ("reject_verdict", "on_reject"))
                ),
            ],
            outputs=[AnyType.Output(display_name="value"), types.Verdict.Output(display_name="verdict")],
        ), "retry", "branch")  # fmt: skip

    @classmethod
    def check_lazy_status(cls, verdict, **branches):
        # An input that nothing is connected to is missing here; one that has not run yet is None.
        needs = ["on_accept", "accept_verdict"] if verdict.accepted else ["on_reject", "reject_verdict"]
        return [name for name in needs if name in branches and branches[name] is None]

    @classmethod
    def execute(cls, verdict, on_accept=None, on_reject=None, accept_verdict=None, reject_verdict=None):
        if verdict.accepted:
            return io.NodeOutput(on_accept, accept_verdict or verdict)
        return io.NodeOutput(on_reject, reject_verdict or verdict)
