"""Every family of video models that ComfyUI loads: real architectures, tiny and random, with core's own conditioning.

Where core's detection reads the size from a state dict the model is loaded from one; where it knows the published sizes
only (Hunyuan, Mochi, Cosmos, Flux, the U-Nets) it is made of core's own classes with a smaller configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pkgutil import resolve_name
from types import SimpleNamespace

import comfy.nested_tensor
import comfy.ops
import comfy.sd
import comfy.supported_models
import tiny_models
import torch
from comfy_extras import nodes_cosmos, nodes_hunyuan, nodes_lt, nodes_wan
from comfy_extras.nodes_camera_trajectory import WanCameraEmbedding
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_mochi import EmptyMochiLatentVideo
from comfy_extras.nodes_video_model import SVD_img2vid_Conditioning
from tiny_models import IMAGE, Family, Vae
from tiny_wan import KINDS

from foresight.nodes.compat import model_patcher
from foresight.sampling.noise import SeededNoise

CPU = torch.device("cpu")
SIZE = 32, 32, 9, 1  # width, height, frames, batch


def text(seed: int, width: int = 4096, **values) -> list:
    """A conditioning of eight words, as CLIPTextEncode gives it."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 8, width, generator=generator), values]]


def filled(make: Callable[..., torch.nn.Module], **options) -> torch.nn.Module:
    """The network with random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make(**options)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.06)
    return network


def loaded(network: str, config: dict | None = None, further: dict | None = None, **options):
    """A MODEL, from a state dict. network: module:class below comfy.ldm; config: what its file's metadata say; further:
    weights beside its parameters."""
    make = resolve_name(f"comfy.ldm.{network}")
    weights = filled(make, operations=comfy.ops.disable_weight_init, **options).state_dict() | (further or {})
    metadata = {"config": json.dumps({"transformer": config})} if config else None
    return comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)


def built(kind: str, **unet):
    """A MODEL of one of core's own classes, at another size."""
    config = getattr(comfy.supported_models, kind)(unet)
    config.set_inference_dtype(torch.float32, None)
    return model_patcher(filled(config.get_model, state_dict={}), CPU, CPU)


@dataclass(frozen=True)
class Tiny(Family):
    """make: the MODEL. given: of a prompt's number positive, negative and latent, as core's nodes give them."""

    models: tuple[str, ...] = field(default=(), init=False)
    start: bool = field(default=False, init=False)
    boundary: float = field(default=0.0, init=False)
    make: Callable
    given: Callable[[int], tuple]

    def patchers(self) -> list:
        """ImportError or AttributeError where this version of ComfyUI has no such model."""
        return [_once(self.make)]

    def conditions(self, prompt: int) -> tuple[list, list, dict]:
        return tuple(self.given(prompt))[:3]

    def inputs(self, *args, **options):
        return replace(super().inputs(*args, **options), noise=SeededNoise(3))


@cache
def _once(make: Callable):
    return make()


@cache
def absent() -> set[str]:
    """The families that this version of ComfyUI does not have."""
    missing = set()
    for name, family in EVERY.items():
        try:
            family.patchers()
        except (ImportError, AttributeError):  # which are missing is known to a test
            missing.add(name)
    return missing


def words(*shape: int, width: int = 4096, **values) -> Callable[[int], tuple]:
    """Text alone, and an empty latent."""
    return lambda prompt: (text(prompt, width, **values), text(2, width, **values), {"samples": torch.zeros(1, *shape)})


def by(node: type, *settings, **values) -> Callable[[int], tuple]:
    """What one of core's conditioning nodes makes of text, a VAE and these settings."""
    return lambda prompt: node.execute(text(prompt), text(2), Vae(), *SIZE, *settings, **values).args


def hunyuan_15_from_image(prompt: int) -> tuple:
    both = (text(seed, 64, pooled_output=POOLED) for seed in (prompt, 2))
    return nodes_hunyuan.HunyuanVideo15ImageToVideo.execute(*both, Vae(32, 16), *SIZE, IMAGE).args


VIDEO = 16, 3, 4, 4
POOLED = torch.zeros(1, 768)
SOUND = {"encoded_audio_all_layers": [torch.zeros(1, 40, 1024)] * 25}
VOICE = {"encoded_audio_all_layers": [torch.zeros(1, 40, 1280)] * 33, "audio_samples": 12800}
MASK = torch.ones(1, 8, dtype=torch.long)
WAN = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2}
HUNYUAN = {
    "image_model": "hunyuan_video", "vec_in_dim": 768, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0,
    "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 256,
    "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False, "out_channels": 16,
}  # fmt: skip
HUNYUAN_15 = HUNYUAN | {
    "vec_in_dim": None, "patch_size": [1, 1, 1], "byt5": True, "vision_in_dim": 1152, "meanflow_sum": True,
    "use_cond_type_embedding": True, "guidance_embed": False, "out_channels": 32,
}  # fmt: skip
LTX = {
    "attention_head_dim": 4, "num_attention_heads": 32, "cross_attention_dim": 128, "caption_channels": 64,
    "num_layers": 1,
}  # fmt: skip
LTX_2 = LTX | {
    "audio_attention_head_dim": 2, "audio_num_attention_heads": 32, "audio_cross_attention_dim": 64,
    "connector_attention_head_dim": 32, "connector_num_attention_heads": 2, "connector_num_layers": 1,
}  # fmt: skip
MINIMAX = {
    "hidden_size": 64, "num_layers": 1, "token_refiner_num_layers": 1, "num_attention_heads": 1, "text_dim": 64,
    "attention_head_dim": 96, "ffn_hidden_size": 64, "timestep_input_dim": 32, "time_embed_hidden_size": 32,
    "time_embed_dim": 32,
}  # fmt: skip
COSMOS = {
    "max_img_h": 8, "max_img_w": 8, "max_frames": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "model_channels": 96, "num_heads": 2, "num_blocks": 2, "pos_emb_cls": "rope3d", "use_adaln_lora": True,
    "adaln_lora_dim": 16, "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable", "image_model": "cosmos",
}  # fmt: skip
PREDICT_2 = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "model_channels": 64, "num_blocks": 1, "num_heads": 4, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "use_adaln_lora": True, "image_model": "cosmos_predict2",
}  # fmt: skip
MOCHI = {
    "image_model": "mochi_preview", "depth": 2, "num_heads": 2, "hidden_size_x": 48, "hidden_size_y": 32,
    "mlp_ratio_x": 256.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
    "posenc_preserve_area": True, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 64, "t5_token_length": 8,
}  # fmt: skip
UNET = {
    "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False, "out_channels": 4,
    "model_channels": 64, "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1], "channel_mult": [1], "context_dim": 64, "in_channels": 4,
    "use_temporal_resblock": False, "use_temporal_attention": False, "adm_in_channels": None,
}  # fmt: skip
SVD = UNET | {
    "num_classes": "sequential", "adm_in_channels": 768, "in_channels": 8, "use_linear_in_transformer": True,
    "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
    "merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True, "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}  # fmt: skip
SEEDVR = {
    "image_model": "seedvr2", "vid_dim": 128, "heads": 1, "num_layers": 2, "norm_eps": 1e-5, "mlp_type": "swiglu",
    "vid_out_norm": True, "mm_layers": 1,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 64, "hidden_size": 128,
    "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def sized(kind: str, parameters: str, **sizes):
    """As `built`, without the parameters that this version does not know."""
    known = {each.name for each in fields(resolve_name(parameters))} | {"image_model"}
    return built(kind, **{name: value for name, value in sizes.items() if name in known})


def hunyuan(kind: str, in_channels: int, sizes: dict = HUNYUAN) -> Callable:
    parameters = "comfy.ldm.hunyuan_video.model:HunyuanVideoParams"
    return partial(sized, kind, parameters, in_channels=in_channels, **sizes)


def hunyuan_from_image(guidance: str) -> Callable[[int], tuple]:
    def given(prompt):
        positive, negative = (text(seed, 64, pooled_output=POOLED) for seed in (prompt, 2))
        node = nodes_hunyuan.HunyuanImageToVideo
        positive, latent = node.execute(positive, Vae(), *SIZE, guidance, IMAGE).args
        return positive, negative, latent

    return given


def super_resolved(prompt: int) -> tuple:
    latent = {"samples": torch.randn(1, 32, 3, 2, 2, generator=torch.Generator().manual_seed(6))}
    both = (text(seed, 64, pooled_output=POOLED) for seed in (prompt, 2))
    return nodes_hunyuan.HunyuanVideo15SuperResolution.execute(*both, latent, 0.7).args


def ltx_from_image(prompt: int) -> tuple:
    vae, image = Vae(128, 32, 8), torch.nn.functional.pad(IMAGE, (0, 0, 0, 32, 0, 32))
    both = (text(seed, 64, attention_mask=MASK) for seed in (prompt, 2))
    return nodes_lt.LTXVImgToVideo.execute(*both, image, vae, 64, 64, 17, 1, 1.0).args


def with_sound(*shapes: tuple[int, ...]) -> Callable[[int], tuple]:
    """Text alone, and an empty latent of two parts, as LTXVConcatAVLatent joins them."""
    parts = [torch.zeros(1, *shape) for shape in shapes]
    return lambda prompt: (text(prompt, 64), text(2, 64), {"samples": comfy.nested_tensor.NestedTensor(parts)})


def mochi(prompt: int) -> tuple:
    both = (text(seed, 64, attention_mask=MASK) for seed in (prompt, 2))
    return *both, EmptyMochiLatentVideo.execute(32, 32, 13).args[0]


def start_of_cosmos(node: type) -> Callable[[int], tuple]:
    return lambda prompt: (text(prompt, 1024), text(2, 1024), node.execute(Vae(), 32, 32, 17, 1, IMAGE).args[0])


def kandinsky(**values) -> Callable[[int], tuple]:
    def given(prompt):
        node = resolve_name("comfy_extras.nodes_kandinsky5:Kandinsky5ImageToVideo")
        both = (text(seed, 3584, pooled_output=POOLED) for seed in (prompt, 2))
        return node.execute(*both, Vae(), *SIZE, **values).args

    return given


class ClipVision:
    def __init__(self, prompt: int):
        self.prompt = prompt

    def encode_image(self, image):
        return SimpleNamespace(image_embeds=text(self.prompt, 64)[0][0][:, 0])


def svd(prompt: int) -> tuple:
    return SVD_img2vid_Conditioning().encode(ClipVision(prompt), IMAGE, Vae(4, every=0), 32, 32, 3, 127, 6, 0.0)


def camera(prompt: int) -> tuple:
    path = WanCameraEmbedding.execute("Pan Up", 32, 32, 9).args[0]
    node = nodes_wan.WanCameraImageToVideo
    return node.execute(text(prompt), text(2), Vae(), *SIZE, IMAGE, camera_conditions=path).args


def dancing(prompt: int) -> tuple:
    node = resolve_name("comfy_extras.nodes_wandancer:WanDancerVideo")
    both = text(prompt), text(2)
    size = 64, 32, 9  # of the tokens of a frame an eighth is to be whole
    return node.execute(*both, Vae(), *size, start_image=IMAGE, audio_encoder_output=DANCE).args


def skyreels(kind: str):
    """SkyReels V2's files have weights for the frame rate beside Wan's, which core passes over."""
    further = {"fps_embedding.weight": torch.zeros(2, 128), "fps_projection.0.weight": torch.zeros(128, 128)}
    return loaded("wan.model:WanModel", further=further, **{"model_type": "t2v", **KINDS[kind], **WAN})


def newer(node: str, *settings, **values) -> Callable[[int], tuple]:
    """As `by`, of a node that 0.3.75 lacks. node: module:class below comfy_extras."""
    return lambda prompt: by(resolve_name(f"comfy_extras.{node}"), *settings, **values)(prompt)


def cogvideox_inpainted(prompt: int) -> tuple:
    node = resolve_name("comfy_extras.nodes_void:VOIDInpaintConditioning")
    size = 64, 64, 9, 1  # which is rounded down to 2 latent frames
    return node.execute(text(prompt), text(2), Vae(), CLIP, torch.ones(9, 32, 32), *size).args


def seedvr():
    """Its text is in its file."""
    model = built("SeedVR2", **SEEDVR)
    for seed, name in enumerate(("positive_conditioning", "negative_conditioning")):
        buffer = getattr(model.model.diffusion_model, name)
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def upscaled(_prompt: int) -> tuple:
    node = resolve_name("comfy_extras.nodes_seedvr:SeedVR2Conditioning")
    latent = {"samples": Vae().encode(CLIP)}
    return *node.execute(_once(SEEDVR_2), latent).args, {"samples": torch.zeros(1, *VIDEO)}


def start_of_cogvideox(prompt: int) -> tuple:
    start = {"concat_latent_image": torch.ones(1, 16, 1, 8, 8)}
    return text(prompt, **start), text(2, **start), {"samples": torch.zeros(1, 16, 3, 8, 8)}


def skyreels_1_from_image(prompt: int) -> tuple:
    both = (text(seed, 64, pooled_output=POOLED) for seed in (prompt, 2))
    return InstructPixToPixConditioning.execute(*both, IMAGE.expand(9, -1, -1, -1), Vae()).args


LTX_VIDEO = partial(loaded, "lightricks.model:LTXVModel", config=LTX, **LTX)
LTX_VIDEO_2 = partial(loaded, "lightricks.av_model:LTXAVModel", config=LTX_2, **LTX_2)
FLUX_1 = partial(sized, "Flux", "comfy.ldm.flux.model:FluxParams", **FLUX)
FREQUENCIES = {"rope.inv_freq": torch.logspace(0, -4, 16)}  # no parameter, and empty in a network that is made anew
MINIMAX_H3 = partial(loaded, "minimax.model:MiniMaxH3Model", config=MINIMAX, further=FREQUENCIES, **MINIMAX)
KANDINSKY_5 = partial(
    loaded, "kandinsky5.model:Kandinsky5", model_dim=64, ff_dim=64, time_dim=64, num_text_blocks=1, num_visual_blocks=1,
)  # fmt: skip
COGVIDEOX = partial(
    loaded, "cogvideo.model:CogVideoXTransformer3DModel", num_attention_heads=2, num_layers=2, time_embed_dim=64,
    text_embed_dim=4096, in_channels=32, use_rotary_positional_embeddings=True,
)  # fmt: skip
CLIP = IMAGE.expand(9, -1, -1, -1)
HUNYUAN_VIDEO, HUNYUAN_VIDEO_15 = hunyuan("HunyuanVideo", 16), hunyuan("HunyuanVideo15", 65, HUNYUAN_15)
WAN_VACE = partial(loaded, "wan.model:VaceWanModel", vace_layers=1, vace_in_dim=96, **WAN)
WAN_FUN_CONTROL = partial(loaded, "wan.model:WanModel", model_type="i2v", in_dim=48, **WAN)
WAN_CAMERA = partial(loaded, "wan.model:CameraWanModel", in_dim=32, **WAN)
WAN_22_CAMERA = partial(loaded, "wan.model:CameraWanModel", model_type="camera_2.2", in_dim=36, **WAN)
WAN_HUMO = partial(loaded, "wan.model:HumoWanModel", in_dim=36, **WAN)
WAN_S2V = partial(loaded, "wan.model:WanModel_S2V", **WAN)
WAN_ANIMATE = partial(loaded, "wan.model_animate:AnimateWanModel", in_dim=36, **WAN | {"num_layers": 5})
WAN_SCAIL = partial(loaded, "wan.model:SCAILWanModel", in_dim=20, **WAN)
WAN_SCAIL_2 = partial(loaded, "wan.model:SCAIL2WanModel", in_dim=20, **WAN)
WAN_DANCER = partial(loaded, "wan.model_wandancer:WanDancerModel", in_dim=36, **WAN)
WAN_ANIMATE_2 = partial(
    loaded, "wan.model_animate2:WanAnimate2Model", config={"model_type": "animate2"}, in_dim=36, **WAN
)
WAN_FLOW_RVS = partial(built, "WAN21_FlowRVS", image_model="wan2.1", model_type="flow_rvs", **WAN)
COGVIDEOX_INPAINT, SEEDVR_2 = partial(COGVIDEOX, in_channels=48), seedvr
DANCE = {"audio_feature": torch.zeros(1, 9, 35), "fps": 30}
FOLLOWED = {"reference_image": IMAGE, "pose_video": CLIP}
MASKED = {"reference_image_mask": IMAGE.round(), "pose_video_mask": CLIP.round()}
SCAIL = partial(newer, "nodes_scail:WanSCAILToVideo", 1.0, 0.0, 1.0, 0, 5)
OTHERS = {
    "CogVideoX T2V": tiny_models.CogVideoX(()),
    "CogVideoX I2V": Tiny(COGVIDEOX, start_of_cogvideox),
    "CogVideoX Inpaint": Tiny(COGVIDEOX_INPAINT, cogvideox_inpainted),
    "Cosmos T2V": Tiny(partial(built, "CosmosT2V", in_channels=16, **COSMOS), words(*VIDEO, width=1024)),
    "Cosmos I2V": Tiny(
        partial(built, "CosmosI2V", in_channels=17, **COSMOS), start_of_cosmos(nodes_cosmos.CosmosImageToVideoLatent)
    ),
    "Cosmos Predict2 I2V": Tiny(
        partial(built, "CosmosI2VPredict2", in_channels=17, **PREDICT_2),
        start_of_cosmos(nodes_cosmos.CosmosPredict2ImageToVideoLatent),
    ),
    "HunyuanVideo": Tiny(HUNYUAN_VIDEO, words(*VIDEO, width=64, pooled_output=POOLED)),
    "HunyuanVideo I2V": Tiny(hunyuan("HunyuanVideoI2V", 33), hunyuan_from_image("v1 (concat)")),
    "HunyuanVideo I2V, frame replaced": Tiny(HUNYUAN_VIDEO, hunyuan_from_image("v2 (replace)")),
    "HunyuanVideo 1.5 T2V": Tiny(HUNYUAN_VIDEO_15, words(32, 3, 2, 2, width=64, pooled_output=POOLED)),
    "HunyuanVideo 1.5 I2V": Tiny(HUNYUAN_VIDEO_15, hunyuan_15_from_image),
    "HunyuanVideo 1.5 super-resolution, distilled": Tiny(
        hunyuan("HunyuanVideo15_SR_Distilled", 98, HUNYUAN_15), super_resolved
    ),
    "Kandinsky 5 T2V": Tiny(KANDINSKY_5, kandinsky()),
    "Kandinsky 5 I2V": Tiny(KANDINSKY_5, kandinsky(start_image=IMAGE)),
    "LTX-Video": Tiny(LTX_VIDEO, words(128, 3, 2, 2, width=64, attention_mask=MASK)),
    "LTX-Video I2V": Tiny(LTX_VIDEO, ltx_from_image),
    "LTX-2, video and sound": Tiny(LTX_VIDEO_2, with_sound((128, 3, 2, 2), (8, 6, 16))),
    "MiniMax H3, video and sound": Tiny(MINIMAX_H3, with_sound((24, 3, 2, 2), (32, 2, 15))),
    "Mochi": Tiny(partial(built, "GenmoMochi", **MOCHI), mochi),
    "SeedVR2, upscaling": Tiny(SEEDVR_2, upscaled),
    "SkyReels V1 I2V": Tiny(hunyuan("HunyuanVideoSkyreelsI2V", 32), skyreels_1_from_image),
    "SkyReels V2 T2V, as Wan 2.1": Tiny(partial(skyreels, "2.1 T2V"), words(*VIDEO)),
    "SkyReels V2 I2V, as Wan 2.1": Tiny(partial(skyreels, "2.1 I2V"), by(nodes_wan.WanImageToVideo, IMAGE)),
    "Stable Video Diffusion": Tiny(partial(built, "SVD_img2vid", **SVD), svd),
    "Wan 2.1 Fun Camera": Tiny(WAN_CAMERA, camera),
    "Wan 2.1 Fun Control": Tiny(WAN_FUN_CONTROL, by(nodes_wan.WanFunControlToVideo, IMAGE, control_video=CLIP)),
    "Wan 2.1 HuMo": Tiny(WAN_HUMO, by(nodes_wan.WanHuMoImageToVideo, IMAGE, VOICE)),
    "Wan 2.1 VACE": Tiny(WAN_VACE, by(nodes_wan.WanVaceToVideo, 1.0, CLIP)),
    "Wan 2.1 FlowRVS": Tiny(WAN_FLOW_RVS, lambda prompt: (text(prompt), text(2), {"samples": Vae().encode(CLIP)})),
    "Wan 2.1 SCAIL": Tiny(WAN_SCAIL, SCAIL(**FOLLOWED)),
    "Wan 2.1 SCAIL-2": Tiny(WAN_SCAIL_2, SCAIL(**FOLLOWED, **MASKED)),
    "Wan Animate 2": Tiny(WAN_ANIMATE_2, newer("nodes_wan:WanAnimate2ToVideo", 0, **FOLLOWED)),
    "Wan 2.2 Animate": Tiny(WAN_ANIMATE, by(nodes_wan.WanAnimateToVideo, 5, 0, IMAGE, pose_video=CLIP)),
    "Wan 2.2 WanDancer": Tiny(WAN_DANCER, dancing),
    "Wan 2.2 Fun Camera": Tiny(WAN_22_CAMERA, camera),
    "Wan 2.2 S2V": Tiny(WAN_S2V, by(nodes_wan.WanSoundImageToVideo, IMAGE, SOUND)),
    "Cosmos Predict2 T2I (pictures)": Tiny(
        partial(built, "CosmosT2IPredict2", in_channels=16, **PREDICT_2), words(16, 1, 4, 4, width=1024)
    ),
    "Flux (pictures)": Tiny(FLUX_1, words(16, 4, 4, width=64, pooled_output=POOLED)),
    "Stable Diffusion 1.5 (pictures)": Tiny(partial(built, "SD15", **UNET), words(4, 8, 8, width=64)),
}
EVERY = tiny_models.FAMILIES | OTHERS
