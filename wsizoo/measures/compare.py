"""Which of two models is better, and by how much: on one set of patients, over seeds or folds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import LEVEL, RESAMPLES, Resamples, interval
from wsizoo.measures.metrics import checked_scores
from wsizoo.measures.weighted import Bools, Floats, Weighted, ties, value_of

NAN = math.nan


@dataclass(frozen=True)
class Difference:
    """a minus b of two models, with an interval and the p-value of there being none.

    Args:
        a, b: the measure of each. low, high: of the difference. p: two-sided.
        n: rows. undefined: resamples left out.
    """

    a: float
    b: float
    value: float
    low: float
    high: float
    p: float
    n: int
    undefined: int = 0


def delong(labels: ArrayLike, a: ArrayLike, b: ArrayLike, level: float = LEVEL) -> Difference:
    """Two AUCs of the same rows, by the covariance of DeLong.

    It takes rows as independent: where patients have several slides, use `paired_bootstrap`.

    Args:
        labels: (n,) 0 or 1. a, b: (n,) scores of two models, larger means 1.

    Returns:
        Interval and p NaN where a class has fewer than two rows, or where the variance of the
        difference is 0 and the difference is not; p is 1 where neither differs.

    Raises:
        DataError: as `wsizoo.measures.metrics.roc_auc`.

    Cost: O(n log n).

    Source: DeLong et al., "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, 1988; by ranks as in Sun and Xu, "Fast implementation of
    DeLong's algorithm", IEEE Signal Processing Letters 21(11), 2014, Eq. 4-8.
    """
    given, first = checked_scores(labels, a)
    _, second = checked_scores(labels, b)
    positive = given == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 1:
        return Difference(NAN, NAN, NAN, NAN, NAN, NAN, m + n)
    places = [_placements(positive, scores) for scores in (first, second)]
    auc_a, auc_b = (float(hits.mean()) for hits, _ in places)
    value = auc_a - auc_b
    variance = sum(
        float(np.var(one - other, ddof=1)) / len(one) if len(one) > 1 else NAN
        for one, other in zip(*places, strict=True)
    )
    spread = math.sqrt(variance) if variance > 0 or value == 0 else NAN
    p = math.erfc(abs(value) / spread / math.sqrt(2)) if spread else 1.0
    reach = NormalDist().inv_cdf((1 + level) / 2) * spread
    return Difference(auc_a, auc_b, value, value - reach, value + reach, p, m + n)


def _placements(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """The share of negatives below each positive (m,), of positives above each negative (n,)."""
    every = _ranks(scores)
    own = [_ranks(scores[rows]) for rows in (positive, ~positive)]
    m, n = len(own[0]), len(own[1])
    return (every[positive] - own[0]) / n, 1 - (every[~positive] - own[1]) / m


def _ranks(scores: Floats) -> Floats:
    """From 1 on (n,); tied ones share their mean."""
    order, first, end = ties(scores)
    found = np.empty(len(scores))
    found[order] = (first + end + 1) / 2
    return found


def paired_bootstrap(
    a: Weighted,
    b: Weighted,
    n: int,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """Two models in the same resamples of patients, by any measure.

    Args:
        a, b: how often each of n rows counts (R, n) -> the measure (R,), as in what
            `classification_measures`, `survival_measures`, `regression_measures` and
            `segmentation_measures` give by name; `of_rows` makes one of any function.
        groups: the patient (n,) of each row; None: each row is one.

    Returns:
        p is twice the share of resamples, the data themselves counted as one, in which the
        difference is 0 or has the other sign; at most 1, and NaN without resamples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; the data count
    as one resample as in Davison and Hinkley, Bootstrap Methods and their Application, 1997, 4.2.
    """
    values = value_of(a, n), value_of(b, n)
    drawn = np.subtract(*Resamples(n, groups, resamples, seed).values(a, b))
    low, high, undefined = interval(drawn, level)
    known = drawn[~np.isnan(drawn)]
    value = values[0] - values[1]
    if math.isnan(value) or not len(known):
        return Difference(*values, value, NAN, NAN, NAN, n, undefined)
    sides = [1 + int((known <= 0).sum()), 1 + int((known >= 0).sum())]
    p = min(1.0, 2 * min(sides) / (1 + len(known)))
    return Difference(*values, value, low, high, p, n, undefined)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over n seeds or folds."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        """`0.912 ± 0.021`."""
        return f"{self.mean:.3f} ± {self.std:.3f}"


def mean_std(values: ArrayLike) -> Spread:
    """As papers report seeds and folds: the std is divided by n - 1, NaN of one value.

    NaN values (a fold in which the measure is not defined) are left out, n tells how many are not.
    """
    given = np.asarray(values, np.float64)
    if given.ndim != 1:
        raise DataError(f"values are {given.shape}, expected one a seed or fold, (n,)")
    known = given[~np.isnan(given)]
    mean = float(known.mean()) if len(known) else NAN
    std = float(known.std(ddof=1)) if len(known) > 1 else NAN
    return Spread(mean, std, len(known))


def holm(p_values: ArrayLike) -> Floats:
    """p-values (k,) made larger for there being k of them; NaN ones stay and do not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 6(2), 1979.
    """
    given = np.asarray(p_values, np.float64)
    if given.ndim != 1 or ((given < 0) | (given > 1)).any():
        raise DataError(f"p-values are {given.tolist()}, expected (k,) from 0 to 1")
    found = np.full(len(given), np.nan)
    order = np.argsort(given)[: int((~np.isnan(given)).sum())]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.maximum.accumulate(given[order] * factors).clip(max=1)
    return found
