"""Run Report: what happened, as a picture, as text and as JSON."""

import os

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..trials.picture import report_figure
from ..trials.report import run_report, to_json, with_final_score
from ..trials.summary import report_text
from . import types
from .inspection import score_images
from .panel import STORE

SAVED = "foresight/report"  # below the output folder; fixed, so that no workflow file names a path


class RunReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ForesightRunReport",
            display_name="Run Report",
            category="Foresight",
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
        )  # fmt: skip

    @classmethod
    def execute(cls, verdict=None, watch=None, images=None, scorer=None, save=False):
        if verdict is None and watch is None:
            raise ValueError("connect a verdict (from Monitored Sampler, Foresight Sampler or a switch), or a watch.")
        if verdict is None:
            verdict = watch.verdict
            # Without the images nothing makes this node wait for the sampler: it would tell of the clip before.
            if images is None or verdict is None:
                raise ValueError(
                    "the watch has seen no run yet: connect the decoded clip to images, so that the report is made after "
                    "sampling, and use the watched model for it."
                )
        report = run_report(verdict)
        if images is not None and scorer is not None and report["prompt"]:
            report = with_final_score(report, score_images(scorer, images, report["prompt"]))
            STORE.amend(verdict.run, report)
        text = report_text(report)
        previews = {record.trial: record.preview for record in verdict.history if record.preview is not None}
        picture = torch.from_numpy(report_figure(report, previews, images)).float()[None] / 255
        on_node = {"text": [text], "foresight_report": [report]}
        if save:
            on_node["images"] = [keep(picture, to_json(report), cls)]
        return io.NodeOutput(picture, text, to_json(report), ui=on_node)


def keep(picture: torch.Tensor, text: str, node) -> ui.SavedResult:
    """Core's own way to save an image, with the workflow in it, and the report beside it under the same name."""
    (saved,) = ui.ImageSaveHelper.save_images(picture, SAVED, io.FolderType.output, node)
    folder = os.path.join(folder_paths.get_output_directory(), saved.subfolder)
    with open(os.path.join(folder, saved.filename.removesuffix(".png") + ".json"), "w", encoding="utf-8") as file:
        file.write(text)
    return saved
