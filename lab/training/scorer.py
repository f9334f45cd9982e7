"""The recipe of the demo family's small ViCLIP.

Stages, each going on from the one before:
  renders     clean and blurred renders, each beside a near miss (one statement false)
  previews    and what the demo transformer guesses of noised latents of renders, seen through L2R
  generated   and the demo transformer's own x0 predictions, with the judge's verdict on the finished clip

Loss: contrastive over the batch (InfoNCE both ways, near misses as hard negatives), a sigmoid loss with one threshold
for all captions (Zhai et al. 2023), the statements of clip and caption read off both features by one linear layer, and
what each patch holds read off the last layer but one: without these two the contrast learns too slowly. Samples of the
transformer add the sigmoid loss and a ranking loss between a better and a worse sample of one prompt.
`python -m foresight.lab.experiments.family_figures` measures the exported scorer on prompts no training has seen.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...demo.captions import parse_caption, prompts
from ...demo.preset import STEPS
from ...demo.wan_dit import load_transformer
from ...demo.world import FRAMES, Scene
from ...evaluation.statistics import auc, auc_within
from ...l2r.checkpoint import load_l2r
from ...l2r.learner import Learner
from ...scoring.detector import Detector, DetectorSettings
from ...scoring.viclip import ViCLIP, ViCLIPConfig, save_viclip
from .common import CONVERTER, SCORER, STATE, TRANSFORMER, part
from .latents import encode_scenes, training_data
from .loop import Record, Task, load_checkpoint, trapezoid
from .muon import Muon
from .scorer_batches import SHARES, Batch, Source, guess, samples_batch
from .scorer_data import STATEMENTS, Captions, clip_captions, network_frames
from .scorer_samples import STILLS, TRAIN, VALIDATION, WATCHED, Samples, make_samples
from .token_contents import CONTENTS, TOKEN

STAGES = {"renders": 1800, "previews": 1600, "generated": 1200}  # and their steps
# All frames of a preview. Patches of 8 pixels learn as much a step, but each step takes 2.5 times as long. The text
# tower is mostly vocabulary.
CONFIG = ViCLIPConfig(
    image_size=64, patch_size=TOKEN, frames=5, vision_width=128, vision_layers=4, vision_heads=4,
    text_width=64, text_layers=2, text_heads=2, embed_dim=128, name="foresight-demo-viclip",
)
LR, MUON_LR = 1.5e-3, 4e-3  # by 400 steps on the statements: 2e-3 and 8e-3 for Muon learn more slowly
POOL, HELD_OUT = 4096, 256  # rendered pairs
GUESSED = {"clips": 6000, "images": 2000}
RANKED, RANDOM = 12, 8  # pairs of a better and a worse sample of one prompt, and further samples, a batch
HELD_WEIGHT = 10.0  # of the patches' loss: a mean over mostly empty ones


class Trainer(nn.Module):
    """The scorer with what only training needs."""

    def __init__(self):
        super().__init__()
        self.viclip = ViCLIP(CONFIG)
        self.head = nn.Linear(CONFIG.embed_dim, len(STATEMENTS))
        self.patch_head = nn.Linear(CONFIG.vision_width, len(CONTENTS))
        self.viclip.vision_encoder.transformer.resblocks[-2].register_forward_hook(self._keep)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-4.0))

    def _keep(self, _block: nn.Module, _inputs: tuple, tokens: Tensor) -> None:
        self.tokens = tokens

    def contents(self) -> Tensor:
        """[N, T, 4, 4, CONTENTS] logits: what the patches of the last clips hold."""
        return self.patch_head(self.tokens[:, 1:].unflatten(1, (CONFIG.frames, 4, 4)))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Trainer:
        """CLIP's: residual branches scaled by depth; the last matrices small."""
        for name, parameter in self.viclip.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                parameter.fill_(float("ln_" in name and name.endswith("weight")))
                continue
            deviation = 0.02 if "embedding" in name else parameter.shape[-1] ** -0.5
            if "out_proj" in name or "c_proj" in name:
                deviation *= 0.35
            if "conv1" in name:
                deviation = parameter[0].numel() ** -0.5
            parameter.normal_(0, deviation, generator=generator)
        for head in (self.head, self.patch_head):
            head.weight.normal_(0, 0.05, generator=generator)
            head.bias.fill_(-2.0)
        return self

    def compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of clips and captions, their logits [N, M], and the loss of what the patches hold."""
        clips, texts = self.viclip.encode_vision(batch.frames), self.viclip.encode_text(batch.ids)
        target, known = batch.contents.nan_to_num(), (~batch.contents.isnan()).float()
        held = HELD_WEIGHT * F.binary_cross_entropy_with_logits(self.contents(), target, known)
        return clips, texts, F.normalize(clips, dim=-1) @ F.normalize(texts, dim=-1).T * self.scale.exp(), held

    def judged(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sigmoid loss a clip."""
        return F.binary_cross_entropy_with_logits(
            logits + self.bias, batch.truth, batch.weight, reduction="sum") / len(logits)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        clips, texts, logits, held = self.compare(batch)
        own = torch.arange(batch.known)
        contrast = (F.cross_entropy(logits[own], own) + F.cross_entropy(logits.T[own], own)) / 2
        judged = self.judged(logits, batch)
        read = sum(
            F.binary_cross_entropy_with_logits(self.head(feature[: len(target)]), target, reduction="sum") / len(target)
            for feature, target in ((clips, batch.shown), (texts, batch.stated)) if target is not None
        )
        return contrast + judged + 0.2 * read + held, {
            "contrast": contrast.item(), "judged": judged.item(), "read": read.item(), "held": held.item(),
            "near": (logits[own, own] > logits[own, own + batch.known]).float().mean().item(),
        }

    def samples_loss(self, samples: Samples, generator: torch.Generator, captions: Captions) -> tuple[Tensor, dict]:
        """One moment of a better and a worse sample of each of several prompts, and of a few samples at random."""

        def any_of(options: list):
            return options[int(torch.randint(len(options), (), generator=generator))]

        rows = [i for _ in range(RANKED) for i in any_of(samples.ranked)]
        rows += torch.randint(len(samples.right), (RANDOM,), generator=generator).tolist()
        moment = any_of(list(range(samples.previews.shape[1])))
        batch = samples_batch(samples, rows, moment, captions, generator)
        _, _, logits, held = self.compare(batch)
        own = logits.diagonal()
        lead = own[0 : 2 * RANKED : 2] - own[1 : 2 * RANKED : 2]
        judged, ranked = self.judged(logits, batch), F.softplus(-lead).mean()
        return judged + ranked + held, {
            "samples": judged.item(), "samples held": held.item(), "ranked": (lead > 0).float().mean().item()
        }


@torch.no_grad()
def held_out(viclip: ViCLIP, source: Source, batches: int = 4) -> tuple[Tensor, Tensor, float]:
    """Scores of clips of unseen compositions with their captions and with a near miss's, which of them are right, and
    how often the own caption scores higher."""
    scores, right, wins = [], [], []
    for _ in range(batches):
        batch = source.batch()
        clips, texts = viclip.encode_vision(batch.frames), viclip.encode_text(batch.ids)
        cosines = F.normalize(clips, dim=-1) @ F.normalize(texts, dim=-1).T
        own = torch.arange(batch.known)
        scores += [cosines[own, own], cosines[own, own + batch.known]]
        right += [torch.ones(batch.known), torch.zeros(batch.known)]
        wins.append((scores[-2] > scores[-1]).float().mean())
    return torch.cat(scores), torch.cat(right), torch.stack(wins).mean().item()


@torch.no_grad()
def scores(viclip: ViCLIP, samples: Samples, captions: Captions) -> Tensor:
    """[N, K] cosines of every kept moment with its caption."""
    texts = F.normalize(viclip.encode_text(captions(samples.captions)), dim=-1)[samples.prompt]
    columns = []
    for moment in samples.previews.unbind(1):
        frames = network_frames(moment, viclip.config.frames)
        clips = torch.cat([viclip.encode_vision(part) for part in frames.split(32)])
        columns.append((F.normalize(clips, dim=-1) * texts).sum(1))
    return torch.stack(columns, 1)


def detect(trace: Tensor, settings: DetectorSettings):
    """The decision on scores of steps 1, 2, ... of 50."""
    detector = Detector(settings, STEPS)
    for step, score in enumerate(trace.tolist(), 1):
        if decision := detector.observe(step, score):
            return decision
    raise ValueError(f"{len(trace)} steps do not reach the end of the window, step {detector.last}")


def calibrated(traces: Tensor, right: Tensor) -> ViCLIPConfig:
    """The configuration with the tau at which the detector accepts the largest share of right clips and rejects the
    largest of wrong ones, both counted alike. traces: [N, K] scores of steps 1, 2... of 50, then of the finished clip;
    right: [N]. delta and the detector's margins keep the paper's proportion to the distance between right and wrong
    finished clips (0.26 against 0.18 for ViCLIP-L). Where all are right or all wrong: CONFIG as it is."""
    right, watched, finished = right.bool(), traces[:, :-1], traces[:, -1]
    if len(right.unique()) < 2:
        print("tau is not chosen anew: that takes right and wrong clips of validation prompts", flush=True)
        return CONFIG
    gap = (finished[right].mean() - finished[~right].mean()).item()
    scale = round(max(gap / 0.08, 0.25), 3)

    def balance(tau: float) -> float:
        settings = DetectorSettings.video(tau=tau, scale=scale)
        accepted = torch.tensor([detect(row, settings).accepted for row in watched])
        return (accepted[right].float().mean() + (~accepted[~right]).float().mean()).item()

    levels = watched.unique()
    between = (levels[1:] + levels[:-1]) / 2
    some = between[torch.linspace(0, len(between) - 1, min(100, len(between))).long()].tolist()
    balances = {tau: balance(tau) for tau in some}
    best = [tau for tau, value in balances.items() if value == max(balances.values())]
    return replace(CONFIG, tau=round(statistics.median(best), 4), delta=round(0.05 * scale, 4), scale=scale,
                   tau_from=f"{len(right)} clips of validation prompts, {int(right.sum())} of them right: where the "
                            "detector's decisions are best balanced")


def training_samples(share: float) -> tuple[Samples, Samples]:
    """Clips and single frames of the transformer for training prompts, and clips for validation prompts."""
    l2r = load_l2r(CONVERTER)
    clips, stills, validation = (
        make_samples(replace(each, prompts=part(each.prompts, share)), l2r, CONFIG.frames)
        for each in (TRAIN, STILLS, VALIDATION)
    )
    moments = torch.linspace(0, clips.previews.shape[1] - 1, stills.previews.shape[1]).round().long()
    both = Samples(
        clips.captions + stills.captions, clips.scenes + stills.scenes,
        torch.cat([clips.prompt, stills.prompt + len(clips.captions)]), torch.cat([clips.right, stills.right]),
        torch.cat([clips.share, stills.share]), torch.cat([clips.previews[:, moments], stills.previews]),
        torch.cat([clips.contents, stills.contents]),
    )
    return both, validation


def add_previews(source: Source, scenes: list[Scene], data: dict) -> None:
    """What the transformer guesses of the clips and of some single frames. data: as `training_data` gives it; its clips
    and images are of the first scenes."""
    transformer, l2r = load_transformer(TRANSFORMER), load_l2r(CONVERTER)
    for kind, most in GUESSED.items():
        count = min(len(data[kind]), most)
        source.previews.append(guess(transformer, l2r, scenes[:count], data[kind][:count],
                                     data[f"{kind}_contents"][:count], CONFIG.frames, source.generator))


def validation_data() -> tuple[list[Scene], dict]:
    """Scenes of validation prompts, and their clips and images as `training_data` has them."""
    scenes = [scene for name in SHARES for _, scene in prompts("validation", name, 32)]
    data = {}
    for kind, frames in (("clips", FRAMES), ("images", 1)):
        data[kind], data[f"{kind}_contents"] = encode_scenes(scenes, 990_004, frames)
    return scenes, data


class Scorer(Task):
    """One stage of the recipe. scale: share of the data."""

    every, columns, usable_early = 250, ("near_misses", "auc"), True

    def __init__(
        self, stage: Literal["renders", "previews", "generated"] = "renders", seed: int = 1, scale: float = 1.0,
        export: Path = SCORER,
    ):
        self.stage, self.steps, self.out = stage, STAGES[stage], export
        number = list(STAGES).index(stage)
        *_, before, self.checkpoint = [None, *(STATE / f"scorer_{seed}_{name}.pt" for name in STAGES)][: number + 2]
        state = before and load_checkpoint(before)
        weights = state and state["task"]["trainer"]
        updates = int(weights["average"]["n_averaged"]) - 1 if weights else 0
        self.generator = torch.Generator().manual_seed(1000 * seed + 100 * number + updates)
        self.captions = clip_captions(CONFIG.context)
        self.trainer = Trainer().initialise(self.generator)
        hidden = [p for n, p in self.trainer.named_parameters() if p.ndim == 2 and "resblocks" in n]
        others = [p for p in self.trainer.parameters() if all(p is not h for h in hidden)]
        adam = torch.optim.AdamW(others, lr=LR, betas=(0.9, 0.98), weight_decay=1e-4)
        self.learner = Learner(self.trainer, Muon(hidden, MUON_LR), adam, decay=0.995)
        if weights:
            self.learner.load_weights(weights)
        self.parts = {"trainer": self.learner, "generator": self.generator}
        self.source = Source(self.captions, self.generator, CONFIG.frames, POOL)
        self.check = Source(
            self.captions, torch.Generator().manual_seed(990_003), CONFIG.frames, HELD_OUT, "validation")
        if stage != "renders":
            data = training_data(scale, seed)  # the transformer's, so already on disk
            add_previews(self.source, [parse_caption(text) for text in data["captions"]], data)
            add_previews(self.check, *validation_data())
        self.check_start = self.check.generator.get_state()
        self.samples, self.validation = training_samples(scale) if stage == "generated" else (None, None)
        self.traces: tuple[Tensor, Tensor] | None = None

    def update(self, step: int, steps: int) -> dict[str, Any]:
        loss, figures = self.trainer.loss(self.source.batch())
        if self.samples:
            more_loss, more = self.trainer.samples_loss(self.samples, self.generator, self.captions)
            loss, figures = loss + more_loss, figures | more
        self.learner.step(loss, trapezoid(step / steps) * (1 if self.stage == "renders" else 0.5))
        return figures

    def measure(self) -> dict[str, float]:
        viclip = self.learner.result.viclip
        self.check.generator.set_state(self.check_start)
        cosines, right, near = held_out(viclip, self.check)
        figures = {"near_misses": near, "auc": auc(cosines, right), "right": cosines[right.bool()].mean().item(),
                   "wrong": cosines[~right.bool()].mean().item()}  # fmt: skip
        self.traces = cosines[:, None].expand(-1, len(WATCHED) + 1), right  # a finished clip: alike at every step
        if self.validation:
            right, prompt = self.validation.right, self.validation.prompt
            self.traces = scores(viclip, self.validation, self.captions), right
            for name, column in (("step_10", WATCHED.index(10)), ("finished", -1)):
                values = self.traces[0][:, column]
                figures |= {f"{name}_auc": auc(values, right), f"{name}_within": auc_within(values, right, prompt)}
        return figures

    def export(self, record: Record) -> None:
        if self.traces is None:
            self.measure()
        viclip = self.learner.result.viclip
        viclip.config = calibrated(*self.traces)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_viclip(viclip, self.out)
        viclip.config = CONFIG
