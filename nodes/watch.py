"""Foresight Watch: inspection as a patch of the MODEL, for graphs that keep their own sampler node."""

from comfy_api.latest import io

from ..sampling.watch import Watch
from ..trials.foreign import logger
from ..trials.report import run_report
from ..trials.summary import headline, report_text
from . import types
from .compat import searchable, show_on_node
from .panel import running
from .widgets import schedule_steps_widget


class ForesightWatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightWatch",
            display_name="Foresight Watch",
            category="Foresight/sampling",
            description="Judges early what a model samples, under KSampler or any other sampler node. It only reports: nothing "
            "is stopped, and every clip is the same to the last bit.",
            inputs=[
                io.Model.Input("model", tooltip="The model to watch; connect the result to your sampler."),
                types.Gate.Input("gate", tooltip="From Dynamic Failure Gate."),
                io.Boolean.Input("enabled", default=True, tooltip="Off: the model passes through as it is."),
                schedule_steps_widget(),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                types.Watch.Output(display_name="watch", tooltip="For Run Report, with the decoded clip as its images."),
            ],
            hidden=[io.Hidden.unique_id],
        ), "preview", "score", "monitor")

    @classmethod
    def execute(cls, model, gate, enabled=True, schedule_steps=0):
        if not enabled:
            return io.NodeOutput(model, None)
        node = cls.hidden.unique_id

        def show(verdict):
            report = run_report(verdict)
            logger.info("Foresight Watch: %s", report_text(report))
            show_on_node(node, headline(report))

        watch = Watch(gate, schedule_steps, show, running)
        return io.NodeOutput(watch.patch(model), watch)
