"""Distribution matching distillation of streams by their own rollouts: the student makes clips chunk by chunk beside
its own history, as it will, and is moved to where a teacher and a critic of its own clips disagree.

Self-Forcing (arXiv 2506.08009, code of guandeh17/Self-Forcing) with one list of levels for all chunks; Diagonal
Distillation (paper, sections 3.2 to 3.4; second generation of its code, commit 24ef1c9) with lists that grow shorter,
the last step's keys and values as history, and the same matching on differences of neighbouring latents. The teacher is
the causal model that the student starts from, as in Causal-Forcing: its score of a latent is one beside the latents
before it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...demo.flow import shifted
from ...demo.stream import SHIFT, Stream, block_causal, renoised, teacher_forced
from ...demo.wan_dit import WanTransformer, load_transformer
from ...l2r.learner import Learner
from .causal import forcing_loss, save_causal
from .common import DIAGONAL, STATE, STREAMER, WEIGHTS
from .flow_matching import FlowHead, Kind, flow_matching, frame_weights, motion
from .long_clips import LongClips
from .loop import Record, Task
from .streams import How, Measure, schedule_of

BATCH = 32
CRITIC_STEPS = 5  # of the critic for one of the student (Self-Forcing's code, dfake_gen_update_ratio)
# The papers' 2e-6 and 4e-7 are for 1.3 billion weights. This transformer was trained with 4e-4, and the critic has to
# follow.
LR, CRITIC_LR, BETAS = 5e-5, 4e-4, (0.0, 0.999)  # betas: Self-Forcing's code
# ComfyUI's CFG of the real score. At 2, where this family samples best, contrast rises (latents of 1.16 times the
# spread) and a third of the validation clips was right after 300 to 500 steps; with 1.5 it was a half after 100.
GUIDED = 1.5
LOWEST, HIGHEST = 0.02, 0.98  # levels at which scores are compared (Self-Forcing's code: 20 to 980 of 1000)
# Diagonal Distillation, equation 12: SPATIAL L_DMD + REGRESSION L_reg + FLOW (FLOW_DMD L_DMD^flow + L_reg^flow).
SPATIAL, REGRESSION, FLOW_DMD, FLOW = 4.0, 1.0, 4.0, 1.0
CLEAN, LAST, NOISY = "clean", "last", "noisy"
History = Literal["clean", "last", "noisy"]


def step_noise(steps: int, clips: int, chunks: int, generator: torch.Generator) -> Tensor:
    """[steps + 1, clips, 16, chunks, 8, 8]: the noise of every step of every chunk, and last that of the history. Two
    rollouts of the same noise make clips that can be compared, wherever each of them leaves."""
    return torch.randn(steps + 1, clips, 16, chunks, 8, 8, generator=generator)


def rollout(
    model: WanTransformer, context: Tensor, which: Tensor, schedule: Sequence[Sequence[float]], exits: Sequence[int],
    noise: Tensor, context_noise: float | None, gradient: bool,
) -> Tensor:
    """The x0 predictions [B, 16, chunks, 8, 8] at each chunk's exit step (0-based), with a gradient through that step
    alone where one is wanted. noise: see step_noise. context_noise: what later chunks see of a chunk, as for
    `sample_stream`: its prediction at that level, by a forward of its own; None: keys and values of its last step,
    whose input is the prediction before, noised again to the last level."""
    stream = Stream(model, context, which)
    chunks = []
    for number, (sigmas, leave) in enumerate(zip(schedule, exits, strict=True)):
        own = noise[:, :, :, number : number + 1]
        x = own[0]
        for step in range(leave + 1):
            with torch.set_grad_enabled(gradient and step == leave):
                x0 = stream.predict(x, sigmas[step])
            if step < leave:
                x = renoised(x0, sigmas[step + 1], own[step + 1])
        chunks.append(x0)
        if number + 1 < len(schedule):
            with torch.no_grad():
                if context_noise is not None:
                    stream.predict(renoised(x0.detach(), context_noise, own[-1]), context_noise)
                elif leave + 1 < len(sigmas):
                    stream.predict(renoised(x0.detach(), sigmas[-1], own[len(sigmas) - 1]), sigmas[-1])
            stream.keep()
    return torch.cat(chunks, 2)


def draw_exits(schedule: Sequence[Sequence[float]], generator: torch.Generator) -> list[int]:
    """A step of each chunk's own list, so that every level of every chunk is trained."""
    return [int(torch.randint(len(sigmas), (), generator=generator)) for sigmas in schedule]


def matching_direction(x: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Where distribution matching moves samples away from: (fake - real) / mean |x - real|, by clip, of x0 predictions
    of x noised (DMD, arXiv 2311.18828, equations 7 and 8, as in Self-Forcing's code)."""
    over = tuple(range(1, x.ndim))
    return (fake - real) / (x - real).abs().mean(over, keepdim=True).clamp(min=1e-6)


def matching_loss(x: Tensor, direction: Tensor) -> Tensor:
    """Half the squared distance to a target one direction away; its gradient is the direction, up to the mean."""
    target = (x.detach() - direction).double()
    return 0.5 * (x.double() - target).square().mean()


class Distil(Task):
    """digits, last: the student's schedule (see schedule_of). history: what later chunks see of a chunk: its CLEAN
    prediction, the keys and values of its LAST step, or the prediction at a `level` (sigma) of noise. spatial,
    regression, flow: weights of the losses (see SPATIAL), 0: none. kind: of motion (see `motion`). critic_steps: see
    CRITIC_STEPS. guidance: see GUIDED. both_ways: the teacher is one of whole clips (`causal --both-ways`). scale:
    share of the prompts."""

    every, usable_early = 100, True

    def __init__(
        self, name: str, digits: str, last: float | None, start: Path, teacher: Path, export: Path, *,
        history: History = CLEAN, level: float = 0.0, spatial: float = 1.0, regression: float = 0.0, flow: float = 0.0,
        kind: Kind = "head", critic_steps: int = CRITIC_STEPS, guidance: float = GUIDED, both_ways: bool = False,
        seed: int = 1, scale: float = 1.0,
    ):
        folder = STATE if export.is_relative_to(WEIGHTS) else export.parent  # only the result belongs to the pack
        self.out, self.checkpoint, self.name = export, folder / f"{export.stem}.pt", name
        self.data, self.measured = LongClips(scale, seed), Measure(scale)
        self.settings = {"seed": seed, "digits": digits, "last": last, "history": history, "level": level,
                         "spatial": spatial, "regression": regression, "flow": flow, "kind": kind, "start": start.name,
                         "teacher": teacher.name, "critic_steps": critic_steps, "guidance": guidance}  # fmt: skip
        self.context_noise = {CLEAN: 0.0, LAST: None, NOISY: level}[history]
        self.spatial, self.regression, self.flow, self.kind = spatial, regression, flow, kind
        self.critic_steps, self.guidance = critic_steps, guidance
        self.digits, self.last = digits, last
        latents = self.data.latents.shape[2]
        self.schedule = schedule_of(digits, latents, last)
        self.four_steps = schedule_of("4", latents)
        self.deepest = max(len(sigmas) for sigmas in (*self.schedule, *self.four_steps))
        self.columns = ("matching", "critic", "right")
        self.teacher = load_transformer(teacher).requires_grad_(False)
        self.first = load_transformer(start).requires_grad_(False)  # what the regressions keep the student near
        student, critic = load_transformer(start), load_transformer(teacher)
        self.student = Learner(student, torch.optim.AdamW(student.parameters(), LR, BETAS), decay=0.99)
        self.critic = Learner(critic, torch.optim.AdamW(critic.parameters(), CRITIC_LR, BETAS), decay=0.0)
        self.generator = torch.Generator().manual_seed(seed)
        self.parts = {"student": self.student, "critic": self.critic, "generator": self.generator}
        if flow and kind == "head":
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                head = FlowHead()
            self.head = Learner(head, torch.optim.AdamW(head.parameters(), LR), decay=0.95)
            self.parts["head"] = self.head
        self.mask = None if both_ways else block_causal(latents)
        self.running: dict[str, Tensor] = {}

    def _predictions(self, model: nn.Module, x0: Tensor, noised: Tensor, sigma: Tensor, context: Tensor, which: Tensor,
                     cfg: float = 1.0) -> Tensor:  # fmt: skip
        rows = 2 if cfg > 1 else 1
        both = torch.cat([context, torch.zeros_like(context)]) if cfg > 1 else context
        velocity = teacher_forced(
            model, x0.repeat(rows, 1, 1, 1, 1), noised.repeat(rows, 1, 1, 1, 1), sigma.repeat(rows, 1), both,
            which.repeat(rows, 1), self.mask,
        )  # fmt: skip
        if cfg > 1:
            positive, negative = velocity.chunk(2)
            velocity = negative + cfg * (positive - negative)
        return noised - sigma[:, None, :, None, None] * velocity

    def _levels(self) -> Tensor:
        """[BATCH, 1], the same for all latents of a clip: uniform times, warped as the schedules are."""
        return shifted(torch.rand(BATCH, 1, generator=self.generator), SHIFT).clamp(LOWEST, HIGHEST)

    def update(self, step: int, steps: int) -> dict[str, Any]:
        generator = self.generator
        rows = torch.randint(len(self.data), (BATCH,), generator=generator)
        context, which = self.data.texts(rows.tolist()), self.data.which[rows]
        turn = step % self.critic_steps == 0
        exits, noise = draw_exits(self.schedule, generator), step_noise(self.deepest, BATCH, which.shape[1], generator)
        x0 = rollout(self.student.network, context, which, self.schedule, exits, noise, self.context_noise, turn)
        figures = {}
        if turn:
            figures["matching"] = self._teach(x0, context, which, noise)
        figures["critic"] = self._criticise(x0.detach(), context, which)
        for name, value in figures.items():
            self.running[name] = value if name not in self.running else self.running[name].lerp(value, 0.1)
        return {"matching": torch.tensor(torch.nan), **self.running}

    def _teach(self, x0: Tensor, context: Tensor, which: Tensor, rolled: Tensor) -> Tensor:
        """A step of the student, whose clips come of the noise `rolled`. Gives the mean size of the direction."""
        with torch.no_grad():
            sigma = self._levels().expand(-1, x0.shape[2])
            noise = torch.randn(x0.shape, generator=self.generator)
            noised = renoised(x0, sigma[:, None, :, None, None], noise)
            fake = self._predictions(self.critic.network, x0, noised, sigma, context, which)
            real = self._predictions(self.teacher, x0, noised, sigma, context, which, self.guidance)
            direction = matching_direction(x0, fake, real)
        loss = self.spatial * matching_loss(x0, direction)
        if self.regression or self.flow:
            wanted = self._first_clips(context, which, rolled)
            loss = loss + self.regression * (x0 - wanted).square().mean()
        if self.flow:
            matched = flow_matching(x0, fake, real, frame_weights(fake, real), self.kind)
            loss = loss + self.flow * (FLOW_DMD * matched + self._flow_regression(x0, wanted))
        self.student.step(loss)
        if "head" in self.parts:  # it learns by the same regression, after the student, whose gradient came through it
            self.head.step(self._flow_regression(x0.detach(), wanted))
        return direction.abs().mean()

    def _flow_regression(self, x0: Tensor, wanted: Tensor) -> Tensor:
        """Through the head, and on the other side through its running average."""
        own, other = motion(x0, self.kind), motion(wanted, self.kind)
        if "head" in self.parts:
            own, other = self.head.network(own), self.head.result(other).detach()
        return (own - other).square().mean()

    def _first_clips(self, context: Tensor, which: Tensor, noise: Tensor) -> Tensor:
        """What the start makes of the same noise in four steps."""
        exits = [len(sigmas) - 1 for sigmas in self.four_steps]
        with torch.no_grad():
            return rollout(self.first, context, which, self.four_steps, exits, noise, 0.0, False)

    def _criticise(self, x0: Tensor, context: Tensor, which: Tensor) -> Tensor:
        """A step of the critic, which learns the student's clips as the teacher has learnt the rendered ones."""
        sigma = self._levels().expand(-1, x0.shape[2])
        noise = torch.randn(x0.shape, generator=self.generator)
        clean = torch.zeros(len(x0), 1)
        loss = forcing_loss(self.critic.network, x0, sigma, noise, context, which, clean, noise, self.mask)
        self.critic.step(loss)
        return loss.detach()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        return {"right": self.measured.right(self.student.result, How(self.digits, self.last, self.context_noise))}

    def export(self, record: Record) -> None:
        recipe = record.described(self.name) | self.settings
        save_causal(self.student.result, self.out, recipe, record, [*self.columns])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"running": copy.copy(self.running)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.running = state["running"]


def self_forcing(
    digits: str = "4", start: Path = STATE / "consistency.safetensors", teacher: Path = STATE / "causal.safetensors",
    export: Path = STREAMER, history: History = CLEAN, level: float = 0.1,
    critic_steps: int = CRITIC_STEPS, guidance: float = GUIDED, both_ways: bool = False, seed: int = 1,
    scale: float = 1.0,
) -> Distil:
    """The four-step student: distribution matching by self-forcing rollouts, from the consistency model."""
    task = Distil("self_forcing", digits, None, start, teacher, export, history=history, level=level,
                  critic_steps=critic_steps, guidance=guidance, both_ways=both_ways, seed=seed,
                  scale=scale)  # fmt: skip
    task.steps = 600
    return task


def diagonal(
    digits: str = "4322222", last: float = 100.0, history: History = LAST, level: float = 0.1, flow: float = FLOW,
    kind: Kind = "head", regression: float = REGRESSION, start: Path = STREAMER,
    teacher: Path = STATE / "causal.safetensors", export: Path = DIAGONAL,
    critic_steps: int = CRITIC_STEPS, guidance: float = GUIDED, both_ways: bool = False, seed: int = 1,
    scale: float = 1.0,
) -> Distil:
    """Diagonal distillation: fewer steps from chunk to chunk, the last step's keys and values as history, and matched
    motion. Stage 1 is the same with digits 4. last: timestep of each chunk's last step, 0 for an even schedule. level:
    of a noisy history, a sigma: the paper's context noise of 100 is 0.1, or 0.357 where it is warped."""
    task = Distil("diagonal", digits, last or None, start, teacher, export, history=history, level=level,
                  spatial=SPATIAL, regression=regression, flow=flow, kind=kind, critic_steps=critic_steps,
                  guidance=guidance, both_ways=both_ways, seed=seed, scale=scale)  # fmt: skip
    task.steps = 600
    return task
