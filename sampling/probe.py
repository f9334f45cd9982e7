"""The single-frame probe: does the model get at least a still of the prompt right? (paper, section 3.2, Trial 1)"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.sample
import torch

from ..scoring.inspector import Gate
from ..trials.observer import SILENT, Observer
from ..trials.verdict import TrialRecord, Verdict
from .enhanced import unsearched
from .guard import harmless
from .guided import attached, guided_sample
from .injection import Anchor
from .inputs import Inputs
from .monitor import MonitorSampler
from .noise import FixedNoise
from .records import trial_record


def single_frame_probe(
    inputs: Inputs, gate: Gate, rejected: Verdict, observer: Observer = SILENT, left_out: str | None = None
) -> tuple[Anchor | None, Verdict]:
    """Samples one latent frame of the same prompt up to the detector's decision (paper, section 3.2, Trial 1).

    The probe's noise is the first latent frame of the run's own noise. Its verdict is accepted where it beats the
    `rejected` one by the gate's delta; on the second probe (after rewording) any anchor is. No anchor: probing failed,
    or was left out for this reason.
    """
    latent = dict(inputs.latent)
    latent["samples"] = comfy.sample.fix_empty_latent_channels(inputs.guider.model_patcher, latent["samples"])
    trial = "2->1" if rejected.reworded else "1"
    noise, samples = inputs.noise.generate_noise(latent), latent["samples"]
    window = gate.single_frame.window(inputs.whole)
    observer.begin(trial, "probe", steps=inputs.steps, window=window, decidable=True)

    def concluded(record: TrialRecord) -> Verdict:
        observer.conclude(record)
        return rejected.followed_by(record)

    if message := left_out or no_probe(inputs, samples):
        return None, concluded(TrialRecord(trial, "probe", accepted=False, message=message))
    first = {"samples": samples[:, :, :1]}
    inspector = gate.inspector(inputs.whole, inputs.steps, single_frame=True)
    monitor = MonitorSampler(unsearched(inputs.sampler), inspector, stop="decided", observer=observer, look=gate.look)
    begin = time.perf_counter()
    single = replace(inputs, latent=first, noise=FixedNoise(noise[:, :, :1], inputs.noise.seed))
    with harmless("the single frame could not be sampled") as failure:  # e.g. a control video does not fit one frame
        guided_sample(single, monitor, attached(inputs.guider, gate), gate)
    seconds = time.perf_counter() - begin
    record = trial_record(
        trial, "probe", inspector, monitor.evaluations, monitor.steps, seconds, single_frame=True, notes=monitor.notes
    )
    if failure.message:
        return None, concluded(replace(record, accepted=False, message=failure.message))
    if monitor.x0 is None or not torch.isfinite(monitor.x0).all():
        return None, concluded(replace(record, accepted=False, message="the probe gave no usable frame"))
    still, clip = record.best.predicted_score, rejected.predicted_score
    better = still is not None and clip is not None and still >= clip + gate.delta
    accepted = inspector.overruled[0] if inspector.overruled else better or rejected.reworded
    verdict = concluded(replace(record, accepted=accepted, details={"better_by_delta": better}))
    return Anchor(monitor.x0.to(comfy.model_management.intermediate_device()), verdict, gate), verdict


def no_probe(inputs: Inputs, samples: torch.Tensor) -> str | None:
    """Why a single frame cannot be probed, or None.

    Where a part of the clip is given, one frame of its own says little about the prompt, or is that part itself, and as
    an anchor it would replace what was given. So Trial 1 is left out there and Trial 2 comes next.
    """
    if getattr(samples, "is_nested", False):
        return "the clip has sound of its own length, which a single frame cannot have: Trial 1 is left out"
    if samples.ndim != 5:
        return "the single-frame probe needs a video latent [B, C, F, H, W], not one of pictures: Trial 1 is left out"
    given = _given(inputs, samples)
    return given and f"{given}, so one frame says nothing about the prompt: Trial 1 is left out"


def _given(inputs: Inputs, samples: torch.Tensor) -> str | None:
    """What of the clip is there before it is sampled, or None."""
    mask = inputs.latent.get("noise_mask")
    if mask is not None and min(part.amin() for part in (mask.unbind() if mask.is_nested else [mask])) < 1:
        return "a mask keeps a part of the clip as it is"  # also Wan 2.2 5B's first frame, and LTX's guide frames
    conds = getattr(inputs.guider, "original_conds", {}).values()
    if any(_pictured(value) for each in conds for cond in each for name, value in cond.items() if name != "cross_attn"):
        return "the clip starts from given frames, or is guided by pictures"
    if any("control" in cond for each in conds for cond in each):
        return "the clip follows a control video"
    if not samples.any():
        return None
    top = getattr(inputs.guider.model_patcher.get_model_object("model_sampling"), "sigma_max", math.inf)
    if float(inputs.sigmas[0]) < 0.999 * float(top) or not inputs.noise.generate_noise(dict(inputs.latent)).any():
        return "the clip starts from another clip"
    return None


def _pictured(value: Any) -> bool:
    """Whether a value of a conditioning is or holds pictures or latents: concatenated frames, reference latents, VACE,
    poses. Those have 4 or more dimensions, and text has 3; CLIP's view of a picture comes as its own kind of object."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_pictured, value))
    return isinstance(value, torch.Tensor) and value.ndim >= 4 or hasattr(value, "penultimate_hidden_states")
