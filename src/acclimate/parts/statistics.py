"""Statistics of a report: 95 % intervals over items and over seeds, paired comparisons, negative flips.

Items (documents, questions) are drawn again with replacement; drawing n of n is the same as giving each item a weight from a
multinomial distribution, so a statistic of sums needs one matrix product per block of draws (Efron & Tibshirani 1993, "An
Introduction to the Bootstrap", chapters 6 and 13). The seed is fixed: the same items give the same interval.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AcclimateError

Interval = tuple[float, float, float]  # value, low, high
BLOCK = 4_000_000  # weights held at once: 32 MB of them, and as much again while they become floats


def resampled_sums(columns: ArrayLike, *, seed: int = 0, draws: int = 2000) -> np.ndarray:
    """Column sums of ``draws`` bootstrap samples: columns [item, k] -> sums [draw, k].

    Any statistic of sums can be resampled with it: a ratio, a mean, a macro F1 from per-class counts.

    >>> resampled_sums([[1.0, 2.0], [3.0, 6.0]], draws=4)
    array([[ 4.,  8.],
           [ 4.,  8.],
           [ 6., 12.],
           [ 6., 12.]])
    """
    columns = np.asarray(columns, dtype=float)
    items = len(columns)
    generator = np.random.default_rng(seed)
    sums = np.empty((draws, columns.shape[1]))
    block = max(1, BLOCK // items)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        weights = generator.multinomial(items, np.full(items, 1 / items), size=size).astype(float)  # [draw, item]
        sums[start : start + size] = np.einsum("di,ik->dk", weights, columns)  # not BLAS: the same bits with any number of threads
    return sums


def ratio_interval(numerator: ArrayLike, denominator: ArrayLike, *, seed: int = 0, draws: int = 2000) -> Interval:
    """Sum over sum (bits over bytes, say) with its 95 % percentile interval over items.

    One item says nothing about the spread: its interval is nan. Efron & Tibshirani 1993, section 13.3.

    >>> value, low, high = ratio_interval([10, 40, 30, 12, 55], [8, 20, 20, 8, 24])
    >>> print(f"{value:.4f} [{low:.2f}, {high:.2f}]")
    1.8375 [1.42, 2.13]
    >>> ratio_interval([3.0], [2.0])
    (1.5, nan, nan)
    """
    top, bottom = _columns(numerator=numerator, denominator=denominator)
    value = _ratio(top.sum(), bottom.sum())
    if len(top) == 1:
        return value, np.nan, np.nan
    sums = resampled_sums(np.stack([top, bottom], axis=1), seed=seed, draws=draws)
    return value, *_middle(_ratios(sums))


def mean_interval(values: ArrayLike, *, seed: int = 0, draws: int = 2000) -> Interval:
    """Mean with its 95 % percentile interval over items; nan for the interval of a single item.

    >>> value, low, high = mean_interval([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    >>> print(f"{value} [{low}, {high}]")
    0.7 [0.4, 1.0]
    """
    return ratio_interval(values, np.ones_like(np.asarray(values, dtype=float)), seed=seed, draws=draws)


def paired_difference(
    num_a: ArrayLike, den_a: ArrayLike, num_b: ArrayLike, den_b: ArrayLike, *, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float, float]:
    """Ratio of b minus ratio of a over the same items: (difference, low, high, p).

    Each draw takes the same items for both, so what makes an item hard for both cancels (Koehn 2004, "Statistical significance
    tests for machine translation evaluation", section 3). p is two-sided: twice the share of draws on the rarer side of zero,
    counting one more draw there so that p is never 0, and never below 2 / 2^items, the least that a test which flips signs item
    by item could give; without that bound four items that agree would look like proof. Below some 20 items the interval
    itself is too narrow. One item: interval and p are nan.

    >>> bits_a, bits_b, size = [16.0, 44.0, 30.0, 21.0], [14.0, 41.0, 28.0, 19.0], [8, 20, 14, 10]
    >>> difference, low, high, p = paired_difference(bits_a, size, bits_b, size)
    >>> print(f"{difference:.3f} [{low:.3f}, {high:.3f}] p={p:.3f}")
    -0.173 [-0.222, -0.147] p=0.125
    >>> paired_difference(bits_a, size, bits_a, size)
    (0.0, 0.0, 0.0, 1.0)
    """
    columns = np.stack(_columns(num_a=num_a, den_a=den_a, num_b=num_b, den_b=den_b), axis=1)  # [item, 4]
    total = columns.sum(axis=0)
    value_a, value_b = _ratio(total[0], total[1]), _ratio(total[2], total[3])
    difference = value_b - value_a
    if len(columns) == 1:
        return difference, np.nan, np.nan, np.nan
    sums = resampled_sums(columns, seed=seed, draws=draws)
    differences = _ratios(sums[:, 2:]) - _ratios(sums[:, :2])
    rounding = 1e-12 * (abs(value_a) + abs(value_b))  # equal models must tie in every draw, whatever order the sums took
    differences[np.abs(differences) <= rounding] = 0.0
    low, high = _middle(differences)
    if np.isnan(low):
        return difference, low, high, np.nan
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    p = 2 * (rarer + 1) / (np.isfinite(differences).sum() + 1)
    return difference, low, high, float(min(1.0, max(p, 2.0 ** (1 - len(columns)))))


def seed_interval(values: ArrayLike) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval from Student's t; nan for a single seed.

    Efron & Tibshirani 1993, section 12.2. With few seeds the bootstrap is too narrow, hence t.

    >>> mean, half = seed_interval([1.0, 2.0, 3.0])
    >>> print(f"{mean:.1f} +- {half:.4f}")
    2.0 +- 2.4841
    """
    from scipy.stats import t

    (seeds,) = _columns(values=values)
    if len(seeds) == 1:
        return float(seeds[0]), np.nan
    return float(seeds.mean()), float(t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / np.sqrt(len(seeds)))


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """:func:`seed_interval`, but None for the half-width where there is a single seed, as reports and JSON want it.

    >>> over_seeds([0.5])
    (0.5, None)
    """
    return seed_interval(values) if len(values) > 1 else (values[0], None)


def negative_flips(right_before: ArrayLike, right_after: ArrayLike) -> Interval:
    """Share of all items that were right before and are wrong after, with its 95 % interval.

    The negative flip rate of Yan et al. 2021, "Positive-congruent training", equation 1. The interval is Wilson's (1927): a
    bootstrap of no flips at all would have no width.

    >>> share, low, high = negative_flips([1, 1, 1, 0, 0, 1, 0, 1], [1, 0, 1, 1, 1, 1, 1, 1])
    >>> print(f"{share} [{low:.3f}, {high:.3f}]")
    0.125 [0.022, 0.471]
    """
    from scipy.stats import binomtest

    before, after = _columns(right_before=right_before, right_after=right_after)
    lost = int(((before > 0) & (after <= 0)).sum())
    if len(before) == 1:
        return float(lost), np.nan, np.nan
    interval = binomtest(lost, len(before)).proportion_ci(method="wilson")
    return lost / len(before), float(interval.low), float(interval.high)


def mcnemar(right_before: ArrayLike, right_after: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test: are flips to wrong and flips to right equally likely?

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions", with the binomial distribution
    in place of chi-square. Only items whose answer changed count; with none, p is 1.

    >>> mcnemar([1, 1, 1, 0, 0, 1, 0, 1], [1, 0, 1, 1, 1, 1, 1, 1])  # one lost, three won: 2 * (1 + 4) / 16
    0.625
    """
    from scipy.stats import binomtest

    before, after = _columns(right_before=right_before, right_after=right_after)
    lost = int(((before > 0) & (after <= 0)).sum())
    won = int(((before <= 0) & (after > 0)).sum())
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _columns(**given: ArrayLike) -> Sequence[np.ndarray]:
    """The arguments as float arrays [item]; raise AcclimateError where they do not belong to the same items."""
    columns = {name: np.asarray(values, dtype=float) for name, values in given.items()}
    for name, column in columns.items():
        if column.ndim != 1:
            raise AcclimateError(f"{name} has shape {column.shape}, but must be one number per item")
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise AcclimateError("not the same items: " + ", ".join(f"{name} has {size}" for name, size in sizes.items()))
    if not all(sizes.values()):
        raise AcclimateError(f"{next(iter(sizes))} has no items; give one number per item")
    return list(columns.values())


def _ratio(top: float, bottom: float) -> float:
    if bottom == 0:
        raise AcclimateError("the denominators sum to 0, so the ratio has no value; drop empty items")
    return float(top / bottom)


def _ratios(sums: np.ndarray) -> np.ndarray:
    """First column over second; a draw of nothing but empty items is nan."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what was drawn; nan where nothing was."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return np.nan, np.nan
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
