"""Measures of scores, classes, areas and risks; of a binary score with an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError
from wsizoo.measures import weighted
from wsizoo.measures.survival import checked_risk, concordance
from wsizoo.measures.times import times_and_events
from wsizoo.measures.weighted import value_of

Scores = NDArray[np.float64]
Ints = NDArray[np.int64]
NORMAL_95 = 1.959964  # two-sided


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        labels: (n,) 0 or 1. scores: (n,) larger means 1.

    Returns:
        NaN when only one class is there.

    Raises:
        DataError: other labels, NaN among the scores, lengths that differ.
    """
    given, found = checked_scores(labels, scores)
    return value_of(weighted.auc(given == 1, found), len(given))


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Scores, Scores]:
    """False- and true-positive rates at every threshold, from (0, 0) to (1, 1).

    Raises:
        DataError: as `roc_auc`, and when only one class is there.
    """
    given, found = checked_scores(labels, scores)
    if len(np.unique(given)) < 2:
        raise DataError("A ROC curve needs slides of both classes, 0 and 1")
    order = np.argsort(-found, kind="stable")
    hits, ranked = given[order] == 1, found[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    tpr = np.cumsum(hits)[last_of_tie] / hits.sum()
    fpr = np.cumsum(~hits)[last_of_tie] / (~hits).sum()
    return np.insert(fpr, 0, 0.0), np.insert(tpr, 0, 0.0)


def auc_interval(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
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


def share_interval(right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share of n independent ones; it holds the true share at least so often.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case
    of the binomial", Biometrika 26(4), 1934.
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = beta.ppf(tail, right, n - right + 1) if right else 0.0
    high = beta.ppf(1 - tail, right + 1, n - right) if right < n else 1.0
    return float(low), float(high)


def checked_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[Ints, Scores]:
    """Both as (n,). Raises DataError unless labels are 0 and 1 and no score is NaN."""
    given, found = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if given.ndim != 1 or given.shape != found.shape:
        raise DataError(f"labels are {given.shape} and scores {found.shape}, expected (n,) both")
    if not np.isin(given, (0, 1)).all():
        raise DataError(f"labels are {np.unique(given).tolist()}, expected 0 and 1")
    if np.isnan(found).any():
        raise DataError(f"{int(np.isnan(found).sum())} of {len(found)} scores are NaN")
    return given.astype(np.int64), found


def one_vs_rest_auc(labels: ArrayLike, probabilities: ArrayLike) -> Scores:
    """`roc_auc` (C,) of each class against the others; NaN for a class that is not there, or alone.

    Their mean is `numpy.nanmean` of it, which leaves such classes out.

    Args:
        labels: (n,) class indices. probabilities: (n, C).
    """
    table = np.asarray(probabilities, dtype=np.float64)
    if table.ndim != 2:
        raise DataError(f"probabilities are {table.shape}, expected (n, C)")
    given, _ = class_indices(labels, np.zeros(len(table), np.int64))
    if len(given) and not 0 <= given.min() <= given.max() < table.shape[1]:
        raise DataError(
            f"labels go from {given.min()} to {given.max()}, of {table.shape[1]} classes"
        )
    return np.array([roc_auc((given == c).astype(int), column) for c, column in enumerate(table.T)])


@dataclass(frozen=True)
class Macro:
    """Means over the classes that occur among labels or predictions."""

    f1: float
    precision: float
    recall: float


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Share of the predictions (n,) that are the label (n,); NaN of none."""
    given, found = class_indices(labels, predicted)
    return float((given == found).mean()) if len(given) else float("nan")


def macro(labels: ArrayLike, predicted: ArrayLike) -> Macro:
    """Unweighted means over classes; one that is never predicted has precision 0, and so on.

    Args:
        labels, predicted: (n,) class indices.

    Source: scikit-learn's `average="macro", zero_division=0`.
    """
    given, found = class_indices(labels, predicted)
    each = [_overlap(given == c, found == c) for c in np.unique(np.concatenate([given, found]))]
    if not each:
        return Macro(*[float("nan")] * 3)
    mean = np.mean([(one.dice, one.precision, one.recall) for one in each], axis=0)
    return Macro(*mean.tolist())


@dataclass(frozen=True)
class Overlap:
    """How predicted positives cover true ones; 0 where there is nothing to divide by."""

    dice: float
    iou: float
    precision: float
    recall: float


def overlap(labels: ArrayLike, predicted: ArrayLike) -> Overlap:
    """Of patches that are positive or not, pooled over all of them. Dice is F1, IoU is Jaccard's.

    Args:
        labels, predicted: (n,) 0 or 1, of the patches of one slide or of many end to end.
    """
    given, found = class_indices(labels, predicted)
    if not np.isin(np.concatenate([given, found]), (0, 1)).all():
        raise DataError("overlap is of labels and predictions that are 0 or 1")
    return _overlap(given == 1, found == 1)


def _overlap(given: NDArray[np.bool_], found: NDArray[np.bool_]) -> Overlap:
    both, either = int((given & found).sum()), int((given | found).sum())
    of_found, of_given = max(1, int(found.sum())), max(1, int(given.sum()))
    return Overlap(
        2 * both / max(1, both + either), both / max(1, either), both / of_found, both / of_given
    )


def concordance_index(times: ArrayLike, events: ArrayLike, risk: ArrayLike) -> float:
    """Share of comparable pairs in which the patient whose event came first has the larger risk.

    A pair is comparable if the earlier time is that of an event; at equal times, an event comes
    before a patient censored then. Tied risks count half. NaN where no pair is comparable.

    Args:
        times: (n,). events: (n,) 1: seen, 0: censored. risk: (n,) larger is worse.

    Cost: a pass over all patients for each event.

    Source: Harrell et al., "Multivariable prognostic models", Statistics in Medicine 15(4), 1996;
    ties as in scikit-survival's `concordance_index_censored`.
    """
    known, seen = times_and_events(times, events)
    scores = checked_risk(risk, known)
    return value_of(concordance(known, seen, scores), len(known))


def class_indices(labels: ArrayLike, predicted: ArrayLike) -> tuple[Ints, Ints]:
    """Both as (n,) int64. Raises DataError for shapes that differ and for fractions."""
    given, found = np.asarray(labels), np.asarray(predicted)
    if given.ndim != 1 or given.shape != found.shape:
        raise DataError(
            f"labels are {given.shape} and predictions {found.shape}, expected (n,) both"
        )
    whole_given, whole_found = given.astype(np.int64), found.astype(np.int64)
    if (whole_given != given).any() or (whole_found != found).any():
        raise DataError("labels and predictions are class indices, expected whole numbers")
    return whole_given, whole_found
