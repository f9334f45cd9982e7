"""What the demo family is worth: the bars and the paper's premises, measured on test prompts with several seeds each.

    python -m foresight.lab.experiments.family_figures --prompts 126 --seeds 8 --branches 2

Writes docs/results/demo_family.json, a page beside it and one picture for each premise. Finished prompts are kept in a
database, so an interrupted command goes on where it stopped. Intervals are 95 %, from a bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Callable
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
from ...evaluation import statistics
from ...evaluation.bench import Row
from ...evaluation.comfyui import ROOT
from ...evaluation.demo_family import fingerprint
from ...evaluation.evidence import column
from ...evaluation.fill import cells
from ...evaluation.results import number, percent
from ...evaluation.statistics import bootstrap_auc, bootstrap_within, text_only_scores
from ...evaluation.suites import load_suite
from ...scoring.detector import Detector, DetectorSettings
from ...scoring.viclip import ViCLIPConfig, load_viclip
from ..training.common import SCORER, VAE, WEIGHTS, random_clips, to_network, to_pixels
from .common import experiment, made_by, parser, write
from .family_data import BRANCHED, JUDGED, FamilyWorker

FIRST_SEED = 5000
HELD_OUT_SEED = 990_005
MIB = 1024**2


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
        "vae_psnr_db": round(decibels, 2),
        "judge_on_renders": float(np.mean(right)), "judge_on_reconstructions": float(np.mean(rebuilt_right)),
        "judged_renders": len(scenes), "family_megabytes": round(sum(f.stat().st_size for f in weights) / MIB, 2),
    }  # fmt: skip


class Table:
    """The rows of all clips as columns."""

    def __init__(self, rows: list[Row]):
        measures = [row["measures"] for row in rows]
        self.prompt, self.right, self.score = (
            column(rows, "prompt_index", int), column(rows, "right", bool), column(rows, "final_score"))
        self.trace = np.asarray([[score for _, score, _ in row["trace"]] for row in rows])
        self.captions = [row["prompt"] for row in rows]
        self.difficulty = np.asarray([row["difficulty"] for row in rows])
        self.frame_right = np.asarray([each["frame_right"] for each in measures], bool)
        self.preview = {step: np.asarray([each["preview"][str(step)] for each in measures]) for step in JUDGED}
        self.branches = np.asarray([np.mean(each["branches"]) if each["branches"] else np.nan for each in measures])

    def rates(self, of: np.ndarray) -> np.ndarray:
        """The share of `of` among each prompt's clips."""
        return np.asarray([of[self.prompt == index].mean() for index in np.unique(self.prompt)])

    def share(self, of: np.ndarray, among: np.ndarray | None = None) -> dict[str, float]:
        return statistics.share(of, np.ones(len(of), bool) if among is None else among, self.prompt)

    def over_all(self, values: np.ndarray) -> dict[str, float]:
        return bootstrap_auc(values, self.right, self.prompt)

    def within(self, values: np.ndarray) -> dict[str, float]:
        known = np.isfinite(values)
        return bootstrap_within(values[known], self.right[known], self.prompt[known])


def fixed_and_dynamic(table: Table, settings: DetectorSettings) -> dict[str, Any]:
    """The detector against looking once at a fixed step (paper, Table S2)."""
    decisions = []
    for trace in table.trace:
        detector = Detector(settings, STEPS)
        decisions.append(next(d for step, s in enumerate(trace.tolist(), 1) if (d := detector.observe(step, s))))
    predicted = np.asarray([d.predicted_score for d in decisions])
    accepted = np.asarray([d.accepted for d in decisions])
    rows = {
        f"step {step}": (table.trace[:, step - 1], table.trace[:, step - 1] >= settings.tau, step)
        for step in (5, 8, 10, 11, 14)
    }
    rows["dynamic"] = predicted, accepted, float(np.mean([d.step for d in decisions]))
    return {
        name: {
            "mean_stop_step": at, "auc_over_all": table.over_all(values), "auc_within_prompt": table.within(values),
            "error_of_score": float(np.abs(values - table.score).mean()),
            "failures_caught": table.share(~passed, ~table.right), "good_rejected": table.share(~passed, table.right),
        }
        for name, (values, passed, at) in rows.items()
    }  # fmt: skip


def variance(table: Table) -> dict[str, float]:
    """How the verdicts' variance divides between prompts and, within a prompt, the noise (one-way random effects)."""
    rates = table.rates(table.right)
    seeds = len(table.right) / len(rates)
    inside = float(np.mean(rates * (1 - rates)) * seeds / (seeds - 1))
    between = max(float(rates.var(ddof=1)) - inside / seeds, 0.0)
    total = between + inside or np.nan  # when all clips share one verdict there is nothing to divide
    return {"by_prompt": between / total, "by_noise": inside / total}


def convergence(trace: np.ndarray, near: float) -> np.ndarray:
    """[clips] the step from which a trace stays within `near` of where it ends."""
    away = np.abs(trace - trace[:, -1:]) > near
    return np.where(away.any(1), trace.shape[1] - away[:, ::-1].argmax(1) + 1, 1)


def figures(table: Table, config: ViCLIPConfig) -> dict[str, Any]:
    text = text_only_scores(table.captions, table.right, table.prompt)
    step10, hard = table.trace[:, 9], table.difficulty == "hard"
    judged = {step: table.within(margins) for step, margins in table.preview.items()}
    branched = table.within(table.branches) if np.isfinite(table.branches).any() else None
    ceiling = max([judged[BRANCHED], *([branched] if branched else [])], key=lambda cell: cell["value"])
    within10, rates = table.within(step10), table.rates(table.right)
    hard_rates = np.asarray([table.right[table.prompt == p].mean() for p in np.unique(table.prompt[hard])])
    settings = DetectorSettings.video(tau=config.tau, scale=config.scale)
    stops = convergence(table.trace, config.delta)
    return {
        "clips": len(table.right), "prompts": len(rates),
        "right_clips": table.share(table.right), "right_single_frames": table.share(table.frame_right),
        "right_clips_by_difficulty": {n: table.share(table.right, table.difficulty == n) for n in DIFFICULTIES},
        "right_single_frames_by_difficulty": {
            n: table.share(table.frame_right, table.difficulty == n) for n in DIFFICULTIES
        },
        "hard_fail_rate": table.share(~table.right, hard),
        "mixed_hard_prompts": float(np.mean((hard_rates > 0) & (hard_rates < 1))),
        "auc_text_only": table.over_all(text),
        "auc_final": table.over_all(table.score), "auc_final_within_prompt": table.within(table.score),
        "auc_step10": table.over_all(step10), "auc_step10_within_prompt": within10,
        "auc_step10_over_text_only": bootstrap_auc(step10, table.right, table.prompt, rival=text),
        "ceiling_step10_within_prompt": ceiling,
        "share_of_ceiling_step10": (within10["value"] - 0.5) / (ceiling["value"] - 0.5),
        "judge_on_previews_within_prompt": judged, "branches_within_prompt": branched,
        "fixed_and_dynamic": fixed_and_dynamic(table, settings), "variance_of_verdicts": variance(table),
        "convergence_step": {"median": float(np.median(stops)),
                             "between_prompts_sd": float(table.rates(stops.astype(float)).std(ddof=1))},
    }  # fmt: skip


def pictures(table: Table, found: dict[str, Any], config: ViCLIPConfig, folder: Path) -> None:
    """One picture for each premise."""
    from matplotlib.figure import Figure

    def picture(name: str, x: str, y: str, draw: Callable) -> None:
        figure = Figure((5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=x, ylabel=y)
        figure.savefig(folder / f"{name}.png", dpi=110)

    steps = np.arange(1, STEPS + 1)

    def convergences(axes) -> None:
        error = np.abs(table.trace - table.trace[:, -1:])
        axes.plot(steps, np.median(error, 0), label="median")
        axes.fill_between(steps, *np.quantile(error, (0.25, 0.75), axis=0), alpha=0.3, label="middle half")
        axes.axvspan(8, 14, color="0.9", zorder=0, label="window")
        axes.legend()

    def foresight(axes) -> None:
        for name, by_step in (("scorer", {s: table.within(table.trace[:, s - 1]) for s in JUDGED}),
                            ("judge on the preview", found["judge_on_previews_within_prompt"])):
            middle, low, high = ([cell[k] for cell in by_step.values()] for k in ("value", "low", "high"))
            axes.plot(list(by_step), middle, marker="o", label=name)
            axes.fill_between(list(by_step), low, high, alpha=0.2)
        axes.axhline(0.5, color="0.5", lw=0.8)
        axes.legend()

    def by_prompt(axes) -> None:
        axes.hist(table.rates(convergence(table.trace, config.delta).astype(float)), bins=range(1, STEPS + 2, 2))

    def frames(axes) -> None:
        shake = np.random.default_rng(0).normal(0, 0.012, (2, found["prompts"]))
        axes.scatter(table.rates(table.right) + shake[0], table.rates(table.frame_right) + shake[1], s=12, alpha=0.6)
        axes.plot([0, 1], [0, 1], color="0.5", lw=0.8)

    def rates(axes) -> None:
        axes.hist(table.rates(table.right), bins=np.linspace(-1 / 16, 1 + 1 / 16, 10))

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
    items, seeds = load_suite("demo", a.prompts).items, range(FIRST_SEED, FIRST_SEED + a.seeds)
    method = f"looks@{a.seeds}x{a.branches}"  # a batch holds all seeds of a prompt, so their number is part of the name
    make = partial(FamilyWorker, a.branches)
    with experiment(a.work, items, make, {"weights": fingerprint()}, command, a.workers) as fill:
        rows = list(fill(lambda _: cells([method], seeds))[method].values())
    config, table = load_viclip(SCORER).config, Table(rows)
    measured = figures(table, config)
    settings = {"steps": STEPS, "cfg": CFG, "shift": SHIFT, "first_seed": FIRST_SEED, "seeds": a.seeds,
                "branches": a.branches}  # fmt: skip
    write(a.out, "demo_family", command, {"settings": settings, **foundations(), **measured}, markdown)
    pictures(table, measured, config, a.out)


if __name__ == "__main__":
    main()
