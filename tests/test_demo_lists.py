"""The demo family beside a user's own models: out of core's lists, and there all the same."""

from __future__ import annotations

import folder_paths
import pytest
import torch

from foresight.demo import preset
from foresight.evaluation.graphs import one_node
from foresight.evaluation.server import ComfyServer
from foresight.nodes import folders

OURS = {"diffusion_models": preset.TRANSFORMER, "vae": preset.VAE}


@pytest.mark.parametrize("own", [None, "diffusion_models", "vae", "checkpoints"])
def test_the_demo_is_in_cores_lists_only_where_there_is_nothing_else(monkeypatch, tmp_path, own):
    places = {}
    for folder in ("checkpoints", *OURS):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "put_models_here").touch()  # as in a fresh ComfyUI
        places[folder] = ([str(tmp_path / folder)], folder_paths.supported_pt_extensions)
    if own:
        (tmp_path / own / "mine.safetensors").touch()
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    folders.register()
    for folder, file in OURS.items():
        shipped = sorted(path.name for path in (folders.WEIGHTS / folders.DEMO[folder]).glob("*.safetensors"))
        assert shipped[0] == file  # what a loader's widget begins with
        expected = ["mine.safetensors"] if folder == own else [] if own else shipped
        assert folder_paths.get_filename_list(folder) == expected
    assert folders.files(folders.VICLIP) == [preset.SCORER]  # our own folders list it last, always


def test_the_demo_runs_beside_models_of_ones_own(comfyui, tmp_path):
    (tmp_path / "models" / "diffusion_models").mkdir(parents=True)
    (tmp_path / "models" / "diffusion_models" / "mine.safetensors").touch()
    with ComfyServer(comfyui, tmp_path, folders.WEIGHTS.parent, log=tmp_path / "log", cpu=not torch.cuda.is_available(),
                     arguments=("--disable-api-nodes",)) as server:  # fmt: skip
        info = server.object_info()
        unet = info["UNETLoader"]["input"]["required"]["unet_name"]
        assert unet[0] == ["mine.safetensors"] or unet[1]["options"] == ["mine.safetensors"]
        assert preset.VAE not in str(info["VAELoader"]["input"])
        outputs = server.queue(one_node("demo", info, steps=2))["outputs"]
        assert any(each.get("images") for each in outputs.values())


def test_the_node_gives_what_cores_loaders_give():
    import nodes
    from foresight.nodes.demo import DemoTextEncoder

    _, model, vae = DemoTextEncoder.execute().result
    (core,) = nodes.UNETLoader().load_unet(preset.TRANSFORMER, "default")
    (core_vae,) = nodes.VAELoader().load_vae(preset.VAE)
    for ours, theirs in ((model.model, core.model), (vae.first_stage_model, core_vae.first_stage_model)):
        here, there = ours.state_dict(), theirs.state_dict()
        assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in there)
    assert type(model.model) is type(core.model)
