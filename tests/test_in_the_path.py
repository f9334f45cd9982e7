"""What people have in a model's path, two by two: a covering array, each row of which holds promises 1 to 3.

docs/in_the_path.md lists the values; a test holds the list to this file.
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfyui_version
import pytest
import tiny_wan
import torch
from allpairspy import AllPairs
from comfy.cli_args import PerformanceFeature, args
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras import nodes_apg, nodes_cfg, nodes_context_windows, nodes_custom_sampler, nodes_easycache, nodes_slg
from searches import Mean, searching
from test_compatibility import RESULTS, core, same
from tiny_wan import gate

import nodes as core_nodes
from foresight.sampling.inputs import Inputs
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report

try:
    from comfy_extras.nodes_nag import NAGuidance
except ImportError:  # from ComfyUI 0.33 on
    NAGuidance = None

STEPS = 5
DOCS = Path(__file__).resolve().parents[1] / "docs" / "in_the_path.md"


@cache
def loaded(dtype: torch.dtype | None, fast: bool):
    options = {"dtype": dtype, "fp8_optimizations": fast}
    return comfy.sd.load_diffusion_model_state_dict(tiny_wan.network().state_dict(), model_options=options)


def with_lora(model, seed: int):
    """As LoraLoaderModelOnly patches it."""
    generator, key = torch.Generator().manual_seed(seed), "diffusion_model.blocks.0.self_attn.q"
    lora = {f"{key}.lora_down.weight": torch.randn(4, 128, generator=generator),
            f"{key}.lora_up.weight": torch.randn(128, 4, generator=generator)}  # fmt: skip
    return comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0)[0]


def windows(model):
    execute = nodes_context_windows.WanContextWindowsManualNode.execute
    more = {"freenoise": False} if "freenoise" in execute.__func__.__code__.co_varnames else {}
    return execute(model, 9, 1, "standard_static", 1, False, "pyramid", **more).args[0]


def compiled(model):
    model = model.clone()
    set_torch_compile_wrapper(model, backend="eager")  # what TorchCompileModel does; compiling itself takes minutes
    return model


def swapped(model):
    """As nodes for block swap do: blocks go back to where they wait, after each load."""

    def back(patcher, *_):
        for block in patcher.model.diffusion_model.blocks[:1]:
            block.to(patcher.offload_device)

    model = model.clone()
    model.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, back)
    return model


class DrawnTwice:
    """A NOISE object of another pack: the sum of two draws; its seed cannot be set."""

    seed = property(lambda self: 11)

    def generate_noise(self, latent):
        one, other = (SeededNoise(seed).generate_noise(latent) for seed in (11, 12))
        return (one + other) / 2**0.5


def masked(latent):
    mask = torch.ones(len(latent["samples"]), 1, 5, 4, 4)
    mask[..., :2] = 0
    return {**latent, "noise_mask": mask}


def repeated(latent):
    return core_nodes.RepeatLatentBatch().repeat(latent, 2)[0]


def from_batch(latent):
    return core_nodes.LatentFromBatch().frombatch(core_nodes.RepeatLatentBatch().repeat(latent, 3)[0], 1, 1)[0]


def dual(model, positive, negative):
    guider = nodes_custom_sampler.Guider_DualCFG(model)
    guider.set_conds(positive, tiny_wan.conditioning(4), negative)
    guider.set_cfg(4.0, 2.0)
    return guider


def cfg(model, positive, negative, scale=4.0):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)
    return guider


def basic(model, positive, _):
    guider = nodes_custom_sampler.Guider_Basic(model)
    guider.set_conds(positive)
    return guider


def attribute(name: str) -> str:
    return name.replace(" ", "_")


def keep(what):
    return what


WEIGHTS = {
    "fp32": None, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "LoRA, exchanged between runs": None,
}  # fmt: skip
MEMORY = {"all loaded": None, "--lowvram": "LOW_VRAM", "--novram": "NO_VRAM"}
FAST = {"off": False, "--fast": True}
PATHS = {
    "nothing": keep,
    "EasyCache": lambda model: nodes_easycache.EasyCacheNode.execute(model, 0.5, 0.1, 0.9, False).args[0],
    "LazyCache": lambda model: nodes_easycache.LazyCacheNode.execute(model, 0.5, 0.1, 0.9, False).args[0],
    "SkipLayerGuidance": lambda model: nodes_slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.01, 0.9, "1", "").args[0],
    "CFG-Zero": lambda model: nodes_cfg.CFGZeroStar.execute(model).args[0],
    "CFGNorm": lambda model: nodes_cfg.CFGNorm.execute(model, 0.8).args[0],
    "APG": lambda model: nodes_apg.APG.execute(model, 1.0, 5.0, 0.2).args[0],
    "NAG": NAGuidance and (lambda model: NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]),
    "context windows": windows,
    "torch.compile": compiled,
    "block swap": swapped,
}
LATENTS = {"one clip": keep, "RepeatLatentBatch": repeated, "LatentFromBatch": from_batch, "noise mask": masked}
GUIDERS = {"CFGGuider": cfg, "CFG 1": partial(cfg, scale=1.0), "BasicGuider": basic, "DualCFGGuider": dual}
NOISES = {"RandomNoise": SeededNoise(7), "a NOISE object of a pack's own": DrawnTwice()}
SCHEDULES = {
    "whole": slice(None), "KSampler Advanced, leftover noise kept": slice(0, 4),
    "SplitSigmas, the second part": slice(2, None),
}  # fmt: skip
SAMPLERS = ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "lcm"]
FACTORS = {
    "weights": WEIGHTS, "memory": MEMORY, "fast": FAST, "in the path": PATHS, "latent": LATENTS, "guider": GUIDERS,
    "noise": NOISES, "schedule": SCHEDULES, "sampler": dict.fromkeys(SAMPLERS, keep),
}  # fmt: skip
MISSING = {("in the path", "NAG"): "0.33"} if NAGuidance is None else {}
ROWS = list(AllPairs(OrderedDict(
    (attribute(name), [value for value in values if (name, value) not in MISSING]) for name, values in FACTORS.items()
)))  # fmt: skip


def test_every_pair_is_in_a_row():
    names = list(FACTORS)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            both = {(getattr(row, attribute(one)), getattr(row, attribute(other))) for row in ROWS}
            known = [[value for value in FACTORS[name] if (name, value) not in MISSING] for name in (one, other)]
            assert len(both) == len(known[0]) * len(known[1])


@pytest.fixture
def machine(monkeypatch):
    """Sets ComfyUI's own switches: --fast, and --lowvram and --novram as if the CPU were a card."""

    def switch(memory: str | None, fast: bool):
        management = comfy.model_management
        monkeypatch.setattr(args, "fast", set(PerformanceFeature) if fast else set())
        if memory:
            monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
            monkeypatch.setattr(management, "vram_state", management.VRAMState[memory])
            monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
            free = 1 << 18  # a part of the model's weights
            monkeypatch.setattr(management, "get_free_memory", lambda dev=None, torch_free_too=False: (free, free) if
                                torch_free_too else free)  # fmt: skip

    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        yield switch
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("row", ROWS, ids=["; ".join(row) for row in ROWS])
def test_the_promises_hold(row, machine, record_property):
    record_property("row", "; ".join(row))
    fast = FAST[row.fast]
    machine(MEMORY[row.memory], fast)
    model = loaded(WEIGHTS[row.weights], fast)
    counted = Counter()

    def count(executor, *args, **kwargs):
        counted["asked"] += 1
        return executor(*args, **kwargs)

    def given() -> Inputs:
        path = model.clone()
        if row.weights.startswith("LoRA"):  # another one is loaded in between
            tiny_wan_run(with_lora(model, 2))
            path = with_lora(model, 1)
        path = PATHS[row.in_the_path](path)
        path.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "count", count)
        guider = GUIDERS[row.guider](path, tiny_wan.conditioning(1), tiny_wan.conditioning(2))
        sigmas = comfy.samplers.calculate_sigmas(path.get_model_object("model_sampling"), "simple", STEPS)
        latent = LATENTS[row.latent]({"samples": torch.zeros(1, 16, 5, 4, 4)})
        sampler = comfy.samplers.sampler_object(row.sampler)
        return Inputs(NOISES[row.noise], guider, sampler, sigmas[SCHEDULES[row.schedule]], latent)

    try:
        plain = core(given())
    except (RuntimeError, IndexError) as error:  # core's own: it cannot part a batch into context windows
        with pytest.raises(type(error), match=re.escape(str(error))):
            monitored_sample(given(), gate(0.3))
        record_property("outcome", "ComfyUI cannot sample it")
        return
    evaluations, counted["asked"] = counted["asked"], 0
    looks = (Look(0.4, floor=0.2),)  # at the second step, also of a part of the schedule
    passed = run_race(given(), gate(0.3), Rules(RaceSettings(2, "off"), looks))
    assert same(passed.latent["samples"], plain), "untouched when passing"
    told = run_report(passed.verdict)["nfe"]
    assert counted["asked"] == evaluations <= told
    assert row.in_the_path == "LazyCache" or evaluations == told  # it answers for the guider, which is counted as asked
    assert same(monitored_sample(given(), gate(0.3)).latent["samples"], plain)

    counted["asked"] = 0
    raced = run_race(given(), gate(0.15, 0.15, 0.1, 0.1, 0.1), Rules(RaceSettings(2, "off"), looks, budget=1.0))
    report = run_report(raced.verdict)
    assert same(raced.latent["samples"], plain), "the first, put aside and gone on with"
    assert counted["asked"] <= report["nfe"] <= report["nfe_worst_case"], "bounded"
    assert row.in_the_path == "LazyCache" or report["nfe"] == counted["asked"], "and told"
    assert report["nfe_plain"] == told


def tiny_wan_run(model):
    tiny_wan.guided(model).sample(*(torch.zeros(1, 16, 1, 4, 4),) * 2, comfy.samplers.sampler_object("euler"),
                                  torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)  # fmt: skip


def test_what_a_node_keeps_after_one_step_is_not_taken_into_another_candidate():
    """APG forgets its momentum where the noise level rises, which it does not from the first step to the first."""
    model = PATHS["APG"](loaded(None, False))
    own = replace(tiny_wan.inputs(model, steps=STEPS), noise=SeededNoise(7))
    early = run_race(own, gate(0.1), Rules(RaceSettings(2, "off"), (Look(0.2, floor=0.2),)))
    report = run_report(early.verdict)
    assert len(report["candidates"]) == 1 and "from step to step" in report["notes"][0]
    assert same(early.latent["samples"], core(own))
    search = searching(Mean(), own.sampler)
    with pytest.raises(ValueError, match="APG's momentum"):
        monitored_sample(replace(own, sampler=search))


def test_a_budget_that_is_too_small_to_begin_anew_is_kept_to():
    own = replace(tiny_wan.inputs(PATHS["EasyCache"](loaded(None, False)), steps=STEPS), noise=SeededNoise(7))
    report = run_report(run_race(own, gate(0.1), Rules(RaceSettings(2, "off"), (Look(0.4, floor=0.2),), 0.25)).verdict)
    assert len(report["candidates"]) == 1 and report["nfe"] == STEPS and "to begin anew" in report["notes"][0]


def test_the_page_has_a_result_of_every_row():
    """If this fails: run this file with --compatibility docs/results/compatibility.json, on both versions."""
    ran = json.loads(RESULTS.read_text(encoding="utf-8"))
    if comfyui_version.__version__ in ran:
        found = ran[comfyui_version.__version__]["in the path"]
        assert found.keys() == {"; ".join(row) for row in ROWS}
        assert set(found.values()) <= {"holds", "ComfyUI cannot sample it"}


def test_the_docs_list_what_is_tried():
    text = DOCS.read_text(encoding="utf-8")
    for name, values in FACTORS.items():
        assert f"| {name} | {', '.join(values)} |" in text
