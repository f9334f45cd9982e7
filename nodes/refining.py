"""Noise Refiner: what a Streaming Sampler refines the noise between its steps by."""

from pathlib import Path

import comfy.sd
import comfy.utils
from comfy_api.latest import io

from ..sampling.noise_refiner import NoiseRefiner
from ..sampling.refiner_file import MODEL, describe
from . import types
from .compat import advanced, searchable
from .folders import REFINERS, check_file, files, path_of, state
from .graph import Checked


class NoiseRefinerNode(Checked):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightNoiseRefiner",
            display_name="Noise Refiner",
            category="Foresight/streaming",
            description="Changes the noise that a Streaming Sampler adds between its steps to a better one (AutoRefiner), by a network "
            "that was trained for this very model. Takes one forward before each step but a chunk's first.",
            inputs=[
                io.Combo.Input(
                    "weights", options=files(REFINERS),
                    tooltip="A refiner in models/foresight_refiners, as a whole model or as a LoRA. It fits the model that it was trained "
                    "for, and no other.",
                ),
                *advanced(
                    io.Boolean.Input(
                        "renormalise", default=False,
                        tooltip="Gives the changed noise the spread that it had, where a refiner makes it too strong or too weak.",
                    ),
                    io.Float.Input(
                        "most_change", default=0.0, min=0.0, max=10.0, step=0.05, round=0.001,
                        tooltip="How large the change may be, as a share of the noise. 0: any.",
                    ),
                ),
            ],
            outputs=[types.Refiner.Output(display_name="refiner")],
        ), "autorefiner", "noise", "causal")  # fmt: skip

    @classmethod
    def check(cls, known, graph, id):
        check_file(REFINERS, known.get("weights"))

    @classmethod
    def fingerprint_inputs(cls, weights=None, **_):
        return state(REFINERS, weights)

    @classmethod
    def execute(cls, weights, renormalise=False, most_change=0.0):
        path = path_of(REFINERS, weights)
        described = describe(Path(path))
        model = described.kind == MODEL
        patcher = comfy.sd.load_diffusion_model(path) if model else None
        lora = None if model else comfy.utils.load_torch_file(path, safe_load=True)
        return io.NodeOutput(NoiseRefiner(described, patcher, lora, renormalise, most_change))
