"""Promise 1 over every model family and every core sampler; what ran is written into docs/compatibility.md.

    python dev.py compatibility
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy.samplers
import comfyui_version
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from tiny_models import FAMILIES, with_mask
from tiny_wan import Rewriter, gate

from foresight.lab.release.compatibility import PAGE, section
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.inputs import Inputs
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.vp import fitting
from foresight.sampling.watch import Watch
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "compatibility.json"
# dpm_adaptive takes steps until its error is small: minutes on a random network, unless much error is allowed.
LOOSE = {"dpm_adaptive": {"rtol": 1.0, "atol": 1.0}}
USUAL = ["euler", "dpmpp_2m", "uni_pc", "res_multistep"]
PATCHES = {
    "shift": lambda model: ModelSamplingSD3().patch(model, 3.0)[0],
    "SkipLayerGuidance": lambda model: SkipLayerGuidanceDiT.execute(model, 3.0, 0.01, 0.9, "1", "").args[0],
    "EasyCache": lambda model: EasyCacheNode.execute(model, 0.5, 0.1, 0.9, False).args[0],
}


@pytest.fixture(params=FAMILIES)
def family(request, record_property):
    record_property("model", request.param)
    return FAMILIES[request.param]


def sampled_by(family, sampler: str, cfg: float = 4.0, steps: int = 4) -> Inputs:
    given = family.inputs(sampler, cfg, steps)
    if sampler not in LOOSE:
        return given
    sampling = given.guider.model_patcher.get_model_object("model_sampling")
    return replace(given, sampler=fitting(comfy.samplers.ksampler(sampler, LOOSE[sampler]), sampling))


def core(given: Inputs) -> torch.Tensor:
    result = SamplerCustomAdvanced.execute(given.noise, given.guider, given.sampler, given.sigmas, given.latent)
    return result.result[0]["samples"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit; a sampler that overflows on random weights does so in the same places."""
    return torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))


def passing(given: Inputs) -> torch.Tensor:
    watched = gate(0.3)
    result = monitored_sample(given, watched)
    assert result.verdict.accepted and watched.scorer.calls > 0
    return result.latent["samples"]


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_a_passing_run_is_cores(family, sampler, cfg, record_property):
    record_property("check", f"passes untouched, CFG {cfg:g}")
    record_property("sampler", sampler)
    expected = core(sampled_by(family, sampler, cfg))
    assert same(passing(sampled_by(family, sampler, cfg)), expected)


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_a_candidate_put_aside_goes_on_as_cores(family, sampler, record_property):
    record_property("check", "race: put aside, gone on with")
    record_property("sampler", sampler)
    own = replace(sampled_by(family, sampler, steps=5), noise=SeededNoise(7))
    rules = Rules(RaceSettings(2, "off"), (Look(0.4),))
    result = run_race(own, gate(0.15, 0.1, 0.3), rules)
    assert same(result.latent["samples"], core(own))
    own_steps = sampler in ("dpm_fast", "dpm_adaptive")  # cannot be looked at: one candidate, sampled plainly
    assert len(run_report(result.verdict)["candidates"]) == (1 if own_steps else 2)


@pytest.mark.parametrize("sampler", USUAL)
def test_a_passing_run_with_a_mask_is_cores(family, sampler, record_property):
    record_property("check", "passes untouched, denoise mask")
    record_property("sampler", sampler)
    given = with_mask(family.inputs(sampler))
    assert same(passing(given), core(given))


@pytest.mark.parametrize("sampler", USUAL)
def test_a_passing_batch_is_cores_and_a_rejected_one_stops(family, sampler, record_property):
    record_property("check", "batch of 2")
    record_property("sampler", sampler)
    given = family.inputs(sampler, batch=2)
    assert same(passing(given), core(given))
    stopped = monitored_sample(given, gate(0.1)).verdict
    assert not stopped.accepted and len(stopped.record.items) == 2 and stopped.record.steps == 3


# The shift belongs to flow models.
PATCHED = [(name, patch) for name in FAMILIES for patch in PATCHES if (name, patch) != ("CogVideoX T2V", "shift")]


@pytest.mark.parametrize("family, patch", PATCHED, indirect=["family"])
def test_a_patched_model_passes_untouched(family, patch, record_property):
    record_property("check", f"passes untouched, {patch}")
    record_property("sampler", "euler")
    given = family.inputs(patch=PATCHES[patch])
    assert same(passing(given), core(given))


@pytest.mark.parametrize("sampler", USUAL)
def test_a_rejected_run_goes_through_the_trials(family, sampler, record_property):
    record_property("check", "all trials")
    record_property("sampler", sampler)

    def reguide(prompt, negative):
        return family.guide(family.patchers(), prompt=len(prompt))

    result = run_hierarchy(
        family.inputs(sampler), gate(0.1), reguide, negative="",
        reworder=Rewriter(), injection=InjectionSettings(),
    )  # fmt: skip
    kinds = [(record.trial, record.kind) for record in result.verdict.history]
    assert kinds[:-1] == [("0", "sample"), ("1", "probe"), ("2", "refine"), ("2", "sample"), ("2->1", "probe")]
    assert kinds[-1] == (("2", "plain") if family.start else ("2->1", "inject"))
    assert torch.isfinite(result.latent["samples"]).all()


@pytest.mark.parametrize("sampler", USUAL)
def test_a_watched_model_samples_the_same(family, sampler, record_property):
    record_property("check", "Foresight Watch")
    record_property("sampler", sampler)
    watch = Watch(gate(0.1))
    watched = family.inputs(sampler, patch=watch.patch)
    assert same(core(watched), core(family.inputs(sampler)))
    assert not watch.verdict.accepted or len(family.models) > 1


def test_the_page_shows_what_ran():
    """If this fails: run the commands at the top of this file, the first on both versions."""
    assert section(RESULTS) in PAGE.read_text(encoding="utf-8")
    ran = json.loads(RESULTS.read_text(encoding="utf-8"))
    if comfyui_version.__version__ in ran:  # of other versions the table says nothing
        assert ran[comfyui_version.__version__]["models"].keys() == FAMILIES.keys()
