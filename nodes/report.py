"""Run Report: what happened, as a picture, as text and as JSON."""

import os

import folder_paths
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from comfy_execution.graph_utils import GraphBuilder

from ..sampling.guard import Failure, harmless
from ..trials.picture import cards, report_figure
from ..trials.report import Report, finished, run_report, to_json, with_final_score, with_note
from ..trials.summary import report_text
from . import types
from .compat import searchable
from .graph import Classes, executed, sampled_with
from .inspection import score_images
from .panel import STORE
from .shown import shown

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
                    "watch", optional=True, tooltip="From Foresight Watch, instead of a verdict. The report is made once the clip is sampled.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="The finished clip: shown, and scored where a scorer is connected. Not connected: its preview is shown.",
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
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.dynprompt, io.Hidden.unique_id],
            is_output_node=True,
            enable_expand=True,
        ), "report", "what happened", "cost")  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **linked):
        # What a watch alone is connected to does not change with what is sampled behind it.
        return float("nan") if "watch" in linked and not {"images", "verdict"} & linked.keys() else ""

    @classmethod
    def execute(cls, verdict=None, watch=None, images=None, scorer=None, save=False, sampled=None):
        """sampled: what a watch without images has waited for."""
        if verdict is images is sampled is None:
            inputs = executed(cls.hidden)[cls.hidden.unique_id]["inputs"] if getattr(cls, "hidden", None) else {}
            if watch is not None:
                return cls.after_sampling(inputs)
            if not {"verdict", "watch"} & inputs.keys():  # else a watch that is switched off
                raise ValueError("connect a verdict (from Monitored Sampler, Foresight Sampler or a switch), or a watch.")
        # From here on the clip is finished, and may not be saved yet: nothing in this node ends the graph.
        with harmless("the run could not be reported") as failure:
            if verdict := verdict or watch and watch.verdict:
                return cls.report(verdict, images, scorer, save)
        text = failure.message or NOTHING
        return io.NodeOutput(ExecutionBlocker(None), text, ExecutionBlocker(None), ui={"text": [text]})

    @classmethod
    def after_sampling(cls, inputs):
        """Nothing makes a report of a watch alone wait for the sampler: this puts one in its place that does."""
        latent = None
        with harmless("the graph could not be read"):  # nodes of other packs say of themselves what they like
            latent = sampled_with(executed(cls.hidden), Classes(), [inputs["watch"][0], 0])
        if latent is None:
            raise ValueError("no sampler was found behind the watched model: connect the decoded clip to images.")
        builder = GraphBuilder()
        after = builder.node("ForesightRunReport", **inputs, sampled=latent)
        return io.NodeOutput(*map(after.out, range(3)), expand=builder.finalize())

    @classmethod
    def report(cls, verdict, images, scorer, save):
        report, last = run_report(verdict), finished(verdict)
        clips = list(last.clips)
        if images is not None:
            clips = items(images, len(last.finals) or len(last.items) or 1)
        if images is not None and scorer is not None and report["prompt"]:
            with harmless("the finished clip was not scored") as failure:
                report = with_final_score(report, *(score_images(scorer, clip, report["prompt"]) for clip in clips))
            report = with_failure(report, failure)
            STORE.amend(verdict.run, report)
        previews = {record.trial: record.preview for record in verdict.history if record.preview is not None}
        picture, kept = ExecutionBlocker(None), None
        with harmless("the picture could not be drawn") as failure:
            picture = torch.from_numpy(report_figure(report, previews, clips)).float()[None] / 255
        report = with_failure(report, failure)
        if save and not failure.error:
            with harmless("the report could not be kept") as failure:
                kept = keep(picture, to_json(report), cls)
            report = with_failure(report, failure)
        text, drawn = report_text(report), None if isinstance(picture, ExecutionBlocker) else picture
        on_node = shown(text, drawn, lambda: cards(report, previews, clips), kept)
        return io.NodeOutput(picture, text, to_json(report), ui={"foresight_report": [report], **on_node})


def items(images: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The clips of a batch that was decoded into one row of frames; one, where they do not part evenly."""
    return list(images.split(len(images) // count)) if len(images) % count == 0 and len(images) else [images]


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
