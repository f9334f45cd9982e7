"""Fits a converter to a VAE's own latents: in closed form within seconds, then better by gradient steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from .decode import decode
from .learner import Learner
from .subpixel import SubpixelL2R

NOISE = 0.1  # standard deviation of the noise that latents are taken to have; x0 predictions are never exact
WIDTH = 40  # of the network that training adds: as much as leaves it below a tenth of the paper's arithmetic
LR = 5e-3
WARM_UP = 100  # steps until the learning rate is reached; without, the first step undoes the closed form
AVERAGE = 0.999  # decay of the weights' running average, which is what is kept
BATCH = 8  # crops a step
CROP = 8  # latents a side of a crop
MOST = 384  # pairs that refinement keeps: 0.8 GB for a VAE of scale 32


def key_frames(frames: Tensor, latent_frames: int) -> Tensor:
    """The pixel frame that belongs to each latent frame: [B, T, H, W, 3] -> [B, F, H, W, 3].

    Causal video VAEs encode the first frame alone and then groups of frames; a latent is paired with its group's last.
    ValueError where the frames are not such groups.
    """
    count = frames.shape[1]
    if latent_frames == 1:
        return frames[:, :1]
    step, rest = divmod(count - 1, latent_frames - 1)
    if rest or not step:
        raise ValueError(f"{count} frames do not make {latent_frames} latent frames: give the clip that was encoded.")
    return frames[:, ::step]


def check_pair(latent: Tensor, frames: Tensor) -> int:
    """The scale of a pair of latents [B, C, F, H, W] and frames [B, F, sH, sW, 3]; ValueError where they do not fit."""
    height, width = latent.shape[-2:]
    scale = frames.shape[2] // height if height else 0
    if frames.shape[:2] != (latent.shape[0], latent.shape[2]) or frames.shape[2:4] != (scale * height, scale * width):
        raise ValueError(
            f"latents {list(latent.shape)} and frames {list(frames.shape)} do not belong together: frames must be a "
            "whole number of times as high and wide as the latents."
        )
    if not torch.isfinite(latent).all():
        raise ValueError("the latents hold NaN or infinite values: encode other images.")
    return scale


def neighbourhoods(latent: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B*F*H*W, C*18 + 1]: what a causal 2x3x3 convolution sees, and a one for its bias."""
    padded = F.pad(latent, (1, 1, 1, 1, 1, 0))
    around = padded.unfold(2, 2, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # [B, C, F, H, W, 2, 3, 3]
    rows = around.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, latent.shape[1] * 18)
    return F.pad(rows, (0, 1), value=1.0)


class AffineFit:
    """The running sums of a ridge regression from latent neighbourhoods to pixel patches: pairs can be added one by
    one, whenever they come, and need not be kept.

    channels, scale: of the latents. clips: how many were added; rows: how many neighbourhoods.
    """

    def __init__(self, channels: int, scale: int):
        self.channels, self.scale, self.clips, self.rows = channels, scale, 0, 0
        size = channels * 18 + 1
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.moment = torch.zeros(size, 3 * scale**2, dtype=torch.float64)

    def add(self, latent: Tensor, frames: Tensor, limit: int | None = None) -> None:
        """A pair of model-space latents [B, C, F, H, W] and frames [B, F, sH, sW, 3] in 0..1. limit: rows to take of
        each clip at most (but one whole frame), from frames spread over it. ValueError for latents of another kind."""
        if (check_pair(latent, frames), latent.shape[1]) != (self.scale, self.channels):
            raise ValueError(
                f"latents of {latent.shape[1]} channels do not go with a fit to {self.channels} channels at scale "
                f"{self.scale}: calibrate for this VAE from the start."
            )
        count, area = latent.shape[2], latent.shape[3] * latent.shape[4]
        times = range(count)
        if limit is not None and count * area > limit:
            times = torch.linspace(0, count - 1, max(1, limit // area)).round().long().tolist()
        for one, shown in zip(latent.split(1), frames.split(1), strict=True):
            for t in times:  # frame by frame: neighbourhoods are 18 times as large as the latents
                x = neighbourhoods(one[:, :, max(t - 1, 0) : t + 1].float())[-area:]
                patches = F.pixel_unshuffle(shown[:, t].float().movedim(-1, 1), self.scale)
                y = patches.movedim(1, -1).reshape(area, -1).to(x.device)
                self.gram += (x.T @ x).double().cpu()
                self.moment += (x.T @ y).double().cpu()
                self.rows += area
            self.clips += 1

    def solve(self, noise: float = NOISE) -> SubpixelL2R:
        """The converter of least squared error, where each latent value carries noise of that standard deviation."""
        ridge = torch.full((len(self.gram),), self.rows * noise**2, dtype=torch.float64)
        ridge[-1] = 1e-6 * self.rows  # the bias is not measured with noise
        solution = torch.linalg.solve(self.gram + ridge.diag(), self.moment)
        model = SubpixelL2R(self.channels, self.scale)
        with torch.no_grad():
            model.affine.weight.copy_(solution[:-1].T.reshape(-1, self.channels, 2, 3, 3))
            model.affine.bias.copy_(solution[-1])
        return model.eval()


def fit_affine(pairs: Sequence[tuple[Tensor, Tensor]], noise: float = NOISE) -> SubpixelL2R:
    """The affine converter of least squared error over pairs (see AffineFit.add)."""
    fit = AffineFit(pairs[0][0].shape[1], check_pair(*pairs[0]))
    for pair in pairs:
        fit.add(*pair)
    return fit.solve(noise)


def learner(model: torch.nn.Module, device: torch.device | str) -> Learner:
    """A converter, taken to a device to be trained there, by `refine` or by the training command."""
    model = model.to(device).train().requires_grad_()
    return Learner(model, torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-4),
                   decay=AVERAGE)  # fmt: skip


def learn(
    learner: Learner, latents: Tensor, frames: Tensor, generator: torch.Generator, *, noise: float = NOISE,
    rate: float = 1.0,
) -> Tensor:
    """One step on latents [B, C, F, h, w] and frames [B, F, sh, sw, 3]; rate: share of LR, at most 1. Gives the
    loss."""
    model, device = learner.network, next(learner.network.parameters()).device
    latents = latents + noise * torch.randn(latents.shape, generator=generator)
    # torch knows no autocast of some devices (DirectML), not even one that is switched off.
    with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
        shown = getattr(model, "colours", model)(latents.to(device))
    error = shown.float() - frames.to(device)
    loss = error.abs().mean() + error.square().mean()
    learner.step(loss, min(1.0, rate, int(learner.average.n_averaged) / WARM_UP))
    return loss.detach()


@torch.inference_mode(False)  # ComfyUI runs nodes in inference mode, where nothing can be trained
def refine(
    model: SubpixelL2R, pairs: Sequence[tuple[Tensor, Tensor]], seconds: float, *, seed: int = 0, noise: float = NOISE,
    device: torch.device | str = "cpu", fresh: Callable[[], tuple[Tensor, Tensor]] | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> SubpixelL2R:
    """Trains a copy of the converter further for about `seconds`, with a network beside the affine map. device: where
    it is trained; it comes back on the CPU. fresh makes another pair, which takes up to half of the time, because few
    pairs are learned by heart; on_progress gets the share that is done and may raise to cancel."""
    generator = torch.Generator().manual_seed(seed)
    # Its rate does not fall: averaged steps of a high one are as exact, and learn few clips less by heart.
    pupil = learner(copy.deepcopy(model) if model.width else model.widened(WIDTH, generator), device)
    pairs, making, begin = [half(pair) for pair in pairs], 0.0, time.monotonic()
    while (share := (time.monotonic() - begin) / seconds) < 1:
        on_progress(share)
        if fresh and len(pairs) < MOST and making <= share / 2:
            pairs.append(half(fresh()))
            making += (time.monotonic() - begin) / seconds - share
        learn(pupil, *crops(pairs, model.scale, generator), generator, noise=noise)
    on_progress(1.0)
    return pupil.result.cpu()


def half(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For keeping many: `crops` gives float32 again."""
    return pair[0].half(), pair[1].half()


def crops(
    pairs: Sequence[tuple[Tensor, Tensor]], scale: int, generator: torch.Generator, count: int = BATCH, side: int = CROP
) -> tuple[Tensor, Tensor]:
    """`count` crops of `side` latents a side, in float32: less arithmetic a step than whole clips, more kinds of
    picture. Each is of a clip of its own, of those that are as long as the first and no smaller."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    def shape(latent: Tensor) -> tuple[int, int]:
        return latent.shape[2], min(side, *latent.shape[-2:])

    length, side = shape(pairs[below(len(pairs))][0])
    alike = [pair for pair in pairs if shape(pair[0]) == (length, side)]
    parts = []
    for _ in range(count):
        latent, frames = alike[below(len(alike))]
        row, y, x = below(len(latent)), below(latent.shape[-2] - side + 1), below(latent.shape[-1] - side + 1)
        parts.append((
            latent[row, :, :, y : y + side, x : x + side],
            frames[row, :, scale * y : scale * (y + side), scale * x : scale * (x + side)],
        ))
    return tuple(torch.stack(each).float() for each in zip(*parts, strict=True))


def psnr(shown: Tensor, frames: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each item of two batches in 0..1, [B]; at most 100."""
    return -10 * (shown - frames).square().flatten(1).mean(1).clamp_min(1e-10).log10()


@torch.no_grad()
def quality(converter: torch.nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """PSNR in dB of a converter, the mean over the clips of pairs."""
    values = [psnr(decode(converter, latent.float()).cpu(), frames.float().cpu()) for latent, frames in pairs]
    return float(torch.cat(values).mean())
