"""One guider call, as ComfyUI's SamplerCustomAdvanced makes it, with a monitor around the sampler."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args

from ..panel.runs import Run, Trial
from ..scoring.inspector import Gate, Inspector
from ..trials.verdict import TrialRecord, Verdict
from .enhanced import injected, plain, refinement, unsearched
from .injection import Anchor, Injection
from .monitor import MonitorSampler
from .search import SearchSampler
from .vp import require_fitting

logger = logging.getLogger("foresight")

Latent = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What every sampling node takes. noise: a NOISE object; latent: a LATENT dict; sigmas: [N + 1], decreasing.

    schedule_steps: the steps of the whole schedule where sigmas is only its first part; 0 where it is all of it.
    """

    noise: Any
    guider: Any
    sampler: comfy.samplers.Sampler
    sigmas: torch.Tensor
    latent: Latent
    schedule_steps: int = 0

    def __post_init__(self):
        sigmas = self.sigmas
        if sigmas.ndim != 1 or len(sigmas) < 2:
            raise ValueError(
                f"sigmas has {len(sigmas)} value(s): a run needs at least 2 (one step). Raise steps or denoise."
            )
        if not torch.isfinite(sigmas).all() or not (sigmas[1:] < sigmas[:-1]).all():
            raise ValueError(
                "sigmas do not decrease from step to step: connect them as a scheduler gives them, not flipped or "
                f"joined in the wrong order. Got {[round(float(sigma), 4) for sigma in sigmas[:6]]}..."
            )
        samples = self.latent["samples"]
        if not getattr(samples, "is_nested", False) and not torch.isfinite(samples).all():
            raise ValueError("latent holds NaN or infinite values: something before this node has failed.")
        if 0 < self.schedule_steps < self.steps:
            raise ValueError(
                f"schedule_steps is {self.schedule_steps}, but the sigmas alone have {self.steps} steps: enter "
                "the steps of the whole schedule, or 0 where the sigmas are all of it."
            )

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def whole(self) -> int:
        """Steps of the whole schedule, of which the detector's windows are shares."""
        return self.schedule_steps or self.steps


@dataclass(frozen=True)
class Result:
    """latent: the finished latent, or the x0 prediction at the stop; x0: the last x0 prediction; both for VAE.decode.

    steps_x0: the x0 predictions of all steps along the batch dimension, when asked for.
    """

    latent: Latent
    x0: Latent
    verdict: Verdict
    steps_x0: Latent | None = None


def monitored_sample(
    inputs: Inputs, gate: Gate | None = None, injection: Injection | None = None, *, previous: Verdict | None = None,
    stop: str = "rejected", keep_steps: bool = False, settings: dict[str, Any] | None = None, run: Run | None = None,
) -> Result:
    """Samples, inspected by `gate` where there is one, from `injection` where there is one.

    previous: the verdict this run answers, whose history goes into the report. A run that follows a failed refinement
    is sampled plainly: the same prompt and noise would only be rejected again. `settings` go into the report; `run`
    shows it in the live panel.
    """
    run = run or Run()
    shown_by = gate
    if injection is not None:
        previous, shown_by = injection.anchor.verdict or previous, gate or injection.anchor.gate
    if previous is not None and previous.refinement_failed:
        gate = None
    refined = previous is not None and previous.refined
    inspector = gate.inspector(inputs.whole, inputs.steps, picture=run.to_picture) if gate else None
    sampler = injected(inputs.sampler, injection) if injection else inputs.sampler
    if injection:
        kind, trial = "inject", "2->1" if refined else "1"
    else:
        kind, trial = "sample" if gate else "plain", "2" if refined else "0"
    settings = {
        **gate_settings(gate, inputs.whole), "model": model_family(inputs.guider.model_patcher), "steps": inputs.steps,
        "seed": inputs.noise.seed,
        **(previous.settings if previous else {}), **(settings or {}),
    }
    run.begin(Trial(trial, kind, inputs.steps, gate and gate.video.window(inputs.whole), bool(gate)), settings)
    kept: list[torch.Tensor] = []
    simple = plain(inputs.sampler)
    monitor = MonitorSampler(
        sampler, inspector, stop=stop, run=run, look=shown_by and shown_by.look,
        compare=simple if simple is not inputs.sampler else None,
        on_step=(lambda _, x0: kept.append(x0.to("cpu", copy=True))) if keep_steps else None,
    )
    begin = time.perf_counter()
    guider = attached(inputs.guider, gate and gate.scorer, getattr(inputs.sampler, "reward", None))
    latent, x0 = guided_sample(inputs, monitor, guider, shown_by)
    seconds = time.perf_counter() - begin
    record = trial_record(trial, kind, inspector, monitor.evaluations, monitor.steps, seconds)
    if monitor.compared is not None:
        record = replace(record, details=enhancement(inputs, monitor.compared))
    if inspector and record.message is None:
        record = replace(record, message=partial_schedule(inputs.guider.model_patcher, inputs.sigmas))
    run.conclude(record)
    verdict = Verdict((*(previous.history if previous else ()), record), settings, run.id)
    steps_x0 = None
    if kept:
        process_out = inputs.guider.model_patcher.model.process_latent_out
        steps_x0 = {"samples": torch.cat([process_out(step) for step in kept])}
    return Result(latent, x0, verdict, steps_x0)


def single_frame_probe(
    inputs: Inputs, gate: Gate, rejected: Verdict, run: Run | None = None
) -> tuple[Anchor | None, Verdict]:
    """Samples one latent frame of the same prompt up to the detector's decision (paper, section 3.2, Trial 1).

    The probe's noise is the first latent frame of the run's own noise. Its verdict is accepted where it beats the
    `rejected` one by the gate's delta; on the second probe (after refinement) any anchor is. No anchor: probing failed.
    """
    run = run or Run()
    latent = dict(inputs.latent)
    latent["samples"] = comfy.sample.fix_empty_latent_channels(inputs.guider.model_patcher, latent["samples"])
    trial = "2->1" if rejected.refined else "1"
    noise, samples = inputs.noise.generate_noise(latent), latent["samples"]
    run.begin(Trial(trial, "probe", inputs.steps, gate.single_frame.window(inputs.whole), True), {})

    def concluded(record: TrialRecord) -> Verdict:
        run.conclude(record)
        return rejected.followed_by(record)

    if message := no_probe(inputs, samples):
        return None, concluded(TrialRecord(trial, "probe", accepted=False, message=message))
    first = {"samples": samples[:, :, :1]}
    inspector = gate.inspector(inputs.whole, inputs.steps, single_frame=True, picture=run.to_picture)
    monitor = MonitorSampler(unsearched(inputs.sampler), inspector, stop="decided", run=run, look=gate.look)
    begin = time.perf_counter()
    single = replace(inputs, latent=first, noise=FixedNoise(noise[:, :, :1], inputs.noise.seed))
    failure = None
    try:
        guided_sample(single, monitor, attached(inputs.guider, gate.scorer), gate)
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # promise 2: e.g. a control video of full length that does not fit one frame
        failure = f"the single frame could not be sampled: {type(error).__name__}: {error}"
        logger.warning("Foresight: %s", failure)
    seconds = time.perf_counter() - begin
    record = trial_record(
        trial, "probe", inspector, monitor.evaluations, monitor.steps, seconds, single_frame=True
    )
    if failure:
        return None, concluded(replace(record, accepted=False, message=failure))
    if monitor.x0 is None or not torch.isfinite(monitor.x0).all():
        return None, concluded(replace(record, accepted=False, message="the probe gave no usable frame"))
    found, asked = record.best.predicted_score, rejected.predicted_score
    better = found is not None and asked is not None and found >= asked + gate.delta
    accepted = inspector.overruled[0] if inspector.overruled else better or rejected.refined
    verdict = concluded(replace(record, accepted=accepted, details={"better_by_delta": better}))
    return Anchor(monitor.x0.to(comfy.model_management.intermediate_device()), verdict, gate), verdict


def no_probe(inputs: Inputs, samples: torch.Tensor) -> str | None:
    """Why a single frame cannot be probed, or None.

    A clip that starts from an image has its first frame already: alone it would come out as that image, whatever the
    prompt says, and as an anchor it would freeze the clip. So Trial 1 is left out there and Trial 2 comes next.
    """
    if getattr(samples, "is_nested", False) or samples.ndim != 5:
        return "the single-frame probe needs a video latent [B, C, F, H, W]; this model has another kind"
    conds = getattr(inputs.guider, "original_conds", {}).get("positive", ())
    mask = inputs.latent.get("noise_mask")
    known = mask is not None and mask.ndim == 5 and mask[:, :, 0].amin() == 0  # Wan 2.2 5B: 0 where a frame is given
    if known or any(cond.get("concat_latent_image") is not None for cond in conds):  # Wan I2V, CogVideoX I2V, Fun
        return "the clip starts from given frames, so one frame says nothing about the prompt: Trial 1 is left out"
    return None


def partial_schedule(patcher, sigmas: torch.Tensor) -> str | None:
    """A note for the report where sampling does not start from pure noise (video to video, a second pass)."""
    top = getattr(patcher.get_model_object("model_sampling"), "sigma_max", None)
    if top is None or float(sigmas[0]) >= 0.9 * float(top):
        return None
    return (
        f"sampling starts at sigma {float(sigmas[0]):.3g}, not at the model's {float(top):.3g}: previews are "
        "clearer there than the detector's settings were made for"
    )


@dataclass(frozen=True)
class FixedNoise:
    """A NOISE object that gives a tensor that is already drawn."""

    noise: torch.Tensor
    seed: int

    def generate_noise(self, _):
        return self.noise


def guided_sample(
    inputs: Inputs, monitor: MonitorSampler, guider, shown_by: Gate | None = None
) -> tuple[Latent, Latent]:
    """SamplerCustomAdvanced's own sequence of calls: bit-for-bit equality with it is promise 1. shown_by: makes the
    preview that core shows on the node."""
    require_fitting(inputs.sampler, guider.model_patcher.get_model_object("model_sampling"))
    latent = inputs.latent.copy()
    latent["samples"] = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    x0_output: dict[str, torch.Tensor] = {}
    callback = preview_callback(guider.model_patcher, inputs.steps, x0_output, shown_by)
    samples = guider.sample(
        inputs.noise.generate_noise(latent), latent["samples"], monitor, inputs.sigmas,
        denoise_mask=latent.get("noise_mask"), callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=inputs.noise.seed,
    )
    out = {**latent, "samples": samples.to(comfy.model_management.intermediate_device())}
    if "x0" not in x0_output:
        return out, out
    x0 = guider.model_patcher.model.process_latent_out(x0_output["x0"].cpu())
    return out, {**latent, "samples": x0}


def preview_callback(patcher, steps: int, x0_output: dict[str, torch.Tensor], shown_by: Gate | None) -> Callable:
    """Core's own callback; where its previews are on, L2R makes them instead of the linear map: the middle frame and
    not the first, and also for models of which core has no map. Whoever has chosen TAESD keeps it."""
    methods = (LatentPreviewMethod.Auto, LatentPreviewMethod.Latent2RGB)
    if shown_by is None or args.preview_method not in methods:
        return latent_preview.prepare_callback(patcher, steps, x0_output)
    bar = comfy.utils.ProgressBar(steps)

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        x0_output["x0"] = x0
        preview = None
        try:
            image = latent_preview.preview_to_image(shown_by.still(x0), do_scale=False)
            preview = ("JPEG", image, latent_preview.MAX_PREVIEW_RESOLUTION)
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # promise 2
            logger.warning("Foresight: step %d has no preview: %s: %s", step + 1, type(error).__name__, error)
        bar.update_absolute(step + 1, total_steps, preview)

    return callback


def attached(guider, *judges):
    """A copy of the guider whose model brings scorer and reward along, so that ComfyUI budgets memory for all."""
    patchers = []
    for judge in judges:
        patcher = getattr(judge, "patcher", None)
        if patcher is not None and patcher not in patchers:
            patchers.append(patcher)
    if not patchers:
        return guider
    guider = copy.copy(guider)
    guider.model_patcher = guider.model_patcher.clone()
    guider.model_patcher.set_additional_models("foresight", patchers)
    return guider


def enhancement(inputs: Inputs, nfe_plain: int) -> dict[str, Any]:
    """What self-refinement and search add to a record: what they did, and in evaluations what the plain sampler takes
    and what a run of one candidate, and of the whole search, takes at most."""
    refine, search = refinement(inputs.sampler), None
    if isinstance(inputs.sampler, SearchSampler):
        search = dict(inputs.sampler.result)
    candidate = nfe_plain + (refine.settings.evaluations(inputs.steps) - inputs.steps if refine else 0)
    return {
        "nfe_plain": nfe_plain, "nfe_candidate_most": candidate,
        "nfe_most": search["nfe_most"] if search else candidate,
        "search": search, "self_refine": refine and refine.result.report(),
    }  # fmt: skip


def trial_record(
    trial: str, kind: str, inspector: Inspector | None, evaluations: int, steps: int, seconds: float, *,
    single_frame: bool = False,
) -> TrialRecord:
    """The record of one guider call: `evaluations` of the model in `steps` steps, inspection included in `seconds`."""
    items = inspector.items() if inspector else ()
    sampling = seconds - (inspector.seconds if inspector else 0.0)
    record = TrialRecord(
        trial=trial, kind=kind, items=items,
        accepted=not items or any(item.accepted for item in items),
        nfe_video=0 if single_frame else evaluations,
        nfe_single_frame=evaluations if single_frame else 0,
        steps=steps,
        seconds={"sampling": sampling, "inspection": 0.0},
        message=inspector.message if inspector else None,
    )
    if inspector is None:
        return record
    if inspector.last is not None:
        try:
            record = replace(record, preview=inspector.preview(items.index(record.best)))
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # promise 2
            logger.warning("Foresight: no preview: %s: %s", type(error).__name__, error)
            message = f"no preview could be made: {type(error).__name__}: {error}"
            record = replace(record, message=record.message or message)
    return replace(record, seconds={"sampling": sampling, "inspection": inspector.seconds})


def model_family(patcher) -> str:
    """The video model's class in core, e.g. "WAN21": for the report, and for whoever refines prompts for it."""
    return type(patcher.model).__name__


def gate_settings(gate: Gate | None, steps: int) -> dict[str, Any]:
    """What the report says of the gate, in a schedule of `steps` steps."""
    if gate is None:
        return {}
    return {
        "prompt": gate.prompt, "tau": gate.video.tau, "delta": gate.delta, "scale": gate.video.scale,
        "scorer": gate.scorer.name, "l2r": gate.l2r.name, "every": gate.every,
        "video_window": list(gate.video.window(steps)),
        "single_frame_window": list(gate.single_frame.window(steps)), "schedule_steps": steps,
    }
