"""Rank, effective rank and sparsity of a matrix of attention weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

THRESHOLDS = (0.1, 0.01, 0.001, 1e-6)  # of the largest singular value
TAU = 1e-4  # over n: a weight that is not above it does not count


def singular_values(weights: Floats) -> Floats:
    """(n,) float64, descending, of a matrix (n, n). Cost: O(n^3), some 0.5 s for n = 1,000."""
    found: Floats = np.linalg.svd(np.asarray(weights, np.float64), compute_uv=False)
    return found


def rank_above(values: Floats, threshold: float | None = None) -> int:
    """How many singular values exceed `threshold` times the largest.

    Args:
        values: (n,) descending. threshold: None: the rounding of float64, n times its epsilon, as
            `numpy.linalg.matrix_rank` has it.
    """
    if len(values) == 0:
        return 0
    share = len(values) * np.finfo(np.float64).eps if threshold is None else threshold
    return int((values > share * values[0]).sum())


def effective_rank(values: Floats) -> float:
    """exp of the entropy of singular values over their sum: n for equal ones, 1 for a single one.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    if not values.sum() > 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def sparsity(weights: Floats) -> float:
    """Share of the n^2 weights that are not above 1e-4 / n.

    Source: LongMIL (2024), Eq. 8-9.
    """
    return 1 - float((weights > TAU / len(weights)).mean())
