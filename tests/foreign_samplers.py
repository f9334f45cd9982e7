"""Samplers as other packs write them: they set things on the guider, count as they like, and catch what is raised."""

from __future__ import annotations

import contextlib
import copy

import comfy.samplers


def _euler(ask, indices=lambda step, steps: [step], told=lambda callback, info: callback(info)):
    """Euler; ask(model, x, sigma, extra_args, step) evaluates, indices(step, steps) is what the callback is called
    with."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for step in range(len(sigmas) - 1):
            denoised = ask(model, x, sigmas[step] * x.new_ones(len(x)), extra_args, step)
            for index in indices(step, len(sigmas) - 1):
                if callback is not None:
                    told(callback, {"x": x, "i": index, "denoised": denoised})
            x = x + (x - denoised) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
        return x

    return comfy.samplers.KSAMPLER(sample)


def _plainly(model, x, sigma, extra_args, step):
    return model(x, sigma, **extra_args)


def _sets_cfg(model, x, sigma, extra_args, step):
    guider = model.inner_model
    before, guider.cfg = guider.cfg, 1.5 + step
    denoised = model(x, sigma, **extra_args)
    guider.cfg = before
    return denoised


def _leaves_cfg(model, x, sigma, extra_args, step):
    model.inner_model.cfg += 0.5  # and never sets it back
    return model(x, sigma, **extra_args)


def _sets_conds(model, x, sigma, extra_args, step):
    guider = model.inner_model
    before = guider.conds
    if step % 2:
        guider.conds = {"positive": before["negative"], "negative": before["positive"]}
    denoised = model(x, sigma, **extra_args)
    guider.conds = before
    return denoised


def _copies(model, x, sigma, extra_args, step):
    guider = copy.copy(model.inner_model)
    guider.cfg = 2.0
    return guider(x, sigma, model_options=extra_args["model_options"], seed=extra_args["seed"])


def _asks_what_it_is(model, x, sigma, extra_args, step):
    assert isinstance(model.inner_model, comfy.samplers.CFGGuider)
    return model(x, sigma, **extra_args)


def _predicts(model, x, sigma, extra_args, step):
    return model.inner_model.predict_noise(x, sigma, extra_args["model_options"], extra_args["seed"])


def _predicts_with_the_guiders_options(model, x, sigma, extra_args, step):
    return model.inner_model.predict_noise(x, sigma, model_options=model.inner_model.model_options)


GUIDERS = {
    "sets cfg": _sets_cfg, "leaves cfg set": _leaves_cfg, "sets conds": _sets_conds, "copies the guider": _copies,
    "asks what it is": _asks_what_it_is,
}  # fmt: skip
def _predicts_without_options(model, x, sigma, extra_args, step):
    return model.inner_model.predict_noise(x, sigma, {}, extra_args["seed"])


def _samples_itself(model, x, sigma, extra_args, step):
    guider = model.inner_model
    conds = (guider.conds.get(name) for name in ("negative", "positive"))
    return comfy.samplers.sampling_function(guider.inner_model, x, sigma, *conds, guider.cfg)


BESIDE = {"predicts": _predicts, "predicts with the guider's options": _predicts_with_the_guiders_options}
UNSEEN = {"predicts without options": _predicts_without_options, "samples itself": _samples_itself}
INDICES = {
    "from -1": lambda step, steps: [step - 1], "backwards": lambda step, steps: [steps - 1 - step],
    "twice": lambda step, steps: [step, step], "beyond the schedule": lambda step, steps: [10 * step],
    "always 0": lambda step, steps: [0], "a fraction": lambda step, steps: [(step + 1) / steps],
}  # fmt: skip
# Core's own callback fails on these.
UNCOUNTABLE = {"None": lambda step, steps: [None], "a word": lambda step, steps: ["one"]}


def asking(name):
    return _euler({**GUIDERS, **BESIDE, **UNSEEN}[name])


def counting(name):
    return _euler(_plainly, {**INDICES, **UNCOUNTABLE}[name])


def _goes_on(callback, info):
    with contextlib.suppress(BaseException):
        callback(info)


def _gives_its_input(sample):
    def guarded(model, x, sigmas, **rest):
        try:
            return sample(model, x, sigmas, **rest)
        except BaseException:
            return x

    return comfy.samplers.KSAMPLER(guarded)


def _raises_its_own(sample):
    def guarded(model, x, sigmas, **rest):
        try:
            return sample(model, x, sigmas, **rest)
        except BaseException as error:
            raise RuntimeError("sampling failed") from error

    return comfy.samplers.KSAMPLER(guarded)


def _answers_itself(model, x, sigma, extra_args, step):
    try:
        return model(x, sigma, **extra_args)
    except BaseException:
        return x


DISOBEDIENT = {
    "goes on after its callback": _euler(_plainly, told=_goes_on),
    "answers itself where the model fails": _euler(_answers_itself, told=_goes_on),
    "gives its input": _gives_its_input(_euler(_plainly).sampler_function),
    "raises its own": _raises_its_own(_euler(_plainly).sampler_function),
}
