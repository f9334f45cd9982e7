"""What is tried with each other pack, on the graphs of pack_graphs.py; packs.py runs it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ...demo import preset
from ...evaluation.api_graph import node
from ...evaluation.graph_settings import DEMO
from ...evaluation.server import ExecutionFailed, Prompt, PromptRejected
from .pack_graphs import ALWAYS, SEED, STEPS, Bench, custom, models, said, same, sampled, watched

ROOT = Path(__file__).resolve().parents[2]
FAILURES = (ExecutionFailed, PromptRejected, AssertionError)


def tried(act: Callable[[Bench], str], bench: Bench) -> str:
    """What a check says, or how it failed."""
    try:
        return act(bench)
    except FAILURES as error:
        return f"fails: {said(error)}"


def loads(bench: Bench) -> str:
    """Both packs' nodes are there, and no id is in both."""
    ours = json.loads((ROOT / "node_list.json").read_text(encoding="utf-8"))
    assert set(bench.own("foresight")) == set(ours), "nodes of Foresight are missing"
    own = bench.own(bench.pack)
    assert own, "none of its nodes are there: " + bench.server.log_tail(5)
    source = "".join(file.read_text("utf-8", "replace") for file in (bench.folder / bench.pack).rglob("*.py"))
    clashes = [id for id in ours if re.search(rf"""["']{id}["']""", source)]
    assert not clashes, f"both have {', '.join(clashes)}"
    log = bench.server.log.read_text(encoding="utf-8", errors="replace") if bench.server.log else ""
    lost = sorted(set(re.findall(r"has no attribute '(\w+)'", log)))
    return f"both load, {len(own)} nodes beside {len(ours)}, no id in both" + (
        f"; nodes of its own that need {', '.join(lost)} are missing in this ComfyUI" if lost else "")  # fmt: skip


def race(bench: Bench, before: Prompt, name: str) -> str:
    """KSampler (Foresight) where KSampler was: one that passes, and a race of which every clip falls short."""
    core = bench.core(sampled(before, name))
    assert same(bench.clip(sampled(before, name, "ForesightKSampler", budget=0.0, gate=["gate", 0])), core), (
        "a run that passes differs")  # fmt: skip
    nodes = sampled(before, name, "ForesightKSampler", budget=0.7, self_refine="off", gate=["gate", 0])
    clip, report = bench.reported(nodes, verdict=["sample", 1])
    assert report["nfe"] <= report["nfe_worst_case"], "more was spent than was stated"
    assert len(report["candidates"]) > 1, f"no other seed was tried: {report['notes']}"
    assert same(clip, bench.clip(sampled(before, name, seed=report["final_seed"]))), "another seed's clip differs"
    return f"{len(report['candidates'])} candidates"


def monitored(bench: Bench, sampler: dict[str, Any]) -> None:
    core = bench.core(custom(models(), sampler))
    passing, report = bench.reported(
        custom(models(tau=ALWAYS), sampler, "ForesightMonitoredSampler", gate=["gate", 0]), verdict=["sample", 3])
    assert same(passing, core), "a run that passes differs"
    assert report["accepted"], "a run that passes is rejected"
    _, report = bench.reported(
        custom(models(), sampler, "ForesightMonitoredSampler", gate=["gate", 0]), verdict=["sample", 3])
    assert not report["accepted"] and report["nfe"] < report["nfe_plain"], "one that falls short is not stopped"


def watching(bench: Bench, plain: Prompt) -> None:
    core = bench.core(plain)
    clip, report = bench.reported(watched(plain), watch=["watch", 1])
    assert same(clip, core), "a watched run differs"
    assert report["trials"] and report["trials"][-1]["verdict"]["trace"], "nothing was looked at"


def every(names: Iterable[str], act: Callable[[str], Any]) -> str:
    """What came of a check that is made with each sampler."""
    names, failed = list(names), {}
    for name in names:
        try:
            act(name)
        except FAILURES as error:
            failed.setdefault(said(error), []).append(name)
    told = "; ".join(f"{', '.join(which)}: {why}" for why, which in failed.items())
    done = len(names) - sum(map(len, failed.values()))
    return f"{done} of {len(names)} samplers" + (f"; not: {told}" if told else "")


# Of RES4LYF's samplers in KSampler's list, all of them one function: of several steps, of several evaluations, with
# noise of their own and without (ode), and the general one.
RACED = (
    *(f"{name}{ode}" for name in ("res_2m", "res_3m", "res_2s", "res_3s", "deis_2m", "deis_3m")
      for ode in ("", "_ode")),
    "rk_beta",
)  # fmt: skip
ABSENT = "not there: its sampler nodes need a newer ComfyUI"
KINDS = ("res_2m", "res_3s_ode", "rk_beta")


def clown(bench: Bench) -> str:
    if "ClownSampler_Beta" not in bench.info:
        return ABSENT
    monitored(bench, node("ClownSampler_Beta", sampler_name="multistep/res_2m", seed=3))
    return "works"


def clownshark(bench: Bench) -> str:
    if "ClownsharKSampler_Beta" not in bench.info:
        return ABSENT
    plain = models() | {"sample": node(
        "ClownsharKSampler_Beta", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], steps=STEPS, cfg=preset.CFG, seed=SEED, sampler_name="multistep/res_2m",
        scheduler="simple", denoise=1.0,
    )}  # fmt: skip
    watching(bench, plain)
    return "works"


def write_gguf(bench: Bench, kind: str) -> str:
    """The demo transformer as a GGUF file, its large matrices in `kind`; the name of the file."""
    sys.path.insert(0, str(bench.folder / "site"))
    import gguf

    name = f"foresight_demo_{kind}.gguf"
    path = bench.server.base / "models" / "diffusion_models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    quantized = getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(str(path), arch="wan")
    weights = load_file(ROOT / "weights" / "demo" / "diffusion_models" / preset.TRANSFORMER)
    for key, weight in weights.items():
        values = weight.float().numpy()
        if values.ndim > 4:  # which GGUF has no room for: its loader reads the shape from here
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(values.shape))
            values = values.reshape(values.shape[0], -1)
        if values.ndim == 2 and key.startswith("blocks.") and key.endswith(".weight"):
            writer.add_tensor(key, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    bench.info = bench.server.object_info()  # which lists the file now
    return name


def from_gguf(kind: str) -> Callable[[Bench], str]:
    def check(bench: Bench) -> str:
        before = models(node("UnetLoaderGGUF", unet_name=write_gguf(bench, kind)))
        told = race(bench, before, "euler")
        watching(bench, sampled(before))
        assert not same(bench.clip(sampled(before)), bench.clip(sampled(models()))), "the file's weights are not used"
        return f"works, {told}"

    return check


def raced_frames() -> Prompt:
    before = sampled(models(), "euler", "ForesightKSampler", budget=0.5, gate=["gate", 0])
    return before | {"frames": node("VAEDecode", samples=["sample", 0], vae=["vae", 0])}


def combined(bench: Bench, kind: str) -> list[str]:
    video = node("VHS_VideoCombine", images=["frames", 0], frame_rate=8, loop_count=0, filename_prefix="tried",
                 format=kind, pingpong=False, save_output=True)  # fmt: skip
    return [file["fullpath"] for file in bench.run(raced_frames() | {"video": video})["video"]["gifs"]]


def scored(bench: Bench, images: Prompt) -> float:
    """ViCLIP Score of what a node "images" loads."""
    outputs = bench.run(images | {
        "judge": node("ForesightViCLIPScore", weights=preset.SCORER, images=["images", 0], prompt=DEMO.prompt),
        "score": node("PreviewAny", source=["judge", 1]),
    })  # fmt: skip
    return float(outputs["score"]["text"][0])


def in_memory(bench: Bench) -> float:
    """The score of a race's frames."""
    return scored(bench, {**raced_frames(), "images": node("VAEDecode", samples=["sample", 0], vae=["vae", 0])})


def video_combine(bench: Bench) -> str:
    (picture,) = combined(bench, "image/webp")
    from PIL import Image

    count = Image.open(picture).n_frames
    assert count == DEMO.length, f"{count} frames of {DEMO.length}"
    return f"works, {count} frames of {DEMO.length}"


def load_video(bench: Bench) -> str:
    (file,) = combined(bench, "video/h264-mp4")
    exact, back = in_memory(bench), scored(bench, {"images": node(
        "VHS_LoadVideoPath", video=file, force_rate=0, custom_width=0, custom_height=0, frame_load_cap=0,
        skip_first_frames=0, select_every_nth=1,
    )})  # fmt: skip
    assert abs(exact - back) < 0.05, f"the clip is scored {exact:.3f}, its file {back:.3f}"
    return f"works, scored {exact:.3f} before and {back:.3f} after the file"


def load_images(bench: Bench) -> str:
    bench.run(raced_frames() | {"save": node("SaveImage", images=["frames", 0], filename_prefix="frames/tried")})
    folder = str(bench.server.output / "frames")
    back = scored(bench, {"images": node(
        "VHS_LoadImagesPath", directory=folder, image_load_cap=DEMO.length, skip_first_images=0, select_every_nth=1,
    )})  # fmt: skip
    assert abs(in_memory(bench) - back) < 0.001, "another score than before they were saved"
    return f"works, scored {back:.3f}"


def decode_batched(bench: Bench) -> str:
    """It leaves a clip's frames in an axis of their own, which no IMAGE of core's has."""
    batched = node("VHS_VAEDecodeBatched", samples=["sample", 0], vae=["vae", 0], per_batch=16)
    nodes = {**raced_frames(), "images": batched}
    try:
        bench.run(nodes | {"save": node("SaveImage", images=["images", 0], filename_prefix="batched")})
    except ExecutionFailed:
        try:
            scored(bench, nodes)
        except ExecutionFailed as error:
            return f"refused, as Save Image refuses it: {said(error)}"
    scored(bench, nodes)
    return "works"


def latent_batches(bench: Bench) -> str:
    """A race over a batch that its nodes have made."""
    doubled = node("VHS_DuplicateLatents", latents=["latent", 0], multiply_by=2)
    before = models() | {"doubled": doubled}
    plain, ours = (sampled(before, "euler", kind, **more) for kind, more in (
        ("KSampler", {}), ("ForesightKSampler", {"budget": 0.0, "gate": ["gate", 0]})))  # fmt: skip
    for nodes in (plain, ours):
        nodes["sample"]["inputs"]["latent_image"] = ["doubled", 0]
    clip = bench.clip(ours)
    assert same(clip, bench.clip(plain)), "a batch that passes differs"
    return f"works, {len(clip)} clips"


def not_a_model(bench: Bench) -> str:
    """WanVideoWrapper's own kind of model is no MODEL."""
    loader = node("WanVideoModelLoader", model=preset.TRANSFORMER, base_precision="fp32", load_device="main_device",
                  quantization="disabled")  # fmt: skip
    nodes = models() | {"own": loader, "watch": node("ForesightWatch", model=["own", 0], gate=["gate", 0])}
    nodes |= {"noise": node("PreviewAny", source=["watch", 0])}
    try:
        bench.run(nodes)
    except PromptRejected as error:
        assert "WANVIDEOMODEL" in str(error), str(error)
        return "refused at once by ComfyUI: WANVIDEOMODEL is no MODEL"
    raise AssertionError("the link was taken")


def beside(bench: Bench) -> str:
    """Its being there changes nothing of a race of core's models."""
    return f"works, {race(bench, models(), 'euler')}"


TRIED: dict[str, dict[str, Callable[[Bench], str]]] = {
    "ComfyUI-WanVideoWrapper": {
        "load": loads, "race with core's nodes": beside, "Watch on its model": not_a_model,
    },
    "ComfyUI-GGUF": {
        "load": loads, "Q8_0 file: race, Watch": from_gguf("Q8_0"), "Q4_0 file: race, Watch": from_gguf("Q4_0"),
    },
    "ComfyUI-VideoHelperSuite": {
        "load": loads, "race with its previews": beside, "Video Combine of a race's frames": video_combine,
        "Load Video of them, scored": load_video, "Load Images of them, scored": load_images,
        "VAE Decode Batched": decode_batched, "a batch of Duplicate Latents": latent_batches,
    },
    "RES4LYF": {
        "load": loads,
        "KSampler (Foresight)": lambda bench: every(RACED, lambda name: race(bench, models(), name)),
        "Monitored Sampler": lambda bench: every(
            KINDS, lambda name: monitored(bench, node("KSamplerSelect", sampler_name=name))),
        "Watch": lambda bench: every(KINDS, lambda name: watching(bench, sampled(models(), name))),
        "Monitored Sampler with ClownSampler": clown, "Watch with ClownsharKSampler": clownshark,
    },
}  # fmt: skip
