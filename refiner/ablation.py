"""Rewording without a model or a network. Ours, not the paper's, which asks a vision-language model.

The scorer that judged the run also knows which phrase it missed: leave a phrase out, and if the preview fits what is
left better than the whole prompt, the preview lacks that phrase. It is then stated first and weighted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..scoring.scorer import Scorer
from ..scoring.words import plain
from ..trials.foreign import quoted
from .base import Rewording, RewordingError, RewordingRequest
from .phrases import emphasise, split_phrases, without


@dataclass(frozen=True)
class AblationSettings:
    """max_phrases and max_characters bound the work: one rewording scores at most max_phrases + 1 texts."""

    max_phrases: int = 12  # an ordinary prompt has 3 to 10; each costs one inspection (40 ms in the paper's set-up)
    max_characters: int = 3000  # more than encoders read; parting takes time by the square of the length
    weight: float = 1.3  # clearly felt by T5-like encoders without breaking the rest of the prompt
    max_weight: float = 1.5  # weights that are already there are multiplied up to this; beyond it pictures burn
    first: bool = True  # state the phrase first where its sentence allows it; False: weight it where it stands

    def __post_init__(self):
        if self.max_phrases < 2:
            raise ValueError(f"max_phrases is {self.max_phrases}: set it to 2 or more.")
        if not 1 < self.weight <= self.max_weight:
            raise ValueError(f"weight is {self.weight}: set it above 1 and up to max_weight ({self.max_weight}).")


class AblationReworder:
    """A Reworder that asks the scorer alone. Deterministic; the negative prompt is given back as it came.

    >>> AblationReworder(scorer).reword(request).prompt
    '(above a small blue square:1.3), a red circle moves left on a grey background'
    """

    name = "ablation"

    def __init__(self, scorer: Scorer, settings: AblationSettings | None = None):
        self.scorer = scorer
        self.settings = settings or AblationSettings()

    def reword(self, request: RewordingRequest) -> Rewording:
        """Evidence: {"phrase", "score_without", "difference"} by falling difference. RewordingError: see base."""
        settings = self.settings
        if request.preview is None:
            raise RewordingError("there is no preview to compare the prompt with")
        if len(request.prompt) > settings.max_characters:
            raise RewordingError(
                f"the prompt has {len(request.prompt)} characters, and at most {settings.max_characters} are parted"
            )
        phrases = split_phrases(request.prompt, settings.max_phrases)
        worded = [i for i, phrase in enumerate(phrases) if plain(phrase.text)]  # the others are syntax alone
        if len(worded) < 2:
            what = "is empty" if not worded else "cannot be parted into phrases"
            raise RewordingError(f"the prompt {what}, so nothing can be left out of it: {quoted(request.prompt)}")
        whole = self._score(request.preview, request.prompt)
        scores = {i: self._score(request.preview, without(phrases, i)) for i in worded}
        order = sorted(worded, key=lambda i: -scores[i])  # stable: the earlier phrase wins a tie
        worst = order[0]
        prompt = emphasise(phrases, worst, settings.weight, settings.max_weight, settings.first)
        phrase = plain(phrases[worst].text)
        if prompt == request.prompt.strip():
            raise RewordingError(f"the preview lacks {quoted(phrase)}, which already carries the highest weight")
        return Rewording(
            prompt=prompt,
            negative=request.negative,
            reasoning=_reasoning(phrase, whole, scores[worst]),
            evidence=tuple(
                {"phrase": plain(phrases[i].text), "score_without": scores[i], "difference": scores[i] - whole}
                for i in order
            ),
        )

    def _score(self, preview: Tensor, text: str) -> float:
        score = float(self.scorer.score(preview, self.scorer.encode_text(text)))
        if not math.isfinite(score):
            raise RewordingError(f"{self.scorer.name} scored the preview {score} for {quoted(plain(text))}")
        return score


def _reasoning(phrase: str, whole: float, rest: float) -> str:
    scores = f"score {rest:.3f} without it, {whole:.3f} with it"
    if rest > whole:
        return f'The preview lacks "{phrase}" most ({scores}), so that is emphasised.'
    return f'No phrase is clearly missing; the preview shows "{phrase}" least ({scores}), so that is emphasised.'
