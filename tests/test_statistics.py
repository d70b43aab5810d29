"""Intervals that cover what they promise, agreement with scipy, and the corners: one item, no flips, equal models."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import bootstrap

from acclimate.errors import AcclimateError
from acclimate.parts.statistics import (
    mcnemar,
    mean_interval,
    negative_flips,
    paired_difference,
    ratio_interval,
    resampled_sums,
    seed_interval,
)


def documents(generator, items=120, rate=2.0, spread=0.5):
    size = generator.integers(50, 2000, items).astype(float)
    return size * (rate + spread * generator.standard_normal(items)), size


def coverage(interval, truth, trials=150):
    hits = [low <= truth <= high for low, high in (interval(np.random.default_rng(seed)) for seed in range(trials))]
    return np.mean(hits)


def test_ratio_interval_covers_the_truth():
    share = coverage(lambda g: ratio_interval(*documents(g), draws=400)[1:], truth=2.0)
    assert 0.89 <= share <= 0.99  # 95 % promised; three standard errors of 150 trials, and the percentile interval runs a little narrow


def test_paired_interval_covers_the_truth_and_p_is_calibrated():
    ps = []

    def interval(generator):
        bits, size = documents(generator)
        other = bits + size * 0.05 * generator.standard_normal(len(size))  # the same ratio on average
        _, low, high, p = paired_difference(bits, size, other, size, draws=400)
        ps.append(p)
        return low, high

    assert 0.89 <= coverage(interval, truth=0.0) <= 0.99
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11  # errors of the first kind
    assert 0.4 < np.median(ps) < 0.6


def test_pairing_finds_what_two_separate_intervals_cannot():
    generator = np.random.default_rng(1)
    bits, size = documents(generator)
    other = bits - 0.02 * size
    difference, low, high, p = paired_difference(bits, size, other, size)
    assert difference == pytest.approx(-0.02)
    assert low < -0.0199
    assert high > -0.0201
    assert high < 0
    assert p < 0.002
    assert ratio_interval(bits, size)[1] < ratio_interval(other, size)[2]  # the separate intervals overlap


def test_agrees_with_scipy():
    generator = np.random.default_rng(2)
    bits, size = documents(generator, items=80)
    other = bits + size * (0.03 + 0.1 * generator.standard_normal(80))

    def ratio(top, bottom, axis=-1):
        return top.sum(axis=axis) / bottom.sum(axis=axis)

    def difference(a, b, bottom, axis=-1):
        return ratio(b, bottom, axis) - ratio(a, bottom, axis)

    for ours, theirs in [
        (ratio_interval(bits, size, draws=9999)[1:], ((bits, size), ratio)),
        (mean_interval(bits, draws=9999)[1:], ((bits,), np.mean)),
        (paired_difference(bits, size, other, size, draws=9999)[1:3], ((bits, other, size), difference)),
    ]:
        options = dict(paired=True, method="percentile", n_resamples=9999, rng=np.random.default_rng(3))
        reference = bootstrap(*theirs, **options).confidence_interval
        tolerance = 0.05 * (reference.high - reference.low)
        assert ours == pytest.approx(tuple(reference), abs=tolerance)


def test_seed_interval_is_scipys_t_interval():
    values = [1.31, 1.29, 1.36, 1.30]
    mean, half = seed_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_mcnemar_equals_the_textbook_sum_and_is_two_sided():
    before = np.array([1] * 12 + [0] * 3 + [1] * 20)
    after = np.array([0] * 12 + [1] * 3 + [1] * 20)
    by_hand = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert mcnemar(before, after) == pytest.approx(by_hand)
    assert mcnemar(after, before) == mcnemar(before, after)
    assert mcnemar(before, before) == 1.0


def test_negative_flips_count_all_items_and_know_doubt_without_any():
    before, after = np.array([True] * 30 + [False] * 70), np.array([True] * 24 + [False] * 6 + [True] * 70)
    share, low, high = negative_flips(before, after)
    assert share == 0.06
    assert low < 0.06 < high
    none, low, high = negative_flips(before, before)
    assert none == low == 0
    assert 0.03 < high < 0.04


def test_one_item_has_a_value_and_no_interval():
    value, *rest = ratio_interval([3], [2])
    assert value == 1.5
    assert np.isnan(rest).all()
    value, *rest = mean_interval([7])
    assert value == 7
    assert np.isnan(rest).all()
    value, *rest = paired_difference([3], [2], [4], [2])
    assert value == 0.5
    assert np.isnan(rest).all()
    assert seed_interval([2.0])[0] == 2
    assert np.isnan(seed_interval([2.0])[1])
    assert negative_flips([1], [0])[0] == 1
    assert mcnemar([1], [0]) == 1.0


def test_few_items_cannot_prove_anything():
    *_, p = paired_difference([2.0, 2.1, 1.9], [1, 1, 1], [1.0, 1.1, 0.9], [1, 1, 1])
    assert p == 0.25


def test_equal_models_tie_exactly():
    bits, size = documents(np.random.default_rng(4), items=333)
    assert paired_difference(bits, size, bits, size) == (0.0, 0.0, 0.0, 1.0)


def test_items_without_size_are_allowed_but_not_all_of_them():
    value, low, high = ratio_interval([0.0, 2.0, 4.0], [0.0, 1.0, 1.0])
    assert value == 3
    assert low >= 2
    assert high <= 4
    with pytest.raises(AcclimateError, match="sum to 0"):
        ratio_interval([0.0, 1.0], [0.0, 0.0])


def test_a_diverged_model_gives_nan_and_no_crash():
    assert np.isnan(ratio_interval([np.nan, 1.0], [1.0, 1.0])).all()
    assert np.isnan(paired_difference([1, 1], [1, 1], [np.nan, 1], [1, 1])).all()


def test_same_seed_same_interval_whatever_the_block(monkeypatch):
    bits, size = documents(np.random.default_rng(5), items=50)
    first = ratio_interval(bits, size)
    assert ratio_interval(bits, size) == first != ratio_interval(bits, size, seed=1)
    monkeypatch.setattr("acclimate.parts.statistics.BLOCK", 1000)
    assert ratio_interval(bits, size) == first


def test_sums_are_of_as_many_items_as_there_are():
    sums = resampled_sums(np.ones((37, 1)), draws=25)
    assert sums.shape == (25, 1)
    assert (sums == 37).all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: ratio_interval([1, 2], [1]), "not the same items: numerator has 2, denominator has 1"),
        (lambda: mean_interval([]), "no items"),
        (lambda: ratio_interval([[1, 2]], [[1, 2]]), "one number per item"),
        (lambda: negative_flips([1, 0], [1]), "right_before has 2, right_after has 1"),
    ],
)
def test_what_makes_no_sense_is_one_line(call, line):
    with pytest.raises(AcclimateError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
