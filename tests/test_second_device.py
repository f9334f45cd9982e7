"""Every tensor on its device: the pack's ways of sampling where the models are not on the CPU, on a device that refuses
to compute with tensors of another."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import comfy.latent_formats
import comfy.sd
import pytest
import tiny_models
import tiny_wan
import tiny_weights
import torch
from searches import searching
from second_device import CPU, DEVICE, ROOT, second_device
from streams import streamed
from tiny_wan import Rewriter, gate

from foresight.demo.wan_vae import WanVAE
from foresight.l2r.calibration import calibrate
from foresight.l2r.checkpoint import save_l2r
from foresight.l2r.model import L2R
from foresight.nodes.inspection import L2RPreview
from foresight.nodes.loaders import managed, scorer_from_file
from foresight.panel.pictures import thumbnail
from foresight.sampling.audition import hold_audition
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.noise import SeededNoise
from foresight.sampling.race import run_race
from foresight.sampling.run import monitored_sample
from foresight.sampling.self_refine import SelfRefineSettings, Stage, self_refining
from foresight.sampling.stream_gate import ChunkGate
from foresight.sampling.watch import Watch
from foresight.scoring.latent_reward import LatentReward, RewardConfig, RewardModel
from foresight.scoring.reward import AlignmentReward
from foresight.scoring.viclip import ViCLIP, save_viclip
from foresight.trials.observer import SILENT, Observer
from foresight.trials.race import Look, RaceSettings, Rules
from foresight.trials.report import run_report
from foresight.trials.stream_plans import GateSettings

ABOVE_ALL = 9.0  # a floor that no clip reaches


@pytest.fixture(scope="module")
def scorer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("second") / "scorer.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = ViCLIP(tiny_weights.SCORER)
        for parameter in clip.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        save_viclip(clip, path)
    return path


@pytest.fixture
def away(monkeypatch):
    tiny_models._model.cache_clear()  # what is loaded here is on the second device
    with second_device(monkeypatch) as device:
        yield device
    tiny_models._model.cache_clear()


@pytest.fixture
def own(away):
    return replace(tiny_wan.inputs(tiny_wan.model(), steps=6), noise=SeededNoise(7))


@pytest.fixture
def watched(away, scorer_file):
    scorer = scorer_from_file(scorer_file)
    assert scorer.device == DEVICE
    return gate(scorer=scorer, l2r=managed(L2R()))


def unbroken(verdict):
    report = run_report(verdict)
    assert report["notes"] == []
    return report


def test_two_devices_are_not_mixed(away):
    one, other = torch.ones(2, device=DEVICE), torch.ones(2)
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        one + other
    assert (one + other.to(DEVICE)).device == DEVICE and (one.cpu() + other).tolist() == [2, 2]
    late = one.to("cpu", non_blocking=True)
    assert late.isnan().all(), "nothing has arrived before it was waited for"


def rules(floor=ABOVE_ALL, **settings):
    return Rules(RaceSettings(**{"candidates": 2, "self_refine": "off", **settings}), (Look(0.34, floor=floor),))


@pytest.mark.parametrize("self_refine", ["off", "later"])
def test_race(own, watched, self_refine):
    own = replace(own, sigmas=torch.linspace(1, 0, 13))
    report = unbroken(run_race(own, watched, rules(self_refine=self_refine)).verdict)
    assert len(report["candidates"]) == 2 and report["final_score"] is not None


def test_monitored(own, watched):
    unbroken(monitored_sample(own, watched, keep_steps=True, stop="never").verdict)


def test_watch(own, watched):
    watch = Watch(watched)
    guider = tiny_wan.guided(watch.patch(tiny_wan.model()))
    guider.sample(own.noise.generate_noise(own.latent), own.latent["samples"], own.sampler, own.sigmas, seed=3)
    unbroken(watch.verdict)


def test_audition(own, watched):
    audition = hold_audition(lambda seed: replace(own, noise=SeededNoise(seed)), watched, (5, 6), keep=1, fraction=0.34)
    assert audition.report["notes"] == [] and None not in audition.report["scores"]


def test_self_refinement(own):
    settings = SelfRefineSettings((Stage(0.2, 0.6, 2),), 0.2)
    for each in (settings, replace(settings, threshold="quantile")):
        unbroken(monitored_sample(replace(own, sampler=self_refining(own.sampler, each))).verdict)


def test_search(own, watched):
    for reward in (AlignmentReward(watched), latent_reward(watched.scorer)):
        search = searching(reward, own.sampler, schedule=(0.34, 0.5), candidates=3)
        unbroken(monitored_sample(replace(own, sampler=search)).verdict)
        assert search.result["notes"] == [] and len(search.result["population"]) > 1


def latent_reward(scorer):
    config = RewardConfig(side=4, width=64, heads=1, layers=1, text_dim=32)
    model = managed(RewardModel(config, {"scorer": scorer.name}))
    return LatentReward(model, scorer, "a red circle")


def test_trials_with_injection(own, watched):
    video, single_frame = (replace(each, tau=0.9) for each in (watched.video, watched.single_frame))
    failing = replace(watched, video=video, single_frame=single_frame)
    result = run_hierarchy(
        own, failing, lambda prompt, negative: tiny_wan.guided(tiny_wan.model()), negative="", reworder=Rewriter(),
        injection=InjectionSettings(noise="fresh"),
    )  # fmt: skip
    unbroken(result.verdict)
    assert [record.kind for record in result.verdict.history][-1] == "inject"


def test_experts(own, watched):
    pair = replace(tiny_models.FAMILIES["Wan 2.2 14B T2V, two experts"].inputs(steps=6), noise=SeededNoise(7))
    unbroken(run_race(pair, watched, rules()).verdict)


def test_stream_that_goes_on(away, watched):
    model, gate = tiny_wan.model(), ChunkGate(watched, GateSettings(0.9, tries=2, budget=9))
    settings = {"window": 2, "goes_on": True}
    clip, first = streamed(model, frames=3, cfg=4.0, gate=gate, settings=settings)
    assert first.result["notes"] == [] and first.result["redraws"] and first.result["taken_back"]
    start = model.model.process_latent_out(clip)
    _, second = streamed(model, frames=4, cfg=4.0, previous=first, start=start, settings=settings)
    assert second.result["first"] == 3


def test_calibrate(away, tmp_path, monkeypatch):
    for name, fewer in {"CLIPS": 3, "HELD_OUT": 1, "GROUPS": 1, "LATENTS": 2}.items():
        monkeypatch.setattr(f"foresight.l2r.calibration.{name}", fewer)
    vae, space = comfy.sd.VAE(sd=WanVAE(8).state_dict()), comfy.latent_formats.Wan21()
    converter, _ = calibrate(vae, space, None, None, tmp_path, seconds=0.2, device=DEVICE)
    latent = torch.randn(1, 16, 2, 4, 4)
    assert converter(latent).device == latent.device
    calibrate(None, space, vae.decode(latent)[0], latent, tmp_path, learn=True)


@pytest.mark.parametrize("of", ["CPU", "the device"])
@pytest.mark.parametrize("intermediate", [CPU, DEVICE])
@pytest.mark.parametrize("converter", ["latent_rgb_factors", "file"])
def test_a_preview_is_where_cores_images_are(away, tmp_path, monkeypatch, of, intermediate, converter):
    """Also with --gpu-only, where latents and images stay on the device."""
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: intermediate)
    save_l2r(L2R(metadata={"latent_format": "Wan21"}), tmp_path / "l2r.safetensors")
    monkeypatch.setattr("foresight.nodes.loaders.path_of", lambda kind, name: tmp_path / name)
    latent = {"samples": torch.ones(1, 16, 2, 4, 4).to(CPU if of == "CPU" else DEVICE)}
    name = converter if converter != "file" else "l2r.safetensors"
    _, image = L2RPreview.execute(name, tiny_wan.model(), latent).result
    assert image.device == intermediate and image.shape == (2, 32, 32, 3)


class Panel(Observer):
    """Somebody looks: each picture is made small and taken to the CPU, as the panel does."""

    def step(self, step, score, frames=None, trial=None):
        if frames is not None:
            thumbnail(frames)


def between(less, more, away):
    """What crosses between the devices in the second run beyond the first, by place."""
    counts = []
    for run in (less, more):
        away.crossings.clear()
        run()
        counts.append(Counter((each.kind, each.where.partition(":")[0]) for each in away.crossings))
    return {key: n for key, n in (counts[1] - counts[0]).items() if key[1] != "ComfyUI"}


def listed():
    """kind and place of the rows of the table in docs/method.md."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").partition("### What a look takes")[2]
    return {(row[1], row[0]) for row in re.findall(r"^\| `(\S+)` \| ([^|]+) \|", text, re.MULTILINE)}


def test_a_look_takes_from_the_device_what_the_docs_list(own, watched, away):
    """The level comes with every evaluation, a look or not: what is listed is more than a look's own."""
    passes, levels = -9.0, ("to host, not waited for", "sampling/sent.py")

    def monitored(*looks, observer=SILENT):
        return lambda: monitored_sample(own, watched.looks(dict.fromkeys(looks, passes), 6), observer=observer)

    def raced(*looks, observer=SILENT):
        rules = Rules(RaceSettings(2, "off"), tuple(Look(share, floor=passes) for share in looks))
        return lambda: run_race(own, watched, rules, observer=observer)

    def streamed_with(looks):
        gate = ChunkGate(watched, GateSettings(passes, looks=looks))
        return lambda: streamed(tiny_wan.model(), frames=1, gate=gate)

    look = {("to host", "scoring/scorer.py"): 1}
    for less, more in ((monitored(2), monitored(2, 3)), (streamed_with("last"), streamed_with("2, last"))):
        less()  # what is read once a run is read
        assert between(less, more, away) == look
    raced_look = between(raced(0.3), raced(0.3, 0.5), away)
    assert raced_look.pop(levels) == 1, "of the evaluation before the look, which is recorded"
    assert raced_look == look
    shown = between(monitored(2, observer=Panel()), monitored(2, 3, observer=Panel()), away)
    assert shown == look | {("to host", "panel/pictures.py"): 1}
    assert listed() == {*shown, levels} and len(listed()) <= 3


def test_put_aside_candidates_wait_for_nothing(own, watched, away):
    """Each evaluation up to the look is sent to pinned memory, and waited for by nobody."""
    run_race(own, watched, rules())
    sent = [each for each in away.crossings if each.where.startswith(("sampling/sent.py", "sampling/candidates.py"))]
    assert {each.kind for each in sent} == {"to host, not waited for", "to device"}
