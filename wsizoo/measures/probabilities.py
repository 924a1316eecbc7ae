"""Forecasts of classes: measures of them, and where to put a threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.measures import weighted
from wsizoo.measures.metrics import class_indices, roc_curve
from wsizoo.measures.names import AT_TUNED
from wsizoo.measures.weighted import Floats, Ints, Weighted

BINS = 15  # of confidence, of equal width
ROUNDING = 1e-3  # how far from 1 the probabilities of a row may sum up


def classification_measures(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    threshold: float | None = None,
) -> dict[str, Weighted]:
    """The measures of `wsizoo.measures.intervals.measure_classification`, of any resample."""
    given, table = checked_forecasts(labels, probabilities, classes)
    names = [str(c) for c in (classes or range(table.shape[1]))]
    found = {
        **_of_decisions(given, table.argmax(1), names),
        "auc": _over_rest(weighted.auc, given, table),
        "auprc": _over_rest(weighted.average_precision, given, table),
        "brier": weighted.mean_of(_squares(given, table)),
        "ece": weighted.calibration_error(table.max(1), table.argmax(1) == given, *_bins(table)),
        "log_loss": weighted.mean_of(_surprise(given, table)),
    }
    if threshold is not None:
        if table.shape[1] != 2:
            raise DataError(f"a threshold is between two classes, these are {table.shape[1]}")
        tuned = _of_decisions(given, (table[:, 1] >= threshold).astype(np.int64), names)
        found |= {name + AT_TUNED: measure for name, measure in tuned.items()}
    return found


def _of_decisions(labels: Ints, predicted: Ints, names: Sequence[str]) -> dict[str, Weighted]:
    """Measures of the confusion of labels and predictions."""
    counts = weighted.confusion(labels, predicted, len(names))

    def of(measure: Callable[[Floats], Floats]) -> Weighted:
        return lambda weights: measure(counts(weights))

    def weighted_f1(c: Floats) -> Floats:
        return weighted.ratio(np.nansum(weighted.f1s(c) * c.sum(2), 1), c.sum((1, 2)))

    def recall_of(i: int) -> Callable[[Floats], Floats]:
        return lambda c: weighted.recalls(c)[:, i]

    return {
        "accuracy": of(weighted.accuracy),
        "balanced_accuracy": of(lambda c: weighted.over_classes(weighted.recalls(c))),
        "macro_f1": of(lambda c: weighted.over_classes(weighted.f1s(c))),
        "weighted_f1": of(weighted_f1),
        "kappa": of(lambda c: weighted.kappa(c, 0)),
        "quadratic_kappa": of(lambda c: weighted.kappa(c, 2)),
        **{f"recall_of_{name}": of(recall_of(i)) for i, name in enumerate(names)},
    }


def _over_rest(measure: Callable[..., Weighted], labels: Ints, table: Floats) -> Weighted:
    """Of the second of two classes; of more, the mean over those that have both kinds of rows.

    A resample that lacks one of these classes does not define it.
    """
    n, n_classes = table.shape
    which = [1] if n_classes == 2 else range(n_classes)
    each = [measure(labels == c, table[:, c]) for c in which]
    both = [0 < (labels == c).sum() < n for c in which]
    kept = [one for one, defined in zip(each, both, strict=True) if defined]
    if not kept:
        return lambda weights: np.full(len(weights), np.nan)
    return lambda weights: np.mean([one(weights) for one in kept], axis=0)


def _squares(labels: Ints, table: Floats) -> Floats:
    """Brier score (n,) of each row: 0 to 2, or 0 to 1 of two classes."""
    off = table - np.eye(table.shape[1])[labels]
    squares: Floats = (off**2).sum(1)
    return squares / 2 if table.shape[1] == 2 else squares


def _surprise(labels: Ints, table: Floats) -> Floats:
    """-log of the probability (n,) of the label, as if it were at least the least float64 step."""
    eps = np.finfo(np.float64).eps
    given = (table / table.sum(1, keepdims=True)).clip(eps, 1 - eps)
    surprise: Floats = -np.log(given[np.arange(len(labels)), labels])
    return surprise


def _bins(table: Floats) -> tuple[Ints, int]:
    """The bin (n,) of each row's largest probability, (b / 15, (b + 1) / 15]; how many there are.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    return (np.ceil(table.max(1) * BINS).astype(np.int64) - 1).clip(0, BINS - 1), BINS


def tuned_threshold(labels: ArrayLike, scores: ArrayLike, by: str = "youden") -> float:
    """The score from which on to predict 1; of several best ones the largest.

    Give it the validation part. `measure_classification(..., threshold=)` of the test part then
    says "at_tuned_threshold" in the names.

    Args:
        labels: (n,) 0 or 1. scores: (n,) probability of class 1.
        by: "youden", the largest recall minus false alarms, or "f1".

    Raises:
        DataError: as `wsizoo.measures.metrics.roc_curve`; another `by`.
    """
    if by not in ("youden", "f1"):
        raise DataError(f"a threshold is tuned by 'youden' or 'f1', not by '{by}'")
    fpr, tpr = (rate[1:] for rate in roc_curve(labels, scores))
    hits, alarms = np.asarray(labels).sum(), (1 - np.asarray(labels)).sum()
    f1 = 2 * tpr * hits / (tpr * hits + fpr * alarms + hits)
    worth = np.round(tpr - fpr if by == "youden" else f1, 12)  # equal ones are equal
    best = int(np.argmax(worth))
    return float(np.unique(np.asarray(scores, np.float64))[::-1][best])


def checked_forecasts(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str] | None = None
) -> tuple[Ints, Floats]:
    """Class indices (n,) and probabilities (n, C). Raises DataError where they are none."""
    table = np.asarray(probabilities, np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not len(table):
        raise DataError(f"probabilities are {table.shape}, expected (n, C), two classes or more")
    if classes is not None and len(classes) != table.shape[1]:
        raise DataError(f"{table.shape[1]} probabilities a row for {len(classes)} classes")
    given, _ = class_indices(labels, np.zeros(len(table), np.int64))
    if not 0 <= given.min() <= given.max() < table.shape[1]:
        span = f"{given.min()} to {given.max()}"
        raise DataError(f"labels go from {span}, of {table.shape[1]} classes")
    wrong = ~((table >= 0) & (table <= 1)).all(1) | (np.abs(table.sum(1) - 1) > ROUNDING)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"row {row} is {table[row].round(4).tolist()}, expected probabilities that sum to 1"
        )
    return given, table
