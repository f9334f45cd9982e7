"""The evaluation's statistics, against scipy and against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from foresight.evaluation.statistics import (
    auc,
    auc_within,
    bootstrap,
    bootstrap_auc,
    bootstrap_within,
    ratio,
    share,
    text_only_scores,
)


def test_auc_is_mann_whitney():
    generator = np.random.default_rng(0)
    right = generator.random(200) < 0.6
    scores = np.round(generator.normal(size=200) + right, 1)  # rounding makes ties
    u = mannwhitneyu(scores[right], scores[~right]).statistic
    assert auc(scores, right) == pytest.approx(u / (right.sum() * (~right).sum()))


def test_a_score_that_only_knows_the_prompt_is_chance_within_prompt():
    groups = np.repeat(np.arange(40), 6)
    generator = np.random.default_rng(1)
    ease = generator.random(40)[groups]
    right = generator.random(240) < ease
    assert auc(ease, right) > 0.7
    assert auc_within(ease, right, groups) == 0.5


def test_intervals_hold_the_truth_and_resample_prompts_whole():
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(50), 8)
    by_prompt = (generator.random(50) < 0.5)[groups]  # all runs of a prompt alike: only 50 independent values
    interval = bootstrap(lambda rows: by_prompt[rows].mean(), groups)
    assert interval["low"] < 0.5 < interval["high"]
    assert interval["high"] - interval["low"] > 0.2, "runs of a prompt must not count as independent"
    noise = generator.normal(size=400)
    right = generator.random(400) < 0.5
    within = bootstrap_within(noise + right, right, groups)
    assert within["low"] < within["value"] == auc_within(noise + right, right, groups) < within["high"]


def test_the_text_only_predictor_learns_words_and_never_sees_the_prompt_it_predicts():
    captions = [f"a {colour} shape number {index}" for index in range(40) for colour in ("red", "blue")]
    groups = np.arange(80)
    right = np.asarray(["red" in caption for caption in captions])
    assert auc(text_only_scores(captions, right, groups), right) == 1.0
    unlearnable = np.random.default_rng(3).random(80) < 0.5
    captions = [f"word{index}" for index in range(80)]
    assert abs(auc(text_only_scores(captions, unlearnable, groups), unlearnable) - 0.5) < 0.2


def test_the_quick_ways_give_what_the_plain_bootstrap_gives():
    generator = np.random.default_rng(4)
    groups = np.repeat(np.arange(30), 5)
    right = generator.random(150) < 0.6
    scores = np.round(generator.normal(size=150) + right, 1)
    rival = generator.normal(size=150)
    plain = bootstrap(lambda rows: auc(scores[rows], right[rows]), groups, draws=200)
    assert bootstrap_auc(scores, right, groups, draws=200) == pytest.approx(plain)
    plain = bootstrap(lambda rows: auc(scores[rows], right[rows]) - auc(rival[rows], right[rows]), groups, draws=200)
    assert bootstrap_auc(scores, right, groups, rival=rival, draws=200) == pytest.approx(plain)
    cost, base = generator.random(150) + 1, generator.random(150) + 1
    plain = bootstrap(lambda rows: cost[rows].sum() / base[rows].sum(), groups)
    assert ratio(cost, base, groups) == pytest.approx(plain)
    chosen = scores > 0
    plain = bootstrap(lambda rows: right[rows][chosen[rows]].mean(), groups)
    assert share(right, chosen, groups) == pytest.approx(
        {**plain, "count": (right & chosen).sum(), "of": chosen.sum()})
    assert np.isnan(share(right, np.zeros(150, bool), groups)["value"])
