"""The memory that docs/method.md tells is what the code takes at most; the scorer's is ComfyUI's to plan and free."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import comfy.model_management
import pytest
import tiny_wan
import tiny_weights
import torch

from foresight.lab.benchmarks import memory
from foresight.lab.release.published import filled
from foresight.sampling import candidates
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.sent import Sent
from foresight.scoring.viclip import ViCLIP
from foresight.scoring.viclip_scorer import ViCLIPScorer
from foresight.trials.race import LOOK, Look, RaceSettings, Rules


@cache
def told(dtype):
    return memory.told((192, 128, 25), dtype, tiny_weights.SCORER)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", memory.CONVERTERS)
def test_a_look_takes_no_more_than_is_told(name, dtype):
    with torch.random.fork_rng():
        scorer = ViCLIPScorer(ViCLIP(tiny_weights.SCORER), lambda text: [1, 2, 3])
        gate = memory.watching(memory.CONVERTERS[name](), scorer)
        x0 = torch.randn(1, memory.CHANNELS, 7, 16, 24).to(dtype)
    scorer.encode_text(gate.prompt)  # once a run
    inspector = gate.inspector(memory.STEPS)
    with memory.Peak() as look:
        inspector.observe(1, 1.0, x0)
    assert look.bytes <= told(dtype)[f"look, {name} converter"] <= 1.5 * look.bytes
    with memory.Peak() as whole:
        assert len(inspector.preview(0)) == 7
    assert whole.bytes <= told(dtype)[f"preview of every frame, {name} converter"] <= 1.5 * whole.bytes


def test_what_was_alive_at_once_is_counted():
    given = torch.zeros(1000)
    with memory.Peak() as peak:
        first = given + 1
        first += given.view(10, 100).flatten()
        del first
        given.mul(2)
    assert peak.bytes == given.nbytes, "what is given, views and what is gone do not count"


def test_a_candidate_put_aside_takes_no_more_than_is_told(monkeypatch):
    sent = []

    class Counted(Sent):
        def __init__(self, tensor):
            super().__init__(tensor)
            sent.append(tensor.nbytes)

    monkeypatch.setattr(candidates, "Sent", Counted)
    own = replace(tiny_wan.inputs(tiny_wan.model(), steps=memory.STEPS), noise=SeededNoise(7))
    x0, tries = own.latent["samples"], 2
    run_race(own, tiny_wan.gate(0.1), Rules(RaceSettings(tries, "off"), (Look(LOOK, floor=0.2),)))
    most = tries * memory.put_aside(x0, round(LOOK * memory.STEPS))
    assert most / 2 <= sum(sent) <= most


def test_the_scorers_memory_is_planned_and_freed_by_comfyui(tmp_path):
    from foresight.nodes.loaders import managed, on_device, scorer_from_file

    tiny_weights.write(tmp_path, "wan.safetensors", "vae.safetensors", "scorer.safetensors", "l2r.safetensors")
    scorer = scorer_from_file(tmp_path / "foresight" / "scorer.safetensors")
    assert scorer.patcher.model_size() == memory.weights(scorer.model), "what ComfyUI plans with"
    on_device(scorer)
    loaded = comfy.model_management.current_loaded_models
    assert any(each.model is scorer.patcher for each in loaded)
    comfy.model_management.unload_all_models()
    assert not any(each.model is scorer.patcher for each in loaded)
    for make in memory.CONVERTERS.values():
        converter = managed(make())
        assert converter.patcher.model_size() == memory.weights(converter) < 2**20


def test_the_page_says_what_was_counted():
    found = json.loads(memory.RESULTS.read_text(encoding="utf-8"))
    page = memory.PAGE.read_text(encoding="utf-8")
    assert filled(page, "memory", memory.table(found)) == page, "run python -m foresight.lab.benchmarks.memory"
    assert set(found["clips"]) == set(memory.CLIPS)
