"""ViCLIP as a scorer: VBench's "overall consistency" of frames and a prompt (paper, A.2)."""

import html
import unicodedata
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .preprocess import middle_frames, vbench_frames
from .viclip import ViCLIP

START, END = 49406, 49407
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'})


def clean_text(text: str) -> str:
    """What CLIP's tokenizer does before it splits words: plain quotes, ligatures and wide letters, no HTML entities,
    single spaces, lower case. (Upstream's ftfy also repairs wrongly decoded text; that is left as it is.)
    """
    text = html.unescape(html.unescape(text)).translate(_QUOTES)
    compatible = "\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
    text = "".join(
        unicodedata.normalize("NFKC", c) if c in compatible or "\uff01" <= c <= "\uffef" else c for c in text
    )
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def context_ids(ids: Sequence[int], context: int) -> list[int]:
    """CLIP ids with start and end, cut to the context (the last is then the end) and padded with zeros."""
    if len(ids) > context:
        ids = [*ids[: context - 1], END]
    return [*ids, *[0] * (context - len(ids))]


class ViCLIPScorer:
    """tokenize: text to CLIP BPE ids with start (49406) and end (49407), e.g. transformers' CLIPTokenizer over
    ComfyUI's own vocabulary. Text features are cached by prompt: they do not change within a run (A.2).
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
        """[D], float32, L2-normalised. Raises ValueError for an empty prompt."""
        text = clean_text(prompt)
        if not text:
            raise ValueError(f"{self.name}: the prompt is empty, so nothing can be scored; write what should be seen.")
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
