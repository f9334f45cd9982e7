"""Promise 2 after a rejection: whatever becomes of the trials, the clip that the plain sampler makes is delivered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_wan import Conditioned, Noise, conditioning, gate, inputs, model

from foresight.nodes.rewording import PromptRefiner
from foresight.refiner.base import Rewording
from foresight.refiner.manual import ManualReworder
from foresight.refiner.restart import RestartReworder
from foresight.sampling.hierarchy import run_hierarchy
from foresight.sampling.injection import InjectionSettings
from foresight.sampling.run import monitored_sample
from foresight.trials.report import run_report
from foresight.trials.summary import report_text

FAIL, BETTER, STEPS = 0.10, 0.30, 8
OUT_OF_MEMORY = torch.OutOfMemoryError("no memory left")


class Answering:
    """A refiner that gives whatever the test says."""

    name = "answering"

    def __init__(self, answer):
        self.answer = answer

    def reword(self, request):
        return self.answer() if callable(self.answer) else self.answer


@pytest.fixture(scope="module")
def patcher():
    return model()


@pytest.fixture(scope="module")
def plain(patcher):
    return monitored_sample(inputs(patcher, steps=STEPS)).latent["samples"]


def run(patcher, reworder, *scores, injection=None, clip=None, **changes):
    start = replace(inputs(patcher, steps=STEPS), **changes)
    clip = clip or Conditioned(patcher)
    result = run_hierarchy(start, gate(*scores), clip, negative="blur", reworder=reworder, injection=injection)
    return result.latent["samples"], run_report(result.verdict)


def kinds(report):
    return [(trial["trial"], trial["kind"], trial["succeeded"]) for trial in report["trials"]]


def is_the_plain_run(plain, clip, report, note):
    assert torch.equal(clip, plain)
    assert kinds(report)[-1][:2] == ("0", "plain") and report["refined_prompt"] is None
    assert report["final_seed"] == report["seed"] and note in " ".join(report["notes"])
    assert "redone" not in report_text(report)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (None, "the refiner gave None, and no rewording"), ("a clearer prompt", "the refiner gave 'a clearer prompt'"),
        ({"prompt": "x"}, "no rewording"), (lambda: Rewording(None, "", ""), "the refiner's prompt is None"),
        (lambda: Rewording("x", ["y"], ""), "negative is ['y']"), (lambda: Rewording("x", "", 7), "reasoning is 7"),
        (lambda: Rewording("x", "", "", seed=-1), "seed is -1"),
        (lambda: Rewording("x", "", "", seed=2**64), "seed is 18446744073709551616"),
        (lambda: Rewording("x", "", "", usage=None), "usage is None"),
        (lambda: Rewording("x", "", "", evidence=5), "TypeError"),
    ],
)  # fmt: skip
def test_a_refiner_that_gives_anything_else_leaves_the_plain_run(patcher, plain, answer, note):
    clip, report = run(patcher, Answering(answer), FAIL)
    is_the_plain_run(plain, clip, report, note)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "no such character")])
def test_an_encoder_that_fails_on_the_reworded_prompt_leaves_the_plain_run(patcher, plain, error):
    class Encoder(Conditioned):
        def __call__(self, prompt, negative):
            super().__call__(prompt, negative)
            raise error

    encoder = Encoder(patcher)
    clip, report = run(patcher, ManualReworder("other words"), FAIL, clip=encoder)
    is_the_plain_run(plain, clip, report, type(error).__name__)
    assert encoder.prompts == [("other words", "blur")]


def test_noise_that_cannot_be_drawn_anew_leaves_the_plain_run(patcher, plain):
    class Frozen(Noise):
        def __copy__(self):
            raise TypeError("this noise is not copied")

    clip, report = run(patcher, RestartReworder(), FAIL, noise=Frozen(3))
    is_the_plain_run(plain, clip, report, "this noise is not copied")


def test_the_reworded_prompt_is_what_is_sampled(patcher, plain):
    """To the last bit the plain clip of the reworded prompt, and not the one of the user's."""
    encoder, reference = Conditioned(patcher), Conditioned(patcher)
    clip, report = run(patcher, ManualReworder("other words"), *[FAIL] * 3, BETTER, clip=encoder)
    own = inputs(patcher, steps=STEPS)
    other = monitored_sample(replace(own, guider=reference("other words", "blur"))).latent["samples"]
    assert kinds(report)[-2:] == [("2", "refine", True), ("2", "sample", True)]
    assert torch.equal(clip, other) and not torch.equal(clip, plain)
    assert report["refined_prompt"] == "other words" and encoder.prompts == reference.prompts


def test_the_reworded_prompt_is_what_is_probed_and_injected(patcher):
    """Trial 2->1 of two rewordings differs, and neither is Trial 1 of the user's own words."""
    both = (ManualReworder("words"), ManualReworder("other words"))
    clips = [run(patcher, reworder, FAIL, injection=InjectionSettings())[0] for reworder in both]
    first, report = run(patcher, None, FAIL, BETTER, injection=InjectionSettings())
    assert not torch.equal(*clips) and not any(torch.equal(clip, first) for clip in clips)


def breaking(patcher, at, error):
    """The model, broken in its evaluations of these numbers, counted from 1."""
    patcher, calls = patcher.clone(), []

    def evaluate(args):
        calls.append(1)
        if len(calls) in at:
            raise error
        return args["denoised"]

    patcher.set_model_sampler_post_cfg_function(evaluate)
    return patcher


@pytest.mark.parametrize("late", [1, 3])
@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError("the sizes do not match")])
@pytest.mark.parametrize(
    ("scores", "words", "injection"),
    [([FAIL], "other words", None), ([FAIL] * 3 + [BETTER], None, InjectionSettings())], ids=["reworded", "injected"],
)  # fmt: skip
def test_a_trial_that_breaks_leaves_the_plain_run(patcher, plain, scores, words, injection, error, late):
    reworder = words and ManualReworder(words)
    _, report = run(patcher, reworder, *scores, injection=injection)
    before = sum(trial["nfe_video"] + trial["nfe_single_frame"] for trial in report["trials"][: 1 if words else 2])
    broken = breaking(patcher, [before + late], error)
    clip, report = run(broken, reworder, *scores, injection=injection)
    is_the_plain_run(plain, clip, report, f"the trials were given up: {type(error).__name__}")
    assert report["nfe"] == before + late + STEPS  # what the broken trial had asked is counted
    assert report["nfe"] <= report["nfe_worst_case"]


def test_a_trial_that_breaks_late_is_counted_and_the_bound_that_it_breaks_is_told(patcher, plain):
    settings = InjectionSettings()
    _, report = run(patcher, None, *[FAIL] * 3, BETTER, injection=settings)
    whole = sum(trial["nfe_video"] + trial["nfe_single_frame"] for trial in report["trials"])
    clip, late = run(breaking(patcher, [whole], OUT_OF_MEMORY), None, *[FAIL] * 3, BETTER, injection=settings)
    is_the_plain_run(plain, clip, late, "the trials were given up: OutOfMemoryError")
    assert late["nfe"] == whole + STEPS <= late["nfe_worst_case"]
    told = any("did not hold" in note for note in late["notes"])
    assert told == (late["nfe"] > report["nfe_worst_case"])


def test_an_injection_that_cannot_begin_leaves_the_plain_run(patcher, plain):
    clip, report = run(patcher, None, *[FAIL] * 3, BETTER, injection=InjectionSettings(start=20))
    is_the_plain_run(plain, clip, report, "the injection starts at step 20, but the schedule has 8 steps")


def test_what_breaks_the_base_run_or_the_plain_one_as_well_is_raised(patcher):
    for broken in ([1], range(4, 100)):
        with pytest.raises(torch.OutOfMemoryError):
            run(breaking(patcher, broken, OUT_OF_MEMORY), ManualReworder("other words"), FAIL)


class Clip:
    """An encoder that fails on some words."""

    def __init__(self, failing=()):
        self.failing = failing

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        if text in self.failing:
            raise OUT_OF_MEMORY
        return [[conditioning(len(text)), {"text": text}]]


def refine(patcher, clip, **changes):
    rejected = monitored_sample(inputs(patcher, steps=STEPS), gate(FAIL)).verdict
    given = {"back_end": "manual", "manual_prompt": "other words", **changes}
    words, negative, positive, other, report, verdict, _ = PromptRefiner.execute(
        clip, "a red circle", "blur", rejected.preview, rejected, None, **given
    ).result
    return words, negative, positive[0][1]["text"], other[0][1]["text"], report, verdict.accepted


def test_the_refiner_node_encodes_what_it_gives(patcher):
    assert refine(patcher, Clip())[:4] == ("other words", "blur", "other words", "blur")


@pytest.mark.parametrize("words", ["other words"])
def test_the_refiner_node_gives_the_users_prompt_where_its_own_cannot_be_encoded(patcher, words):
    given = refine(patcher, Clip([words]))
    assert given[:4] == ("a red circle", "blur", "a red circle", "blur")
    assert "OutOfMemoryError" in given[4] and given[5] is False


def test_a_missing_encoder_is_named(patcher):
    with pytest.raises(ValueError, match="clip is None: the checkpoint has no text encoder"):
        refine(patcher, None)
