"""Curves of predictions for drawing: ROC, precision-recall, calibration, Kaplan-Meier."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import BackendError
from wsizoo.train.metrics import roc_auc, roc_curve
from wsizoo.train.survival import times_and_events
from wsizoo.viz.outcomes import Calibration, Survivors

Floats = NDArray[np.float64]
Points = tuple[list[float], list[float], float]
CALIBRATION_BINS = 15  # of equal width
NORMAL_95 = 1.959964  # two-sided


def roc_points(positive: ArrayLike, scores: ArrayLike) -> Points | None:
    """False and true positive rates (P,) and the area; None where one class alone is there.

    Args:
        positive: (n,) 0 or 1. scores: (n,) larger means 1.
    """
    given = np.asarray(positive, np.int64)
    if len(np.unique(given)) < 2:
        return None
    ranked = np.asarray(scores, np.float64)
    fpr, tpr = roc_curve(given, ranked)
    return fpr.tolist(), tpr.tolist(), roc_auc(given, ranked)


def precision_recall_points(positive: ArrayLike, scores: ArrayLike) -> Points | None:
    """Recall and precision (P,) as a staircase, and average precision; None as `roc_points`.

    Average precision is the area under the staircase: between thresholds nothing is interpolated.
    """
    given = np.asarray(positive, np.int64)
    if len(np.unique(given)) < 2:
        return None
    sklearn = library("sklearn.metrics")
    precision, recall, _ = sklearn.precision_recall_curve(given, np.asarray(scores, np.float64))
    first = np.append(recall[1:] != recall[:-1], True)  # of equal recalls, the highest threshold
    xs, ys = np.repeat(recall[first], 2)[1:], np.repeat(precision[first], 2)[:-1]
    return xs.tolist(), ys.tolist(), float(sklearn.average_precision_score(given, scores))


def confusion(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> list[Any]:
    """Counts (C, C): labels are rows, predictions columns."""
    index = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for label, found in zip(labels, predicted, strict=True):
        counts[index[label], index[found]] += 1
    return list(counts.tolist())


def calibration(
    probabilities: ArrayLike, came_true: ArrayLike, bins: int = CALIBRATION_BINS
) -> list[Calibration]:
    """Bins of equal width that hold anything, each with the 95 % interval of the share seen.

    Args:
        probabilities: (n,) predicted. came_true: (n,) 0 or 1.

    Source of the interval: Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22(158), 1927.
    """
    told, seen = np.asarray(probabilities, np.float64), np.asarray(came_true, np.float64)
    which = (np.ceil(told * bins).astype(np.int64) - 1).clip(0, bins - 1)  # (b / bins, ...]
    found = []
    for i in np.unique(which):
        here = which == i
        n, share = int(here.sum()), float(seen[here].mean())
        low, high = _wilson(share, n)
        found.append(Calibration(float(told[here].mean()), share, low, high, n))
    return found


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = NORMAL_95**2 / n
    middle = (share + z / 2) / (1 + z)
    half = float(np.sqrt(share * (1 - share) * z + z**2 / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def kaplan_meier(name: str, times: ArrayLike, events: ArrayLike) -> Survivors:
    """The survival curve of one group of patients. times, events: (n,)."""
    lasted, seen = times_and_events(times, events)
    fitter = library("lifelines").KaplanMeierFitter().fit(lasted, seen)
    curve = fitter.survival_function_.iloc[:, 0]
    return Survivors(
        name,
        curve.index.to_numpy(np.float64).tolist(),
        curve.to_numpy(np.float64).tolist(),
        lasted.tolist(),
        seen.tolist(),
    )


def log_rank_p(times: ArrayLike, events: ArrayLike, group: ArrayLike) -> float:
    """p of the log-rank test between two groups. group: (n,) bool."""
    lasted, seen = times_and_events(times, events)
    high = np.asarray(group, bool)
    test = library("lifelines.statistics").logrank_test
    return float(test(lasted[high], lasted[~high], seen[high], seen[~high]).p_value)


def above_median(risk: ArrayLike, runs: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) whether a risk is above the median of its own run: runs have no common scale."""
    scores, names = np.asarray(risk, np.float64), np.asarray(runs)
    high = np.zeros(len(scores), bool)
    for name in np.unique(names):
        high[names == name] = scores[names == name] > np.median(scores[names == name])
    return high


def library(name: str) -> Any:
    """A module of the train extra. Raises BackendError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(
            f"Curves of a report need {name.partition('.')[0]}, which is not installed: "
            "pip install 'wsizoo[train]'"
        ) from error
