"""Noise refiners from their files: nothing changes where nothing should, and both kinds of file do the same."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import refiners
import tiny_wan
import torch
from block_causal import transformer
from refiners import written
from streams import SIGMAS, largest, sampled, streamed

from foresight.demo.stream import Stream
from foresight.lab.training import refining
from foresight.nodes.folders import REFINERS
from foresight.nodes.refining import NoiseRefinerNode
from foresight.nodes.streaming import StreamingReport, summary
from foresight.sampling import stream_engine
from foresight.sampling.noise_refiner import NoiseRefiner
from foresight.sampling.refiner_file import LORA, MODEL, RefinerSettings, describe, marks, same
from foresight.sampling.stream_guider import StreamingGuider

KINDS = (MODEL, LORA)


@pytest.fixture(scope="module")
def patcher():
    return tiny_wan.model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    before = folder_paths.folder_names_and_paths[REFINERS]
    folder = tmp_path_factory.mktemp("refiners")
    folder_paths.folder_names_and_paths[REFINERS] = ([str(folder)], before[1])
    yield folder
    folder_paths.folder_names_and_paths[REFINERS] = before


@pytest.fixture(scope="module")
def loaded(patcher, folder):
    """A refiner by kind, and whether it is silent; made once."""
    made = {}

    def load(kind, silent=False, **widgets):
        name = f"{kind}_{silent}.safetensors"
        if name not in made:
            made[name] = written(folder / name, patcher.model.diffusion_model, kind, silent)
        return NoiseRefinerNode.execute(name, **widgets).args[0]

    return load


@pytest.fixture(scope="module")
def plain(patcher):
    return streamed(patcher, 4)


def untouched(patcher):
    return {name: weight.clone() for name, weight in patcher.model.state_dict().items()}


def same_weights(patcher, before):
    return all(torch.equal(weight, before[name]) for name, weight in patcher.model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"kv": "reuse last", "chunk": 2, "window": 3, "sink": 1}])
def test_a_silent_refiner_gives_the_unrefined_clip(patcher, loaded, kind, settings):
    """To the last bit, its LoRA being none of nothing: its forwards leave no trace."""
    before = untouched(patcher)
    refiner = loaded(kind, True, renormalise=True, most_change=0.5)
    clip, sampler = streamed(patcher, 4, refine=refiner, settings=settings)
    bare, told = streamed(patcher, 4, settings=settings)
    assert torch.equal(clip, bare) and same_weights(patcher, before)
    chunks = len(sampler.result["schedule"])
    assert sampler.result["nfe"] - told.result["nfe"] == 3 * chunks == sampler.result["refiner"]["forwards"]
    assert sampler.result["nfe_plain"] == told.result["nfe"]


def test_extra_forwards_are_chunks_times_intermediate_steps(patcher, loaded):
    _, sampler = streamed(patcher, 7, refine=loaded(LORA))
    assert sampler.result["refiner"]["forwards"] == 21 and sampler.result["nfe"] == sampler.result["nfe_plain"] + 21
    assert "21 forwards refined the noise (tiny)" in summary(sampler.result)
    report = StreamingReport.execute(sampler, {"samples": torch.zeros(1)})
    assert '"forwards": 21' in report.args[2]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_both_kinds_of_file_refine_alike_and_leave_the_base_as_it_was(patcher, loaded, plain, cfg):
    before, clips = untouched(patcher), {}
    for kind in KINDS:
        clips[kind], sampler = streamed(patcher, 4, refine=loaded(kind), cfg=cfg)
        again, _ = streamed(patcher, 4, refine=loaded(kind), cfg=cfg)
        assert torch.equal(again, clips[kind]) and same_weights(patcher, before)
        assert sampler.result["refiner"]["change_by_step"].keys() == {"1", "2", "3"}
    assert largest(clips[MODEL], clips[LORA]) < 1e-4
    assert largest(clips[MODEL], plain[0]) > 1e-2


@pytest.mark.parametrize(("level", "prediction", "history"), [
    ("noise", True, True), ("step", True, False), ("step", False, True), ("noise", False, False),
])  # fmt: skip
@pytest.mark.parametrize(("kind", "chunk"), [(MODEL, 1), (LORA, 1), (LORA, 2)])
def test_a_refined_stream_is_the_one_in_plain_torch(
    patcher, folder, monkeypatch, kind, chunk, level, prediction, history
):
    """Which sees the base's history, and is what recipes train."""
    network, how = patcher.model.diffusion_model, {"level": level, "prediction": prediction, "history": history}
    written(folder / "asked.safetensors", network, kind, **how)
    draws = []

    def drawn(like, *place):
        draws.append(torch.randn(like.shape, generator=torch.Generator().manual_seed(len(draws))))
        return draws[-1]

    monkeypatch.setattr(stream_engine, "drawn", drawn)
    first = tiny_wan.Noise(3).generate_noise({"samples": torch.zeros(1, 16, 3 * chunk, 8, 8)})
    refiner = NoiseRefinerNode.execute("asked.safetensors").args[0]
    run = {"refine": refiner, "size": (8, 8), "noise": first, "settings": {"chunk": chunk}}
    found, sampler = streamed(patcher, 3 * chunk, **run)
    base, own = transformer(patcher), transformer(patcher)
    own.load_state_dict(refiners.tensors(network, MODEL))
    context = tiny_wan.conditioning(1)[0][0][:, None]
    stream = Stream(base, context, torch.zeros(1, 3 * chunk, dtype=torch.long), chunk=chunk)
    fresh, starts = iter(draws), iter(first.split(chunk, 2))
    order = iter([next(fresh) if step % 4 else next(starts) for step in range(12)])
    refiner = refining.Refiner(own, context, RefinerSettings(**how))
    with torch.no_grad():
        clip = refining.refined_rollout(stream, [SIGMAS[:-1].tolist()] * 3, lambda: next(order), refiner)
    assert stream.forwards == sampler.result["nfe"]
    assert largest(clip, patcher.model.process_latent_in(found)) < 2e-5 * max(1, largest(clip, 0 * clip))


def test_only_the_steps_that_it_was_trained_for_are_refined(patcher):
    network = patcher.model.diffusion_model
    refiner = NoiseRefiner(refiners.described(network, LORA, steps=(2,)), lora=refiners.tensors(network, LORA))
    _, sampler = streamed(patcher, 3, refine=refiner)
    assert sampler.result["refiner"]["forwards"] == 3 and [*sampler.result["refiner"]["change_by_step"]] == ["2"]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_by_chunk_and_guidance_reach_the_refiner(patcher, loaded, kind):
    def run(second):
        prompts = [(0, tiny_wan.conditioning(1)), (2, tiny_wan.conditioning(second))]
        guider = StreamingGuider(patcher, prompts, tiny_wan.conditioning(2), 2.0, True)
        return streamed(patcher, 4, refine=loaded(kind), guider=guider)[0]

    one, other = run(3), run(4)
    assert torch.equal(one[:, :, :2], other[:, :, :2]) and not torch.equal(one[:, :, 2:], other[:, :, 2:])


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_itself_again_however_a_run_ends(patcher, loaded, plain, monkeypatch, kind, error):
    before, refiner = untouched(patcher), loaded(kind)

    def broken(self, noise, change):
        raise error("in the middle")

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(NoiseRefiner, "refined", broken)
        streamed(patcher, 4, refine=refiner)
    assert same_weights(patcher, before)
    assert torch.equal(streamed(patcher, 4)[0], plain[0])


def test_safeguards_bound_what_a_refiner_does(patcher, loaded):
    change = torch.ones(2, 16, 1, 4, 4)
    noise = tiny_wan.Noise(1).generate_noise({"samples": change})
    kept = loaded(LORA, renormalise=True).refined(noise, 3 * noise + change)
    assert torch.allclose(kept.std((1, 2, 3, 4)), noise.std((1, 2, 3, 4)))
    bounded = loaded(LORA, most_change=0.25).refined(noise, change)
    assert torch.allclose((bounded - noise).square().mean((1, 2, 3, 4)).sqrt(), torch.tensor(0.25))
    small = loaded(LORA, most_change=2.0).refined(noise, change)
    assert torch.equal(small, noise + change)
    with pytest.raises(ValueError, match="most_change is nan"):
        loaded(LORA, most_change=float("nan"))


@pytest.mark.parametrize(("other", "said"), [
    (lambda: tiny_wan.model(seed=1), "trained for other weights of this architecture"),
    (lambda: shallow(), "of 2 blocks and width 128; the connected one has 1 and 128"),
])  # fmt: skip
def test_a_refiner_of_another_base_is_refused_before_anything_is_sampled(loaded, monkeypatch, other, said):
    other = other()
    monkeypatch.setattr(other.model, "apply_model", lambda *_, **__: pytest.fail("sampled"))
    for kind in KINDS:
        with pytest.raises(ValueError, match=said) as refused:
            streamed(other, 3, refine=loaded(kind))
        assert "Noise Refiner" in str(refused.value) and "tiny_wan" in str(refused.value)


def shallow():
    import comfy.sd

    state = {k: v for k, v in tiny_wan.network().state_dict().items() if not k.startswith("blocks.1.")}
    return comfy.sd.load_diffusion_model_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_base_is_known_in_any_precision_and_by_its_weights_alone(dtype):
    network, other = tiny_wan.network(), tiny_wan.network()
    base = marks(network)
    assert same(base, network.to(dtype))
    with torch.no_grad():
        for block in other.blocks:
            block.self_attn.q.bias.mul_(1.3)
    assert not same(base, other)


def test_files_that_are_no_refiners_are_refused(patcher, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    network = patcher.model.diffusion_model
    good = written(tmp_path / "good.safetensors", network)
    metadata = refiners.described(network, LORA).as_metadata()
    tensors = load_file(good)
    broken = {
        "no.safetensors": (tensors, {}, "is no noise refiner"),
        "half.safetensors": ({k: v for k, v in tensors.items() if not k.endswith("q.alpha")}, metadata, "weights at"),
        "headless.safetensors": ({k: v for k, v in tensors.items() if "head" not in k}, metadata, "head.head.bias.set"),
        "level.safetensors": (tensors, {k: v.replace('"noise"', '"loud"') for k, v in metadata.items()}, "noise, step"),
    }  # fmt: skip
    for name, (state, told, said) in broken.items():
        save_file(state, tmp_path / name, told)
        with pytest.raises(ValueError, match=said):
            describe(Path(tmp_path / name))
    tensors["diffusion_model.blocks.0.ffn.0.lora_down.weight"] = torch.zeros(4, 64)
    misfit = NoiseRefiner(refiners.described(network, LORA), lora=tensors)
    with pytest.raises(ValueError, match=r"blocks.0.ffn.0.lora_down.weight' \[4, 64\] does not fit"):
        sampled(patcher, streamed_with(misfit), 3)


def streamed_with(refiner):
    from foresight.sampling.stream_sampler import StreamSampler
    from foresight.trials.stream import StreamSettings

    return StreamSampler(StreamSettings("sigmas", chunk=1), refine=refiner)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refined_stream_goes_on_in_another_call(patcher, loaded, kind):
    """To the last bit, and without reading its start anew."""
    settings = {"preset": "Self-Forcing", "chunk": 2, "window": 4, "goes_on": True}
    whole, told = streamed(patcher, 6, refine=loaded(kind), settings=settings)
    first, before = streamed(patcher, 4, refine=loaded(kind), settings=settings)
    clip, after = streamed(patcher, 6, start=first, previous=before, refine=loaded(kind), settings=settings)
    assert before.result["nfe"] + after.result["nfe"] == told.result["nfe"]
    assert torch.equal(first, whole[:, :, :4]) and torch.equal(clip[:, :, 4:], whole[:, :, 4:])


def test_a_gates_budget_holds_with_a_refiner(patcher, loaded):
    from test_stream_gate import ruled

    for plan, budget in (("gate", 0.5), ("best of N", 1.0), ("search over path", 1.0)):
        made = ruled(lambda _: 0.1, plan=plan, tries=3, looks="last", budget=budget)
        _, sampler = streamed(patcher, 4, refine=loaded(LORA), gate=made)
        ungated = sampler.result["nfe_plain"] + 12
        assert ungated < sampler.result["nfe"] <= ungated * (1 + budget)
