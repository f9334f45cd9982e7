"""Noise refiners of streaming students (AutoRefiner, arXiv 2512.11203), and their rivals by the same loop.

path: the paper's, which changes the noise that each step adds. start: one that changes each chunk's first noise, as
refiners for pictures do. weights: the same LoRA on the student itself, which is fine-tuned. Each learns by distribution
matching (dmd: the student's own loss, no bound on the change) or by the demo's latent reward (reward: with half the
squared change as a bound, equation 9). The reward never sees the program that judges clips: where it rises and the
share of right clips falls, it was hacked.

The paper does not say how often its critic learns; here as Self-Forcing's. A start refiner's gradient goes through all
steps to the exit, which the paper leaves open too: anything less would not reach it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...demo.stream import Stream
from ...l2r.learner import Learner
from ...sampling.refiner_file import LORA, MODEL, Described, RefinerSettings, marks
from ...scoring.latent_reward import load_reward
from .causal import CONFIG, save_causal
from .common import REWARD, STATE, STREAMER
from .distil import BATCH, BETAS, CRITIC_STEPS, Distil
from .loop import Record
from .refining import PATH, START, WEIGHTS, Refiner, as_lora, merged, refined_rollout, sampled, with_lora
from .reward import Scored
from .streams import decode

DMD = "dmd"
# Peak rates: the paper's (1e-4 and 2e-5, for 1.3 billion weights at rank 128) times five.
RATES = {DMD: 5e-4, "reward": 1e-4}


class LatentJudge:
    """The demo's latent reward, with a gradient: the sum of its three heads."""

    def __init__(self):
        self.model, self.scored = load_reward(REWARD).requires_grad_(False), Scored()

    def __call__(self, x0: Tensor, sigma: float, texts: Tensor) -> Tensor:
        """x0 [B, 16, F, 8, 8] at a level; texts: features of their prompts -> [B]."""
        return self.model(x0, torch.full([len(x0)], sigma), texts).sum(1)

    def texts(self, prompts: list[str]) -> Tensor:
        return torch.cat([self.scored.texts(prompts[at : at + 100]) for at in range(0, len(prompts), 100)])


class Refine(Distil):
    """what: path (AutoRefiner), start (each chunk's first noise) or weights (LoRA on the student). mode: dmd (matching)
    or reward (the demo's latent reward, and half the squared change as a bound). rank: of the LoRA. level, prediction,
    history, refined: as `RefinerSettings` says of level, prediction, history and steps ("1,3"; empty: all). strength:
    what a unit of reward counts against half the squared change. rate: peak of the learning rate, 0: that of the mode.
    start: the student; teacher: of the matching."""

    steps = 600

    def __init__(
        self, what: Literal["path", "start", "weights"] = PATH, mode: Literal["dmd", "reward"] = DMD, rank: int = 16,
        level: Literal["noise", "step"] = "noise", prediction: bool = True, history: bool = True, refined: str = "",
        strength: float = 1.0, rate: float = 0.0, start: Path = STREAMER,
        teacher: Path = STATE / "causal.safetensors", export: Path = STATE / "refiner.safetensors", digits: str = "4",
        critic_steps: int = CRITIC_STEPS, seed: int = 1, scale: float = 1.0,
    ):
        super().__init__(
            "refiner", digits, None, start, teacher, export, critic_steps=critic_steps, seed=seed, scale=scale
        )
        steps = tuple(int(step) for step in refined.split(",") if step.strip())
        self.what, self.mode, self.strength = what, mode, strength
        self.how = RefinerSettings(level, prediction, history, steps)
        rate = rate or RATES[mode]
        self.settings |= {"what": what, "mode": mode, "rank": rank, "told": level, "prediction": prediction,
                          "seen": history, "refined": refined, "strength": strength, "rate": rate}  # fmt: skip
        network = with_lora(self.first, rank, seed, silent=what != WEIGHTS)
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        betas = BETAS if mode == DMD else (0.9, 0.999)
        optimiser = torch.optim.AdamW(learned, rate, betas, weight_decay=0.0)
        self.student = Learner(network, optimiser, decay=0.99)
        self.parts["student"] = self.student
        self.judge = LatentJudge()
        self.columns = ("right", "reward", "change", "matching" if mode == DMD else "trained_reward")
        if mode != DMD:
            del self.parts["critic"], self.critic
            self.rows = torch.tensor([row for row in range(len(self.data)) if not self.data.which[row].any()])
            self.features = self.judge.texts([self.data.prompts[row][0] for row in self.rows.tolist()])

    def roll(self, context: Tensor, which: Tensor, gradient: bool) -> tuple[Tensor, int, list[Tensor]]:
        """Clips whose chunks all stop at one step, that step, and the changes that have a gradient (algorithm 1)."""
        generator, most = self.generator, max(map(len, self.schedule))
        stops = self.how.steps or range(int(self.what == PATH), most)
        stop = stops[int(torch.randint(len(stops), (), generator=generator))]
        model = self.student.network if self.what == WEIGHTS else self.first
        refiner = None if self.what == WEIGHTS else Refiner(self.student.network, context, self.how)
        shape = (len(which), 16, 1, 8, 8)
        x0 = refined_rollout(
            Stream(model, context, which), self.schedule, lambda: torch.randn(shape, generator=generator), refiner,
            self.what == START, stop, gradient,
        )  # fmt: skip
        return x0, stop, [change for change in (refiner.changes if refiner else []) if change.requires_grad]

    def update(self, step: int, steps: int) -> dict[str, Any]:
        if self.mode == DMD:
            rows = torch.randint(len(self.data), (BATCH,), generator=self.generator)
            context, which = self.data.texts(rows.tolist()), self.data.which[rows]
            turn = step % self.critic_steps == 0
            x0, _, changes = self.roll(context, which, turn)
            figures = {"matching": self._teach(x0, context, which, x0)} if turn else {}
            figures["critic"] = self._criticise(x0.detach(), context, which)
        else:
            picked = torch.randint(len(self.rows), (BATCH,), generator=self.generator)
            rows = self.rows[picked]
            context, which = self.data.texts(rows.tolist()), self.data.which[rows]
            x0, stop, changes = self.roll(context, which, True)
            reward = self.judge(x0, self.schedule[0][stop], self.features[picked]).mean()
            bound = sum((0.5 * change.square().sum((1, 2, 3, 4)).mean() for change in changes), torch.zeros(()))
            self.student.step(bound - self.strength * reward)
            figures = {"trained_reward": reward.detach(), "bound": bound.detach()}
        for name, value in figures.items():
            self.running[name] = value if name not in self.running else self.running[name].lerp(value, 0.1)
        return dict(self.running)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """On validation prompts: the judge's right clips, the reward, and how large the change of the noise is."""
        streams = self.measured
        latents, _, changes = sampled(streams, self.first, self.student.result, self.how, self.what, self.digits)
        judged = streams.judged(decode(streams.vae, latents))
        rights = [all(each.right for each in segments) for segments in judged]
        texts = self.judge.texts([script.prompts[0] for script in streams.scripts])
        reward = self.judge(latents, self.schedule[0][-1], texts).mean()
        return {"right": sum(rights) / len(rights), "reward": reward.item(),
                "change": changes.square().mean().sqrt().item()}  # fmt: skip

    def export(self, record: Record) -> None:
        """A student, or a refiner in both its forms: as a whole model, and beside it as a LoRA."""
        recipe, network = record.described(self.name) | self.settings, self.student.result
        base = len(self.first.blocks), self.first.dim, marks(self.first), self.settings["start"]
        described = {kind: Described(self.out.stem, kind, *base, self.how).as_metadata() for kind in (MODEL, LORA)}
        own = {} if self.what == WEIGHTS else described[MODEL]
        save_causal(merged(network, self.first), self.out, recipe, record, [*self.columns], CONFIG | own)
        if self.what == PATH:
            lora = {name: weight.half().contiguous() for name, weight in as_lora(network).items()}
            save_file(lora, self.out.with_name(f"{self.out.stem}_lora.safetensors"), described[LORA])
