"""What works with each family of video models, and what is refused and why: docs/compatibility.md, by feature.

    python dev.py compatibility
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import comfy.samplers
import comfyui_version
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from searches import Mean, searching
from tiny_families import EVERY, absent
from tiny_wan import MeanL2R, Rewriter, gate

import nodes as core
from foresight.l2r.decode import decode
from foresight.l2r.pairs import channels
from foresight.lab.release.compatibility import PAGE, RESULTS, section
from foresight.nodes.calibration import L2RCalibrate
from foresight.nodes.drop_in import ForesightKSampler, ForesightSamplerCustomAdvanced
from foresight.nodes.loaders import AUTO, load_converter
from foresight.sampling import guided
from foresight.sampling.audition import hold_audition
from foresight.sampling.compat import RAW_INPUT
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.inputs import joined
from foresight.sampling.line import video_latent
from foresight.sampling.noise import FixedNoise, SeededNoise
from foresight.sampling.noise_space import NoiseSpace
from foresight.sampling.run import monitored_sample
from foresight.sampling.self_refine import SelfRefineSettings, parse_plan, self_refining
from foresight.sampling.vp import fitting
from foresight.sampling.watch import Watch
from foresight.scoring.inspector import video
from foresight.trials.race import Candidate
from foresight.trials.report import run_report

STEPS, SEED = 4, 7
# Families, by the end of their names, of which a single frame says nothing, and why.
GIVEN = {
    "first frame": ("I2V, frame replaced", "5B I2V", "LTX-Video I2V", "Cosmos I2V", "Predict2 I2V"),
    "given frames": (
        "I2V", "I2V, two experts", "I2V, as Wan 2.1", "super-resolution, distilled", "VACE", "Control", "Camera",
        "HuMo", "S2V", "Animate", "Animate 2", "SCAIL", "SCAIL-2", "WanDancer", "Inpaint", "upscaling",
    ),
    "sound": ("sound",),
    "pictures": ("Flux (pictures)", "1.5 (pictures)", "Video Diffusion"),
}  # fmt: skip
NOTHING = "so one frame says nothing about the prompt"
REASONS = {
    "first frame": f"a mask keeps a part of the clip as it is, {NOTHING}",
    "given frames": f"the clip starts from given frames, or is guided by pictures, {NOTHING}",
    "sound": "the clip has sound of its own length, which a single frame cannot have",
    "pictures": "the single-frame probe needs a video latent [B, C, F, H, W], not one of pictures",
}


NOISELESS = "Wan 2.1 FlowRVS",  # it makes a mask of a clip: every seed gives the same
ALONE = "no second candidate can be tried: no noise is added here, so every seed gives the same clip"


def no_probe(name: str) -> str | None:
    if name in NOISELESS:
        with pytest.raises(ValueError) as refused:
            NoiseSpace.of(EVERY[name].patchers()[0].get_model_object("model_sampling"))
        return f"Trial 1 is left out: {refused.value}"
    kinds = (kind for kind, ends in GIVEN.items() if name.endswith(ends))
    return next((f"{REASONS[kind]}: Trial 1 is left out" for kind in kinds), None)


@pytest.fixture(params=EVERY)
def name(request, record_property):
    record_property("family", request.param)
    if request.param in absent():
        pytest.skip("this ComfyUI has no such model")
    return request.param


@pytest.fixture
def family(name):
    return EVERY[name]


def parts(latent: dict) -> list[torch.Tensor]:
    samples = latent["samples"]
    return samples.unbind() if samples.is_nested else [samples]


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(*pair) for pair in zip(parts(one), parts(other), strict=True))


def inputs(family, seed: int = SEED, **changes):
    given = family.inputs("euler", steps=STEPS)
    return replace(given, noise=SeededNoise(seed), **changes)


def sockets(given) -> tuple:
    return given.noise, given.guider, given.sampler, given.sigmas, given.latent


@cache
def cores(name: str, seed: int, output: int = 0) -> dict:
    """Core's own clip, or its last x0 prediction (output 1)."""
    given = inputs(EVERY[name], seed)
    latent = SamplerCustomAdvanced.execute(*sockets(given)).args[output]
    assert all(torch.isfinite(part).all() for part in parts(latent))
    return latent


def looking(family, *scores):
    """A gate that really decodes, by the converter that `auto` takes for the model."""
    try:
        converter = load_converter(AUTO, family.patchers()[0])
    except ValueError:
        converter = MeanL2R()
    return gate(*scores, l2r=converter)


def test_monitor(name, family, record_property):
    record_property("feature", "monitor")
    watched = looking(family, 0.3)
    passed = monitored_sample(inputs(family), watched)
    assert same(passed.latent, cores(name, SEED)) and passed.verdict.accepted
    assert watched.scorer.calls and passed.verdict.record.message is None
    stopped = monitored_sample(inputs(family), looking(family, 0.1)).verdict
    assert not stopped.accepted and len(stopped.record.items) == 1
    assert stopped.record.steps == stopped.record.nfe_video < STEPS and stopped.preview is not None


def test_watch(name, family, record_property):
    record_property("feature", "Watch")
    watch = Watch(looking(family, 0.3))
    given = replace(family.inputs("euler", steps=STEPS, patch=watch.patch), noise=SeededNoise(SEED))
    assert same(SamplerCustomAdvanced.execute(*sockets(given)).args[0], cores(name, SEED))
    assert watch.verdict.record.message is None and len(watch.verdict.record.finals) == 1


def test_race_in_ksamplers_place(name, family, record_property):
    record_property("feature", "KSampler (Foresight)")
    if len(family.patchers()) > 1:
        record_property("outcome", "refused: it takes one model; Two-Expert Guider with the other drop-in takes both")
        return
    positive, negative, latent = family.conditions(1)
    given = {
        "model": family.patchers()[0], "seed": SEED, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler",
        "scheduler": "simple", "positive": positive, "negative": negative, "latent_image": latent, "denoise": 1.0,
    }  # fmt: skip
    raced, verdict = ForesightKSampler.execute(**given, gate=looking(family, 0.1, 0.3, 0.2), self_refine="off").args
    report = run_report(verdict)
    if name in NOISELESS:
        record_property("outcome", f"refused: {ALONE}")
        assert report["nfe"] == STEPS and report["notes"] == [f"Candidate 1: {ALONE}"]
    else:
        assert [row["state"] for row in report["candidates"]] == ["put aside", "delivered"]
    assert same(raced, cores(name, Candidate(1).seed(SEED)))
    sampler = comfy.samplers.sampler_object("euler")
    if fitting(sampler, given["model"].get_model_object("model_sampling")) is sampler:  # CogVideoX is beyond KSampler
        assert same(cores(name, SEED), core.KSampler().sample(**given)[0])


def test_race_in_sampler_custom_advanceds_place(name, family, record_property):
    record_property("feature", "SamplerCustomAdvanced (Foresight)")
    watched = looking(family, 0.3, 0.1)
    given = sockets(inputs(family))
    output, denoised, verdict = ForesightSamplerCustomAdvanced.execute(*given, gate=watched, self_refine="off").args
    assert same(output, cores(name, SEED)) and same(denoised, cores(name, SEED, 1))
    settings = verdict.settings
    assert run_report(verdict)["nfe"] <= settings["worst_case"] and settings["final_score"] == 0.1
    messages = [record.message for record in verdict.history if record.message]
    assert messages == ([ALONE] if name in NOISELESS else [])
    if messages:
        record_property("outcome", f"refused: {ALONE}")


def test_audition(name, family, record_property):
    record_property("feature", "Seed Audition")
    seeds, watched = (SEED, Candidate(1).seed(SEED)), looking(family, 0.1, 0.3)
    found = hold_audition(lambda seed: inputs(family, seed), watched, seeds, keep=1, fraction=0.2)
    assert found.chosen == seeds[1:] and same(found.latent, cores(name, seeds[1]))
    assert len(found.sheet) == 2 and not found.report["notes"]


def test_self_refine(name, family, record_property):
    record_property("feature", "Self-Refine")
    given = inputs(family)
    refined = self_refining(given.sampler, SelfRefineSettings(parse_plan("2-3:1", STEPS), tau=0.0))
    if name in NOISELESS:
        with pytest.raises(ValueError, match="cannot add noise the way this model does") as refused:
            monitored_sample(replace(given, sampler=refined))
        record_property("outcome", f"refused: {refused.value}")
        return
    result = monitored_sample(replace(given, sampler=refined))
    assert all(torch.isfinite(part).all() for part in parts(result.latent))
    assert not same(result.latent, cores(name, SEED)) and result.verdict.record.nfe_video == STEPS + 2


def test_search(name, family, record_property):
    record_property("feature", "Latent Search")
    given = inputs(family)
    search = searching(Mean(), given.sampler, candidates=2, method="beam")
    result = monitored_sample(replace(given, sampler=search))
    winner = next(each for each in search.result["candidates"] if each["dropped_at"] is None)
    noise = SeededNoise(winner["seed"]).generate_noise(given.latent)  # what a model draws by itself stays the run's
    alone = monitored_sample(replace(given, noise=FixedNoise(noise, SEED)))
    assert same(result.latent, alone.latent) and len(search.result["candidates"]) == 2


def test_preview(name, family, record_property):
    record_property("feature", "L2R Preview, auto")
    model = family.patchers()[0]
    if model.get_model_object("latent_format").latent_rgb_factors is None:
        told = "no preview for (CogVideoX|SeedVR2) yet.*L2R Calibrate makes one"
        with pytest.raises(ValueError, match=told) as refused:
            load_converter(AUTO, model)
        record_property("outcome", f"refused: {refused.value}")
        return
    latent = video_latent(cores(name, SEED)["samples"], model.model)
    frames = decode(load_converter(AUTO, model), video(latent))
    assert frames.shape[1] == video(latent).shape[2] and frames.shape[-1] == 3


def test_calibrate(name, family, record_property):
    record_property("feature", "L2R Calibrate")
    latent = cores(name, SEED)
    model = family.patchers()[0]
    shape = video(video_latent(latent["samples"], model.model)).shape
    images = 1 + 4 * (shape[2] - 1) if latent["samples"].is_nested or latent["samples"].ndim == 5 else shape[2]
    assert channels(model.get_model_object("latent_format")) == shape[1]
    clip = torch.rand(images, 8 * shape[3], 8 * shape[4], 3, generator=torch.Generator().manual_seed(4))
    converter = L2RCalibrate.execute(model, images=clip, latent=latent, save=False).args[0]
    assert (converter.channels, converter.scale) == (shape[1], 8)


def test_injection(name, family, record_property):
    record_property("feature", "all trials, with Latent Injector")

    def reguide(prompt, negative):
        return family.guide(family.patchers(), prompt=len(prompt))

    result = run_hierarchy(
        inputs(family), looking(family, 0.1), reguide, negative="", reworder=Rewriter(), injection=InjectionSettings()
    )
    assert all(torch.isfinite(part).all() for part in parts(result.latent))
    first, probe, *_, last = result.verdict.history
    assert not first.accepted and probe.message == no_probe(name)
    assert (last.trial, last.kind) == (("2", "plain") if probe.message else ("2->1", "inject"))
    if probe.message:
        record_property("outcome", f"refused: {probe.message}")


def test_a_video_in_rows_is_one_clip():
    """Stable Video Diffusion's frames are a batch; they are looked at, counted and judged together."""
    family = EVERY["Stable Video Diffusion"]
    record = monitored_sample(inputs(family), looking(family, 0.3)).verdict.record
    assert len(record.items) == 1 and len(record.preview) == 3 and record.nfe_video == STEPS


def test_clips_of_video_and_sound_are_joined_part_by_part():
    latent = {"samples": NestedTensor([torch.zeros(1, 2, 3, 2, 2), torch.ones(1, 4, 5)])}
    assert [part.shape for part in parts(joined([latent, latent]))] == [(2, 2, 3, 2, 2), (2, 4, 5)]


@pytest.mark.parametrize("each", ["Stable Video Diffusion", "LTX-2, video and sound", "Wan 2.1 T2V"])
def test_cores_own_previews_are_made_by_the_converter(each, monkeypatch, caplog):
    """Also where frames are the rows of a batch, and where sound comes with them."""
    if each in absent():
        pytest.skip("this ComfyUI has no such model")
    monkeypatch.setattr(guided.args, "preview_method", LatentPreviewMethod.Auto)
    made = []
    monkeypatch.setattr(guided.latent_preview, "preview_to_image", lambda still, do_scale: made.append(still.shape))
    monitored_sample(inputs(EVERY[each]), looking(EVERY[each], 0.3))
    assert len(made) == STEPS and made[0][-1] == 3 and "has no preview" not in caplog.text


def test_no_family_is_left_out():
    """Of the versions that are tried: what one of them lacks came later."""
    later = ("CogVideoX", "Kandinsky", "LTX-2", "MiniMax", "SeedVR2", "Wan 2.1 FlowRVS", "Wan 2.1 SCAIL",
             "Wan 2.2 WanDancer", "Wan Animate 2")  # fmt: skip
    newer = {name for name in EVERY if name.startswith(later)}
    assert absent() == (set() if RAW_INPUT else newer)


def test_the_page_tells_of_every_family_and_feature():
    """If this fails: run the command at the top of this file on both versions."""
    ran = json.loads(RESULTS.read_text(encoding="utf-8"))
    if comfyui_version.__version__ in ran:
        found = ran[comfyui_version.__version__]["families"]
        assert found.keys() == EVERY.keys() and {name for name, features in found.items() if not features} == absent()
    said = section(RESULTS)
    assert said in PAGE.read_text(encoding="utf-8")
    assert not any(word in said for word in ("not tried", "failed", "skipped"))
