"""Promise 1 for all that core calls a sampler: every KSAMPLER name, and what every SAMPLER node makes by its defaults.

The lists are core's own, so a sampler that a later ComfyUI brings is tried as well.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from dataclasses import replace

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from conftest import COMFYUI
from tiny_wan import gate, inputs, model

from foresight.sampling.compat import CAUSAL_WAN
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.segments import own_steps
from foresight.sampling.watch import Watch
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report

RULES = Rules(RaceSettings(2, "off"), (Look(0.4, 0.2, 0.2),))


def made_by_nodes():
    """Name -> SAMPLER, of each node of core that makes one of widgets, or of widgets and a model."""
    made = {}
    for path in sorted((COMFYUI / "comfy_extras").glob("nodes_*.py")):
        if not re.search(r"Sampler\.Output\(", path.read_text(encoding="utf-8")):
            continue
        extension = asyncio.run(importlib.import_module(f"comfy_extras.{path.stem}").comfy_entrypoint())
        for node in asyncio.run(extension.get_node_list()):
            schema = node.define_schema()
            known = all(isinstance(given, (io.WidgetInput, io.Model.Input)) for given in schema.inputs)
            if known and any(isinstance(output, io.Sampler.Output) for output in schema.outputs):
                made[schema.node_id] = node.execute(**{each.id: value(each) for each in schema.inputs}).args[0]
    return made


def value(given):
    if isinstance(given, io.Model.Input):
        return model()
    return given.options[0] if isinstance(given, io.Combo.Input) else given.default


SAMPLERS = {name: comfy.samplers.sampler_object(name) for name in comfy.samplers.SAMPLER_NAMES} | made_by_nodes()
AUTOREGRESSIVE = "SamplerARVideo"  # needs a causal model


def core(own):
    result = SamplerCustomAdvanced.execute(own.noise, own.guider, own.sampler, own.sigmas, own.latent)
    return result.result[0]["samples"]


@pytest.fixture(scope="module")
def patchers():
    """By whether the model is causal."""
    return {False: model(), True: causal() if AUTOREGRESSIVE in SAMPLERS else None}


def causal():
    """The tiny Wan's weights as core's autoregressive model."""
    import comfy.model_base

    weights = model().model.diffusion_model.state_dict()
    found = comfy.model_detection.model_config_from_unet(weights, "")
    config = comfy.supported_models.WAN21_CausalAR_T2V({**found.unet_config, "causal_ar": True})
    config.custom_operations = comfy.ops.disable_weight_init
    config.set_inference_dtype(torch.float32, None)
    made = config.get_model(weights, "")
    made.diffusion_model.load_state_dict(weights)
    device = comfy.model_management.get_torch_device()
    made.to(device)
    return comfy.model_patcher.ModelPatcher(made, load_device=device, offload_device=device)


@pytest.fixture(params=SAMPLERS)
def given(request, patchers):
    """(Inputs, core's clip); skipped where core itself samples no video with it."""
    sampler = SAMPLERS[request.param]
    patcher = patchers[request.param == AUTOREGRESSIVE]
    cfg = 1.0 if request.param == AUTOREGRESSIVE else 4.0  # the caches of causal models have no room for both
    own = replace(inputs(patcher, steps=5, cfg=cfg), sampler=sampler, noise=SeededNoise(7))
    try:
        plain = core(own)
    except Exception as error:
        pytest.skip(f"core samples no video with it: {type(error).__name__}: {error}")
    if not torch.equal(plain, core(own)):
        pytest.skip("it draws from the global generator: the same seed gives another clip each time")
    return own, plain


def watched(own, watch):
    guider = inputs(watch.patch(own.guider.model_patcher), cfg=own.guider.cfg).guider
    return core(replace(own, guider=guider))


def test_the_lists_are_cores(patchers):
    names = set(comfy.samplers.SAMPLER_NAMES)
    assert {"euler", "dpm_adaptive", "dpm_fast", "uni_pc", "ddim"} <= names <= SAMPLERS.keys()
    assert {"SamplerDPMAdaptative", "SamplerLMS", "SamplerEulerCFGpp", "SamplerSASolver"} <= SAMPLERS.keys()
    if CAUSAL_WAN:
        assert AUTOREGRESSIVE in SAMPLERS


def test_a_passing_or_uninspected_run_is_cores(given):
    own, plain = given
    for watch in (None, gate(0.3), gate(RuntimeError("no scorer"))):
        result = monitored_sample(own, watch)
        assert torch.equal(result.latent["samples"], plain) and result.verdict.accepted
        assert result.verdict.record.nfe_video >= result.verdict.record.steps == 5
    watch = Watch(gate(0.1))
    assert torch.equal(watched(own, watch), plain)
    assert watch.verdict.record.nfe_video == result.verdict.record.nfe_video


def test_every_step_is_where_its_sampler_says(given):
    """Placed by its noise, and not by the sampler's count: for core's own samplers that is the same."""
    own, plain = given
    if own_steps(own.sampler) or own.guider.model_patcher.model.__class__.__name__ == "WAN21_CausalAR":
        pytest.skip("it does not come by the schedule's steps")
    trace = monitored_sample(own, gate(0.1), stop="never").verdict.record.best.trace
    assert [step for step, _ in trace] == [1, 2]
    kept = monitored_sample(own, keep_steps=True)
    assert len(kept.steps_x0["samples"]) == 5 and torch.equal(kept.latent["samples"], plain)


def test_a_candidate_put_aside_goes_on_as_cores(given):
    own, plain = given
    result = run_race(own, gate(0.15, 0.1, 0.3), RULES)
    report = run_report(result.verdict)
    assert torch.equal(result.latent["samples"], plain)
    assert report["nfe"] <= report["nfe_worst_case"]


@pytest.mark.skipif(AUTOREGRESSIVE not in SAMPLERS, reason="this ComfyUI has no autoregressive sampler")
def test_the_parts_that_an_autoregressive_sampler_shows_are_not_judged(patchers):
    own = replace(inputs(patchers[True], steps=5, cfg=1.0), sampler=SAMPLERS[AUTOREGRESSIVE])
    result = monitored_sample(own, gate(0.1))
    assert torch.equal(result.latent["samples"], core(own)) and result.verdict.accepted
    assert result.verdict.record.message == "not judged: the sampler has shown parts of the clip only"
    assert result.verdict.record.nfe_video > 5
