"""Measures of a binary score, with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def roc_auc(labels: NDArray[np.int64], scores: Scores) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        labels: (n,) 0 or 1. scores: (n,) larger means 1.

    Returns:
        NaN when only one class is there.
    """
    positive, negative = scores[labels == 1], scores[labels == 0]
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    difference = positive[:, None] - negative[None]  # (p, q)
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def roc_curve(labels: NDArray[np.int64], scores: Scores) -> tuple[Scores, Scores]:
    """False- and true-positive rates at every threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    hits = labels[order] == 1
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    tpr = np.cumsum(hits)[last_of_tie] / max(1, hits.sum())
    fpr = np.cumsum(~hits)[last_of_tie] / max(1, (~hits).sum())
    return np.insert(fpr, 0, 0.0), np.insert(tpr, 0, 0.0)


def bootstrap_interval(
    labels: NDArray[np.int64], scores: Scores, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the AUC over resampled slides, within each class."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == value) for value in (0, 1)]
    if any(len(group) == 0 for group in groups):
        return float("nan"), float("nan")
    values = []
    for _ in range(samples):
        index = np.concatenate([rng.choice(group, len(group)) for group in groups])
        values.append(roc_auc(labels[index], scores[index]))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
