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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...demo.flow import shifted
from ...demo.stream import SHIFT, Stream, block_causal, renoised, teacher_forced
from ...demo.wan_dit import WanTransformer, load_transformer
from ...l2r.learner import Learner
from .causal import GUIDANCE, forcing_loss, save_causal
from .common import STATE
from .flow_matching import FlowHead, flow_matching, frame_weights
from .long_clips import LongClips
from .loop import Record, Task
from .streams import How, Measure, schedule_of

BATCH = 32
CRITIC_STEPS = 5  # of the critic for one of the student (Self-Forcing's code, dfake_gen_update_ratio)
# The papers' 2e-6 and 4e-7 are for 1.3 billion weights; these are a quarter of what this transformer was trained with.
LR, CRITIC_LR, BETAS = 1e-4, 1e-4, (0.0, 0.999)  # betas: Self-Forcing's code
LOWEST, HIGHEST = 0.02, 0.98  # levels at which scores are compared (Self-Forcing's code: 20 to 980 of 1000)
FLOW_DMD, FLOW = 4.0, 1.0  # lambda and gamma (Diagonal Distillation, section 4 and Table 8)
REGULARISED = 1.0  # weight of the flow regression, which the paper leaves open
CLEAN, LAST = "clean", "last"


def rollout(
    model: WanTransformer, context: Tensor, which: Tensor, schedule: Sequence[Sequence[float]], exits: Sequence[int],
    draw: Callable[[], Tensor], history: str, gradient: bool,
) -> Tensor:
    """The x0 predictions [B, 16, chunks, 8, 8] at each chunk's exit step (0-based), with a gradient through that step
    alone where one is wanted. history: what later chunks see of a chunk. CLEAN: its prediction, by a forward of its
    own; LAST: keys and values of its last step, whose input is the prediction before, noised again to the last level.
    """
    stream = Stream(model, context, which)
    chunks = []
    for number, (sigmas, leave) in enumerate(zip(schedule, exits, strict=True)):
        x = draw()
        for step in range(leave + 1):
            with torch.set_grad_enabled(gradient and step == leave):
                x0 = stream.predict(x, sigmas[step])
            if step < leave:
                x = renoised(x0, sigmas[step + 1], draw())
        chunks.append(x0)
        if number + 1 < len(schedule):
            with torch.no_grad():
                if history == CLEAN:
                    stream.predict(x0.detach(), 0.0)
                elif leave + 1 < len(sigmas):
                    stream.predict(renoised(x0.detach(), sigmas[-1], draw()), sigmas[-1])
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
    """digits, last: the student's schedule (see schedule_of). history: see rollout. flow: weight of matching the
    differences (gamma), 0: none. critic_steps: see CRITIC_STEPS. scale: share of the prompts."""

    every, usable_early = 100, True

    def __init__(
        self, digits: str, last: float | None, history: str, flow: float, start: Path, teacher: Path, export: Path,
        seed: int, scale: float, critic_steps: int, name: str,
    ):
        self.out, self.checkpoint, self.name = export, export.with_suffix(".pt"), name
        self.data, self.measured = LongClips(scale, seed), Measure(scale)
        self.settings = {"seed": seed, "digits": digits, "last": last, "history": history, "flow": flow,
                         "start": start.name, "teacher": teacher.name, "critic_steps": critic_steps}  # fmt: skip
        self.history, self.flow, self.critic_steps = history, flow, critic_steps
        self.digits, self.last = digits, last
        latents = self.data.latents.shape[2]
        self.schedule = schedule_of(digits, latents, last)
        self.four_steps = schedule_of("4", latents)
        self.columns = ("matching", "critic", "right")
        self.teacher = load_transformer(teacher).requires_grad_(False)
        self.first = load_transformer(start).requires_grad_(False)  # what the flow regression keeps the student near
        student, critic = load_transformer(start), load_transformer(teacher)
        self.student = Learner(student, torch.optim.AdamW(student.parameters(), LR, BETAS), decay=0.99)
        self.critic = Learner(critic, torch.optim.AdamW(critic.parameters(), CRITIC_LR, BETAS), decay=0.0)
        self.generator = torch.Generator().manual_seed(seed)
        self.parts = {"student": self.student, "critic": self.critic, "generator": self.generator}
        if flow:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                head = FlowHead()
            self.head = Learner(head, torch.optim.AdamW(head.parameters(), LR), decay=0.95)
            self.parts["head"] = self.head
        self.mask = block_causal(latents)
        self.running: dict[str, Tensor] = {}

    def _draw(self, generator: torch.Generator) -> Callable[[], Tensor]:
        return lambda: torch.randn(BATCH, 16, 1, 8, 8, generator=generator)

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
        seed = int(torch.randint(2**62, (), generator=generator))
        draw = self._draw(torch.Generator().manual_seed(seed))
        exits = draw_exits(self.schedule, generator)
        x0 = rollout(self.student.network, context, which, self.schedule, exits, draw, self.history, turn)
        figures = {}
        if turn:
            figures["matching"] = self._teach(x0, context, which, seed)
        figures["critic"] = self._criticise(x0.detach(), context, which)
        for name, value in figures.items():
            self.running[name] = value if name not in self.running else self.running[name].lerp(value, 0.1)
        return {"matching": torch.tensor(torch.nan), **self.running}

    def _teach(self, x0: Tensor, context: Tensor, which: Tensor, seed: int) -> Tensor:
        """A step of the student. Gives the mean size of the direction."""
        with torch.no_grad():
            sigma = self._levels().expand(-1, x0.shape[2])
            noise = torch.randn(x0.shape, generator=self.generator)
            noised = renoised(x0, sigma[:, None, :, None, None], noise)
            fake = self._predictions(self.critic.network, x0, noised, sigma, context, which)
            real = self._predictions(self.teacher, x0, noised, sigma, context, which, GUIDANCE)
            direction = matching_direction(x0, fake, real)
        loss = matching_loss(x0, direction)
        if self.flow:
            wanted = self._wanted_flow(context, which, seed)
            matched = flow_matching(x0, fake, real, frame_weights(fake, real))
            loss = loss + self.flow * (FLOW_DMD * matched + REGULARISED * self._regression(x0, wanted))
        self.student.step(loss)
        if self.flow:  # the head learns by the same regression, after the student, whose gradient came through it
            self.head.step(self._regression(x0.detach(), wanted))
        return direction.abs().mean()

    def _regression(self, x0: Tensor, wanted: Tensor) -> Tensor:
        return (self.head.network(x0.diff(dim=2)) - wanted).square().mean()

    def _wanted_flow(self, context: Tensor, which: Tensor, seed: int) -> Tensor:
        """The averaged head's view of what the start makes of the same noises in four steps."""
        draw = self._draw(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            exits = [len(sigmas) - 1 for sigmas in self.four_steps]
            before = rollout(self.first, context, which, self.four_steps, exits, draw, CLEAN, False)
            return self.head.result(before.diff(dim=2))

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
        how = How(self.digits, self.last, 0.0 if self.history == CLEAN else None)
        return {"right": self.measured.right(self.student.result, how)}

    def export(self, record: Record) -> None:
        recipe = record.described(self.name) | self.settings
        save_causal(self.student.result, self.out, recipe, record, [*self.columns])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"running": copy.copy(self.running)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.running = state["running"]


def self_forcing(
    digits: str = "4", start: Path = STATE / "causal.safetensors", teacher: Path = STATE / "causal.safetensors",
    export: Path = STATE / "self_forcing.safetensors", history: Literal["clean", "last"] = CLEAN,
    critic_steps: int = CRITIC_STEPS, seed: int = 1, scale: float = 1.0,
) -> Distil:
    """The four-step student: distribution matching by self-forcing rollouts from the causal model."""
    task = Distil(digits, None, history, 0.0, start, teacher, export, seed, scale, critic_steps, "self_forcing")
    task.steps = 600
    return task


def diagonal(
    digits: str = "4322222", last: float = 100.0, history: Literal["clean", "last"] = LAST, flow: float = FLOW,
    start: Path = STATE / "self_forcing.safetensors", teacher: Path = STATE / "causal.safetensors",
    export: Path = STATE / "diagonal.safetensors", critic_steps: int = CRITIC_STEPS, seed: int = 1, scale: float = 1.0,
) -> Distil:
    """Diagonal distillation: fewer steps from chunk to chunk, the last step's keys and values as history, and matched
    motion. Stage 1 is the same with digits 4. last: 0 for an even schedule; flow: 0 for no matching of motion."""
    task = Distil(digits, last or None, history, flow, start, teacher, export, seed, scale, critic_steps, "diagonal")
    task.steps = 600
    return task
