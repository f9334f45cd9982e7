"""Random weights of the real architectures, as files for a ComfyUI server's model folders: fast, and never right."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from foresight.demo.wan_dit import WanTransformer
from foresight.demo.wan_vae import WanVAE
from foresight.l2r.checkpoint import save_l2r
from foresight.l2r.model import L2R
from foresight.scoring.viclip import ViCLIP, ViCLIPConfig, save_viclip

SCORER = ViCLIPConfig(
    image_size=28, frames=4, vision_width=64, vision_layers=1, vision_heads=1, text_width=64, text_layers=1,
    text_heads=1, embed_dim=32, name="tiny",
)  # fmt: skip


def write_transformer(models: Path, name: str, seed: int = 0, channels: int = 16) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = WanTransformer(dim=128, layers=2, ffn_dim=128, channels=channels)
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.06)
    (models / "diffusion_models").mkdir(parents=True, exist_ok=True)
    save_file(transformer.state_dict(), models / "diffusion_models" / name)


def write_network(models: Path, name: str, network: torch.nn.Module) -> None:
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, models / "diffusion_models" / name)


def write_lora(models: Path, name: str, seed: int) -> None:
    """A LoRA that changes what a transformer of `write_transformer` gives."""
    generator, key = torch.Generator().manual_seed(seed), "diffusion_model.blocks.0.self_attn.q"
    (models / "loras").mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{key}.lora_down.weight": torch.randn(4, 128, generator=generator),
         f"{key}.lora_up.weight": torch.randn(128, 4, generator=generator)}, models / "loras" / name,
    )  # fmt: skip


def write(models: Path, model: str, vae: str, scorer: str, converter: str) -> None:
    """Writes the four files under their names into diffusion_models, vae, foresight and foresight_l2r."""
    write_transformer(models, model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder, clip, l2r = WanVAE(8), ViCLIP(SCORER), L2R(metadata={"latent_format": "Wan21"})
        for parameter in clip.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    places = {folder: models / folder for folder in ("vae", "foresight", "foresight_l2r")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    save_file(autoencoder.state_dict(), places["vae"] / vae)
    save_viclip(clip, places["foresight"] / scorer)
    save_l2r(l2r, places["foresight_l2r"] / converter)
