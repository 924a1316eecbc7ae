"""Measures of a binary score, with intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsizoo.errors import DataError

Scores = NDArray[np.float64]
NORMAL_95 = 1.959964  # two-sided


def roc_auc(labels: NDArray[np.int64], scores: Scores) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        labels: (n,) 0 or 1. scores: (n,) larger means 1.

    Returns:
        NaN when only one class is there.

    Raises:
        DataError: other labels, NaN among the scores, lengths that differ.
    """
    labels, scores = _checked(labels, scores)
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    below = np.searchsorted(negative, positive, "left")  # (p,)
    not_above = np.searchsorted(negative, positive, "right")  # (p,)
    return float((below + not_above).sum() / (2 * len(positive) * len(negative)))


def roc_curve(labels: NDArray[np.int64], scores: Scores) -> tuple[Scores, Scores]:
    """False- and true-positive rates at every threshold, from (0, 0) to (1, 1).

    Raises:
        DataError: as `roc_auc`, and when only one class is there.
    """
    labels, scores = _checked(labels, scores)
    if len(np.unique(labels)) < 2:
        raise DataError("A ROC curve needs slides of both classes, 0 and 1")
    order = np.argsort(-scores, kind="stable")
    hits, ranked = labels[order] == 1, scores[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    tpr = np.cumsum(hits)[last_of_tie] / hits.sum()
    fpr = np.cumsum(~hits)[last_of_tie] / (~hits).sum()
    return np.insert(fpr, 0, 0.0), np.insert(tpr, 0, 0.0)


def auc_interval(labels: NDArray[np.int64], scores: Scores) -> tuple[float, float]:
    """95 % score interval of the AUC; not of width 0 at an AUC of 0 or 1, as a bootstrap's is.

    NaN, NaN when only one class is there. Raises DataError as `roc_auc`.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic, part 2", Statistics in Medicine 25(4), 2006, method 5.
    """
    auc = roc_auc(labels, scores)
    positives, negatives = (int((np.asarray(labels) == value).sum()) for value in (1, 0))
    if np.isnan(auc):
        return float("nan"), float("nan")
    extra = (positives + negatives) / 2 - 1

    def too_far(theta: float) -> bool:
        spread = 1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * spread / (positives * negatives)
        return (auc - theta) ** 2 > NORMAL_95**2 * variance

    return _edge(auc, 0.0, too_far), _edge(auc, 1.0, too_far)


def _edge(inside: float, outside: float, too_far: Callable[[float], bool]) -> float:
    """Where `too_far` begins between two values, by bisection."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if too_far(middle) else (middle, outside)
    return inside


def _checked(labels: NDArray[np.int64], scores: Scores) -> tuple[NDArray[np.int64], Scores]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise DataError(f"labels are {labels.shape} and scores {scores.shape}, expected (n,) both")
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"labels are {np.unique(labels).tolist()}, expected 0 and 1")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    return labels, scores
