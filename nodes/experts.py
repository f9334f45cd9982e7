"""Two-Expert Guider: Wan 2.2 14B's two models as one GUIDER."""

from comfy_api.latest import io

from ..sampling.experts import T2V_BOUNDARY, TwoExpertGuider
from .compat import searchable
from .widgets import OWN, expert_widgets


class TwoExpertGuiderNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightTwoExpertGuider",
            display_name="Two-Expert Guider",
            category="Foresight/models",
            description="Wan 2.2 14B's high-noise and low-noise models as one guider over one schedule, so that a clip can be "
            "watched, stopped and repaired across both. Works with SamplerCustomAdvanced as well.",
            inputs=[
                io.Model.Input("high_noise_model"),
                io.Model.Input("low_noise_model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Float.Input(
                    "cfg", default=4.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Guidance scale of the high-noise model (Wan 2.2 T2V: 4, I2V: 3.5).",
                ),
                *expert_widgets(),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        ), "wan 2.2", "high noise", "low noise")  # fmt: skip

    @classmethod
    def execute(cls, high_noise_model, low_noise_model, positive, negative, cfg, **settings):
        guider = two_experts(high_noise_model, low_noise_model, cfg, **settings)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)


def two_experts(high, low, cfg, low_noise_cfg=OWN, boundary=T2V_BOUNDARY, switch_step=0) -> TwoExpertGuider:
    """A guider from the widgets of `expert_widgets`."""
    guider = TwoExpertGuider(high, low, boundary, switch_step)
    guider.set_cfg(cfg, None if low_noise_cfg == OWN else low_noise_cfg)
    return guider
