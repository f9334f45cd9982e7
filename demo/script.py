"""Clips of any length: one scene, whose objects go on, turn back or stop where its prompt says so.

A motion of the world fills a segment; then the prompt changes, and with it what it says of the motion. So nothing has
to be guessed, every segment can be judged against its own scene, and there is always room: objects that turn back
retrace their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .captions import caption
from .judge import Judgement, judge
from .world import TRAVEL, Layout, Scene, arrange, draw

FRAMES = 25  # of a clip that the streaming family is trained on
LATENTS = 7
SEGMENT = 6  # latents of each further segment of a long clip
ON, STOP, BACK = 1, 0, -1
_OTHER_WAY = {"left": "right", "right": "left", "up": "down", "down": "up", "still": "still", None: None}


def frames_of(latents: int) -> int:
    """The first latent is one frame, each other four."""
    return 4 * latents - 3


def directed(scene: Scene, direction: int) -> Scene:
    """The scene as a prompt states it while its objects go ON, BACK or STOP; motions that it leaves open stay open."""
    if direction == ON:
        return scene
    return replace(scene, objects=tuple(
        replace(thing, motion=_OTHER_WAY[thing.motion] if direction == BACK else thing.motion and "still")
        for thing in scene.objects
    ))  # fmt: skip


@dataclass(frozen=True)
class Script:
    """scene: as its objects set out. segments: (latents, direction) each; together they stay within the way of one
    segment, there and back. variant: of the captions' wording."""

    scene: Scene
    segments: tuple[tuple[int, int], ...] = ((LATENTS, ON),)
    variant: int = 0

    @property
    def latents(self) -> int:
        return sum(latents for latents, _ in self.segments)

    @property
    def scenes(self) -> list[Scene]:
        """What each segment shows."""
        return [directed(self.scene, direction) for _, direction in self.segments]

    @property
    def prompts(self) -> list[str]:
        return [caption(scene, self.variant) for scene in self.scenes]

    @property
    def which(self) -> list[int]:
        """The segment of each latent."""
        return [number for number, (latents, _) in enumerate(self.segments) for _ in range(latents)]

    @property
    def times(self) -> Tensor:
        """[frames], as `draw` takes them; a whole way is as long as a clip of FRAMES."""
        directions = [direction for latents, direction in self.segments for _ in range(4 * latents)]
        steps = torch.tensor([0, *directions[4:]], dtype=torch.float32)
        return (steps.cumsum(0) / (FRAMES - 1)).clamp(0, 1)

    def spans(self) -> list[slice]:
        """The frames of each segment, from the frame before it, where its motion begins."""
        ends, spans = 0, []
        for latents, _ in self.segments:
            first = max(0, frames_of(ends) - 1) if ends else 0
            ends += latents
            spans.append(slice(first, frames_of(ends)))
        return spans


def there_and_back(scene: Scene, latents: int, variant: int = 0) -> Script:
    """A script of that length, whose objects turn whenever they have come as far as a clip of LATENTS lets them."""
    segments, direction = [(min(latents, LATENTS), ON)], BACK
    while (left := latents - sum(length for length, _ in segments)) > 0:
        segments.append((min(left, SEGMENT), direction))
        direction = -direction
    return Script(scene, tuple(segments), variant)


def turning(scene: Scene, latents: int, variant: int = 0) -> Script:
    """A script of that length, whose objects turn back, stop or set out half way, one of them by its variant."""
    first = (latents + 1) // 2
    before, after = ((ON, BACK), (ON, STOP), (STOP, ON))[variant % 3]
    return Script(scene, ((first, before), (latents - first, after)), variant)


def place(scripts: Sequence[Script], generator: torch.Generator) -> list[Layout | None]:
    """Layouts with room for the whole way; None where there is none."""
    layouts: list[Layout | None] = []
    for script in scripts:
        try:
            layouts.append(arrange(script.scene, generator, TRAVEL * (FRAMES - 1) / 16))
        except ValueError:
            layouts.append(None)
    return layouts


def render(scripts: Sequence[Script], layouts: Sequence[Layout]) -> Tensor:
    """Clips [B, F, 64, 64, 3] uint8 of scripts of one length."""
    return draw(layouts, frames_of(scripts[0].latents), torch.stack([script.times for script in scripts]))


def judge_script(clip: Tensor, script: Script) -> list[Judgement]:
    """The judgement of each segment of a clip [F, 64, 64, 3] against what its prompt states."""
    return [judge(clip[span], scene) for span, scene in zip(script.spans(), script.scenes, strict=True)]
