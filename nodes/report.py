"""Run Report: what happened, as a picture, as text and as JSON."""

import os

import folder_paths
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..sampling.guard import Failure, harmless
from ..trials.picture import report_figure
from ..trials.report import Report, run_report, to_json, with_final_score, with_note
from ..trials.summary import report_text
from . import types
from .compat import searchable
from .inspection import score_images
from .panel import STORE

NOTHING = (
    "No run to tell of: connect a verdict, or the watch of a Foresight Watch that is neither bypassed nor switched off and "
    "whose model has been sampled."
)
SAVED = "foresight/report"  # below the output folder; fixed, so that no workflow file names a path


class RunReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightRunReport",
            display_name="Run Report",
            category="Foresight/inspection",
            description="What a run did, as a picture and in words: its candidates or trials with their looks, scores and cost, "
            "what was delivered and why.",
            inputs=[
                types.Verdict.Input(
                    "verdict", optional=True, tooltip="Of the last node of the run: it brings the whole history."
                ),
                types.Watch.Input(
                    "watch", optional=True, tooltip="From Foresight Watch, instead of a verdict. Connect images as well.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="The finished clip: scored as well where a scorer is connected; with a watch, what to wait for.",
                ),
                types.Scorer.Input("scorer", optional=True, tooltip="Scores the finished clip; connect images as well."),
                io.Boolean.Input(
                    "save", optional=True, default=False,
                    tooltip="Keep the picture, with the workflow in it, and the JSON in the output folder under foresight/report.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture"),
                io.String.Output(display_name="text"),
                io.String.Output(display_name="json"),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        ), "report", "what happened", "cost")  # fmt: skip

    @classmethod
    def execute(cls, verdict=None, watch=None, images=None, scorer=None, save=False):
        if images is None and verdict is None:
            if watch is None:
                raise ValueError("connect a verdict (from Monitored Sampler, Foresight Sampler or a switch), or a watch.")
            # Without the images nothing makes this node wait for the sampler: it would tell of the clip before.
            raise ValueError("connect the decoded clip to images, so that the report of the watch is made after sampling.")
        # From here on the clip is finished, and may not be saved yet: nothing in this node ends the graph.
        with harmless("the run could not be reported") as failure:
            if verdict := verdict or watch and watch.verdict:
                return cls.report(verdict, images, scorer, save)
        text = failure.message or NOTHING
        return io.NodeOutput(ExecutionBlocker(None), text, ExecutionBlocker(None), ui={"text": [text]})

    @classmethod
    def report(cls, verdict, images, scorer, save):
        report = run_report(verdict)
        if images is not None and scorer is not None and report["prompt"]:
            with harmless("the finished clip was not scored") as failure:
                report = with_final_score(report, score_images(scorer, images, report["prompt"]))
            report = with_failure(report, failure)
            STORE.amend(verdict.run, report)
        previews = {record.trial: record.preview for record in verdict.history if record.preview is not None}
        picture, on_node = ExecutionBlocker(None), {}
        with harmless("the picture could not be drawn") as failure:
            picture = torch.from_numpy(report_figure(report, previews, images)).float()[None] / 255
        report = with_failure(report, failure)
        if save and not failure.error:
            with harmless("the report could not be kept") as failure:
                on_node["images"] = [keep(picture, to_json(report), cls)]
            report = with_failure(report, failure)
        text = report_text(report)
        return io.NodeOutput(picture, text, to_json(report), ui={"text": [text], "foresight_report": [report], **on_node})


def with_failure(report: Report, failure: Failure) -> Report:
    return with_note(report, failure.message) if failure.message else report


def keep(picture: torch.Tensor, text: str, node) -> ui.SavedResult:
    """Core's own way to save an image, with the workflow in it, and the report beside it under the same name."""
    (saved,) = ui.ImageSaveHelper.save_images(picture, SAVED, io.FolderType.output, node)
    folder = os.path.join(folder_paths.get_output_directory(), saved.subfolder)
    with open(os.path.join(folder, saved.filename.removesuffix(".png") + ".json"), "w", encoding="utf-8") as file:
        file.write(text)
    return saved


def told(verdict) -> str:
    """The run in words, for the node that has sampled it; what cannot be told of costs no clip."""
    with harmless("the run could not be reported") as failure:
        return report_text(run_report(verdict))
    return failure.message
