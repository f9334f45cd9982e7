"""The drop-ins: core's own nodes to the last bit where a clip passes, and raced where it does not."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_base
import comfy.model_patcher
import comfy.nested_tensor
import comfy.samplers
import comfy.supported_models
import pytest
import tiny_wan
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced
from tiny_models import FAMILIES, with_mask

import nodes as core
from foresight.nodes.drop_in import ForesightKSampler, ForesightSamplerCustomAdvanced
from foresight.sampling.noise import SeededNoise
from foresight.scoring.race_preset import FittedRace, RacePreset, save_race_preset
from foresight.trials.race import Candidate, Look
from foresight.trials.report import run_report
from foresight.trials.summary import report_text

SEED = 7


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; a sampler that overflows on random weights does so in the same places."""
    return one.shape == other.shape and torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))


@pytest.fixture(autouse=True)
def floors(tmp_path, monkeypatch):
    """A preset for the scripted scorer: after a third of the schedule a score of 0.2 passes, at any number of steps."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "foresight_races", ([str(tmp_path)], {".json"}))
    race = FittedRace(budget=0.2, most=2.0, candidates=3, looks=(Look(0.34, 0.2, 0.2),))
    for model in ("WAN21", "WAN22", "CogVideoX"):
        for steps in (1, 3, 10, 30):
            preset = RacePreset("scripted", model, steps, {"later": (race,), "off": (race,)})
            save_race_preset(preset, tmp_path / f"{model}_{steps}.json")


def ksampler(**inputs):
    """What core's KSampler and ours take."""
    positive, negative = tiny_wan.conditioning(1), tiny_wan.conditioning(2)
    latent = {"samples": torch.zeros(1, *tiny_wan.LATENT)}
    return {
        "model": tiny_wan.model(), "seed": SEED, "steps": 6, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": positive, "negative": negative, "latent_image": latent, "denoise": 1.0,
    } | inputs  # fmt: skip


def cores(given: dict) -> dict:
    latent = {name: given[name] for name in given if name != "latent_image"}
    return core.KSampler().sample(**latent, latent_image=given["latent_image"])[0]


def ours(given: dict, *scores, **settings):
    """(latent, report), its look scored with these."""
    gate = settings.pop("gate", None) or tiny_wan.gate(*(scores or (0.3,)))
    latent, verdict = ForesightKSampler.execute(**given, gate=gate, **settings).args
    return latent, run_report(verdict)


def same_latent(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and same(one["samples"], other["samples"])


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_a_passing_clip_is_ksamplers(patcher, sampler):
    given = ksampler(model=patcher, sampler_name=sampler, steps=2 if sampler == "dpm_adaptive" else 3)
    latent, report = ours(given)
    assert same_latent(latent, cores(given))
    assert len(report["candidates"]) == 1 and report["final_seed"] == SEED and report["nfe"] <= report["nfe_plain"]


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
@pytest.mark.parametrize("denoise", [1.0, 0.55])
def test_every_schedule_is_ksamplers(patcher, scheduler, denoise):
    samples = torch.randn(1, *tiny_wan.LATENT, generator=torch.Generator().manual_seed(5))
    given = ksampler(model=patcher, scheduler=scheduler, steps=5, denoise=denoise, latent_image={"samples": samples})
    assert same_latent(ours(given)[0], cores(given))


@pytest.mark.parametrize("sampler", ["uni_pc", "uni_pc_bh2", "dpm_2", "dpm_2_ancestral", "ddim", "euler_ancestral"])
@pytest.mark.parametrize("kind", ["partial denoise", "mask", "batch", "batch index", "one step", "no guidance"])
def test_what_ksampler_makes_of_its_inputs(patcher, sampler, kind):
    given = ksampler(model=patcher, sampler_name=sampler)
    shape = (2 if "batch" in kind else 1, *tiny_wan.LATENT)
    latent = {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(5))}
    if kind == "mask":
        mask = torch.ones(1, 1, *shape[2:])
        mask[..., :2] = 0
        latent["noise_mask"] = mask
    given |= {
        "partial denoise": {"denoise": 0.6}, "one step": {"steps": 1}, "no guidance": {"cfg": 1.0},
        "batch index": {"latent_image": latent | {"batch_index": [3, 1]}},
    }.get(kind, {"latent_image": latent})  # fmt: skip
    assert same_latent(ours(given)[0], cores(given))


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_a_seed_that_is_gone_on_with_is_ksamplers_of_that_seed(patcher, sampler):
    if sampler in ("dpm_fast", "dpm_adaptive"):
        pytest.skip("chooses its own steps, so there is nothing to look at")
    given = ksampler(model=patcher, sampler_name=sampler, steps=5)
    latent, report = ours(given, 0.1, 0.15, 0.05, self_refine="off")
    assert [row["state"] for row in report["candidates"]] == ["put aside", "delivered", "put aside"]
    assert report["final_seed"] == Candidate(1).seed(SEED)
    assert same_latent(latent, cores(given | {"seed": report["final_seed"]}))


def test_an_empty_latent_is_made_fit_for_the_model_as_ksampler_does(patcher):
    """An image's empty latent: 4 channels, no frames; newer cores also note what it was scaled by."""
    empty = core.EmptyLatentImage().generate(32, 32)[0]
    given = ksampler(model=patcher, latent_image=empty)
    latent = ours(given)[0]
    assert latent["samples"].ndim == 5 and same_latent(latent, cores(given))
    smaller = FAMILIES["Wan 2.2 5B T2V"].patchers()[0]  # its latents are half as large again
    given = ksampler(model=smaller, latent_image=core.EmptyLatentImage().generate(64, 64)[0])
    assert same_latent(ours(given)[0], cores(given))


def test_denoise_0_gives_the_latent_back(patcher):
    given = ksampler(model=patcher, denoise=0.0)
    output = ForesightKSampler.execute(**given)
    assert same_latent(output.args[0], cores(given)) and "nothing was sampled" in output.ui["text"][0]


def test_a_single_frame_is_a_clip_as_well(patcher):
    given = ksampler(model=patcher, latent_image={"samples": torch.zeros(1, 16, 1, 4, 4)})
    assert same_latent(ours(given)[0], cores(given))


def test_budget_0_is_ksampler_and_says_so(patcher):
    given = ksampler(model=patcher)
    latent, report = ours(given, 0.1, budget=0.0)
    assert same_latent(latent, cores(given)) and report["nfe"] == report["nfe_worst_case"] == 6
    assert any("the budget of 0% allows no second candidate" in note for note in report["notes"])


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_and_two_experts_enter_by_their_guider(name):
    family = FAMILIES[name]
    given = replace(family.inputs("euler"), noise=RandomNoise.execute(SEED).args[0])
    sockets = {"noise": given.noise, "guider": given.guider, "sampler": given.sampler, "sigmas": given.sigmas,
               "latent_image": given.latent}  # fmt: skip
    theirs = SamplerCustomAdvanced.execute(**sockets).args
    output, denoised, verdict = ForesightSamplerCustomAdvanced.execute(**sockets, gate=tiny_wan.gate(0.3)).args
    assert same_latent(output, theirs[0]) and same_latent(denoised, theirs[1])
    assert run_report(verdict)["accepted"]
    output, denoised, verdict = ForesightSamplerCustomAdvanced.execute(
        **sockets, gate=tiny_wan.gate(0.1, 0.3), self_refine="off"
    ).args
    again = SamplerCustomAdvanced.execute(**sockets | {"noise": RandomNoise.execute(Candidate(1).seed(SEED)).args[0]})
    assert same_latent(output, again.args[0]) and same_latent(denoised, again.args[1])


@pytest.mark.parametrize("sampler", [*comfy.samplers.SAMPLER_NAMES, "masked euler", "masked uni_pc"])
def test_a_passing_clip_is_sampler_custom_advanceds(patcher, sampler):
    steps = 2 if sampler == "dpm_adaptive" else 3
    given = tiny_wan.inputs(patcher, sampler.removeprefix("masked "), steps=steps, cfg=1.0)
    given = with_mask(given) if sampler.startswith("masked") else given
    sockets = (given.noise, given.guider, given.sampler, given.sigmas, given.latent)
    theirs = SamplerCustomAdvanced.execute(*sockets).args
    output, denoised, _ = ForesightSamplerCustomAdvanced.execute(*sockets, gate=tiny_wan.gate(0.3)).args
    assert same_latent(output, theirs[0]) and same_latent(denoised, theirs[1])


def test_a_guider_without_guidance_is_raced(patcher):
    """As Flux models are sampled."""
    guider = BasicGuider.execute(patcher, tiny_wan.conditioning(1)).args[0]
    given = tiny_wan.inputs(patcher)
    sockets = (given.noise, guider, given.sampler, given.sigmas, given.latent)
    output = ForesightSamplerCustomAdvanced.execute(*sockets, gate=tiny_wan.gate(0.3)).args[0]
    assert same_latent(output, SamplerCustomAdvanced.execute(*sockets).args[0])


def test_what_is_scored_is_told(patcher):
    given = ksampler(model=patcher)
    for settings, source in (({}, "the gate"), ({"prompt": "a fox"}, "the sampler's widget")):
        gate = tiny_wan.gate(0.3)
        report = ours(given, gate=gate, **settings)[1]
        said = settings.get("prompt", "a red circle")
        assert f"Prompt, from {source}: {said}" in report_text(report)
        assert set(gate.scorer.prompts) == {said}


def test_what_is_scored_stands_on_the_node_from_the_start(patcher, monkeypatch):
    shown = []
    monkeypatch.setattr("foresight.nodes.drop_in.show_on_node", lambda node, text: shown.append(text))
    ours(ksampler(model=patcher), prompt="a fox\nin the \ud83d snow")
    taken = "Scored against the text of the sampler's widget: a fox\\nin the \\ud83d snow"
    assert shown[0] == taken and shown[1].endswith(f"\n{taken}")
    assert shown[1].startswith("Passed: the run was not touched")


@pytest.mark.parametrize("name, value", [("sampler_name", "\ud83d"), ("scheduler", "none"), ("self_refine", "maybe")])
def test_a_choice_that_there_is_not(patcher, name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        ours(ksampler(model=patcher) | {name: value})


@pytest.mark.parametrize("budget", [-0.1, float("nan"), float("inf")])
def test_a_budget_that_is_none(patcher, budget):
    with pytest.raises(ValueError, match="budget is"):
        ours(ksampler(model=patcher), budget=budget)


@pytest.mark.parametrize("besides", ["scorer", "l2r"])
def test_a_gate_and_what_it_brings_are_not_both_taken(patcher, besides):
    with pytest.raises(ValueError, match="connect gate, or scorer and l2r"):
        ours(ksampler(model=patcher), **{besides: tiny_wan.MeanL2R()})


def test_without_a_graph_there_is_no_text_to_find(patcher):
    with pytest.raises(ValueError, match="prompt is empty, and no text was found"):
        ForesightKSampler.execute(**ksampler(model=patcher), scorer=tiny_wan.ScriptedScorer(0.3))


def test_the_drop_ins_have_cores_sockets_and_few_widgets():
    for kind, theirs in ((ForesightKSampler, core.KSampler), (ForesightSamplerCustomAdvanced, SamplerCustomAdvanced)):
        mine, known = kind.INPUT_TYPES(), theirs.INPUT_TYPES()
        assert list(mine["required"]) == list(known["required"])
        for name, (_, *rest) in known["required"].items():
            options, own = (rest or [{}])[0], mine["required"][name][1]
            assert {key: own[key] for key in ("default", "min", "max", "step") if key in options} == {
                key: options[key] for key in ("default", "min", "max", "step") if key in options
            }, name
        widgets = [each for each in kind.GET_SCHEMA().inputs if hasattr(each, "default") and each.io_type.isupper()
                   and each.io_type in ("INT", "FLOAT", "COMBO", "STRING", "BOOLEAN")]  # fmt: skip
        assert len(widgets) + 1 <= 12  # and what becomes of the seed
        assert kind.RETURN_TYPES[0] == "LATENT"


class Still(torch.nn.Module):
    """An image model's network: what it sees, a little smaller."""

    dtype = torch.float32

    def forward(self, x, timesteps, context=None, **_):
        return 0.1 * x + context.mean()


def image_model():
    config = comfy.supported_models.SD15({"image_model": "still", "disable_unet_model_creation": True})
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS)
    model.diffusion_model = Still()
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_an_image_model_is_raced_by_its_stills():
    given = ksampler(model=image_model(), latent_image={"samples": torch.zeros(1, 4, 8, 8)})
    latent, verdict = ForesightKSampler.execute(
        **given, scorer=tiny_wan.ScriptedScorer(0.1, 0.3, 0.2), prompt="a fox", budget=2.0, self_refine="off"
    ).args
    report = run_report(verdict)
    assert len(report["candidates"]) > 2 and report["candidates"][1]["state"] == "delivered"
    assert not report["notes"] and {len(each.preview) for each in verdict.history if each.preview is not None} == {1}
    assert latent["samples"].shape == (1, 4, 8, 8)
    assert same_latent(latent, cores(given | {"seed": report["final_seed"]}))


def test_a_model_of_which_nothing_can_be_seen_says_what_to_connect(monkeypatch):
    model = image_model()
    monkeypatch.setattr(model.model.latent_format, "latent_rgb_factors", None)
    given = ksampler(model=model, latent_image={"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="no preview for SD15 yet.*L2R Calibrate makes one.*connect it to l2r"):
        ForesightKSampler.execute(**given, scorer=tiny_wan.ScriptedScorer(0.3), prompt="a fox")


@pytest.mark.parametrize("chosen", [None, [2, 0]])
def test_other_candidates_of_several_latents_have_cores_noise(chosen):
    """Video and sound are one LATENT of two tensors."""
    count = len(chosen or [0])
    parts = [torch.zeros(count, 4, 3, 2, 2), torch.zeros(count, 8, 5)]
    latent = {"samples": comfy.nested_tensor.NestedTensor(parts)} | ({"batch_index": chosen} if chosen else {})
    own, cores = (noise.generate_noise(latent) for noise in (SeededNoise(SEED), RandomNoise.execute(SEED).args[0]))
    assert own.is_nested and all(map(torch.equal, own.unbind(), cores.unbind()))
