"""Curves of predictions as a report draws them, from the definitions of the measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.measures.metrics import NORMAL_95, roc_auc, roc_curve
from wsizoo.measures.probabilities import BINS
from wsizoo.measures.survival import kaplan_meier
from wsizoo.viz.outcomes import Calibration, Survivors

Points = tuple[list[float], list[float], float]


def roc_points(positive: ArrayLike, scores: ArrayLike) -> Points | None:
    """False and true positive rates (P,) and the area; None where one class alone is there.

    Args:
        positive: (n,) 0 or 1. scores: (n,) larger means 1.
    """
    given, ranked = np.asarray(positive, np.int64), np.asarray(scores, np.float64)
    if len(np.unique(given)) < 2:
        return None
    fpr, tpr = roc_curve(given, ranked)
    return fpr.tolist(), tpr.tolist(), roc_auc(given, ranked)


def precision_recall_points(positive: ArrayLike, scores: ArrayLike) -> Points | None:
    """Recall and precision (P,) as a staircase, and average precision; None as `roc_points`.

    Average precision is the area under the staircase: between thresholds nothing is interpolated.
    """
    given, ranked = np.asarray(positive, np.int64), np.asarray(scores, np.float64)
    if len(np.unique(given)) < 2:
        return None
    fpr, recall = roc_curve(given, ranked)
    hits, alarms = recall[1:] * given.sum(), fpr[1:] * (1 - given).sum()
    precision, gained = hits / (hits + alarms), np.diff(recall)  # (k,) by falling threshold
    rise = gained > 0  # of thresholds with one recall, the highest
    xs = np.append(0.0, np.repeat(recall[1:][rise], 2)[:-1])  # (2 k,)
    return xs.tolist(), np.repeat(precision[rise], 2).tolist(), float(gained @ precision)


def confusion(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> list[Any]:
    """Counts (C, C): labels are rows, predictions columns."""
    index = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for label, found in zip(labels, predicted, strict=True):
        counts[index[label], index[found]] += 1
    return list(counts.tolist())


def calibration(
    labels: ArrayLike, probabilities: ArrayLike, patients: Sequence[str]
) -> list[Calibration]:
    """Bins of the predicted class's probability, each with the 95 % interval of the share right.

    Args:
        labels: (n,) class indices. probabilities: (n, C). patients: (n,) of each row; the interval
            is of as many as are in a bin, however many slides or runs show them there.

    Source of the interval: Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22(158), 1927.
    """
    table = np.asarray(probabilities, np.float64)
    sure, right = table.max(1), table.argmax(1) == np.asarray(labels)  # (n,)
    which = (np.ceil(sure * BINS) - 1).clip(0, BINS - 1)  # bin b holds (b / BINS, (b + 1) / BINS]
    held = [which == b for b in np.unique(which)]
    found = []
    for h in held:
        share, independent = float(right[h].mean()), len(set(np.asarray(patients)[h]))
        ends = _wilson(share, independent)
        found.append(Calibration(float(sure[h].mean()), share, *ends, int(h.sum())))
    return found


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = NORMAL_95**2 / n
    middle = (share + z / 2) / (1 + z)
    half = float(np.sqrt(share * (1 - share) * z + z**2 / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def survivors(name: str, times: ArrayLike, events: ArrayLike) -> Survivors:
    """The survival curve of one group of patients. times, events: (n,)."""
    curve = kaplan_meier(times, events)
    seen = np.asarray(events).astype(bool).tolist()
    return Survivors(name, curve.times, curve.survival, np.asarray(times, float).tolist(), seen)


def above_median(risk: ArrayLike, runs: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) whether a risk is above the median of its own run: runs have no common scale."""
    scores, names = np.asarray(risk, np.float64), np.asarray(runs)
    high = np.zeros(len(scores), bool)
    for name in np.unique(names):
        high[names == name] = scores[names == name] > np.median(scores[names == name])
    return high
