"""Writes a released transformer under the names that ComfyUI reads.

    python -m foresight.evaluation convert CogVideoX-5b/transformer cogvideox_5b_t2v.safetensors
    python -m foresight.evaluation convert self_forcing_dmd.pt self_forcing_dmd.safetensors

CogVideoX comes under diffusers' names, in several parts. Causal Wan 2.1 (Self-Forcing, CausVid, LongLive,
Causal-Forcing) comes as its training saves it: one or two sets of weights, or a LoRA, under the names of what was
wrapped around them. Values are not changed. Checkpoints are read as weights alone; what else is in them is not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .results import command_parser

# diffusers' CogVideoXTransformer3DModel -> comfy/ldm/cogvideo/model.py
NAMES = {
    "time_embedding.linear_": "time_embedding_linear_", "ofs_embedding.linear_": "ofs_embedding_linear_",
    "transformer_blocks.": "blocks.", ".attn1.to_out.0.": ".attn_out.", ".attn1.to_": ".", ".attn1.norm_": ".norm_",
    ".ff.net.0.proj.": ".ff_proj.", ".ff.net.2.": ".ff_out.",
}  # fmt: skip
SETS = ("generator_ema", "generator", "generator_lora")  # of a training checkpoint; the first that is there is taken
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "base_model.model.", ".default")


def converted(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a file under ComfyUI's names. ValueError where it is of neither kind."""
    if "transformer_blocks.0.attn1.to_q.weight" in state and "patch_embed.text_proj.weight" in state:
        return {_replaced(name, NAMES): tensor for name, tensor in state.items()}
    weights = next((state[name] for name in SETS if name in state), state)
    bare = {_replaced(name, dict.fromkeys(WRAPPERS, "")).removeprefix("model."): each for name, each in weights.items()}
    if "blocks.0.self_attn.q.weight" in bare:
        return bare
    if any(name.startswith("blocks.") and ".lora_A." in name for name in bare):
        return {f"diffusion_model.{name}": tensor for name, tensor in bare.items()}
    raise ValueError(
        "this is no transformer of CogVideoX under diffusers' names (give its folder `transformer`), and no causal "
        "Wan 2.1, or LoRA on it, as its training saves it."
    )


def _replaced(name: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # each reader has kinds of its own
        raise SystemExit(f"{path} cannot be read as weights: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("convert", __doc__)
    parser.add_argument("source", type=Path, help="a file, or the folder `transformer` of a release")
    parser.add_argument("target", type=Path)
    parser.add_argument(
        "--weights", choices=SETS, help="which set of a training checkpoint (where there are two: the averaged one)"
    )
    chosen = parser.parse_args(arguments)
    parts = sorted(chosen.source.glob("*.safetensors")) if chosen.source.is_dir() else [chosen.source]
    if not parts:
        raise SystemExit(f"{chosen.source} holds no .safetensors file")
    state: dict[str, Any] = {}
    for part in parts:
        state |= _read(part)
    if chosen.weights:
        if chosen.weights not in state:
            raise SystemExit(f"{chosen.source} has no {chosen.weights}; it has {', '.join(list(state)[:5])}")
        state = {chosen.weights: state[chosen.weights]}
    try:
        weights = converted(state)
    except ValueError as error:
        raise SystemExit(f"{chosen.source}: {error}") from error
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, chosen.target)
    print(f"{len(weights)} tensors of {len(parts)} file(s) written to {chosen.target}")


if __name__ == "__main__":
    main()
