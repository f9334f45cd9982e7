"""Widgets that more than one node shows. Their defaults are the settings' own, so that no number stands twice."""

from comfy_api.latest import io

from ..sampling.experts import I2V_BOUNDARY, T2V_BOUNDARY
from ..sampling.injection import MASKS, NOISES, InjectionSettings
from ..scoring.detector import DetectorSettings
from .compat import advanced
from .folders import PRESETS, files

OWN = -1.0  # a threshold of -1 stands for the scorer's own: no cosine is below it, so it has no other use
OWN_SETTINGS = "own settings"


def threshold_widgets():
    return [
        io.Float.Input(
            "tau", default=OWN, min=-1.0, max=1.0, step=0.005, round=0.0001,
            tooltip="A clip whose predicted score is below tau fails. -1: the scorer's own (ViCLIP-L: 0.22). Higher is "
            "stricter and costs more.",
        ),
        io.Float.Input(
            "delta", default=OWN, min=-1.0, max=1.0, step=0.005, round=0.0001,
            tooltip="How much better a single frame must score before it is injected. -1: the scorer's own (ViCLIP-L: 0.05).",
        ),
    ]  # fmt: skip


def _fraction(name, default, tooltip):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip)


def _margin(name, tooltip):
    default = getattr(DetectorSettings(), name)
    return io.Float.Input(
        name, default=default, min=0.0001, max=1.0, step=0.001, round=0.0001,
        tooltip=tooltip + " In ViCLIP-L's units; other scorers bring their own scale.",
    )  # fmt: skip


def detector_widgets():
    video, single = DetectorSettings.video(), DetectorSettings.single_frame()
    return advanced(
        _fraction("start", video.start, "First deciding step, as a share of the schedule (0.16: step 8 of 50)."),
        _fraction("end", video.end, "Last deciding step, as a share of the schedule (0.28: step 14 of 50)."),
        _fraction("single_start", single.start, "First deciding step of the single-frame probe (0.40: step 20 of 50)."),
        _fraction("single_end", single.end, "Last deciding step of the single-frame probe (0.60: step 30 of 50)."),
        io.Int.Input("patience", default=video.patience, min=1, max=50, tooltip="Changes of score that make a trend."),
        io.Int.Input(
            "every", default=1, min=1, max=50,
            tooltip="Inspect each n-th step only (the last of the window is always inspected).",
        ),
        _margin("reject_margin", "Early reject: this far below tau and flat."),
        _margin("give_up_margin", "Give up: this far below tau and falling."),
        _margin("accept_margin", "Early accept: this far above tau and steady."),
        _margin("stable_range", "Stable stop: the last scores lie within this range."),
    )  # fmt: skip


def preset_widget():
    return io.Combo.Input(
        "preset", options=[OWN_SETTINGS, *files(PRESETS)], default=OWN_SETTINGS, optional=True,
        tooltip="Thresholds that were fitted to logged runs (models/foresight_presets). They take the place of tau, the window "
        "and the rules above, and belong to one scorer.",
    )  # fmt: skip


def schedule_steps_widget():
    (widget,) = advanced(
        io.Int.Input(
            "schedule_steps", default=0, min=0, max=10000, optional=True,
            tooltip="0: the sigmas here are the whole schedule. Where they are only its first part (a graph with one sampler "
            "for each expert), the steps of the whole, of which the gate's window is a share.",
        )
    )
    return widget


def expert_widgets():
    return advanced(
        io.Float.Input(
            "low_noise_cfg", default=OWN, min=-1.0, max=100.0, step=0.1, round=0.01, optional=True,
            tooltip="Guidance scale of the low-noise model (Wan 2.2 T2V: 3, I2V: 3.5). -1: the same as the other's.",
        ),
        io.Float.Input(
            "boundary", default=T2V_BOUNDARY, min=0.0, max=1.0, step=0.005, round=0.0001, optional=True,
            tooltip=f"The low-noise model takes sigmas below this (Wan 2.2 T2V: {T2V_BOUNDARY}, I2V: {I2V_BOUNDARY}).",
        ),
        io.Int.Input(
            "switch_step", default=0, min=0, max=10000, optional=True,
            tooltip="Above 0: the low-noise model takes over after this step, whatever the boundary (end_at_step elsewhere).",
        ),
    )  # fmt: skip


def gate_defaults() -> dict[str, float | int]:
    return {widget.id: widget.default for widget in (*threshold_widgets(), *detector_widgets())}


def injection_widgets():
    default = InjectionSettings()
    return advanced(
        io.Int.Input(
            "injection_start", default=default.start, min=1, max=1000,
            tooltip="The step at whose noise level the clip starts from the anchor (paper: 2). Later keeps more of it.",
        ),
        io.Int.Input("injection_steps", default=default.steps, min=1, max=1000, tooltip="Steps over which it is blended in (paper: 2)."),
        io.Combo.Input(
            "injection_noise", options=list(NOISES), default=default.noise,
            tooltip="initial: the seed's own noise (paper). fresh: other noise, another layout.",
        ),
        io.Combo.Input(
            "injection_mask", options=list(MASKS), default=default.mask,
            tooltip="Weight over time. linear: full at the first frame, none at the last (paper).",
        ),
        io.Float.Input(
            "injection_strength", default=default.strength, min=0.0, max=1.0, step=0.05,
            tooltip="1: the paper's. Lower leaves more of the plain run (and more motion); 0 is the plain run.",
        ),
    )  # fmt: skip


def injection_settings(injection_start, injection_steps, injection_noise, injection_mask, injection_strength):
    return InjectionSettings(injection_start, injection_steps, injection_noise, injection_mask, injection_strength)
