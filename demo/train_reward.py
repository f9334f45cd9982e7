"""Trains the demo family's latent reward: ``python -m foresight.demo.train_reward``.

Makes its own data first (`reward_data`): clips of training and validation prompts, several seeds each, and guesses of
noised renders. Then two losses:
  rank     of two clips of one prompt at one moment, the better one gets the higher reward, head by head. Never across
           prompts: what tells one prompt's clips from another's is no use to a search.
  ground   of a latent's own caption and near misses of it, the own one has the highest text alignment.
Last, how often the reward is right on pairs of clips of validation prompts, beside the training-free reward (the
scorer on previews) on the same x0 predictions: into the file, where the gate reads it, and into
docs/results/reward.json and .md. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from ..evaluation.comfyui import ROOT, comfyui_path, load_comfyui
from ..evaluation.results import environment, number, publish
from ..evaluation.statistics import bootstrap
from ..l2r.checkpoint import load_l2r
from ..scoring.latent_reward import (
    BARS,
    HEADS,
    RewardConfig,
    RewardModel,
    below_bar,
    pairs_within,
    pairwise_accuracy,
    save_reward,
)
from ..scoring.viclip import ViCLIP, load_viclip
from .captions import caption
from .flow import schedule
from .preset import REWARD, SHIFT, STEPS
from .reward_data import (
    MOMENTS,
    SEEDS,
    TRAIN,
    VALIDATION,
    Guesses,
    Samples,
    make_guesses,
    make_samples,
    weights_digest,
)
from .scorer_data import Captions, near_miss, network_frames
from .train_common import (
    DATA_HELP,
    STATE,
    WEIGHTS,
    Average,
    Clock,
    Muon,
    load_checkpoint,
    save_checkpoint,
    trapezoid,
)
from .train_l2r import EXPORT as CONVERTER
from .train_scorer import EXPORT as SCORER
from .world import Scene

EXPORT = WEIGHTS / "reward" / REWARD
LATENT_FORMAT = "Wan21"
LEVELS = tuple(schedule(STEPS, SHIFT)[step - 1].item() for step in (MOMENTS[-1], 2))
CONFIG = RewardConfig(sigmas=LEVELS)
LR, MUON_LR = 1e-3, 4e-3
GUESSED, RANKED = 32, (10, 3, 3)  # guesses a batch; pairs of samples that differ in alignment, looks, motion
NEAR = 3  # captions of near misses beside each own one
# Of the targets, which are 0..1: nearer pairs are ties. One statement of the longest captions counts .09.
MARGIN = 0.08


class Texts:
    """Text features of captions by the frozen scorer, L2-normalised [N, D]."""

    def __init__(self):
        tokens = CLIPTokenizer.from_pretrained(str(comfyui_path() / "comfy" / "sd1_tokenizer"))
        self.viclip: ViCLIP = load_viclip(SCORER)
        self.captions = Captions(lambda text: tokens(text)["input_ids"], self.viclip.config.context)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        return F.normalize(self.viclip.encode_text(self.captions(texts)).float(), dim=-1)


class Trainer:
    """Draws batches and knows the loss. pairs: of training samples, for each head those that differ in its target."""

    def __init__(self, texts: Texts, samples: Samples, guesses: Guesses, generator: torch.Generator):
        self.texts, self.samples, self.guesses, self.generator = texts, samples, guesses, generator
        self.pairs = [pairs_within(target, samples.prompt, MARGIN) for target in samples.targets.unbind(1)]

    def _any(self, count: int, wanted: int) -> Tensor:
        return torch.randint(count, (wanted,), generator=self.generator)

    def _said(self, scenes: list[Scene], near: list[Scene | None]) -> Tensor:
        """[N * (1 + NEAR), D]: each scene's caption and those of its near misses, in new wordings."""
        told = []
        for scene, given in zip(scenes, near, strict=True):
            missed = [given or near_miss(scene, self.generator)]
            missed += [near_miss(scene, self.generator) for _ in range(NEAR - 1)]
            told += [caption(each, self.generator) for each in (scene, *missed)]
        return self.texts(told)

    def loss(self, model: RewardModel) -> tuple[Tensor, dict[str, float]]:
        samples, guesses = self.samples, self.guesses
        # HEADS' order is visual, motion, alignment; most pairs are drawn for the last, which is the hardest to learn.
        counts = (RANKED[1], RANKED[2], RANKED[0])
        chosen = torch.cat([
            pairs[self._any(len(pairs), count)] for pairs, count in zip(self.pairs, counts, strict=True) if len(pairs)])
        moment = self._any(len(samples.sigmas), len(chosen)).repeat_interleave(2)
        rows, guessed = chosen.flatten(), self._any(len(guesses.scenes), GUESSED)
        turn = self._any(guesses.x0.shape[1], GUESSED)
        x0 = torch.cat([samples.x0[rows, moment], guesses.x0[guessed, turn]]).float()
        sigma = torch.cat([samples.sigmas[moment], guesses.sigmas[guessed, turn]])
        # Both of a pair get the same captions: nothing but the latents may tell them apart.
        pair_text = self._said([samples.scenes[p] for p in samples.prompt[chosen[:, 0]].tolist()], [None] * len(chosen))
        pair_text = pair_text.unflatten(0, (-1, 1 + NEAR)).repeat_interleave(2, 0).flatten(0, 1)
        text = torch.cat([pair_text, self._said(*zip(
            *((guesses.scenes[i], guesses.near[i]) for i in guessed.tolist()), strict=True))])
        rewards = model.read(model.look(x0, sigma), text).unflatten(0, (-1, 1 + NEAR))

        own = rewards[: len(rows), 0].unflatten(0, (-1, 2))
        gap = samples.targets[chosen[:, 0]] - samples.targets[chosen[:, 1]]
        lead = (own[:, 0] - own[:, 1]) * gap.sign()
        counted = (gap.abs() > MARGIN).float()
        rank = (F.softplus(-lead) * counted).sum(0) / counted.sum(0).clamp_min(1)
        # A sample shows its caption only where all statements hold; a guess is taken for its render.
        true = torch.cat([samples.targets[rows, 2] == 1, torch.ones(GUESSED, dtype=torch.bool)])
        said = rewards[true, :, 2]
        ground = F.cross_entropy(said, torch.zeros(len(said), dtype=torch.long))
        return rank.sum() + 0.5 * ground, {
            **{name[:6]: value for name, value in zip(HEADS, rank.tolist(), strict=True)}, "ground": ground.item(),
            "near": (said.argmax(1) == 0).float().mean().item(),
        }


@torch.no_grad()
def rewards_of(model: RewardModel, texts: Texts, samples: Samples) -> Tensor:
    """[N, K, HEADS]."""
    said = texts(samples.captions)[samples.prompt]
    columns = []
    for moment, sigma in zip(samples.x0.unbind(1), samples.sigmas, strict=True):
        columns.append(torch.cat([model(x0.float(), sigma.expand(len(x0)), text)
                                  for x0, text in zip(moment.split(32), said.split(32), strict=True)]))
    return torch.stack(columns, 1)


@torch.no_grad()
def training_free(texts: Texts, samples: Samples) -> Tensor:
    """[N, K]: cosines of the scorer on L2R previews."""
    l2r, viclip = load_l2r(CONVERTER), texts.viclip
    said = texts(samples.captions)[samples.prompt]
    columns = []
    for moment in samples.x0.unbind(1):
        seen = torch.cat([viclip.encode_vision(network_frames(l2r(x0.float()), viclip.config.frames))
                          for x0 in moment.split(32)])
        columns.append((F.normalize(seen, dim=-1) * said).sum(1))
    return torch.stack(columns, 1)


def accuracy_rows(rewards: Tensor, free: Tensor, samples: Samples) -> list[dict[str, Any]]:
    """For each moment the pairwise accuracy within prompt: of the heads' sum on the targets' sum, of each head on its
    own target, and of the training-free reward on the sum and on the alignment; with 95 % intervals over prompts."""
    goals = {"sum": samples.targets.sum(1), **dict(zip(HEADS, samples.targets.unbind(1), strict=True))}
    pairs = {name: pairs_within(goal, samples.prompt, MARGIN) for name, goal in goals.items()}

    def cell(values: Tensor, name: str) -> dict[str, float]:
        lead = values[pairs[name][:, 0]] - values[pairs[name][:, 1]]
        won = ((lead > 0).float() + 0.5 * (lead == 0).float()).numpy()
        if not len(won):
            return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
        return bootstrap(lambda rows: won[rows].mean(), samples.prompt[pairs[name][:, 0]].numpy(), draws=1000)

    rows = []
    for k, step in enumerate(MOMENTS):
        own = {"sum": rewards[:, k].sum(1), **dict(zip(HEADS, rewards[:, k].unbind(1), strict=True))}
        rows.append({
            "step": step, "sigma": round(samples.sigmas[k].item(), 4), "pairs": len(pairs["sum"]),
            "latent_reward": pairwise_accuracy(own["sum"], pairs["sum"]),
            "training_free": pairwise_accuracy(free[:, k], pairs["sum"]),
            "intervals": {name: {"pairs": len(pairs[name]), "latent_reward": cell(own[name], name),
                                 "training_free": cell(free[:, k], name)} for name in goals},
        })  # fmt: skip
    return rows


def fit(
    steps: int, seed: int, data: tuple[Samples, Samples, Guesses], every: int
) -> tuple[RewardModel, Texts, Clock]:
    """The averaged model after `steps`, from the checkpoint where there is one."""
    samples, validation, guesses = data
    path = STATE / f"reward_{weights_digest()}_{len(samples.x0)}_{seed}.pt"
    state = load_checkpoint(path)
    step = state["step"] if state else 0
    generator = torch.Generator().manual_seed(1000 * seed + step)  # after a stop other batches, which only helps
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RewardModel(CONFIG)
    average = Average(model, 0.995)
    if state:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.updates = step
    hidden = [p for layer in (*model.layers, *model.readers) for p in layer.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not h for h in hidden)]
    optimisers = [(Muon(hidden, MUON_LR), MUON_LR),
                  (torch.optim.AdamW(others, lr=LR, betas=(0.9, 0.98), weight_decay=0.02), LR)]
    if state:
        for (optimiser, _), saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
    clock, texts = Clock(state["spent"] if state else 0.0), Texts()
    trainer = Trainer(texts, samples, guesses, generator)
    pairs = pairs_within(validation.targets.sum(1), validation.prompt, MARGIN)
    while step < steps:
        for optimiser, lr in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * trapezoid(step / steps)
        loss, parts = trainer.loss(model)
        for optimiser, _ in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
        average.update(model)
        step += 1
        if step % 20 == 0:
            told = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            logging.info("%.1f min, step %d: %s", clock.minutes, step, told)
        if step % every == 0 or step == steps:
            save_checkpoint(path, {"model": model.state_dict(), "average": average.model.state_dict(), "step": step,
                                   "optimisers": [optimiser.state_dict() for optimiser, _ in optimisers],
                                   "spent": clock.minutes})
            found = rewards_of(average.model, texts, validation).sum(2)
            logging.info("held out, by step: %s", ", ".join(
                f"{at} {pairwise_accuracy(found[:, k], pairs):.3f}" for k, at in enumerate(MOMENTS)))
    return average.model, texts, clock


def markdown(document: dict[str, Any]) -> str:
    made, rows = document["environment"], document["accuracy"]
    titles = {"sum": "Sum of the three", "text_alignment": "Text alignment", "visual_quality": "Visual quality",
              "motion_quality": "Motion quality"}  # fmt: skip
    lines = [
        "# The demo family's latent reward", "",
        f"How often a reward puts the better of two clips of one prompt first, from their x0 predictions on the way: "
        f"{document['clips']} clips of {document['prompts']} validation prompts. Chance is 0.5. The training-free "
        f"reward is the scorer on previews. Pairs that differ by no more than {MARGIN} are left out. In brackets: 95 % "
        f"intervals from a bootstrap over prompts. Made by `{made['command']}` on {made['date']}, {made['machine']}, "
        f"torch {made['torch']}: {document['steps']} steps in {document['minutes']:.0f} minutes, after "
        f"{document['train_clips']} clips of {document['train_prompts']} training prompts had been made.", "",
    ]  # fmt: skip
    for name, title in titles.items():
        lines += [
            f"## {title} ({rows[0]['intervals'][name]['pairs']} pairs)", "",
            "| step of 50 | sigma | latent reward | training-free reward |", "|---|---|---|---|",
            *(f"| {row['step']} | {row['sigma']} | {number(row['intervals'][name]['latent_reward'])} | "
              f"{number(row['intervals'][name]['training_free'])} |" for row in rows), "",
        ]  # fmt: skip
    asked = ", ".join(f"{bar} at {share:.0%} of the schedule" for share, bar in BARS.items())
    verdict = f"**not met, so it is refused: {document['refused']}**" if document["refused"] else "met"
    return "\n".join([*lines, f"The bar for the sum: {asked}: {verdict}.", ""])


def train(steps: int, seed: int, share: float, workers: int, every: int, weights: Path, out: Path) -> None:
    """The whole recipe. share: of the data; every: steps between checkpoints; weights, out: what is written where."""
    samples, validation = (make_samples(chosen, share, workers) for chosen in (TRAIN, VALIDATION))
    guesses = make_guesses(CONFIG.sigmas, share, workers)
    model, texts, clock = fit(steps, seed, (samples, validation, guesses), every)
    rows = accuracy_rows(rewards_of(model, texts, validation), training_free(texts, validation), validation)
    load_comfyui()
    command = "python -m foresight.demo.train_reward"
    described = {
        "name": "foresight-demo-reward", "latent_format": LATENT_FORMAT, "scorer": texts.viclip.config.name,
        "weights": weights_digest(), "steps": STEPS, "accuracy": [
            {key: row[key] for key in ("step", "sigma", "pairs", "latent_reward", "training_free")} for row in rows],
    }  # fmt: skip
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_reward(model, weights, described)
    document = {
        "schema": "foresight.reward", "version": 1, "environment": environment(command), "clips": len(validation.x0),
        "prompts": len(validation.captions), "seeds": SEEDS, "train_clips": len(samples.x0),
        "train_prompts": len(samples.captions), "steps": steps, "minutes": round(clock.minutes, 1),
        "margin": MARGIN, "bars": {str(share): bar for share, bar in BARS.items()}, "refused": below_bar(described),
        "accuracy": rows,
    }  # fmt: skip
    publish(out, "reward", document, markdown(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=float, default=1.0, help=DATA_HELP)
    parser.add_argument("--workers", type=int, default=2, help="processes that make the data, one thread each")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--weights", type=Path, default=EXPORT, help="the file to write")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(a.steps, a.seed, a.data, a.workers, a.every, a.weights, a.out)


if __name__ == "__main__":
    main()
