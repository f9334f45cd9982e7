"""Seed audition: what it costs, whom it finishes, and that a finished clip is the plain one."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from tiny_wan import LATENT, ScriptedScorer, gate, inputs, model

from foresight.nodes import panel
from foresight.nodes.audition import summary
from foresight.panel.runs import Refused, RunStore
from foresight.sampling.audition import budget, hold_audition
from foresight.sampling.noise import SeededNoise
from foresight.sampling.probe import single_frame_probe
from foresight.sampling.run import monitored_sample
from foresight.trials.observer import Decision
from nodes import LatentFromBatch

SEEDS = (5, 6, 7, 8)
SCORES = (0.1, 0.3, 0.2, 0.25)


@pytest.fixture(scope="module")
def patcher():
    return model()


def made(patcher, sampler="euler", steps=10):
    return lambda seed: replace(inputs(patcher, sampler, steps=steps), noise=SeededNoise(seed))


def test_the_best_are_finished_as_if_they_had_been_alone(patcher):
    make = made(patcher, "dpmpp_2m")
    found = hold_audition(make, gate(*SCORES), SEEDS, keep=2, fraction=0.2)
    assert found.chosen == (6, 8)
    for item, seed in zip(found.latent["samples"], found.chosen, strict=True):
        assert torch.equal(item, monitored_sample(make(seed)).latent["samples"][0])
    assert found.report["scores"] == list(SCORES) and found.report["stop_step"] == 2
    assert found.sheet.shape == (4, 4, 4, 3)


def test_it_costs_no_more_than_was_said(patcher):
    make = made(patcher)
    found = hold_audition(make, gate(*SCORES), SEEDS, keep=1, fraction=0.25)
    assert found.report["nfe"] == budget(4, 1, 0.25, make(5)) == 4 * 3 + 7
    assert found.report["nfe_of_all_seeds"] == 40
    assert summary(found.report).splitlines() == [
        "Seed 6 went on: 4 seeds were scored by their previews after step 3.",
        "Seed 5: 0.100, put aside",
        "Seed 6: 0.300, finished, final score 0.250",
        "Seed 7: 0.200, put aside",
        "Seed 8: 0.250, put aside",
        "19 model evaluations (NFE); all 4 seeds to their ends would take 40.",
    ]


def test_joined_clips_are_a_batch_that_core_can_go_on_with(patcher):
    """A batch index is of one batch: kept over two it gave both clips one noise, and the second could not be picked."""
    core = [{"samples": torch.zeros(2, *LATENT), "noise_mask": torch.ones(1, 1, 3, 4, 4)}]
    picked = LatentFromBatch().frombatch(core[0], 1, 1)[0]
    assert picked["batch_index"] == [1]

    def make(seed):
        return replace(inputs(patcher), noise=SeededNoise(seed), latent=picked)

    both = hold_audition(make, gate(*SCORES), SEEDS, keep=2, fraction=0.2).latent
    first, second = SeededNoise(1).generate_noise(both)
    assert not torch.equal(first, second)
    again = LatentFromBatch().frombatch(both, 1, 1)[0]
    assert torch.equal(again["samples"][0], both["samples"][1])
    assert SeededNoise(1).generate_noise(again).shape == again["samples"].shape
    one = hold_audition(make, gate(*SCORES), SEEDS, keep=1, fraction=0.2).latent
    assert one["batch_index"] == [1] and one["noise_mask"] is picked["noise_mask"]


def test_every_latent_that_is_cut_or_joined_fits_its_keys(patcher):
    many = {"samples": torch.zeros(2, *LATENT), "batch_index": [4, 7]}
    setup = replace(inputs(patcher, batch=2), noise=SeededNoise(3), latent=many)
    result = monitored_sample(setup, gate(0.1), stop="never", keep_steps=True)
    assert result.latent["batch_index"] == result.x0["batch_index"] == [4, 7]  # neither cut nor joined
    assert result.steps_x0.keys() == {"samples"}
    anchor, _ = single_frame_probe(setup, gate(0.3), result.verdict)
    assert anchor.latent.shape == (2, 16, 1, 4, 4)


def test_a_seed_that_cannot_be_scored_comes_last(patcher):
    found = hold_audition(made(patcher), gate(RuntimeError("busy"), *SCORES), SEEDS, keep=4, fraction=0.2)
    assert found.chosen == (7, 8, 6, 5)
    assert found.report["scores"][0] is None and "busy" in found.report["notes"][0]
    assert "Seed 5: not scored, finished, final score 0.250" in summary(found.report)


@pytest.mark.parametrize("changes, said", [({"keep": 5}, "keep is 5"), ({"keep": 0}, "keep is 0")])
def test_wrong_settings_are_named(patcher, changes, said):
    with pytest.raises(ValueError, match=said):
        hold_audition(made(patcher), gate(*SCORES), SEEDS, **{"keep": 1, "fraction": 0.2, **changes})


def test_without_a_panel_nobody_is_waited_for(patcher):
    begin = time.monotonic()
    with RunStore().running(None, "", "", None) as run:
        found = hold_audition(made(patcher), gate(*SCORES), SEEDS, keep=1, fraction=0.2, observer=run, wait=600)
    assert found.chosen == (6,) and time.monotonic() - begin < 60


class Person(threading.Thread):
    """Looks at the panel, and answers as soon as seeds are offered."""

    def __init__(self, store, answer):
        super().__init__(daemon=True)
        self.store, self.answer, self.offer = store, answer, None
        store.looked_at = 1e9

    def run(self):
        while not (states := [self.store.state(run["id"]) for run in self.store.runs()]) or not states[0]["offered"]:
            time.sleep(0.01)
        self.store.looked_at = 1e9
        self.offer = states[0]["offered"]
        self.answer(self.store.run(states[0]["id"]))


def test_a_person_picks_other_seeds(patcher):
    store = RunStore()
    person = Person(store, lambda run: run.decide(Decision.CHOOSE, [2, 0]))
    with store.running(None, "", "", None) as run:
        person.start()
        found = hold_audition(made(patcher), gate(*SCORES), SEEDS, keep=2, fraction=0.2, observer=run, wait=600)
    assert found.chosen == (7, 5)
    assert found.report["nfe"] == budget(4, 2, 0.2, made(patcher)(5), by_hand=True) == 4 * 2 + 2 * 10
    assert person.offer["trials"] == [0, 1, 2, 3] and person.offer["best"] == [1, 3]
    with pytest.raises(Refused):
        run.decide(Decision.CHOOSE, [0])


def test_while_it_waits_for_a_person_the_seconds_are_counted(patcher, monkeypatch):
    """On the node, for whoever has no panel open, and in the panel."""
    shown = []
    monkeypatch.setattr(panel, "show_on_node", lambda node, text: shown.append((node, text)))
    monkeypatch.setattr(panel, "prompt_server", lambda: SimpleNamespace(client_id=None, prompt_queue=None))
    store = RunStore(panel.send)
    monkeypatch.setattr(panel, "STORE", store)
    person = Person(store, lambda run: (time.sleep(1.5), run.decide(Decision.CHOOSE, [0])))
    with store.running(None, "", "12", None) as run:
        person.start()
        hold_audition(made(patcher), gate(*SCORES), SEEDS, keep=1, fraction=0.2, observer=run, wait=600)
    waits = [text for node, text in shown if node == "12" and not text.startswith("Seed")]
    assert waits[:2] == [f"Waiting for you in the Foresight tab: {n} s, then the best are taken" for n in (600, 599)]
    assert waits[-1] == "Going on with the choice"


def test_a_person_stops_instead_of_picking(patcher):
    store = RunStore(cancelled=comfy.model_management.InterruptProcessingException)
    Person(store, lambda run: run.decide(Decision.STOP)).start()
    with pytest.raises(comfy.model_management.InterruptProcessingException), store.running(None, "", "", None) as run:
        hold_audition(made(patcher), gate(*SCORES), SEEDS, keep=2, fraction=0.2, observer=run, wait=600)
    assert store.state(run.id)["message"] == "stopped"


def test_what_is_not_offered_cannot_be_picked():
    with RunStore().running(None, "", "", None) as run:
        with pytest.raises(Refused, match="nothing is offered"):
            run.decide(Decision.CHOOSE, [0])
        run.offer([0, 1], [0], 60)
        for trials in (None, [], [5]):
            with pytest.raises(Refused, match="at least one"):
                run.decide(Decision.CHOOSE, trials)
        with pytest.raises(Refused, match="2 are ticked, and `keep` is 1"):  # only what was announced is spent
            run.decide(Decision.CHOOSE, [0, 1])
        run.decide(Decision.CHOOSE, [1, 1])
        assert run.choice == [1]


def test_the_gates_own_window_is_not_used(patcher):
    scorer = ScriptedScorer(*SCORES)
    hold_audition(made(patcher, steps=50), gate(scorer=scorer), SEEDS, keep=1, fraction=0.9)
    assert scorer.calls == len(SEEDS) + 1  # and once more for the finished clip
