"""Streaming Sampler, Streaming Guider, Chunk Gate and Streaming Report: clips that are made chunk by chunk."""

import json
from statistics import median

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..sampling.stream_gate import ChunkGate
from ..sampling.stream_guider import StreamingGuider
from ..sampling.stream_sampler import StreamSampler, streaming
from ..scoring.detector import DetectorSettings
from ..scoring.inspector import Gate, check_prompt
from ..trials.foreign import check_choice
from ..trials.report import Report
from ..trials.stream import CUSTOM, KV_MODES, PRESETS, SIGMAS, StreamSettings, parse_prompts
from ..trials.stream_plans import PLANS, GateSettings
from . import types
from .compat import advanced, searchable
from .graph import Checked
from .panel import running
from .widgets import OWN

PRESETS_OWN = "of the preset"
NOTHING = (
    "Nothing to tell: connect the SAMPLER of a Streaming Sampler that is not bypassed, and the latent of the node that samples "
    "with it."
)


class StreamingSampler(Checked):
    @classmethod
    def define_schema(cls):
        own = StreamSettings()
        return searchable(io.Schema(
            node_id="ForesightStreamingSampler",
            display_name="Streaming Sampler",
            category="Foresight/streaming",
            description="A sampler for causal Wan models (Self-Forcing, CausVid, LongLive, Causal-Forcing, Diagonal Distillation): it "
            "makes a clip chunk by chunk, each in a few steps, and remembers the chunks before in a cache whose size you set. "
            "Other Wan models run as well, but drift after the first chunk, because they were not trained for it.",
            inputs=[
                io.Combo.Input(
                    "preset", options=[*PRESETS, CUSTOM, SIGMAS], default=own.preset,
                    tooltip="The published settings of a model. custom levels: those below. sigmas: the connected SIGMAS, for every "
                    "chunk, or one run down to 0 for each.",
                ),
                io.String.Input(
                    "schedule", default="",
                    tooltip="Steps of each chunk as digits: 4322222. Longer clips repeat them, or only the last with a + (42+). Empty: the "
                    "preset's own.",
                ),
                io.String.Input(
                    "levels", default="",
                    tooltip="For custom levels: 1000, 750, 500, 250; 1000, 500 (chunks apart by semicolons, the last goes on). Values above 1 "
                    "are warped by the model's shift.",
                ),
                io.Int.Input("chunk", default=0, min=0, max=1000, tooltip="Latents in a chunk, as the model was trained. 0: the preset's own."),
                io.Combo.Input(
                    "kv", options=[PRESETS_OWN, *KV_MODES], default=PRESETS_OWN,
                    tooltip="What later chunks see of a finished one. clean: it, by one more forward. reuse last: its last step, for nothing. "
                    "noisy: it with context_noise.",
                ),
                io.Int.Input(
                    "window", default=-1, min=-1, max=100000,
                    tooltip="Latents that a chunk sees, itself included; older ones are forgotten. 0: all of the clip. -1: the preset's own.",
                ),
                io.Int.Input("sink", default=-1, min=-1, max=100000, tooltip="First latents that are never forgotten. -1: the preset's own."),
                *advanced(
                    io.Float.Input(
                        "context_noise", default=own.context_noise, min=0.0, max=0.999, step=0.01, round=0.001,
                        tooltip="For noisy: the sigma of what later chunks see.",
                    ),
                ),
                io.Boolean.Input(
                    "goes_on", default=False,
                    tooltip="Keeps the cache (in main memory) so that another Streaming Sampler can go on with this clip. Needs a window.",
                ),
                io.Latent.Input("start", optional=True, tooltip="What the clip begins with: an encoded image, or a clip to extend."),
                io.Sampler.Input(
                    "previous", optional=True,
                    tooltip="The Streaming Sampler (goes_on) that made start: its stream goes on to the last bit.",
                ),
                types.ChunkGate.Input("chunk_gate", optional=True, tooltip="Scores chunks while they are made, and draws bad ones again."),
                types.Refiner.Input("refiner", optional=True, tooltip="Refines the noise between the steps."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        ), "causal", "autoregressive", "self-forcing", "long video", "extend")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        if known.keys() >= {"preset", "schedule", "levels", "chunk", "kv", "window", "sink"}:
            cls.settings(**known)

    @classmethod
    def settings(cls, preset, schedule, levels, chunk, kv, window, sink, context_noise=0.1, goes_on=False) -> StreamSettings:
        """What the widgets ask for. ValueError for what cannot be done."""
        check_choice("preset", preset, (*PRESETS, CUSTOM, SIGMAS))
        check_choice("kv", kv, (PRESETS_OWN, *KV_MODES))
        if schedule.strip() and preset in (CUSTOM, SIGMAS):
            raise ValueError(f"Streaming Sampler: schedule is {schedule!r}, but preset '{preset}' has steps of its own: empty it.")
        if levels.strip() and preset != CUSTOM:
            raise ValueError(f"Streaming Sampler: levels is {levels!r}, but preset is '{preset}': choose '{CUSTOM}', or empty levels.")
        return StreamSettings(
            preset, schedule.strip() or None, levels, chunk or None, None if kv == PRESETS_OWN else kv,
            None if window < 0 else window, None if sink < 0 else sink, context_noise, goes_on,
        )  # fmt: skip

    @classmethod
    def execute(cls, start=None, previous=None, chunk_gate=None, refiner=None, **widgets):
        settings = cls.settings(**widgets)
        if previous is not None and not isinstance(previous, StreamSampler):
            raise ValueError("Streaming Sampler: previous is not from a Streaming Sampler.")
        samples = None if start is None else start["samples"]
        return io.NodeOutput(StreamSampler(settings, samples, previous, chunk_gate, refiner))


class StreamingGuiderNode(Checked):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightStreamingGuider",
            display_name="Streaming Guider",
            category="Foresight/streaming",
            description="A guider for the Streaming Sampler: prompts that change on the way, CFG through two caches, and memory for a "
            "chunk instead of the whole clip.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.String.Input(
                    "prompts", multiline=True,
                    tooltip="What the clip shows. A line that begins with a chunk's number and a colon begins a prompt there: 5: it turns left.",
                ),
                io.String.Input("negative", multiline=True, default="", tooltip="What it should not show; read where cfg is not 1."),
                io.Float.Input(
                    "cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Distilled models take 1. Above it, each step costs two evaluations and the cache twice the memory.",
                ),
                io.Boolean.Input(
                    "recache", default=True,
                    tooltip="Where a prompt begins, what the chunk sees is read again under it (LongLive). Off: only new chunks know of it.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        ), "prompt schedule", "prompt travel", "long video")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        if "prompts" in known:
            parse_prompts(str(known["prompts"]))

    @classmethod
    def execute(cls, model, clip, prompts, negative, cfg, recache):
        if clip is None:
            raise ValueError("Streaming Guider: clip is empty: connect a text encoder, this checkpoint has none.")

        def encoded(text):
            return clip.encode_from_tokens_scheduled(clip.tokenize(text))

        begins = [(begin, encoded(prompt)) for begin, prompt in parse_prompts(prompts)]
        return io.NodeOutput(StreamingGuider(model, begins, None if cfg == 1.0 else encoded(negative), cfg, recache))


class ChunkGateNode(Checked):
    @classmethod
    def define_schema(cls):
        own = GateSettings(0.0)
        return searchable(io.Schema(
            node_id="ForesightChunkGate",
            display_name="Chunk Gate",
            category="Foresight/streaming",
            description="Scores a stream's chunks while they are made. A chunk that fails is taken back and drawn again; where it stays bad, "
            "so are the chunks before it. Costs nothing where every chunk passes.",
            inputs=[
                types.L2R.Input("l2r", tooltip="Makes the previews: from L2R Preview."),
                types.Scorer.Input("scorer", tooltip="Scores the previews: from ViCLIP Score."),
                io.String.Input("prompt", multiline=True, tooltip="What chunks are scored against; prompts by chunk as in Streaming Guider."),
                io.Float.Input(
                    "tau", default=OWN, min=-1.0, max=1.0, step=0.005, round=0.0001,
                    tooltip="A chunk that scores below tau fails. -1: the scorer's own (ViCLIP-L: 0.22), which was found on whole clips; chunks want "
                    "less: the help says how to find it.",
                ),
                io.Combo.Input(
                    "plan", options=list(PLANS), default=own.plan,
                    tooltip="gate: draw again what fails. best of N: make each chunk so often and keep the best. search over path: choose at "
                    "each step; these two need a budget of tries - 1. reseed: begin the clip again where its first chunks fail.",
                ),
                io.String.Input("looks", default=own.looks, tooltip="For gate and reseed: the steps of a chunk that are scored, from 1 on, or last."),
                io.Int.Input("tries", default=own.tries, min=1, max=64, tooltip="How often a chunk (reseed: the clip) is drawn at most."),
                io.Int.Input(
                    "depth", default=own.depth, min=0, max=16,
                    tooltip="For gate: how many chunks before one that stays bad are taken back at most. For reseed: how many after the first "
                    "decide as well. Each keeps in main memory what it pushed out of the window.",
                ),
                io.Float.Input(
                    "budget", default=own.budget, min=0.0, max=100.0, step=0.05, round=0.001,
                    tooltip="The most that may be spent beyond the plain clip, as a share of its forwards.",
                ),
                *advanced(
                    io.Float.Input(
                        "drift", default=own.drift, min=1.01, max=100.0, step=0.05, round=0.001,
                        tooltip="By which factor saturation and contrast may leave those of the first two chunks before the report warns.",
                    ),
                    io.Boolean.Input("stop_on_drift", default=False, tooltip="Ends the stream there; the clip is what was made so far."),
                ),
            ],
            outputs=[types.ChunkGate.Output(display_name="chunk_gate")],
        ), "retry", "rollback", "causal", "race")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        if "prompt" in known:
            check_prompt(str(known["prompt"]))
            parse_prompts(str(known["prompt"]))
        GateSettings(0.0, looks=str(known.get("looks", "last")))

    @classmethod
    def execute(cls, l2r, scorer, prompt, tau, plan, looks, tries, depth, budget, drift=1.5, stop_on_drift=False):
        check_choice("plan", plan, PLANS)
        gate = Gate(l2r, scorer, prompt, video=DetectorSettings.video(), single_frame=DetectorSettings.single_frame())
        floor = scorer.tau if tau == OWN else tau
        settings = GateSettings(floor, plan, looks, tries, depth, budget, drift, stop_on_drift)
        return io.NodeOutput(ChunkGate(gate, settings, running))


class StreamingReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightStreamingReport",
            display_name="Streaming Report",
            category="Foresight/streaming",
            description="What a Streaming Sampler did: forwards, memory, each draw of each chunk with its scores, what was taken back, drift.",
            inputs=[
                io.Sampler.Input("sampler", tooltip="From Streaming Sampler."),
                io.Latent.Input("latent", tooltip="The clip that was sampled with it: the report waits for it."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Int.Output(display_name="nfe"),
                io.String.Output(display_name="report"),
            ],
            is_output_node=True,
        ), "report", "what happened", "cost")  # fmt: skip

    @classmethod
    def execute(cls, sampler, latent):
        stream = streaming(sampler)
        if stream is None or not stream.result:  # the clip goes on: it is finished, and may not be saved yet
            return io.NodeOutput(latent, ExecutionBlocker(None), ExecutionBlocker(None), ui={"text": [NOTHING]})
        report = Report({"schema": "foresight.streaming_report", "version": 1, **stream.result})
        return io.NodeOutput(latent, report["nfe"], json.dumps(report, indent=1), ui={"text": [summary(report)]})


def summary(report: dict) -> str:
    lines = [
        f"{report['nfe']} forwards for {report['made']} latents; the plain stream takes {report['nfe_plain']}",
        f"steps by chunk: {report['schedule']}; cache: {report['window']} latents, {report['cache_bytes'] / 2**20:.1f} MiB",
    ]
    if refiner := report.get("refiner"):
        sizes = ", ".join(f"{size:.1%}" for size in refiner["change_by_step"].values())
        lines.append(f"{refiner['forwards']} forwards refined the noise ({refiner['name']}), by step by {sizes or 'nothing'}")
    draws = [line for line in report.get("draws", ()) if line.get("draw") == 0 and "step" not in line]
    if first := [score for line in draws for score in line["scores"] if score is not None]:
        lines.append(
            f"Chunks as drawn first score {min(first):.3f} to {max(first):.3f}, half of them below {median(first):.3f}; tau is "
            f"{report['floor']:.3f}"
        )
    if below := report.get("below"):
        lines.append(f"Still below tau: chunk {', '.join(map(str, below))}")
    for line in report.get("draws", ()):
        if "draw" in line and "step" not in line:
            scores = ", ".join("none" if score is None else f"{score:.3f}" for score in line["scores"])
            lines.append(f"chunk {line['chunk']}, draw {line['draw']}: {scores} after {line['steps']} steps")
        elif "taken_back" in line:
            what = "restored" if line.get("restored") else "taken back"
            lines.append(f"chunk {line['chunk']}: {line['taken_back']} before it {what}")
    if not report["causal_by_file"]:
        lines.append(
            "The model's file does not say that it was trained to be causal (few do): if it was not, chunks after the first smear, "
            "jump or fade"
        )
    return "\n".join(lines + [f"Note: {note}" for note in report.get("notes", ())])
