"""Self-Refine Sampler, Latent Search Sampler, the report of both, and the noise of one candidate."""

import json

import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..sampling.enhanced import self_refinement
from ..sampling.guard import harmless
from ..sampling.noise import MixedNoise
from ..sampling.search import SearchSampler
from ..sampling.search_rules import METHODS, SCALES, SearchSettings, parse_schedule
from ..sampling.self_refine import PRESETS, THRESHOLDS, Preset, self_refining
from ..scoring.reward import AlignmentReward
from ..trials.foreign import check_choice
from ..trials.picture import Card, clips_figure, said
from ..trials.report import Report
from . import types
from .compat import advanced, searchable
from .graph import Checked
from .panel import running
from .shown import shown
from .widgets import OWN, schedule_steps_widget

CUSTOM = "custom"
NOTHING = (
    "Nothing to tell: connect the SAMPLER of a Self-Refine Sampler or a Latent Search Sampler that is not bypassed, and the "
    "latent of the node that samples with it."
)
NO_REWARD = "Latent Search Sampler: connect a gate or a reward, by which to choose among candidates."
PIXELS = 8  # of the mask preview for each place of the latent


class SelfRefineSampler(Checked):
    @classmethod
    def define_schema(cls):
        own = PRESETS["T2V"]
        return searchable(io.Schema(
            node_id="ForesightSelfRefineSampler",
            display_name="Self-Refine Sampler",
            category="Foresight/enhancers",
            description="A sampler that refines a clip while it is made: at some early steps it predicts the clip, adds fresh noise "
            "and predicts again, and keeps what both agree on. No training; costs half as much again (Predict and Perturb).",
            inputs=[
                io.Sampler.Input("sampler", tooltip="From KSamplerSelect. In refined steps all but first-order ones step as euler."),
                io.Combo.Input(
                    "preset", options=[*PRESETS, CUSTOM], default="T2V",
                    tooltip="The published settings. T2V: 60 evaluations on 40 steps. distilled: 13 on 8. custom: plan and plan_steps.",
                ),
                io.String.Input(
                    "plan", default=own.plan,
                    tooltip="For custom. first-last:extra passes, counted from 0: 2-5:3, 6-13:1 is the T2V plan.",
                ),
                io.Int.Input(
                    "plan_steps", default=own.steps, min=1, max=10000,
                    tooltip="For custom: the schedule that the plan counts in. On others it is stretched.",
                ),
                io.Float.Input(
                    "tau", default=OWN, min=-1.0, max=1000.0, step=0.05, round=0.0001,
                    tooltip="Where two predictions differ by less, nothing is refined. Higher refines less; 0 refines everywhere. "
                    "-1: the preset's own (T2V: 0.2).",
                ),
                *advanced(
                    io.Combo.Input(
                        "threshold", options=list(THRESHOLDS), default="absolute",
                        tooltip="absolute: tau in units of Wan's latent. quantile: tau is the share of the clip to be left, for other models.",
                    ),
                    io.Int.Input("norm", default=1, min=1, max=2, tooltip="Of the difference over the channels (published: 1)."),
                ),
                schedule_steps_widget(),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        ), "quality", "motion", "predict and perturb")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        if known.keys() >= {"preset", "plan", "plan_steps", "tau"}:
            cls.settings(**known)

    @classmethod
    def settings(cls, preset, plan, plan_steps, tau, threshold="absolute", norm=1, schedule_steps=0):
        """What the widgets ask for. ValueError for what cannot be done."""
        check_choice("preset", preset, (*PRESETS, CUSTOM))
        if tau == OWN and threshold == "quantile":
            raise ValueError("Self-Refine Sampler: tau is -1, but no preset has a quantile: enter a share from 0 to 1.")
        published = PRESETS.get(preset, Preset(plan, plan_steps, PRESETS["T2V"].tau))
        own = {} if tau == OWN else {"tau": tau}
        return published.settings(threshold=threshold, norm=norm, schedule_steps=schedule_steps, **own)

    @classmethod
    def execute(cls, sampler, *widgets, **named_widgets):
        return io.NodeOutput(self_refining(sampler, cls.settings(*widgets, **named_widgets)))


class LatentSearchSampler(Checked):
    @classmethod
    def define_schema(cls):
        own = SearchSettings()
        return searchable(io.Schema(
            node_id="ForesightLatentSearchSampler",
            display_name="Latent Search Sampler",
            category="Foresight/enhancers",
            description="A sampler that begins several candidates of one clip, scores them half way and finishes the best. Costs two to "
            "three clips (LatSearch). Connect a gate or a reward.",
            inputs=[
                io.Sampler.Input(
                    "sampler", tooltip="Any SAMPLER; from Self-Refine Sampler too. Those that add noise at few steps (lcm, ancestral) dilute "
                    "what is found.",
                ),
                types.Gate.Input("gate", optional=True, tooltip="Scores the candidates by how well their previews fit its prompt."),
                types.Reward.Input("reward", optional=True, tooltip="Scores the candidates instead of the gate."),
                io.Int.Input("candidates", default=own.candidates, min=1, max=64, tooltip="Candidate 0 is the clip of the seed itself."),
                io.Combo.Input(
                    "method", options=list(METHODS), default=own.method,
                    tooltip="resampling: LatSearch. beam: the better half goes on. best of N: all are finished, the best is kept.",
                ),
                io.String.Input(
                    "schedule", default="10, 15, 20", tooltip="The steps after which candidates are scored, counted from 0; not for best of N.",
                ),
                io.Int.Input(
                    "schedule_of", default=50, min=1, max=10000,
                    tooltip="How many steps the schedule counts in. On other numbers of steps it is stretched.",
                ),
                io.Float.Input(
                    "beta", default=own.beta, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="New noise in a candidate. 0.1: all are close to the seed's clip. 1: each is the clip of its own seed (seed + 1, ...).",
                ),
                io.Int.Input(
                    "budget", default=0, min=0, max=100000,
                    tooltip="The most model evaluations that a clip may take in all, self-refinement included. 0: no bound.",
                ),
                *advanced(
                    io.Float.Input(
                        "temperature", default=own.temperature, min=0.01, max=100.0, step=0.05, round=0.001,
                        tooltip="Of resampling. Less trusts the reward more.",
                    ),
                    io.Combo.Input(
                        "scale", options=list(SCALES), default=own.scale,
                        tooltip="spread: rewards are divided by their spread first, so that any reward will do. raw: as they are.",
                    ),
                    io.Int.Input(
                        "at_once", default=1, min=1, max=64,
                        tooltip="Candidates in one model call: faster where there is memory, and then equal only up to rounding.",
                    ),
                ),
                schedule_steps_widget(),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        ), "best of", "beam search", "seeds")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        if known.keys() >= {"schedule", "schedule_of"}:
            parse_schedule(str(known["schedule"]), known["schedule_of"])
        if not {"gate", "reward"} & graph[id]["inputs"].keys():
            raise ValueError(NO_REWARD)

    @classmethod
    def execute(
        cls, sampler, candidates, method, schedule, schedule_of, beta, budget, temperature=1.0, scale="spread", at_once=1,
        schedule_steps=0, gate=None, reward=None,
    ):  # fmt: skip
        if reward is None:
            if gate is None:
                raise ValueError(NO_REWARD)
            reward = AlignmentReward(gate)
        settings = SearchSettings(
            candidates, method, parse_schedule(schedule, schedule_of), beta, temperature, scale, budget, at_once, schedule_steps
        )
        return io.NodeOutput(SearchSampler(sampler, reward, settings, running=running, look=gate and gate.look))


class EnhancerReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightEnhancerReport",
            display_name="Enhancer Report",
            category="Foresight/enhancers",
            description="What a Self-Refine Sampler or a Latent Search Sampler did: where it refined, which candidates it dropped, and "
            "the model evaluations.",
            inputs=[
                io.Sampler.Input("sampler", tooltip="From Self-Refine Sampler or Latent Search Sampler."),
                io.Latent.Input("latent", tooltip="The clip that was sampled with it: the report waits for it."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Image.Output(display_name="mask"),
                io.Int.Output(display_name="nfe"),
                io.String.Output(display_name="report"),
            ],
            is_output_node=True,
        ), "report", "what happened", "cost")  # fmt: skip

    @classmethod
    def execute(cls, sampler, latent):
        search, refining = sampler if isinstance(sampler, SearchSampler) else None, self_refinement(sampler)
        results = {
            "search": search.result if search and search.result else None,
            "self_refine": refining.result.report() if refining and refining.result.nfe else None,
        }
        first = results["search"] or results["self_refine"]
        if first is None:  # the clip goes on: it is finished, and may not be saved yet
            nothing = [ExecutionBlocker(None)] * 3
            return io.NodeOutput(latent, *nothing, ui={"text": [NOTHING]})
        report = {"schema": "foresight.enhancer_report", "version": 1, "nfe": first["nfe"], **results}
        text, mask = summary(report), ExecutionBlocker("Nothing was refined, so there is no mask.")
        if refining is not None and refining.result.places is not None:
            mask = mask_images(refining.result.places)
        clips = cards(results["search"], search.previews if search else {}, mask)
        picture = None
        with harmless("the picture could not be drawn"):
            picture = torch.from_numpy(clips_figure(text, clips)).float()[None] / 255
        on_node = shown(text, picture, lambda: clips)
        return io.NodeOutput(latent, mask, first["nfe"], json.dumps(Report(report), indent=1), ui=on_node)


def cards(search: dict | None, previews: dict, mask) -> list[Card]:
    """Where a clip was refined, and the candidates of a search, the finished one first."""
    made = [] if isinstance(mask, ExecutionBlocker) else [
        Card(said("where it was refined"), said("white: at every extra pass"), mask)
    ]
    rows = search["candidates"] if search else []
    for row in sorted(rows, key=lambda row: (row["candidate"] != search["winner"], -row["weight"])):
        if row["candidate"] in previews:
            rewards = [f"{reward:.3f} at step {step}" for step, reward in row["rewards"].items() if reward is not None]
            won = row["candidate"] == search["winner"]
            state = "finished" if won else f"dropped after step {row['dropped_at']}"
            about = f"{state}; reward {', '.join(rewards) or 'not known'}"
            made.append(Card(said("candidate {number}", number=row["candidate"]), about, previews[row["candidate"]], won))
    return made


class CandidateNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightCandidateNoise",
            display_name="Candidate Noise",
            category="Foresight/enhancers",
            description="The noise of one candidate of a Latent Search Sampler, to sample it alone: the same clip to the last bit. Samplers "
            "that add noise at few steps (lcm, ancestral, streams) dilute it.",
            inputs=[
                io.Noise.Input("noise", tooltip="The noise that the search was given."),
                io.Int.Input("candidate", default=1, min=0, max=63, tooltip="Its number in the report."),
                io.Float.Input(
                    "beta", default=SearchSettings().beta, min=0.0, max=1.0, step=0.05, round=0.001, tooltip="As in the search.",
                ),
            ],
            outputs=[io.Noise.Output(display_name="noise")],
        ), "seed", "random noise")  # fmt: skip

    @classmethod
    def execute(cls, noise, candidate, beta):
        return io.NodeOutput(MixedNoise(noise, candidate, beta) if candidate else noise)


def mask_images(places: torch.Tensor) -> torch.Tensor:
    """[B F, H, W, 3]: white where every extra pass was taken, black where the clip was left as it was."""
    frames = places.flatten(0, 1).unsqueeze(1).float()
    return torch.nn.functional.interpolate(frames, scale_factor=PIXELS).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()


def summary(report: dict) -> str:
    lines = [f"{report['nfe']} model evaluations (NFE)"]
    if search := report["search"]:
        lines[0] += f"; one clip alone: {search['nfe_plain']}"
        if search["winner"] is not None:
            lines.append(f"finished: candidate {search['winner']}, seed {search['winner_seed']}")
        for step, who in search["population"].items():
            lines.append(f"candidates {'begun' if step == '0' else f'after step {step}'}: {len(who)}")
        lines += [f"Note: {note}" for note in search["notes"]]
    if report["self_refine"]:
        passes = report["self_refine"]["passes"]
        lines.append(f"{sum(passes.values())} extra passes in {len(passes)} steps")
    return "\n".join(lines)
