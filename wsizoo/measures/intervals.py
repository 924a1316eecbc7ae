"""Measures of a part of the data, each with its bootstrap interval by patient."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.measures import survival as survival_metrics
from wsizoo.measures import weighted
from wsizoo.measures.bootstrap import LEVEL, RESAMPLES, Resamples
from wsizoo.measures.measured import Measured, at_the_bound, with_intervals
from wsizoo.measures.probabilities import classification_measures
from wsizoo.measures.survival import (
    checked_patients,
    checked_risk,
    survival_at,
    times_to_measure_at,
)
from wsizoo.measures.weighted import Floats, Weighted


def measure_classification(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    classes: Sequence[str] | None = None,
    threshold: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Measured]:
    """How well classes are told: decisions (the largest probability), ranking, calibration.

    `accuracy`, `balanced_accuracy`, `macro_f1`, `weighted_f1`, `kappa`, `quadratic_kappa`, `recall
    of CLASS`, `auc`, `auprc`, `brier`, `ece`, `log_loss`, as docs/measures.md defines them.

    Args:
        labels: (n,) class indices. probabilities: (n, C), of two classes or more.
        groups: the patient (n,) of each row; None: each row is one.
        threshold: of two classes: measures the decision "at least this probability of the second"
            too, under names that end in "_at_tuned_threshold". Tune it on the validation part:
            `wsizoo.measures.probabilities.tuned_threshold`.
        resamples: 0: no intervals, NaN. level: of the interval.

    Returns:
        By name. One class alone has neither `auc` nor `auprc` (NaN). Of what is exactly 0 or 1
        all resamples are alike: shares then have the exact interval, an `auc` of two classes has
        Newcombe's where a patient is of one class, and the others have none.

    Raises:
        DataError: nothing to measure, shapes that do not fit, labels or rows that are none.
    """
    found = classification_measures(labels, probabilities, classes=classes, threshold=threshold)
    n = len(np.asarray(labels))
    measured = with_intervals(found, Resamples(n, groups, resamples, seed), level)
    names = range(n) if groups is None else groups
    told = set(zip(names, np.asarray(labels).tolist(), strict=True))  # patients' labels
    if len(np.asarray(probabilities)[0]) == 2 and len(told) == measured["auc"].patients:
        measured["auc"] = at_the_bound(measured["auc"], [label for _, label in told])
    return measured


def measure_survival(
    times: ArrayLike,
    events: ArrayLike,
    risk: ArrayLike,
    *,
    survival: ArrayLike | None = None,
    edges: ArrayLike | None = None,
    groups: Sequence[Hashable] | None = None,
    at: ArrayLike | None = None,
    censoring: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Measured]:
    """How well survival is told: `c_index`, `time_dependent_auc`, `integrated_brier`.

    Args:
        times: (n,). events: (n,) 1: seen, 0: censored. risk: (n,) larger is worse.
        survival: (n, T) at the end of each bin, of a model of discrete time, and edges: (T - 1,)
            right ends of all bins but the last; both or none. Without them there is no
            `integrated_brier`.
        groups, seed, resamples, level: as `measure_classification`.
        at: times (k,) of the AUC and the Brier score; None:
            `wsizoo.measures.survival.times_to_measure_at` of these patients.
        censoring: times and events that tell how patients are censored, those of the training
            part; None: of each resample itself.

    Raises:
        DataError: nothing to measure, shapes that do not fit, times or events that are none.
    """
    found = survival_measures(
        times, events, risk, survival=survival, edges=edges, at=at, censoring=censoring
    )
    n = len(np.asarray(times))
    return with_intervals(found, Resamples(n, groups, resamples, seed), level)


def survival_measures(
    times: ArrayLike,
    events: ArrayLike,
    risk: ArrayLike,
    *,
    survival: ArrayLike | None = None,
    edges: ArrayLike | None = None,
    at: ArrayLike | None = None,
    censoring: tuple[ArrayLike, ArrayLike] | None = None,
) -> dict[str, Weighted]:
    """The measures of `measure_survival`, of any resample."""
    patients = checked_patients(times, events)
    scores = checked_risk(risk, patients[0])
    when = times_to_measure_at(*patients) if at is None else np.unique(np.asarray(at, np.float64))
    others = None if censoring is None else checked_patients(*censoring)
    found = {
        "c_index": survival_metrics.concordance(*patients, scores),
        "time_dependent_auc": survival_metrics.mean_auc(patients, scores, when, others),
    }
    if (survival is None) != (edges is None):
        raise DataError("survival per bin and the edges of the bins go together, one is missing")
    if survival is not None and edges is not None:
        table = survival_at(survival, edges, when)
        if len(table) != len(scores):
            raise DataError(f"survival is of {len(table)} patients, risks are of {len(scores)}")
        brier = survival_metrics.integrated_brier(patients, table, when, others)
        found["integrated_brier"] = brier
    return found


def measure_regression(
    values: ArrayLike,
    predicted: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Measured]:
    """How near numbers are: `mae`, `rmse`, `r2`, `pearson`, `spearman`.

    Args:
        values, predicted: (n,). The others as `measure_classification`.

    Returns:
        By name. Where all values are one, `r2` and the correlations are NaN.

    Raises:
        DataError: nothing to measure, shapes that differ, numbers that are not finite.
    """
    found = regression_measures(values, predicted)
    n = len(np.asarray(values))
    return with_intervals(found, Resamples(n, groups, resamples, seed), level)


def regression_measures(values: ArrayLike, predicted: ArrayLike) -> dict[str, Weighted]:
    """The measures of `measure_regression`, of any resample."""
    given, found = np.asarray(values, np.float64), np.asarray(predicted, np.float64)
    if given.ndim != 1 or given.shape != found.shape or not len(given):
        raise DataError(f"values are {given.shape} and predictions {found.shape}, expected (n,)")
    if not np.isfinite([given, found]).all():
        row = int((~np.isfinite([given, found])).any(0).argmax())
        raise DataError(f"row {row} is {given[row]:g}, predicted {found[row]:g}: not finite")
    square = weighted.mean_of((given - found) ** 2)
    return {
        "mae": weighted.mean_of(np.abs(given - found)),
        "rmse": lambda weights: np.sqrt(square(weights)),
        "r2": weighted.r_squared(given, found),
        "pearson": weighted.pearson(given, found),
        "spearman": weighted.spearman(given, found),
    }


def measure_segmentation(
    tp: ArrayLike,
    fp: ArrayLike,
    fn: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Measured]:
    """How areas overlap: `dice_per_slide`, `iou_per_slide`, and `dice_pooled`, `iou_pooled`.

    Args:
        tp, fp, fn: (n,) patches of each slide that are positive and called so, called so only, and
            missed; or (n, C) of each class, of which the mean is taken.
        groups, seed, resamples, level: as `measure_classification`.

    Returns:
        By name. A slide (or class) without positives, true or called, has no Dice: it is left out
        of the means over slides (or classes), and `n` of `dice_per_slide` says how many had one.

    Raises:
        DataError: nothing to measure, shapes that differ, counts that are none.
    """
    counts = _counts(tp, fp, fn)
    measures, n_defined = _overlaps(counts)
    rows = Resamples(counts.shape[1], groups, resamples, seed)
    return with_intervals(
        measures, rows, level, {f"{k}_per_slide": n_defined for k in ("dice", "iou")}
    )


def segmentation_measures(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> dict[str, Weighted]:
    """The measures of `measure_segmentation`, of any resample."""
    return _overlaps(_counts(tp, fp, fn))[0]


def _overlaps(counts: Floats) -> tuple[dict[str, Weighted], int]:
    """Measures of counts (3, n, C), and of how many slides there is an overlap."""
    each = {
        "dice": weighted.over_classes(_dice(*counts)),
        "iou": weighted.over_classes(_iou(*counts)),
    }

    def pooled(measure: Any) -> Weighted:
        return lambda weights: weighted.over_classes(measure(*(weights @ c for c in counts)))

    measures = {f"{name}_per_slide": weighted.mean_of(values) for name, values in each.items()}
    measures |= {"dice_pooled": pooled(_dice), "iou_pooled": pooled(_iou)}
    return measures, int((~np.isnan(each["dice"])).sum())


def _dice(tp: Floats, fp: Floats, fn: Floats) -> Floats:
    return weighted.ratio(2 * tp, 2 * tp + fp + fn)


def _iou(tp: Floats, fp: Floats, fn: Floats) -> Floats:
    return weighted.ratio(tp, tp + fp + fn)


def _counts(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> Floats:
    """(3, n, C)."""
    given = [np.asarray(one, np.float64) for one in (tp, fp, fn)]
    shapes = [one.shape for one in given]
    if len(set(shapes)) > 1 or given[0].ndim not in (1, 2) or not len(given[0]):
        raise DataError(f"tp, fp and fn are {shapes}, expected three times (n,) or (n, C)")
    counts = np.stack(given).reshape(3, len(given[0]), -1)
    if not ((counts >= 0) & (counts == np.floor(counts))).all():
        raise DataError("tp, fp and fn count patches, expected whole numbers from 0 on")
    return counts
