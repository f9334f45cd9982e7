"""L2R Calibrate: a converter from the user's own VAE."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..l2r.calibration import before_and_after, calibrate
from ..sampling.guard import harmless
from ..sampling.inputs import parts_of
from . import types
from .compat import searchable, show_on_node
from .folders import L2R, writable
from .loaders import LINEAR, load_converter, managed


class L2RCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return searchable(io.Schema(
            node_id="ForesightL2RCalibrate",
            display_name="L2R Calibrate",
            category="Foresight/inspection",
            description="Makes a latent-to-RGB converter for any video VAE: it encodes pictures made on the spot, and finds the map "
            "back to their pixels. Can be queued alone; shows what previews look like before and after. Nothing is downloaded. It "
            "can also learn from your finished clips.",
            inputs=[
                io.Model.Input("model", tooltip="The model whose latents are to be seen: it knows their scale."),
                io.Vae.Input("vae", optional=True, tooltip="Its VAE; only the encoder is used. Not needed with a latent."),
                io.Image.Input("images", optional=True, tooltip="A clip of your own to learn from as well; it is passed on."),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="What the images were decoded from: then nothing has to be encoded. Put the node after VAE Decode.",
                ),
                io.Int.Input(
                    "refine_seconds", default=0, min=0, max=3600,
                    tooltip="0: the closed-form fit alone. Otherwise it is trained for about so long after that.",
                ),
                io.Boolean.Input(
                    "save", default=True,
                    tooltip="Keep it in models/foresight_l2r (unless a better one for this VAE is there), where L2R Preview's "
                    "auto finds it.",
                ),
                io.Boolean.Input(
                    "learn", default=False,
                    tooltip="With a latent: add this clip to all that the kept converter has learned from, and keep the result. "
                    "Takes about a second a clip.",
                ),
            ],
            outputs=[
                types.L2R.Output(display_name="l2r"), io.Float.Output(display_name="psnr"),
                io.Image.Output(display_name="images"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        ), "preview", "latent to rgb", "taesd")  # fmt: skip

    @classmethod
    def execute(cls, model, vae=None, images=None, latent=None, refine_seconds=0, save=True, learn=False):
        bar = comfy.utils.ProgressBar(100)

        def progress(share: float) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(round(100 * share))

        learned_from = (vae, model.get_model_object("latent_format"), images, latent and parts_of(latent["samples"])[0])
        converter, quality = calibrate(
            *learned_from, writable(L2R), seconds=refine_seconds, save=save, learn=learn,
            device=comfy.model_management.get_torch_device(), on_progress=progress,
        )  # fmt: skip
        text = f"{quality:.1f} dB (PSNR). {converter.metadata.get('not_kept') or converter.metadata['kept']}"
        on_node = {"text": [text]}
        with harmless("the preview before and after is not shown"):
            has_factors = learned_from[1].latent_rgb_factors is not None
            row = before_and_after(*learned_from, *([load_converter(LINEAR, model)] if has_factors else []), converter)
            on_node["images"] = ui.ImageSaveHelper.save_images(row, "foresight_l2r", io.FolderType.temp, None)
            beside = "Shown: a frame, " + ("ComfyUI's own preview of it, " if has_factors else "") + "and the preview from here on."
            on_node["text"].append(beside)
        show_on_node(getattr(cls.hidden, "unique_id", None), "\n".join(on_node["text"]))
        return io.NodeOutput(managed(converter), quality, images if images is not None else ExecutionBlocker(None), ui=on_node)
