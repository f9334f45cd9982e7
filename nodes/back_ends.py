"""Who rewords the prompt in Trial 2: the back ends of refiner/, as a widget names them."""

import os
from pathlib import Path

import comfy.model_management
import folder_paths
import torch.nn.functional as F
from comfy_api.latest import io

from ..refiner.ablation import AblationReworder
from ..refiner.manual import ManualReworder
from ..refiner.profiles import ProfileError, load_profiles
from ..refiner.restart import RestartReworder
from ..trials.foreign import check_choice, quoted, writable
from .core_vlm import CoreReworder, require_generation
from .loaders import on_device

ABLATION, RESTART, CORE, ENDPOINT, MANUAL, OFF = "ablation", "restart", "core", "endpoint", "manual", "off"
BACK_ENDS = (RESTART, ABLATION, CORE, ENDPOINT, MANUAL)
BACK_END_TIP = (
    "restart: same prompt, other noise. ablation: emphasises what the preview lacks, by the scorer alone. core: asks the "
    "vision-language model at vlm. endpoint: asks a configured server. manual: takes manual_prompt."
)
DEFAULT = RESTART  # repairs several times as many clips of the demo as ablation does: docs/results/refiner.md
NONE = "none"  # an endpoint profile that is always there and cannot be asked


def profiles():
    """The endpoints that the machine's owner has configured. ComfyUI serves a user's folder over HTTP, but never a
    system user's: what is written here, no page and no workflow can read or change."""
    return load_profiles(Path(folder_paths.get_system_user_directory("foresight"), "endpoints.json"))


def profile_names() -> list[str]:
    try:
        return [NONE, *(name for name in profiles() if name != NONE)]
    except ProfileError:  # said where the profile is used; a broken file must not keep the nodes from loading
        return [NONE]


def back_end_widgets():
    """What single back ends need besides. The names of profiles are all that a workflow can hold of them."""
    return [
        io.Clip.Input(
            "vlm", optional=True, tooltip="core: the CLIP of a vision-language model that generates text, e.g. Qwen3-VL or Gemma."
        ),
        io.Combo.Input(
            "endpoint", options=profile_names(), default=NONE, optional=True,
            tooltip="endpoint: a profile that this machine's owner has configured (docs/refiner.md).",
        ),
        io.String.Input(
            "manual_prompt", multiline=True, default="", optional=True, dynamic_prompts=True,
            tooltip="manual: your own prompt for Trial 2.",
        ),
    ]  # fmt: skip


class ScoringReworder(AblationReworder):
    def reword(self, request):
        on_device(self.scorer)
        return super().reword(request)


def similarity(scorer):
    """How alike two texts are to the scorer's text encoder: a cosine."""

    def measure(a: str, b: str) -> float:
        features = map(on_device(scorer).encode_text, (a, b))
        # Of a text in pieces each piece is as long as its share of the text: together they are the text's.
        one, other = (each.float().reshape(-1, each.shape[-1]).sum(0) for each in features)
        return float(F.cosine_similarity(one, other, dim=0))

    return measure


def make_reworder(back_end: str, scorer, vlm=None, endpoint=NONE, manual_prompt=""):
    """The reworder by its name in the widget; None when it is off. ValueError: it lacks something, said before anything
    is sampled."""
    check_choice("refiner", back_end, (*BACK_ENDS, OFF))
    match back_end:
        case "off":
            return None
        case "ablation":
            return ScoringReworder(scorer)
        case "restart":
            return RestartReworder()
        case "manual":
            return ManualReworder(manual_prompt)
        case "core":
            require_generation(vlm)
            return CoreReworder(vlm, similarity(scorer))
    from ..refiner.endpoint import EndpointReworder  # with requests, which not every installation has

    check = comfy.model_management.throw_exception_if_processing_interrupted
    return EndpointReworder(profile_of(endpoint), similarity(scorer), check)


def profile_of(endpoint: str):
    """A configured profile by its name. ValueError where there is none."""
    by_name = profiles()
    if str(endpoint) not in by_name:
        there = writable(", ".join(by_name)) or "none yet"
        raise ValueError(
            f"endpoint is {quoted(endpoint)}, which is not configured on this machine (there: {there}). Profiles stand in "
            f"{os.path.join('user', '__foresight', 'endpoints.json')} of ComfyUI's folder; see docs/refiner.md."
        )
    return by_name[endpoint]


def asked(back_end: str | None, endpoint: str | None) -> str:
    """What fingerprint_inputs says of the profile that is asked, if one is: it is the owner's, and may be written anew."""
    if back_end not in (ENDPOINT, None):
        return ""
    try:
        return repr(profiles() if endpoint is None else profiles().get(endpoint))
    except ProfileError as error:
        return str(error)


def check_back_end(back_end: str | None, endpoint: str | None, options=BACK_ENDS) -> None:
    """ValueError for a wrong choice, before anything is sampled. A graph from another machine may name that machine's
    profile, as long as it does not use it. What is linked is None here, and is checked once it is known (make_reworder)."""
    if back_end is not None:
        check_choice("refiner", back_end, options)
    if back_end == ENDPOINT and endpoint is not None:
        profile_of(endpoint)
