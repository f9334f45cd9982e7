"""Seed Audition: many seeds a short way, the best ones to the end."""

import json
import math

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..sampling.audition import budget, hold_audition
from ..sampling.inputs import Inputs
from ..sampling.noise import SeededNoise
from ..trials.foreign import check_choice
from . import types
from .compat import searchable, show_on_node
from .panel import running
from .widgets import schedule_steps_widget

BEST, BY_HAND = "best", "by hand"


class SeedAudition(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightSeedAudition",
            display_name="Seed Audition",
            category="Foresight/sampling",
            description="Samples many seeds a short way, scores their previews, and goes on with the best, or with those you "
            "tick in the Foresight tab. A finished clip is the same as with its seed alone.",
            inputs=[
                io.Guider.Input("guider"),
                io.Sampler.Input("sampler"),
                io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"),
                types.Gate.Input("gate", tooltip="Its converter, scorer and prompt; its window and tau are not used."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="The first seed; the others follow by one.",
                ),
                io.Int.Input("seeds", default=8, min=2, max=64, tooltip="How many are looked at."),
                io.Int.Input("keep", default=1, min=1, max=64, tooltip="How many are finished."),
                io.Float.Input(
                    "fraction", default=0.2, min=0.02, max=1.0, step=0.01, round=0.001,
                    tooltip="Of the schedule, after which a seed is scored. The best go on from there, so the cost is "
                    "seeds x fraction + keep x (1 - fraction) runs.",
                ),
                io.Combo.Input(
                    "choose", options=[BEST, BY_HAND], default=BEST,
                    tooltip="by hand: waits for your ticks in the Foresight tab, as long as it is open; others than the best "
                    "are begun anew. Without it, the best.",
                ),
                io.Int.Input("wait_seconds", default=120, min=5, max=3600, tooltip="For by hand; then the best are taken."),
                schedule_steps_widget(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Image.Output(display_name="contact_sheet"),
                io.String.Output(display_name="seeds"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        ), "best of", "seeds", "batch", "pick", "preview")  # fmt: skip

    @classmethod
    def execute(
        cls, guider, sampler, sigmas, latent_image, gate, seed, seeds, keep, fraction, choose=BEST, wait_seconds=120,
        schedule_steps=0,
    ):  # fmt: skip
        check_choice("choose", choose, (BEST, BY_HAND))
        seed_list = [(seed + i) % 2**64 for i in range(seeds)]

        def make(one: int) -> Inputs:
            return Inputs(SeededNoise(one), guider, sampler, sigmas, latent_image, schedule_steps)

        most = budget(seeds, keep, fraction, make(seed), choose == BY_HAND)
        show_on_node(cls.hidden.unique_id, f"{seeds} seeds, {keep} finished: at most {most} steps in all")
        with running() as run:
            audition = hold_audition(
                make, gate, seed_list, keep=keep, fraction=fraction, observer=run, wait=wait_seconds if choose == BY_HAND else 0
            )
        sheet = audition.sheet if audition.sheet is not None else ExecutionBlocker("A seed's preview could not be made.")
        report = json.dumps(audition.report, indent=1)
        text = summary(audition.report)
        return io.NodeOutput(audition.latent, sheet, ", ".join(map(str, audition.chosen)), report, ui={"text": [text]})


def summary(report: dict) -> str:
    finals = dict(zip(report["chosen"], report["final_scores"], strict=True))

    def line(seed: int, score: float | None) -> str:
        state = "put aside"
        if seed in finals:
            below = None not in (finals[seed], report["tau"]) and finals[seed] < report["tau"]
            state = f"finished, final score {shown(finals[seed])}" + (f", still below tau {report['tau']:.3f}" if below else "")
        return f"Seed {seed}: {shown(score)}, {state}"

    count, chosen = len(report["seeds"]), ", ".join(map(str, report["chosen"]))
    lines = [f"Seed {chosen} went on: {count} seeds were scored by their previews after step {report['stop_step']}."]
    lines += [line(*pair) for pair in zip(report["seeds"], report["scores"], strict=True)]
    nfe, whole = report["nfe"], report["nfe_of_all_seeds"]
    lines.append(f"{nfe} model evaluations (NFE); all {count} seeds to their ends would take {whole}.")
    return "\n".join(lines + [f"Note: {note}" for note in report["notes"]])


def shown(score: float | None) -> str:
    return "not scored" if score is None or not math.isfinite(score) else f"{score:.3f}"
