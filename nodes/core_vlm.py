"""A vision-language model that ComfyUI itself runs: CLIP.generate of newer cores (Qwen-VL, Gemma and what comes)."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management

from ..refiner.answer import Similarity, rewording_of
from ..refiner.base import RewordingError
from ..refiner.pictures import choose_frames, contact_sheet
from ..refiner.template import instruction
from ..trials.foreign import printable
from .compat import generates

FRAMES = 4  # of the preview, as one sheet: every model takes one picture
MOST_TOKENS = 512  # of the answer; the template asks for three sentences


def require_generation(vlm) -> None:
    """ValueError where `vlm` cannot generate text, with what to connect instead."""
    if vlm is None:
        raise ValueError("vlm is not connected: the core back end needs a CLIP that generates text, e.g. Qwen3-VL.")
    if not generates(vlm):
        raise ValueError("the core back end needs a newer ComfyUI (tested with 0.33): this one's CLIP generates no text.")


@dataclass
class CoreReworder:
    """A Reworder. Core loads the model, and makes room for it, as for any other; it is unloaded before this returns."""

    vlm: Any
    similar: Similarity | None
    name = "core"

    def reword(self, request):
        if request.preview is None:
            raise RewordingError("there is no preview to show to the model")
        sheet = contact_sheet(choose_frames(request.preview, FRAMES).float())[None]
        try:
            tokens = self.vlm.tokenize(instruction(request, tiled=True), image=sheet, min_length=1, thinking=False)
            ids = self.vlm.generate(tokens, do_sample=False, max_length=MOST_TOKENS)
            answer = self.vlm.decode(ids)
        except AttributeError as error:  # core's CLIP has generate() whatever it holds; T5 and CLIP-L cannot
            raise RewordingError(f"the model at vlm cannot generate text ({printable(str(error))})") from None
        finally:
            release(self.vlm.patcher)
        usage = {"completion_tokens": len(ids)}
        try:
            rewording = rewording_of(answer, request, self.similar)
        except RewordingError as error:
            error.usage = usage
            raise
        rewording.usage.update(usage)
        return rewording


def release(patcher) -> None:
    """Unloads one model, so that the video model finds the memory that it had before."""
    comfy.model_management.unload_model_and_clones(patcher)
