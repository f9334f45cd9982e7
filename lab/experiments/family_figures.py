"""What the demo family is worth: the bars and the paper's premises, measured on test prompts with several seeds each.

    python -m foresight.lab.experiments.family_figures --prompts 126 --seeds 8 --branches 2

Each clip is watched to its end, its previews are shown to the judge, it is finished again from step 10 with other
noise, and a single frame of its seed is sampled. Writes docs/results/demo_family.json, a page beside it and one picture
for each premise. Finished prompts are kept in a database, so an interrupted command goes on where it stopped. Intervals
are 95 %, from a bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...demo.captions import prompts
from ...demo.judge import judge
from ...demo.preset import CFG, SHIFT, STEPS
from ...demo.wan_vae import load_vae
from ...demo.world import DIFFICULTIES, render_batch
from ...evaluation.bench import Bench, Method, Row
from ...evaluation.ceiling import rebranching, watched
from ...evaluation.comfyui import ROOT
from ...evaluation.demo_family import fingerprint
from ...evaluation.evidence import Base, Evidence
from ...evaluation.fill import cells
from ...evaluation.results import number, percent
from ...evaluation.suites import load_suite
from ...evaluation.workers import Spec, Worker
from ...l2r.fit import psnr
from ...scoring.detector import DetectorSettings
from ...scoring.viclip import ViCLIPConfig, load_viclip
from ..training.common import SCORER, VAE, WEIGHTS, random_clips, to_network, to_pixels
from .common import experiment, made_by, parser, write

FIRST_SEED = 5000
HELD_OUT_SEED = 990_005
MIB = 1024**2
JUDGED = (2, 3, 5, 8, 10, 12, 14, 20, 30, 40)  # steps at which the judge looks at the preview
BRANCHED = 10  # step of 50 whose x0 prediction is re-noised


def looking(name: str, steps: int, branches: int) -> Method:
    """The ceiling's method at step BRANCHED, with further measures of its clips: preview (the judge's smallest margin
    at the steps JUDGED) and frame_right (a single frame of the same seed)."""
    rebranched = rebranching(name, steps, (BRANCHED,), branches)

    def run(bench: Bench, seed: int) -> Row:
        from ...sampling.run import monitored_sample

        row, family, scene = rebranched.run(bench, seed), bench.backend.family, bench.item.scene
        x0 = family.model.model.process_latent_in(watched(bench, seed).steps_x0["samples"])
        previews = {step: family.l2r(x0[step - 1 : step]).clamp(0, 1)[0] for step in JUDGED if step <= steps}
        margins = {str(step): min(judge(clip, scene).margins.values()) for step, clip in previews.items()}
        inputs = family.inputs(bench.item.prompt, seed)
        single = replace(inputs, latent={"samples": inputs.latent["samples"][:, :, :1]})
        frame = family.decode(monitored_sample(single).latent)
        measures = {"preview": {step: round(float(margin), 4) for step, margin in margins.items()},
                    "frame_right": bool(judge(frame, scene).right)}  # fmt: skip
        return row | {"measures": measures}

    return Method(name, run, in_process=True)


def foundations(count: int = 384) -> dict[str, Any]:
    """VAE and judge on renders of test prompts that nothing was trained on."""
    scenes = [scene for name in DIFFICULTIES for _, scene in prompts("test", name, count // 3)]
    clips = render_batch(scenes, torch.Generator().manual_seed(HELD_OUT_SEED))
    vae, right, rebuilt_right = load_vae(VAE), [], []
    with torch.inference_mode():
        for start in range(0, len(scenes), 16):
            part = slice(start, start + 16)
            rebuilt = vae.decode(vae.encode(to_network(clips[part]))).movedim(1, -1).add(1).div(2)
            right += [judge(clip, scene).right for clip, scene in zip(clips[part], scenes[part], strict=True)]
            rebuilt_right += [judge(clip, scene).right for clip, scene in zip(rebuilt, scenes[part], strict=True)]
        others = random_clips(torch.Generator().manual_seed(HELD_OUT_SEED), 96)
        parts = map(to_network, others.split(16))
        decibels = torch.cat([psnr(to_pixels(vae.decode(vae.encode(x))), to_pixels(x)) for x in parts])
    weights = [*WEIGHTS.rglob("*.safetensors"), *(ROOT / "weights" / "l2r").glob("*.safetensors")]
    return {
        "vae_psnr_db": round(decibels.mean().item(), 2),
        "judge_on_renders": float(np.mean(right)), "judge_on_reconstructions": float(np.mean(rebuilt_right)),
        "judged_renders": len(scenes), "family_megabytes": round(sum(f.stat().st_size for f in weights) / MIB, 2),
    }  # fmt: skip


class Clips:
    """The rows of all clips as columns: base (as the evaluation has them), frame_right, preview and branches."""

    def __init__(self, rows: dict[tuple[int, int], Row], tau: float):
        self.base = base_of(rows, tau)
        measures = [row["measures"] for row in rows.values()]
        self.frame_right = np.asarray([each["frame_right"] for each in measures], bool)
        self.preview = {step: np.asarray([each["preview"][str(step)] for each in measures]) for step in JUDGED}
        branches = [row["report"]["branches"][str(BRANCHED)] for row in rows.values()]
        self.branches = np.asarray([np.mean([good for good, _ in each]) if each else np.nan for each in branches])

    def rates(self, of: np.ndarray) -> np.ndarray:
        """The share of `of` among each prompt's clips."""
        return np.asarray([of[self.base.prompt == index].mean() for index in np.unique(self.base.prompt)])


def base_of(rows: dict[tuple[int, int], Row], tau: float) -> Base:
    return Evidence(Path(), {"tau": tau}, {}, "", {"base": rows}).base


def fixed_and_dynamic(base: Base, settings: DetectorSettings) -> dict[str, Any]:
    """The detector against looking once at a fixed step (paper, Table S2)."""
    outcomes = {f"step {step}": base.fixed(step, settings.tau) for step in (5, 8, 10, 11, 14)}
    outcomes["dynamic"] = base.replay(settings)
    return {
        name: {
            "mean_stop_step": outcome.mean_stop, "auc_over_all": base.over_all(outcome.predicted),
            "auc_within_prompt": base.within(outcome.predicted),
            "error_of_score": float(np.nanmean(np.abs(outcome.predicted - base.score))),
            "failures_caught": base.share(outcome.rejected, base.failed),
            "good_rejected": base.share(outcome.rejected, ~base.failed),
        }
        for name, outcome in outcomes.items()
    }  # fmt: skip


def variance(clips: Clips) -> dict[str, float]:
    """How the verdicts' variance divides between prompts and, within a prompt, the noise (one-way random effects)."""
    rates = clips.rates(~clips.base.failed)
    seeds = len(clips.base) / len(rates)
    inside = float(np.mean(rates * (1 - rates)) * seeds / (seeds - 1))
    between = max(float(rates.var(ddof=1)) - inside / seeds, 0.0)
    total = between + inside or np.nan  # when all clips share one verdict there is nothing to divide
    return {"by_prompt": between / total, "by_noise": inside / total}


def convergence(trace: np.ndarray, near: float) -> np.ndarray:
    """[clips] the step from which a trace stays within `near` of where it ends."""
    away = np.abs(trace - trace[:, -1:]) > near
    return np.where(away.any(1), trace.shape[1] - away[:, ::-1].argmax(1) + 1, 1)


def figures(clips: Clips, config: ViCLIPConfig) -> dict[str, Any]:
    base, right = clips.base, ~clips.base.failed
    step10, hard = base.traces[:, 9], base.difficulty == "hard"
    judged = {step: base.within(margins) for step, margins in clips.preview.items()}
    branched = base.within(clips.branches) if np.isfinite(clips.branches).any() else None
    ceiling = max([judged[BRANCHED], *([branched] if branched else [])], key=lambda cell: cell["value"])
    within10 = base.within(step10)
    hard_rates = np.asarray([right[base.prompt == index].mean() for index in np.unique(base.prompt[hard])])
    stops = convergence(base.traces, config.delta)

    def by_difficulty(of: np.ndarray) -> dict[str, Any]:
        return {name: base.share(of, base.difficulty == name) for name in DIFFICULTIES}

    return {
        "clips": len(base), "prompts": len(np.unique(base.prompt)),
        "right_clips": base.share(right), "right_single_frames": base.share(clips.frame_right),
        "right_clips_by_difficulty": by_difficulty(right),
        "right_single_frames_by_difficulty": by_difficulty(clips.frame_right),
        "hard_fail_rate": base.share(base.failed, hard),
        "mixed_hard_prompts": float(np.mean((hard_rates > 0) & (hard_rates < 1))),
        "auc_text_only": base.over_all(base.text_only),
        "auc_final": base.over_all(base.score), "auc_final_within_prompt": base.within(base.score),
        "auc_step10": base.over_all(step10), "auc_step10_within_prompt": within10,
        "auc_step10_over_text_only": base.over_text_only(step10),
        "ceiling_step10_within_prompt": ceiling,
        "share_of_ceiling_step10": (within10["value"] - 0.5) / (ceiling["value"] - 0.5),
        "judge_on_previews_within_prompt": judged, "branches_within_prompt": branched,
        "fixed_and_dynamic": fixed_and_dynamic(base, DetectorSettings.video(tau=config.tau, scale=config.scale)),
        "variance_of_verdicts": variance(clips),
        "convergence_step": {"median": float(np.median(stops)),
                             "between_prompts_sd": float(clips.rates(stops.astype(float)).std(ddof=1))},
    }  # fmt: skip


def pictures(clips: Clips, measured: dict[str, Any], config: ViCLIPConfig, folder: Path) -> None:
    """One picture for each premise."""
    from matplotlib.figure import Figure

    base = clips.base

    def picture(name: str, x: str, y: str, draw: Callable) -> None:
        figure = Figure((5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=x, ylabel=y)
        figure.savefig(folder / f"{name}.png", dpi=110)

    steps = np.arange(1, STEPS + 1)

    def convergences(axes) -> None:
        error = np.abs(base.traces - base.traces[:, -1:])
        axes.plot(steps, np.median(error, 0), label="median")
        axes.fill_between(steps, *np.quantile(error, (0.25, 0.75), axis=0), alpha=0.3, label="middle half")
        axes.axvspan(8, 14, color="0.9", zorder=0, label="window")
        axes.legend()

    def foresight(axes) -> None:
        for name, by_step in (("scorer", {s: base.within(base.traces[:, s - 1]) for s in JUDGED}),
                            ("judge on the preview", measured["judge_on_previews_within_prompt"])):
            middle, low, high = ([cell[k] for cell in by_step.values()] for k in ("value", "low", "high"))
            axes.plot(list(by_step), middle, marker="o", label=name)
            axes.fill_between(list(by_step), low, high, alpha=0.2)
        axes.axhline(0.5, color="0.5", lw=0.8)
        axes.legend()

    def by_prompt(axes) -> None:
        axes.hist(clips.rates(convergence(base.traces, config.delta).astype(float)), bins=range(1, STEPS + 2, 2))

    def frames(axes) -> None:
        shake = np.random.default_rng(0).normal(0, 0.012, (2, measured["prompts"]))
        axes.scatter(clips.rates(~base.failed) + shake[0], clips.rates(clips.frame_right) + shake[1], s=12, alpha=0.6)
        axes.plot([0, 1], [0, 1], color="0.5", lw=0.8)

    def rates(axes) -> None:
        axes.hist(clips.rates(~base.failed), bins=np.linspace(-1 / 16, 1 + 1 / 16, 10))

    picture("scores_converge", "step of 50", "distance of the preview's score\nto that of the last step", convergences)
    picture("foresight_by_step", "step of 50", "AUC within prompt", foresight)
    picture("convergence_by_prompt", "step from which the score stays near its end (mean of a prompt)", "prompts",
            by_prompt)
    picture("single_frame_against_clip", "share of right clips of a prompt", "share of right single frames", frames)
    picture("success_by_prompt", "share of right clips of a prompt", "prompts", rates)


def markdown(document: dict[str, Any]) -> str:
    """The same figures as a page for people."""
    settings = document["settings"]
    bars = (
        ("VAE on held-out clips", f"{document['vae_psnr_db']} dB", "33 dB"),
        ("judge passes renders", f"{100 * document['judge_on_renders']:.1f} %", "over 99 %"),
        ("judge passes reconstructions", f"{100 * document['judge_on_reconstructions']:.1f} %", "95 %"),
        ("right clips", percent(document["right_clips"]), ""),
        ("right single frames", percent(document["right_single_frames"]), "more than clips"),
        ("hard prompts' clips that fail", percent(document["hard_fail_rate"]), "20 to 50 %"),
        ("hard prompts with both outcomes", f"{100 * document['mixed_hard_prompts']:.1f} %", "half"),
        ("AUC on finished clips, within prompt", number(document["auc_final_within_prompt"]), "0.80"),
        ("AUC on finished clips, over all", number(document["auc_final"]), ""),
        ("AUC at step 10, within prompt", number(document["auc_step10_within_prompt"]), "0.70"),
        ("AUC at step 10, over all", number(document["auc_step10"]), ""),
        ("AUC of a predictor that reads only the caption", number(document["auc_text_only"]), ""),
        ("AUC at step 10 minus caption only", number(document["auc_step10_over_text_only"]), "0.05"),
        ("ceiling at step 10, within prompt", number(document["ceiling_step10_within_prompt"]), "0.80"),
        ("AUC at step 10 above a coin, share of the ceiling's", f"{100 * document['share_of_ceiling_step10']:.0f} %",
         "80 %"),
        ("size of the family", f"{document['family_megabytes']} MB", "at most 25 MB"),
    )
    rows = document["fixed_and_dynamic"]
    split, by = document["variance_of_verdicts"], document["right_clips_by_difficulty"]
    return "\n".join([
        "# The demo family, measured", "",
        f"{document['clips']} clips: {document['prompts']} test prompts, {settings['seeds']} seeds each, "
        f"{settings['steps']} steps, CFG {settings['cfg']}, shift {settings['shift']}. "
        f"{made_by(document)}", "",
        "| | measured | aim |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in bars), "",
        "Right clips by difficulty: " + ", ".join(f"{name} {percent(cell)}" for name, cell in by.items()) + ".", "",
        "## Scores converge early (paper, Figure 10)", "", "![](scores_converge.png)", "",
        "![](foresight_by_step.png)", "",
        "## When they converge differs by prompt (paper, Figure S2)", "", "![](convergence_by_prompt.png)", "",
        f"Median step {document['convergence_step']['median']:.0f}, standard deviation between prompts "
        f"{document['convergence_step']['between_prompts_sd']:.1f} steps.", "",
        "## Dynamic against fixed step (paper, Table S2)", "",
        "| | mean stop step | error of the score | AUC over all | AUC within prompt | failures caught | "
        "good clips rejected |", "|---|---|---|---|---|---|---|",
        *(f"| {name} | {row['mean_stop_step']:.1f} | {row['error_of_score']:.3f} | {number(row['auc_over_all'])} | "
          f"{number(row['auc_within_prompt'])} | {percent(row['failures_caught'])} | {percent(row['good_rejected'])} |"
          for name, row in rows.items()), "",
        "## Single frames against clips (the premise of Trial 1)", "", "![](single_frame_against_clip.png)", "",
        "## Noise or prompt?", "", "![](success_by_prompt.png)", "",
        f"Of the variance of the verdicts, {100 * split['by_noise']:.0f} % lies within prompts (the noise) and "
        f"{100 * split['by_prompt']:.0f} % between them.", "",
    ])  # fmt: skip


def main() -> None:
    options = parser(__doc__, "demo_family", prompts=126, seeds=8)
    options.add_argument("--branches", type=int, default=2, help="clips branched off each clip at step 10")
    a = options.parse_args()
    command = f"python -m foresight.lab.experiments.family_figures --prompts {a.prompts} --seeds {a.seeds}"
    command += f" --branches {a.branches}"
    items, method = load_suite("demo", a.prompts).items, f"looks@{a.branches}"
    seeds = range(FIRST_SEED, FIRST_SEED + a.seeds)
    spec = Spec(methods=(method,), keep_clips=False)
    make = partial(Worker, spec, load=partial(looking, branches=a.branches))
    with experiment(a.work, items, make, {"weights": fingerprint()}, command, a.workers) as fill:
        rows = fill(lambda _: cells([method], seeds))[method]
    config = load_viclip(SCORER).config
    clips = Clips(rows, config.tau)
    measured = figures(clips, config)
    settings = {"steps": STEPS, "cfg": CFG, "shift": SHIFT, "first_seed": FIRST_SEED, "seeds": a.seeds,
                "branches": a.branches}  # fmt: skip
    write(a.out, "demo_family", command, {"settings": settings, **foundations(), **measured}, markdown)
    pictures(clips, measured, config, a.out)


if __name__ == "__main__":
    main()
