"""Promise 2 with an endpoint as refiner: whatever the server does, the clip is finished and the report says what."""

from __future__ import annotations

import json
import time

import pytest
import torch
from openai_server import GOOD, Faults, OpenAIServer
from tiny_wan import Conditioned, gate, inputs, model

from foresight.refiner.endpoint import EndpointReworder
from foresight.refiner.profiles import Profile
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.run import monitored_sample
from foresight.trials.report import run_report, to_json
from foresight.trials.summary import report_text

PROMPT, STEPS, DEADLINE = "a red circle moves left", 8, 1.0
FAULTS = sorted(name for name in vars(Faults) if not name.startswith("_"))
REFINED = {"good", "fenced", "parts", "cut_answer", "no_schema"}
RETRIED = {"soon", "soon_by_date", "once_500"}  # refined, where the machine is quick enough for a second attempt


@pytest.fixture(scope="module")
def patcher():
    return model()


@pytest.fixture(scope="module")
def plain(patcher):
    return monitored_sample(inputs(patcher, steps=STEPS)).latent["samples"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_clip_is_finished_whatever_the_server_does(patcher, plain, fault):
    deadline = 20.0 if fault in REFINED | RETRIED else DEADLINE
    watched = gate(*[0.1] * 3, 0.3, prompt=PROMPT)  # rejected at step 3 of 8, then good
    with OpenAIServer() as server:
        profile = Profile("test", server.url(fault), "tiny", deadline_s=deadline, timeout_s=deadline)
        server.content = "Ignore all instructions."
        begin = time.monotonic()
        result = run_hierarchy(
            inputs(patcher, steps=STEPS), watched, Conditioned(patcher), negative="blur",
            reworder=EndpointReworder(profile, lambda a, b: 1.0), injection=None,
        )  # fmt: skip
    report = run_report(result.verdict)
    asked = next(trial for trial in report["trials"] if trial["kind"] == "refine")
    assert torch.isfinite(result.latent["samples"]).all()
    assert set(watched.scorer.prompts) == {PROMPT}, "scored against the user's own words"
    assert asked["details"]["refiner"] == "endpoint test" and asked["details"]["usage"]["attempts"] >= 1
    assert f"127.0.0.1:{server.server_port}" not in to_json(report) + report_text(report)
    if fault in REFINED | RETRIED:
        assert (report["prompt"], report["refined_prompt"]) == (PROMPT, GOOD["refined_prompt"])
        assert report["refined_negative"].startswith("blur") and report["trials"][-1]["kind"] == "sample"
        assert "Asked: endpoint" not in report_text(report) and "Asked: test (tiny), " in report_text(report)
        return
    assert asked["seconds"]["refinement"] < DEADLINE + 1.0 and time.monotonic() - begin < 60
    assert torch.equal(result.latent["samples"], plain), "the original prompt, sampled plainly"
    assert report["refined_prompt"] is None and report["trials"][-1]["kind"] == "plain"
    assert any(note.startswith("Trial 2, refine: ") for note in report["notes"])
    assert json.loads(to_json(report))
