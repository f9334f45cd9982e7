"""What the demo family is worth: the bars and the paper's premises, measured on test prompts with several seeds each.

    python -m foresight.lab.experiments.family_figures --prompts 126 --seeds 8 --branches 2

Writes docs/results/demo_family.json, a page beside it and one picture for each premise. Finished prompts are kept in a
JSON-lines file, so an interrupted command goes on where it stopped. Intervals are 95 %, from a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
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
from ...evaluation.comfyui import ROOT, load_comfyui
from ...evaluation.demo_family import fingerprint
from ...evaluation.results import environment, number, percent, publish, run_jobs
from ...evaluation.statistics import auc, bootstrap, bootstrap_within, text_only_scores
from ...scoring.detector import Detector, DetectorSettings
from ...scoring.viclip import ViCLIPConfig, load_viclip
from ..training.common import WEIGHTS, psnr, random_clips, to_network
from ..training.train_l2r import VAE
from .family_data import BRANCHED, JUDGED, SCORER, look_at, start_worker

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
        decibels = torch.cat([psnr(vae.decode(vae.encode(x)), x) for x in map(to_network, others.split(16))])
    weights = [*WEIGHTS.rglob("*.safetensors"), *(ROOT / "weights" / "l2r").glob("*.safetensors")]
    return {
        "vae_psnr_db": round(decibels.mean().item(), 2),
        "judge_on_renders": float(np.mean(right)), "judge_on_reconstructions": float(np.mean(rebuilt_right)),
        "judged_renders": len(scenes), "family_megabytes": round(sum(f.stat().st_size for f in weights) / MIB, 2),
    }  # fmt: skip


class Table:
    """The records of all clips as columns."""

    def __init__(self, records: list[dict[str, Any]]):
        def column(name: str, kind=float) -> np.ndarray:
            return np.asarray([record[name] for record in records], kind)

        self.prompt, self.right, self.frame_right = (
            column("prompt_index", int), column("right", bool), column("frame_right", bool))
        self.score, self.trace = column("score"), np.asarray([record["trace"] for record in records])
        self.captions = [record["prompt"] for record in records]
        self.difficulty = column("difficulty", str)
        self.preview = {step: np.asarray([r["preview"][str(step)] for r in records]) for step in JUDGED}
        self.branches = np.asarray([np.mean(r["branches"]) if r["branches"] else np.nan for r in records])

    def rates(self, of: np.ndarray) -> np.ndarray:
        """The share of `of` among each prompt's clips."""
        return np.asarray([of[self.prompt == index].mean() for index in np.unique(self.prompt)])

    def share(self, of: np.ndarray, among: np.ndarray | None = None) -> dict[str, float]:
        return statistics.share(of, np.ones(len(of), bool) if among is None else among, self.prompt)

    def over_all(self, values: np.ndarray) -> dict[str, float]:
        return bootstrap(lambda rows: auc(values[rows], self.right[rows]), self.prompt)

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
        "auc_step10_over_text_only": bootstrap(
            lambda rows: auc(step10[rows], table.right[rows]) - auc(text[rows], table.right[rows]), table.prompt),
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
        for name, cells in (("scorer", {s: table.within(table.trace[:, s - 1]) for s in JUDGED}),
                            ("judge on the preview", found["judge_on_previews_within_prompt"])):
            middle, low, high = ([cell[k] for cell in cells.values()] for k in ("value", "low", "high"))
            axes.plot(list(cells), middle, marker="o", label=name)
            axes.fill_between(list(cells), low, high, alpha=0.2)
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
    made, settings = document["environment"], document["settings"]

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
        f"{settings['steps']} steps, CFG {settings['cfg']}, shift {settings['shift']}. Made by `{made['command']}` on "
        f"{made['date']}, {made['machine']}, torch {made['torch']}. In brackets: 95 % intervals from a bootstrap over "
        "prompts.", "",
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=126, help="test prompts, a third of each difficulty")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--branches", type=int, default=2, help="clips branched off each clip at step 10")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "demo_family.jsonl", help="finished prompts")
    a = parser.parse_args()
    chosen = [
        (difficulty, i * len(DIFFICULTIES) + k, *entry)
        for k, difficulty in enumerate(DIFFICULTIES)
        for i, entry in enumerate(prompts("test", difficulty, a.prompts // len(DIFFICULTIES)))
    ]
    seeds, weights = range(FIRST_SEED, FIRST_SEED + a.seeds), fingerprint()
    jobs = {
        f"{weights} {index} {a.seeds} {a.branches} {text}": (index, difficulty, text, scene, seeds, a.branches)
        for difficulty, index, text, scene in chosen
    }
    records = sum(run_jobs(a.work, jobs, look_at, workers=a.workers, start=start_worker), [])
    load_comfyui()
    command = f"python -m foresight.lab.experiments.family_figures --prompts {a.prompts} --seeds {a.seeds}"
    config = load_viclip(SCORER).config
    table = Table(records)
    found = foundations() | figures(table, config)
    document = {
        "schema": "foresight.demo_family", "version": 1,
        "settings": {"steps": STEPS, "cfg": CFG, "shift": SHIFT, "first_seed": FIRST_SEED, "seeds": a.seeds,
                     "branches": a.branches},
        "environment": environment(f"{command} --branches {a.branches}"), **found,
    }  # fmt: skip
    publish(a.out, "demo_family", document, markdown(document))
    pictures(table, found, config, a.out)


if __name__ == "__main__":
    main()
