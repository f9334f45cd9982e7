"""A latent reward model: the quality and the text alignment of a clip, foretold from an x0 prediction of its sampling.

LatSearch reads noisy latents with a vision-language model of two billion parameters, whose weights are not released.
Here the vision tower of an alignment scorer reads the x0 prediction, which a search has at hand anyway: latents pooled
to a small grid stand for the pictures, so that nothing is decoded. As there, heads stand for visual quality, motion
quality and text alignment; the first two do not see the text. How far apart rewards lie depends on the noise level.
Trained from the scorer's own weights on; docs/enhancers.md has the recipe.

A reward that is no better than chance makes a search a waste of compute that nobody notices. So a file carries how
often the reward was right on pairs of clips of one prompt that training had not seen, and one below BARS is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.fields import Fields, FileError
from ..files.weights import open_weights, write_weights
from ..trials.foreign import printable, quoted
from .inspector import check_prompt, video
from .pieces import aligned
from .scorer import Scorer, patchers_of, reading_of
from .viclip import ViCLIPConfig, VisionEncoder

KEY = "foresight.reward"
HEADS = ("visual_quality", "motion_quality", "text_alignment")
# Share of the schedule -> pairwise accuracy within prompt that is asked for there. Chance is 0.5. A search prunes
# between these two, and at lower accuracies more of it is spent on noise than on choice.
BARS = {0.2: 0.6, 0.4: 0.7}
MOST_BYTES = 2 << 30
MOST_SIZES = {  # beyond these a network takes seconds to lay out, whatever the file holds
    "channels": 1024, "frames": 64, "side": 64, "patch": 64, "width": 4096, "heads": 256, "layers": 64,
    "text_dim": 4096,
}  # fmt: skip
RETRAIN = "Train it on more clips (docs/enhancers.md says how), or search with the alignment reward."


@dataclass(frozen=True)
class RewardConfig:
    """Sizes: of the grid that latents are pooled to (`frames`, and `side` cells across and down, `patch` x `patch` of
    them a token), and of the tower, which are its scorer's. sigmas: the lowest and highest noise level seen in
    training, between which a level is read; beyond them it counts as the nearest."""

    channels: int = 16
    frames: int = 5
    side: int = 8
    patch: int = 2
    width: int = 128
    heads: int = 4
    layers: int = 4
    text_dim: int = 128
    sigmas: tuple[float, float] = (0.0, 1.0)


class RewardModel(nn.Module):
    """A ViCLIP's vision tower on latents: where the scorer embeds patches of a picture, a convolution with a margin of
    one cell and one frame reads latents. The heads are linear in its features, and sharper the less noise is left."""

    def __init__(self, config: RewardConfig, metadata: Mapping[str, object] | None = None):
        super().__init__()
        self.config, self.metadata = config, dict(metadata or {})
        self.tower = VisionEncoder(ViCLIPConfig(
            image_size=config.side, patch_size=config.patch, frames=config.frames, vision_width=config.width,
            vision_layers=config.layers, vision_heads=config.heads, embed_dim=config.text_dim,
        ), nn)
        self.tower.conv1 = nn.Conv3d(
            config.channels, config.width, (3, config.patch + 2, config.patch + 2),
            (1, config.patch, config.patch), padding=1, padding_mode="replicate",
        )
        self.quality = nn.Linear(config.text_dim, 2, bias=False)
        self.alignment = nn.Parameter(torch.tensor(10.0))
        self.sharpness = nn.Parameter(torch.zeros(()))  # log of what rewards at the lowest level have over the highest

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", "latent reward"))

    def look(self, x0: Tensor) -> Tensor:
        """x0 predictions [B, C, F, H, W] in model space -> features [B, text_dim], L2-normalised."""
        if x0.shape[1] != self.config.channels:
            raise ValueError(
                f"latent reward {quoted(self.name)} reads latents of {self.config.channels} channels, but this one has "
                f"{x0.shape[1]}: choose the reward that was trained for this model."
            )
        x = F.adaptive_avg_pool3d(x0, (self.config.frames, self.config.side, self.config.side))
        return F.normalize(self.tower(x.transpose(1, 2)), dim=-1)

    def read(self, features: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """Features [B, text_dim] of latents at noise levels [B], and of their texts -> rewards [B, HEADS]."""
        return self.rewards(features, sigma, (features * text).sum(-1))

    def rewards(self, features: Tensor, sigma: Tensor, cosines: Tensor) -> Tensor:
        """`read` of features whose cosines [B] with their texts are known."""
        low, high = self.config.sigmas
        clean = ((high - sigma) / (high - low)).clamp(0, 1)[:, None]
        alignment = cosines[:, None] * self.alignment
        return torch.cat([self.quality(features), alignment], 1) * (clean * self.sharpness).exp()

    def forward(self, x0: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """[B, HEADS], higher is better; only differences within one text mean something."""
        return self.read(self.look(x0), sigma, text)


@dataclass
class LatentReward:
    """The model as a search's reward (scoring/reward.py) for one prompt. scorer: the one whose text features it was
    trained with. weights: of HEADS; LatSearch sums the three."""

    model: RewardModel
    scorer: Scorer
    prompt: str
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    _text: Tensor | None = field(default=None, repr=False)

    def __post_init__(self):
        scorer = self.model.metadata.get("scorer")
        if scorer != self.scorer.name:
            raise ValueError(
                f"latent reward {quoted(self.model.name)} reads the text features of {printable(str(scorer))}, but the "
                f"scorer is {printable(self.scorer.name)}: connect the scorer that it was trained with."
            )
        check_prompt(self.prompt)
        if not any(self.weights):
            raise ValueError("all weights of the latent reward are 0, so no candidate beats another: raise one.")

    @property
    def name(self) -> str:
        return f"latent reward ({self.model.name})"

    @property
    def patchers(self) -> tuple:
        """Of the model and of the text encoder."""
        return patchers_of(self.model, self.scorer)

    @property
    def notes(self) -> tuple[str, ...]:
        return reading_of(self.scorer, self.prompt).notes

    @torch.no_grad()
    def score(self, x0: Tensor, sigma: float, step: int) -> Tensor:
        """[B], float32, NaN for items that are not finite. Raises ValueError for latents of another model."""
        latent = video(x0).float()
        if self._text is None:
            self._text = self.scorer.encode_text(self.prompt)
        text, features = self._text.to(latent.device), self.model.to(latent.device).look(latent)
        cosines = (features * text).sum(-1) if text.ndim == 1 else aligned(features, text, self.scorer.scale)
        rewards = self.model.rewards(features, latent.new_full((len(latent),), float(sigma)), cosines)
        total = rewards @ rewards.new_tensor(self.weights)
        return total.where(torch.isfinite(latent).flatten(1).all(1), torch.nan).cpu()


def pairs_within(targets: Tensor, groups: Tensor, margin: float) -> Tensor:
    """[P, 2]: all pairs of one group (prompt) of which the first is better by more than `margin`."""
    better = (targets[:, None] - targets[None] > margin) & (groups[:, None] == groups[None])
    return better.nonzero()


def pairwise_accuracy(values: Tensor, pairs: Tensor) -> float:
    """The share of pairs [P, 2] whose first has the higher value, ties half; NaN without pairs."""
    lead = values[pairs[:, 0]] - values[pairs[:, 1]]
    return ((lead > 0).float() + 0.5 * (lead == 0).float()).mean().item()


def save_reward(model: RewardModel, path: str | Path, metadata: Mapping[str, object]) -> None:
    """Writes the weights in half precision. metadata: name, latent_format, scorer (whose text features it reads),
    weights (the fingerprint of the model whose clips it learned from), steps (of the schedule), and accuracy: rows of
    step, sigma, pairs, latent_reward and training_free, on held-out prompts."""
    description = {**metadata, "config": asdict(model.config)}
    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_weights(Path(path), tensors, KEY, description)


def below_bar(metadata: Mapping[str, object]) -> str | None:
    """Why a reward with these figures is not to be used, None where it is good enough. Between measured steps the
    earlier one counts."""
    rows = [(row["step"] / metadata["steps"], row["latent_reward"]) for row in metadata["accuracy"]]
    for share, bar in BARS.items():
        accuracies = [accuracy for at, accuracy in rows if at <= share + 1e-9]
        if not accuracies:
            return f"its accuracy at {share:.0%} of the schedule was not measured"
        if not accuracies[-1] >= bar:  # NaN is below every bar
            return (
                f"at {share:.0%} of the schedule it ranks {accuracies[-1]:.1%} of pairs of one prompt's clips rightly, "
                f"and {bar:.0%} are asked for (50 % is chance)"
            )
    return None


def load_reward(path: str | Path) -> RewardModel:
    """A reward model in fp32 and eval mode, described by `.metadata`. Raises FileError for any other file, and for a
    reward whose measured accuracy is below BARS."""
    with open_weights(Path(path), KEY, "latent reward", RETRAIN, MOST_BYTES) as weights:
        described = weights.description
        if described is None:
            raise FileError(
                f"{weights.file} is no latent reward (it lacks the metadata '{KEY}'): rewards come with this pack or "
                "from its training command (docs/enhancers.md)."
            )
        for name in ("name", "latent_format", "weights"):
            described.text(name, None)
        described.text("scorer")
        described.whole("steps", 1, 10_000)
        for row in described.rows("accuracy", 10_000):
            row.whole("step", 0, 10_000)
            row.number("latent_reward", 0, 1, nan=True)
        metadata = {name: value for name, value in described.entries.items() if name != "config"}
        with torch.device("meta"):  # no global random state is read
            model = RewardModel(_config(described.inner("config")), metadata)
        weights.load_into(model, {name: name for name in weights.shapes}, misfit="does not fit the layout it describes")
        for name, tensor in model.state_dict().items():
            weights.finite(name, tensor)
    if problem := below_bar(metadata):
        raise FileError(f"{weights.file} is not good enough to search with: {problem}. {RETRAIN}")
    return model.eval()


def _config(described: Fields) -> RewardConfig:
    described.only([each.name for each in fields(RewardConfig)])
    standard = RewardConfig()
    sizes = {name: described.whole(name, 1, most, getattr(standard, name)) for name, most in MOST_SIZES.items()}
    sigmas = described.numbers("sigmas", range(2, 3), 0, 1e6, standard.sigmas)
    if not sigmas[0] < sigmas[1]:
        raise described.wrong(f"config.sigmas is {list(sigmas)}: give the lower noise level first")
    config = RewardConfig(**sizes, sigmas=sigmas)
    for size, of in (("heads", "width"), ("patch", "side")):
        if getattr(config, of) % getattr(config, size):
            raise described.wrong(
                f"config.{size} is {getattr(config, size)}: give what divides config.{of}, {getattr(config, of)}"
            )
    return config
