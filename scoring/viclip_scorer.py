"""ViCLIP as a scorer: VBench's "overall consistency" of frames and a prompt (paper, A.2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode_text(self, prompt: str) -> Tensor:
        """[D], float32, L2-normalised, of the prompt's words alone. Raises ValueError where it has none."""
        text = clean_text(plain(prompt))
        if not text:
            raise ValueError(f"{self.name}: the prompt has no words, so nothing is scored; write what should be seen.")
        if text not in self._texts:
            if len(self._texts) >= 64:  # far more than a run needs; keeps a long-lived server small
                self._texts.clear()
            ids = torch.tensor([context_ids(self._tokenize(text), self.config.context)], device=self.device)
            self._texts[text] = F.normalize(self.model.encode_text(ids)[0].float(), dim=-1)
        return self._texts[text]

    def looks_at(self, count: int) -> list[int]:
        """Distinct frames: a clip of fewer than the model takes is made up to them by its last."""
        return sorted(set(middle_frames(count, self.config.frames)))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, 3] in 0..1 to a feature [D], float32, L2-normalised."""
        clip = vbench_frames(frames.to(self.device), self.config.image_size, self.config.frames)
        return F.normalize(self.model.encode_vision(clip[None])[0].float(), dim=-1)

    def score(self, frames: Tensor, text: Tensor) -> float:
        """Cosine, as VBench computes it: no temperature, no template."""
        return float(self.encode_frames(frames) @ text.to(self.device))
