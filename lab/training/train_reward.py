"""Trains the demo family's latent reward: ``python -m foresight.lab.training.train_reward``.

Makes its own data first (`reward_data`): clips of training and validation prompts, several seeds each, and guesses of
noised renders. The network begins as the scorer: its vision tower, with patches of previews replaced by the linear map
from latents that comes nearest (least squares over guesses). Then
  follow   the tower learns to find in latents what the scorer finds in their previews, of clips and of guesses.
  rank     the heads, linear in the tower's features, learn that of two clips of one prompt at one moment the better one
           gets the higher reward. Never across prompts: what tells one prompt's clips from another's is no use to a
           search. The tower stays as it is: a few hundred clips teach it only those clips.
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

from ...demo.flow import schedule
from ...demo.preset import REWARD, SHIFT, STEPS
from ...evaluation.comfyui import ROOT, comfyui_path, load_comfyui
from ...evaluation.results import environment, number, publish
from ...evaluation.statistics import bootstrap
from ...l2r.averaging import Average
from ...l2r.checkpoint import load_l2r
from ...scoring.latent_reward import (
    BARS,
    HEADS,
    RewardConfig,
    RewardModel,
    below_bar,
    pairs_within,
    pairwise_accuracy,
    save_reward,
)
from ...scoring.viclip import load_viclip
from .common import (
    DATA_HELP,
    STATE,
    WEIGHTS,
    Clock,
    load_checkpoint,
    save_checkpoint,
    trapezoid,
)
from .reward_data import (
    MOMENTS,
    SEEDS,
    TRAIN,
    VALIDATION,
    Samples,
    make_guesses,
    make_samples,
)
from .scorer_data import Captions, network_frames
from .scorer_samples import weights_digest
from .train_l2r import EXPORT as CONVERTER
from .train_scorer import EXPORT as SCORER

EXPORT = WEIGHTS / "reward" / REWARD
LATENT_FORMAT = "Wan21"
LEVELS = tuple(schedule(STEPS, SHIFT)[step - 1].item() for step in (MOMENTS[-1], 2))
LR = 1e-3
BATCH = 64  # half of them guesses
# Ridge of the quality heads. Between 0.1 and 0.3, cross-validation over training prompts found no difference.
SHRINK = 0.2
FITTED = 1000  # guesses that the first layer is solved from, about eighty times as many patches
# Of the targets, which are 0..1: nearer pairs are ties. One statement of the longest captions counts .09.
MARGIN = 0.08


class Scored:
    """The frozen scorer: text features of captions, and features of previews."""

    def __init__(self):
        tokens = CLIPTokenizer.from_pretrained(str(comfyui_path() / "comfy" / "sd1_tokenizer"))
        self.viclip, self.l2r = load_viclip(SCORER), load_l2r(CONVERTER)
        self.captions = Captions(lambda text: tokens(text)["input_ids"], self.viclip.config.context)

    @torch.no_grad()
    def texts(self, captions: list[str]) -> Tensor:
        """[N, D], L2-normalised."""
        return F.normalize(self.viclip.encode_text(self.captions(captions)), dim=-1)

    @torch.no_grad()
    def seen(self, x0: Tensor) -> Tensor:
        """x0 predictions [N, K, C, F, H, W] -> features [N, K, D] of their previews, L2-normalised."""
        flat = [self.viclip.encode_vision(self._frames(part)) for part in x0.flatten(0, 1).split(32)]
        return F.normalize(torch.cat(flat), dim=-1).unflatten(0, x0.shape[:2])

    def _frames(self, x0: Tensor) -> Tensor:
        return network_frames(self.l2r(x0.float()), self.viclip.config.frames)

    @torch.no_grad()
    def as_reward(self, guesses: Tensor) -> RewardModel:
        """The reward to start from, before anything was learned: the tower, and the nearest first layer."""
        sizes = self.viclip.config
        model = RewardModel(RewardConfig(
            width=sizes.vision_width, heads=sizes.vision_heads, layers=sizes.vision_layers, text_dim=sizes.embed_dim,
            frames=sizes.frames, sigmas=LEVELS,
        ))  # fmt: skip
        tower, (frames, *size) = self.viclip.vision_encoder, model.tower.conv1.kernel_size
        x0 = guesses[: FITTED // guesses.shape[1]].flatten(0, 1)
        around = F.pad(x0.float(), (1,) * 6, mode="replicate").unfold(2, frames, 1)
        for axis, side in zip((3, 4), size, strict=True):
            around = around.unfold(axis, side, model.config.patch)
        inputs = around.movedim(1, 4).flatten(4).flatten(0, 3)  # [patches, C * 3 * 4 * 4]
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
        wanted = torch.cat([tower.conv1(self._frames(part).transpose(1, 2)) for part in x0.split(32)])
        solution = torch.linalg.lstsq(inputs, wanted.movedim(1, -1).flatten(0, 3)).solution
        weight = solution[:-1].T.unflatten(1, (-1, frames, *size))
        model.tower.load_state_dict(tower.state_dict() | {"conv1.weight": weight, "conv1.bias": solution[-1]})
        return model


def follow_loss(model: RewardModel, x0: Tensor, seen: Tensor) -> Tensor:
    """How far the tower's features of latents are from the scorer's of their previews, seen: 1 - cosine."""
    return 1 - (model.look(x0.float()) * seen).sum(-1).mean()


def fit_heads(model: RewardModel, said: Tensor, samples: Samples) -> None:
    """The heads by logistic regression on all pairs of clips of one prompt at each moment, in place. said: text
    features of the samples' prompts."""
    with torch.no_grad():
        seen = torch.stack([look_in_parts(model, x0) for x0 in samples.x0.unbind(1)], 1)  # [N, K, D]
    pairs = [pairs_within(target, samples.prompt, MARGIN) for target in samples.targets.unbind(1)]
    first, second = torch.cat(pairs).unbind(1)
    spread = (seen[first] - seen[second]).square().mean((0, 1)).sqrt()
    texts = said[samples.prompt][:, None].expand_as(seen).flatten(0, 1)
    levels = samples.sigmas.expand(len(seen), -1).flatten()
    nn.init.zeros_(model.quality.weight)
    heads = [each.requires_grad_() for each in (model.quality.weight, model.alignment, model.sharpness)]
    optimiser = torch.optim.LBFGS(heads, max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        rewards = model.read(seen.flatten(0, 1), levels, texts).unflatten(0, seen.shape[:2])
        total = SHRINK * (model.quality.weight * spread).square().sum()
        for k, (better, worse) in enumerate(each.unbind(1) for each in pairs):
            if len(better):
                total = total + F.softplus(rewards[worse, :, k] - rewards[better, :, k]).mean()
        total.backward()
        return total

    optimiser.step(loss)


def look_in_parts(model: RewardModel, x0: Tensor) -> Tensor:
    """`look` at many latents [N, C, F, H, W], part by part."""
    return torch.cat([model.look(part.float()) for part in x0.split(32)])


@torch.no_grad()
def rewards_of(model: RewardModel, said: Tensor, samples: Samples) -> Tensor:
    """[N, K, HEADS]. said: text features of the samples' prompts."""
    texts = said[samples.prompt]
    return torch.stack([model.read(look_in_parts(model, x0), sigma.expand(len(x0)), texts)
                        for x0, sigma in zip(samples.x0.unbind(1), samples.sigmas, strict=True)], 1)  # fmt: skip


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


def fit(steps: int, seed: int, data: tuple[Samples, Samples, Tensor], every: int) -> tuple[RewardModel, Scored, Clock]:
    """The averaged model after `steps`, from the checkpoint where there is one. data: samples, validation samples,
    guesses."""
    samples, validation, guesses = data
    path = STATE / f"reward_{weights_digest()}_{len(samples.x0)}_{seed}.pt"
    state = load_checkpoint(path)
    step = state["step"] if state else 0
    scored = Scored()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = scored.as_reward(guesses)
    average = Average(model, 0.995)
    optimiser = torch.optim.AdamW(model.tower.parameters(), LR, betas=(0.9, 0.98), weight_decay=0.02)
    if state:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.updates = step
        optimiser.load_state_dict(state["optimiser"])
    clock = Clock(state["spent"] if state else 0.0)
    seen, guessed, held_out = map(scored.seen, (samples.x0, guesses, validation.x0))
    generator = torch.Generator().manual_seed(1000 * seed + step)  # after a stop other batches, which only helps

    def drawn(x0: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        rows, moments = (torch.randint(size, (BATCH // 2,), generator=generator) for size in x0.shape[:2])
        return x0[rows, moments], features[rows, moments]

    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = LR * trapezoid(step / steps)
        x0, features = map(torch.cat, zip(drawn(samples.x0, seen), drawn(guesses, guessed), strict=True))
        loss = follow_loss(model, x0, features)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model)
        step += 1
        if step % every == 0 or step == steps:
            save_checkpoint(path, {"model": model.state_dict(), "average": average.model.state_dict(), "step": step,
                                   "optimiser": optimiser.state_dict(), "spent": clock.minutes})
            with torch.no_grad():
                apart = torch.stack([follow_loss(average.model, x0, features) for x0, features in zip(
                    validation.x0.unbind(1), held_out.unbind(1), strict=True)])
            logging.info("%.1f min, step %d: apart %.4f; held out, by moment: %s", clock.minutes, step, loss.item(),
                         " ".join(f"{value:.4f}" for value in apart))
    fit_heads(average.model, scored.texts(samples.captions), samples)
    return average.model, scored, clock


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
    guesses = make_guesses(LEVELS, share, workers)
    model, scored, clock = fit(steps, seed, (samples, validation, guesses), every)
    said = scored.texts(validation.captions)
    free = (scored.seen(validation.x0) * said[validation.prompt, None]).sum(2)
    rows = accuracy_rows(rewards_of(model, said, validation), free, validation)
    load_comfyui()
    command = "python -m foresight.lab.training.train_reward"
    described = {
        "name": "foresight-demo-reward", "latent_format": LATENT_FORMAT, "scorer": scored.viclip.config.name,
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
