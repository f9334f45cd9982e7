"""Renames a released CogVideoX transformer to the names of ComfyUI's own implementation.

    python -m foresight.evaluation convert CogVideoX-5b/transformer cogvideox_5b_t2v.safetensors

The released files (diffusers' names, in several parts) cannot be loaded by ComfyUI as they are. Values are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from .results import command_parser

# diffusers' CogVideoXTransformer3DModel -> comfy/ldm/cogvideo/model.py
NAMES = {
    "time_embedding.linear_": "time_embedding_linear_", "ofs_embedding.linear_": "ofs_embedding_linear_",
    "transformer_blocks.": "blocks.", ".attn1.to_out.0.": ".attn_out.", ".attn1.to_": ".", ".attn1.norm_": ".norm_",
    ".ff.net.0.proj.": ".ff_proj.", ".ff.net.2.": ".ff_out.",
}  # fmt: skip


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under ComfyUI's names. ValueError where it is not diffusers' CogVideoX."""
    if "transformer_blocks.0.attn1.to_q.weight" not in state or "patch_embed.text_proj.weight" not in state:
        raise ValueError("this is no transformer of CogVideoX under diffusers' names: give its folder `transformer`.")
    renamed = {}
    for name, tensor in state.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("convert", __doc__)
    parser.add_argument("source", type=Path, help="the folder `transformer` of a release, or its one file")
    parser.add_argument("target", type=Path)
    chosen = parser.parse_args(arguments)
    parts = sorted(chosen.source.glob("*.safetensors")) if chosen.source.is_dir() else [chosen.source]
    if not parts:
        raise SystemExit(f"{chosen.source} holds no .safetensors file")
    state: dict[str, Tensor] = {}
    for part in parts:
        state |= load_file(part)
    save_file(converted(state), chosen.target)
    print(f"{len(state)} tensors of {len(parts)} file(s) written to {chosen.target}")


if __name__ == "__main__":
    main()
