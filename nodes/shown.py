"""What a report shows on its own node: a picture, moving clips and lines of text (web/reports.js)."""

from collections.abc import Callable

import torch
from comfy_api.latest import io, ui

from ..panel.pictures import thumbnail
from ..sampling.guard import harmless
from ..trials.picture import Card

PREFIX = "foresight_report"  # in ComfyUI's folder for what need not be kept
FRAMES, SECONDS = 48, 5  # of a moving clip, at most; and how long it takes where its frames are few


def shown(
    text: str, picture: torch.Tensor | None, cards: Callable[[], list[Card]], kept: ui.SavedResult | None = None
) -> dict:
    """The `ui` of a node. picture: [1, H, W, 3], or None; kept: where it has been saved, if it was. What cannot be shown
    is left out: the report itself stands."""
    on_node = {"text": [text]}
    with harmless("the report's picture is not shown"):
        if kept is None and picture is not None:
            (kept,) = ui.ImageSaveHelper.save_images(picture, PREFIX, io.FolderType.temp, None)
        on_node |= {"images": [kept]} if kept else {}
    with harmless("the report's clips are not shown"):
        on_node["foresight_clips"] = [moving(card) for card in cards()]
    return on_node


def moving(card: Card) -> dict:
    """A card as an animated WebP: where it is, and what is to be said of it."""
    frames = torch.as_tensor(card.frames)
    frames = frames[torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()]
    small = torch.from_numpy(thumbnail(frames.float() / (255 if frames.dtype == torch.uint8 else 1))).float() / 255
    rate = max(4, len(small) / SECONDS)
    saved = ui.ImageSaveHelper.save_animated_webp(small, PREFIX, io.FolderType.temp, None, rate, False, 85, 0)
    said = {name: getattr(getattr(card, name), "parts", None) for name in ("name", "about")}  # for pages in other languages
    return {**saved, "name": card.name, "about": card.about, "said": said, "finished": card.finished}
