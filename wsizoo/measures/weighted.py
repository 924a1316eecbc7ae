"""Measures of many resamples at once: how often each row counts (R, n) -> the measure (R,).

A weight is a whole number, 0 for a row that a resample lacks; ones (1, n) give the measure of the
rows as they are. NaN where a resample does not define the measure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Weighted = Callable[[Floats], Floats]
SAME = 1e-12  # values that differ by less than this share of the largest are one value


def value_of(measure: Weighted, n: int) -> float:
    """Of n rows as they are."""
    return float(measure(np.ones((1, n)))[0])


def ratio(a: Floats, b: Floats) -> Floats:
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(a, b)
    found: Floats = np.divide(a, b, out=np.full(b.shape, np.nan), where=b != 0)
    return found


def mean_of(values: Floats) -> Weighted:
    """The mean of values (n,), of which NaN ones do not count."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    return lambda weights: ratio(weights @ filled, weights @ known.astype(np.float64))


def summed(weights: Floats, cell: Ints, n_cells: int) -> Floats:
    """Sums (R, n_cells) of weights (R, n) that lie in a cell (n,)."""
    n = len(cell)
    where = sparse.csr_array((np.ones(n), (cell, np.arange(n))), shape=(n_cells, n))
    total: Floats = (where @ weights.T).T
    return total


def ties(scores: Floats, tolerance: float = 0.0) -> tuple[Ints, Ints, Ints]:
    """Ascending order (n,), and for each place in it where its ties begin and end.

    Args:
        tolerance: neighbours in that order are tied if they differ by no more.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    with np.errstate(invalid="ignore"):  # inf - inf: tied
        steps = np.flatnonzero(np.diff(ranked) > tolerance) + 1
    edges = np.concatenate([[0], steps, [len(scores)]])
    place = np.searchsorted(edges, np.arange(len(scores)), "right") - 1
    return order, edges[place], edges[place + 1]


def cumulated(values: Floats) -> Floats:
    """(R, n) -> (R, n + 1): the sum of all before each place."""
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, 1)], 1)


def auc(positive: Bools, scores: Floats) -> Weighted:
    """The chance that a positive row (n,) scores above a negative one, ties half."""
    order, first, end = ties(scores)
    hit = positive[order].astype(np.float64)

    def measure(weights: Floats) -> Floats:
        ranked = weights[:, order]
        return area(ranked * hit, ranked * (1 - hit), first, end)

    return measure


def area(positive: Floats, negative: Floats, first: Ints, end: Ints) -> Floats:
    """Area under the ROC curve (R,) of weights (R, n) in the order of the scores, see `ties`."""
    below = cumulated(negative)
    wins = (positive * (below[:, first] + below[:, end])).sum(1) / 2
    return ratio(wins, positive.sum(1) * below[:, -1])


def average_precision(positive: Bools, scores: Floats) -> Weighted:
    """The precision at each positive's score, averaged over them; NaN of one class alone."""
    order, first, _ = ties(scores)
    hit = positive[order].astype(np.float64)

    def measure(weights: Floats) -> Floats:
        ranked = weights[:, order]
        hits, every = cumulated(ranked * hit), cumulated(ranked)
        from_here = every[:, -1:] - every[:, first]
        precision = ratio(hits[:, -1:] - hits[:, first], from_here)
        both = hits[:, -1] < every[:, -1]
        return ratio(np.nansum(ranked * hit * precision, 1), hits[:, -1] * both)

    return measure


def confusion(labels: Ints, predicted: Ints, n_classes: int) -> Weighted:
    """Counts (R, C, C), a row for each label, a column for each prediction."""
    cell = labels * n_classes + predicted

    def counts(weights: Floats) -> Floats:
        return summed(weights, cell, n_classes**2).reshape(-1, n_classes, n_classes)

    return counts


def accuracy(counts: Floats) -> Floats:
    """Of a `confusion` (R, C, C): the share that is right."""
    return ratio(counts.trace(axis1=1, axis2=2), counts.sum((1, 2)))


def recalls(counts: Floats) -> Floats:
    """Of a `confusion`, for each class (R, C): NaN where it is no label."""
    return ratio(counts.diagonal(axis1=1, axis2=2), counts.sum(2))


def f1s(counts: Floats) -> Floats:
    """Of a `confusion`, for each class (R, C): NaN where it is neither label nor prediction."""
    return ratio(2 * counts.diagonal(axis1=1, axis2=2), counts.sum(1) + counts.sum(2))


def kappa(counts: Floats, power: int) -> Floats:
    """Of a `confusion`: Cohen's, where being k classes off costs k ** power (0: any costs 1).

    NaN where labels and predictions are all of one class.
    """
    places = np.arange(counts.shape[1])
    off = np.abs(places[:, None] - places)
    cost = (off**power * (off > 0)).astype(np.float64)  # (C, C)
    chance = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :]
    expected = ratio((cost * chance).sum((1, 2)), counts.sum((1, 2)))
    return 1 - ratio((cost * counts).sum((1, 2)), expected)


def over_classes(each: Floats) -> Floats:
    """Mean (R,) over those of the classes (R, C) that are not NaN."""
    return ratio(np.nansum(each, 1), (~np.isnan(each)).sum(1).astype(np.float64))


def calibration_error(confidence: Floats, right: Bools, cell: Ints, n_cells: int) -> Weighted:
    """Mean over rows of |share right - mean confidence| of the cell (n,) that a row is in."""
    gap = right - confidence

    def measure(weights: Floats) -> Floats:
        gaps = np.abs(summed(weights * gap, cell, n_cells)).sum(1)
        return ratio(gaps, weights.sum(1))

    return measure


def r_squared(values: Floats, predicted: Floats) -> Weighted:
    """1 - squared error / variance; NaN where all values are one."""

    def measure(weights: Floats) -> Floats:
        return 1 - ratio(weights @ (values - predicted) ** 2, _spread(weights, values)[1])

    return measure


def pearson(a: Floats, b: Floats) -> Weighted:
    """Correlation; NaN where either is constant."""

    def measure(weights: Floats) -> Floats:
        return _correlation(weights, np.broadcast_to(a, weights.shape), b)

    return measure


def spearman(a: Floats, b: Floats) -> Weighted:
    """Correlation of the ranks in the resample, tied ones share their mean rank."""
    one, other = ties(a), ties(b)

    def measure(weights: Floats) -> Floats:
        return _correlation(weights, _ranks(weights, *one), _ranks(weights, *other))

    return measure


def _ranks(weights: Floats, order: Ints, first: Ints, end: Ints) -> Floats:
    before = cumulated(weights[:, order])
    found = np.empty_like(weights)
    found[:, order] = (before[:, first] + before[:, end] + 1) / 2
    return found


def _correlation(weights: Floats, a: Floats, b: Floats) -> Floats:
    (off_a, spread_a), (off_b, spread_b) = _spread(weights, a), _spread(weights, b)
    together = (weights * off_a * off_b).sum(1)
    return np.clip(ratio(together, np.sqrt(spread_a * spread_b)), -1, 1)


def _spread(weights: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Distances from the mean (R, n) and their weighted sum of squares (R,), 0 if only rounding."""
    every = np.broadcast_to(values, weights.shape)
    mean = ratio((weights * every).sum(1), weights.sum(1))
    off = every - mean[:, None]
    squares = (weights * off**2).sum(1)
    rounding = (SAME * np.abs(every).max(1, initial=0.0)) ** 2 * weights.sum(1)
    return off, np.where(squares > rounding, squares, 0.0)
