"""What else meets causal models: raw files, LoRAs of core's loader, monitors over samplers that count otherwise."""

from __future__ import annotations

from dataclasses import replace

import comfy.k_diffusion.sampling
import comfy.samplers
import comfy.sd
import pytest
import tiny_wan
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from safetensors.torch import load_file
from streams import SIGMAS, causal, largest, sampled, streamed

from foresight.evaluation import convert
from foresight.sampling.compat import CAUSAL_WAN
from foresight.sampling.run import monitored_sample
from foresight.sampling.stream_sampler import StreamSampler
from foresight.sampling.watch import Watch
from foresight.trials.stream import StreamSettings


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


@pytest.mark.parametrize("wrap", [
    lambda weights: weights,
    lambda weights: {f"model.{name}": weight for name, weight in weights.items()},
    lambda weights: {"generator_ema": {f"model.{name}": weight for name, weight in weights.items()}},
], ids=["bare", "model.", "generator_ema"])  # fmt: skip
def test_raw_files_load_and_stream(patcher, tmp_path, wrap):
    """As Self-Forcing, CausVid and LongLive publish theirs: without metadata, read by core's own loader."""
    weights = {name: weight.clone() for name, weight in patcher.model.diffusion_model.state_dict().items()}
    torch.save(wrap(weights), tmp_path / "raw.pt")
    loaded = comfy.sd.load_diffusion_model(str(tmp_path / "raw.pt"))
    assert torch.equal(streamed(loaded, 3)[0], streamed(patcher, 3)[0])


@pytest.mark.parametrize("named, options, seed", [
    (["generator", "generator_ema"], [], 1), (["generator", "generator_ema"], ["--weights", "generator"], 0),
    (["critic", "generator"], [], 1),
], ids=["averaged", "the other", "one of a training"])  # fmt: skip
def test_checkpoints_of_a_training_are_converted(patcher, tmp_path, named, options, seed):
    """Two sets of weights, and the names of what training wraps around a network: core reads neither."""
    sets = (tiny_wan.network(seed=each).state_dict() for each in range(2))
    states = [{f"model._fsdp_wrapped_module.{name}": weight for name, weight in each.items()} for each in sets]
    torch.save(dict(zip(named, states, strict=True)), tmp_path / "raw.pt")
    convert.main([str(tmp_path / "raw.pt"), str(tmp_path / "made.safetensors"), *options])
    loaded = comfy.sd.load_diffusion_model(str(tmp_path / "made.safetensors"))
    assert torch.equal(streamed(loaded, 3)[0], streamed(tiny_wan.model(seed=seed), 3)[0])


@pytest.mark.parametrize("middle", ["", ".default"])
def test_a_lora_of_a_training_is_converted(patcher, tmp_path, middle):
    """As LongLive's: PEFT's names, which core's loader passes over, inside a set."""
    name, generator = "blocks.0.self_attn.v", torch.Generator().manual_seed(7)
    down, up = (0.3 * torch.randn(shape, generator=generator) for shape in ((2, 128), (128, 2)))
    key = f"base_model.model.{name}"
    lora = {f"{key}.lora_A{middle}.weight": down, f"{key}.lora_B{middle}.weight": up}
    torch.save({"generator_lora": lora}, tmp_path / "lora.pt")
    convert.main([str(tmp_path / "lora.pt"), str(tmp_path / "lora.safetensors")])
    merged, _ = comfy.sd.load_lora_for_models(patcher, None, load_file(tmp_path / "lora.safetensors"), 1.0, 0.0)
    weights = tiny_wan.network().state_dict()
    weights[f"{name}.weight"] += up @ down
    found, expected = streamed(merged, 3)[0], streamed(comfy.sd.load_diffusion_model_state_dict(weights), 3)[0]
    assert largest(found, expected) < 2e-5 < 0.1 < largest(found, streamed(patcher, 3)[0])


@pytest.mark.parametrize("content, options, message", [
    ({"generator": {"x": torch.zeros(1)}}, [], "no causal Wan 2.1"),
    ({"generator": {}}, ["--weights", "generator_ema"], "has no generator_ema; it has generator"),
    (b"no weights", [], "cannot be read as weights"),
])  # fmt: skip
def test_what_cannot_be_converted_is_named(tmp_path, content, options, message):
    source = tmp_path / "raw.pt"
    source.write_bytes(content) if isinstance(content, bytes) else torch.save(content, source)
    with pytest.raises(SystemExit, match=message):
        convert.main([str(source), str(tmp_path / "made.safetensors"), *options])
    assert not (tmp_path / "made.safetensors").exists()


def test_a_lora_file_of_cores_loader(patcher):
    weight = patcher.model.diffusion_model.blocks[0].self_attn.k.weight
    down, up = torch.ones(2, weight.shape[1]), torch.ones(weight.shape[0], 2)
    name = "diffusion_model.blocks.0.self_attn.k"
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    merged, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 0.05, 0.0)
    assert not torch.equal(streamed(merged, 3)[0], streamed(patcher, 3)[0])
    assert torch.equal(streamed(patcher, 3)[0], streamed(tiny_wan.model(), 3)[0])


class Odd(comfy.samplers.Sampler):
    """Calls back with these steps, and x0 predictions of so many frames; its clip is the noise."""

    def __init__(self, *calls):
        self.calls = calls

    def sample(self, model, sigmas, extra_args, callback, noise, *_):
        for step, frames in self.calls:
            model(noise, sigmas[:1], **extra_args)
            if callback is not None:
                callback(step, noise[:, :, :frames], noise, len(sigmas) - 1)
        return noise


@pytest.mark.parametrize("score", [0.9, 0.1, RuntimeError("no"), float("nan")])
@pytest.mark.parametrize("calls", [
    [(0, 3), (0, 3), (1, 3), (1, 3)], [(2, 3), (1, 3), (0, 3)], [(0, 3), (7, 3), (1000, 3)], [(-1, 3), (3, 3)],
    [(0, 1), (1, 2), (2, 3), (3, 3)], [(0, 1), (0, 2), (0, 3)],
], ids=["repeats", "goes back", "overshoots", "below 0", "parts", "parts of one step"])  # fmt: skip
def test_a_monitor_never_trusts_an_index(patcher, calls, score):
    """Whatever it is told, a run ends as its sampler's own clip or as a rejected one, and nothing is raised."""
    given = replace(tiny_wan.inputs(patcher, steps=4, cfg=1.0), sampler=Odd(*calls))
    result = monitored_sample(given, tiny_wan.gate(score))
    if not result.verdict.accepted:
        assert score == 0.1
        return
    plain = sampled(patcher, Odd(*calls), 3, sigmas=given.sigmas)
    assert torch.equal(result.latent["samples"], plain)


@pytest.mark.skipif(not CAUSAL_WAN, reason="no sampler for causal Wan")
def test_the_monitored_sampler_over_cores_own_streams(patcher):
    """Core shows each block alone: none of them is the clip, so it is not judged, and the report says so."""
    model = causal(patcher)
    core = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 1})
    given = replace(
        tiny_wan.inputs(model, cfg=1.0), sampler=core, sigmas=SIGMAS, latent={"samples": torch.zeros(1, 16, 7, 4, 4)}
    )
    noise = given.noise.generate_noise(given.latent)
    plain = sampled(model, core, 7, noise=noise)
    for score in (0.9, 0.1):
        result = monitored_sample(given, tiny_wan.gate(score))
        assert result.verdict.accepted and torch.equal(result.latent["samples"], plain)
        assert "parts of the clip only" in result.verdict.record.message


@pytest.mark.parametrize("score, accepted", [(0.9, True), (0.1, False)])
def test_the_monitored_sampler_over_ours(patcher, score, accepted):
    """The clip is judged once it is whole, in the steps of its last chunk: before, a Chunk Gate judges."""
    sampler = StreamSampler(StreamSettings("sigmas", chunk=1))
    given = replace(
        tiny_wan.inputs(patcher, cfg=1.0), sampler=sampler, sigmas=SIGMAS,
        latent={"samples": torch.zeros(1, 16, 7, 4, 4)},
    )  # fmt: skip
    result = monitored_sample(given, tiny_wan.gate(score))
    assert result.verdict.accepted is accepted
    assert result.verdict.record.nfe_video == (34 if accepted else 32)


@pytest.mark.parametrize("shift, levels", [(5.0, (1, 0.9375, 0.8333, 0.625)), (1.0, (1, 0.75, 0.5, 0.25))])
def test_levels_follow_the_shift_that_core_sets(patcher, shift, levels):
    shifted, asked = ModelSamplingSD3().patch(patcher, shift)[0], []
    shifted.model_options["model_function_wrapper"] = lambda apply, args: (
        asked.append(float(args["timestep"][0])), apply(args["input"], args["timestep"], **args["c"])
    )[1]  # fmt: skip
    streamed(shifted, 3, settings={"preset": "Self-Forcing", "chunk": 3})
    assert asked == [pytest.approx(level, abs=1e-4) for level in levels]


def test_foresight_watch_over_a_stream(patcher):
    plain, _ = streamed(patcher, 5)
    watch = Watch(tiny_wan.gate(0.1))
    watched, sampler = streamed(watch.patch(patcher), 5)
    assert torch.equal(watched, plain) and not watch.verdict.accepted
    assert watch.verdict.record.nfe_video == sampler.result["nfe"]
