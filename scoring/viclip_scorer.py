"""ViCLIP as a scorer: VBench's "overall consistency" of frames and a prompt (paper, A.2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .pieces import Reading, aligned, read, together
from .preprocess import middle_frames, vbench_frames
from .tokens import clean_text, context_ids
from .viclip import ViCLIP
from .words import plain


class ViCLIPScorer:
    """tokenize: text of clean_text to CLIP's ids with start and end, as clip_tokenizer of tokens.py gives them. Text
    features are cached by prompt: they do not change within a run (A.2).
    """

    def __init__(self, model: ViCLIP, tokenize: Callable[[str], Sequence[int]], device: torch.device | str = "cpu"):
        self.model = model.to(device)
        self.device = torch.device(device)
        self.config = model.config
        self.name, self.tau, self.delta = self.config.name, self.config.tau, self.config.delta
        self.scale = self.config.scale
        self._tokenize = tokenize
        self._readings: dict[str, Reading] = {}
        self._texts: dict[tuple[str, ...], Tensor] = {}

    def reading(self, prompt: str) -> Reading:
        """How the prompt's words are read, whole or in pieces."""
        text = clean_text(plain(prompt))
        if text not in self._readings:
            if len(self._readings) >= 64:  # far more than a run needs; keeps a long-lived server small
                self._readings.clear()
                self._texts.clear()
            self._readings[text] = read(text, self._tokenize, self.config.context)
        return self._readings[text]

    @torch.no_grad()
    def encode_text(self, prompt: str) -> Tensor:
        """float32, of the prompt's words alone: [D], L2-normalised, or [P, D] of `together` where they are read in P
        pieces. Raises ValueError where it has none."""
        reading = self.reading(prompt)
        if not reading.pieces:
            raise ValueError(f"{self.name}: the prompt has no words, so nothing is scored; write what should be seen.")
        if reading.pieces not in self._texts:
            ids = torch.tensor([context_ids(ids, self.config.context) for ids in reading.ids], device=self.device)
            self._texts[reading.pieces] = together(F.normalize(self.model.encode_text(ids).float(), dim=-1), reading)
        return self._texts[reading.pieces]

    def looks_at(self, count: int) -> list[int]:
        """Distinct frames: a clip of fewer than the model takes is made up to them by its last."""
        return sorted(set(middle_frames(count, self.config.frames)))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, 3] in 0..1 to a feature [D], float32, L2-normalised."""
        clip = vbench_frames(frames.to(self.device), self.config.image_size, self.config.frames)
        return F.normalize(self.model.encode_vision(clip[None])[0].float(), dim=-1)

    def score(self, frames: Tensor, text: Tensor) -> Tensor:
        """Cosine, as VBench computes it: no temperature, no template; of a text in pieces see `aligned`. Without
        dimensions, on its own device."""
        frames, text = self.encode_frames(frames), text.to(self.device)
        return frames @ text if text.ndim == 1 else aligned(frames, text, self.scale)
