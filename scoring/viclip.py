"""ViCLIP (InternVid): a video transformer and a text transformer that share one embedding space.

The defaults are ViCLIP-L/14 as VBench uses it; the demo family's scorer is the same network with smaller sizes, kept in
the checkpoint's metadata. State-dict names are upstream's; only the packed attention projection is an ordinary linear
layer here (`attn.in_proj.weight`), so that ComfyUI's casting layers can stand in for torch's.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.documents import checked, unreadable
from ..files.fields import FileError, file_name
from ..files.weights import Weights, open_weights, write_weights
from ..trials.foreign import printable, quoted

KEY = "foresight.viclip"
MOST_BYTES = 8 << 30  # a training checkpoint has 4.14 GB, and is told from the weights alone
MOST_SIZES = {"image_size": 1024, "frames": 256, "vision_layers": 100, "text_layers": 100, "context": 1024,
              "vision_width": 8192, "text_width": 8192, "embed_dim": 8192, "vocabulary": 1 << 20}  # fmt: skip
RIGHT_FILE = (
    "ViCLIP-L/14 is ViClip-InternVid-10M-FLT.pth (1.71 GB, from OpenGVLab/VBench_Used_Models) or model.safetensors "
    "(1.71 GB, from OpenGVLab/ViCLIP-L-14-hf); put it in models/foresight."
)


@dataclass(frozen=True)
class ViCLIPConfig:
    """Sizes, and how the scores are to be read: tau and delta are the paper's (section 3.2) for ViCLIP-L/14."""

    image_size: int = 224
    patch_size: int = 14
    frames: int = 8
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    context: int = 32
    vocabulary: int = 49408
    embed_dim: int = 768
    name: str = "ViCLIP-L/14"
    tau: float = 0.22
    delta: float = 0.05
    scale: float = 1.0  # of the detector's margins, see DetectorSettings
    tau_from: str = "the paper, section 3.2 and Figure 12"


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool, operations):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj = operations.Linear(width, 3 * width)
        self.out_proj = operations.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, operations):
        super().__init__()
        self.c_fc = operations.Linear(width, 4 * width)
        self.c_proj = operations.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))  # QuickGELU


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool, operations):
        super().__init__()
        self.ln_1 = operations.LayerNorm(width)
        self.attn = Attention(width, heads, causal, operations)
        self.ln_2 = operations.LayerNorm(width)
        self.mlp = MLP(width, operations)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, causal: bool, operations):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, causal, operations) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class VisionEncoder(nn.Module):
    """Full attention over the patches of all frames and one class token for the whole clip."""

    def __init__(self, config: ViCLIPConfig, operations):
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((config.image_size // patch) ** 2 + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, config.frames, width))
        self.proj = nn.Parameter(torch.zeros(width, config.embed_dim))
        self.conv1 = operations.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        self.ln_pre = operations.LayerNorm(width)
        self.transformer = Transformer(width, config.vision_layers, config.vision_heads, False, operations)
        self.ln_post = operations.LayerNorm(width)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.conv1(frames.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # [B, T, patches, width]
        position, time, cls = (
            parameter.to(x)
            for parameter in (self.positional_embedding, self.temporal_positional_embedding, self.class_embedding)
        )
        x = x + position[1:] + time[:, :, None]  # the class token has a place in space but none in time
        x = torch.cat([(cls + position[0]).expand(len(x), 1, -1), x.flatten(1, 2)], 1)
        x = self.transformer(self.ln_pre(x))[:, 0]
        return self.ln_post(x) @ self.proj.to(x)


class TextEncoder(nn.Module):
    """Causal attention; the feature is read at the first end-of-text token, which has the highest id."""

    def __init__(self, config: ViCLIPConfig, operations):
        super().__init__()
        width = config.text_width
        self.positional_embedding = nn.Parameter(torch.zeros(config.context, width))
        self.text_projection = nn.Parameter(torch.zeros(width, config.embed_dim))
        self.token_embedding = operations.Embedding(config.vocabulary, width)
        self.transformer = Transformer(width, config.text_layers, config.text_heads, True, operations)
        self.ln_final = operations.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids)
        x = self.transformer(x + self.positional_embedding.to(x))
        x = self.ln_final(x)[torch.arange(len(ids), device=x.device), ids.argmax(-1)]
        return x @ self.text_projection.to(x)


class ViCLIP(nn.Module):
    """operations: where the layers come from: torch.nn, or ComfyUI's casting layers. For inference only."""

    def __init__(self, config: ViCLIPConfig, operations=nn):
        super().__init__()
        self.config = config
        self.vision_encoder = VisionEncoder(config, operations)
        self.text_encoder = TextEncoder(config, operations)

    @property
    def dtype(self) -> torch.dtype:
        return self.text_encoder.text_projection.dtype

    def encode_vision(self, frames: Tensor) -> Tensor:
        """Preprocessed frames [B, T, 3, S, S] (see vbench_frames) to features [B, D], not normalised."""
        config = self.config
        shape = (config.frames, 3, config.image_size, config.image_size)
        if tuple(frames.shape[1:]) != shape:
            raise ValueError(f"{config.name} takes frames {['B', *shape]}, not {list(frames.shape)}.")
        return self.vision_encoder(frames.to(self.dtype))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [B, context], zero-padded after the end token, to features [B, D], not normalised."""
        return self.text_encoder(ids)


def save_viclip(model: ViCLIP, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes safetensors with upstream's names and the configuration as metadata."""
    tensors = {
        name.replace(".in_proj.", ".in_proj_"): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    write_weights(Path(path), tensors, KEY, asdict(model.config))


def load_viclip(path: str | Path, operations=nn, dtype: torch.dtype | None = None) -> ViCLIP:
    """Loads ViCLIP-L/14 (either published file) or any checkpoint of `save_viclip`, in eval mode, on the CPU.

    dtype: of the weights and the computation, float32 when None. Raises FileError that says what a wrong file is and
    where the right one goes.
    """
    path = Path(path)
    with _opened(path) as weights:
        config = _config(path, weights)
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            model = ViCLIP(config, operations)
        names = {  # without the training temperature; scores are plain cosines
            name: name.replace(".in_proj_", ".in_proj.") for name in weights.shapes if name != "temp"
        }
        weights.load_into(model, names, "is an incomplete or altered ViCLIP", dtype or torch.float32)
    return model.eval().requires_grad_(False)


def described_name(path: str | Path) -> str:
    """The name that the scorer of a checkpoint has, its weights unread; a .pth file, which is upstream's, is not even
    opened. FileError for a file that is not there or is no ViCLIP."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".sft"):
        checked(path, MOST_BYTES, "ViCLIP", RIGHT_FILE)
        return ViCLIPConfig.name
    with _opened(path) as weights:
        return _config(path, weights).name


def _opened(path: Path) -> AbstractContextManager[Weights]:
    """Tensors by upstream name, and the description that the file carries (None for upstream's own files)."""
    if path.suffix in (".safetensors", ".sft"):
        return open_weights(path, KEY, "ViCLIP", RIGHT_FILE, MOST_BYTES)
    checked(path, MOST_BYTES, "ViCLIP", RIGHT_FILE)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error, RIGHT_FILE) from None
    except Exception as error:  # a damaged or hostile file can raise nearly anything in the reader
        if "EasyDict" in str(error):
            what = "is a training checkpoint (4.14 GB, with optimiser state), not the weights alone"
        else:
            what = "cannot be read as weights: it is damaged, cut short or another kind of file"
        raise FileError(f"{file_name(path)} {what}. {RIGHT_FILE}") from None
    for key in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(map(_is_entry, content.items())):
        raise FileError(f"{file_name(path)} holds no plain set of weights. {RIGHT_FILE}")
    shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}
    return nullcontext(Weights(file_name(path), RIGHT_FILE, shapes, content.__getitem__))


def _is_entry(entry: tuple[object, object]) -> bool:
    name, tensor = entry
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()


def _config(path: Path, weights: Weights) -> ViCLIPConfig:
    """Sizes as the tensors have them; heads, name and thresholds as the file says, else upstream's."""
    shapes = weights.shapes
    try:
        width, _, _, patch, _ = shapes["vision_encoder.conv1.weight"]
        grid = math.isqrt(shapes["vision_encoder.positional_embedding"][0] - 1)
        context, text_width = shapes["text_encoder.positional_embedding"]
        sizes = ViCLIPConfig(
            image_size=grid * patch,
            patch_size=patch,
            frames=shapes["vision_encoder.temporal_positional_embedding"][1],
            vision_width=width,
            vision_layers=_layers(shapes, "vision_encoder"),
            vision_heads=max(width // 64, 1),
            text_width=text_width,
            text_layers=_layers(shapes, "text_encoder"),
            text_heads=max(text_width // 64, 1),
            context=context,
            vocabulary=shapes["text_encoder.token_embedding.weight"][0],
            embed_dim=shapes["vision_encoder.proj"][1],
        )
    except (KeyError, ValueError, IndexError):
        raise FileError(f"{weights.file} is {_kind(shapes)}, not a ViCLIP. {RIGHT_FILE}") from None
    for name, most in MOST_SIZES.items():
        if not 1 <= getattr(sizes, name) <= most:
            raise FileError(
                f"{weights.file} is an incomplete or altered ViCLIP: its {name} is {getattr(sizes, name)}, not "
                f"1 to {most}. {RIGHT_FILE}"
            )
    described = weights.description
    if described is None:
        config = sizes if (width, patch) == (1024, 14) else replace(sizes, name=f"ViCLIP ({printable(path.stem)})")
    else:
        try:
            config = replace(
                sizes,
                vision_heads=described.whole("vision_heads", 1, 1024),
                text_heads=described.whole("text_heads", 1, 1024),
                tau=described.number("tau", -1, 1), delta=described.number("delta", -1, 1),
                scale=described.number("scale", 1e-6, 1e6), name=described.text("name"),
                tau_from=described.text("tau_from", ""),
            )  # fmt: skip
        except FileError as error:
            raise FileError(f"{weights.file}: its description '{KEY}' is damaged: {error}") from error
    for heads, size in ((config.vision_heads, width), (config.text_heads, text_width)):
        if size % heads:
            raise FileError(
                f"{weights.file}: its description '{KEY}' splits a width of {size} into {heads} heads. {RIGHT_FILE}"
            )
    return config


def _layers(tensors: Mapping[str, object], tower: str) -> int:
    prefix = f"{tower}.transformer.resblocks."
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix))


def _kind(tensors: Mapping[str, object]) -> str:
    names = list(tensors)
    if any(name.startswith(("visual.", "vision_model.", "text_model.", "transformer.resblocks.")) for name in names):
        return "a CLIP for still images"
    if "vision_encoder.conv1.weight" in tensors:
        return "an incomplete ViCLIP or another video model of that family"
    return f"another model (its first weight is {quoted(names[0])})" if names else "empty"
