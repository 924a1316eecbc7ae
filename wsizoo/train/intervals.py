"""Measures of a part of the data, each with its bootstrap interval by patient."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]  # how often each row counts (R, n) -> the measure (R,)


@dataclass(frozen=True)
class Measured:
    """A measure beside its interval.

    Args:
        value: NaN where it is not defined. low, high: percentiles of the resamples; NaN if none.
        n: rows measured (slides, or patients). patients: what was resampled. level: 0.95.
        undefined: resamples left out, because the measure is not defined in them.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int
    level: float = 0.95
    resamples: int = 1000
    undefined: int = 0

    def to_json(self) -> dict[str, Any]:
        """As data; NaN becomes None, which JSON can tell."""
        return {k: None if v != v else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Measured:
        """What `to_json` gave."""
        return cls(**{k: float("nan") if v is None else v for k, v in told.items()})


def measure_classification(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    classes: Sequence[str] | None = None,
    threshold: float | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Measured]:
    """accuracy, balanced_accuracy, macro_f1, weighted_f1, auc, auprc, kappa, quadratic_kappa,
    brier, ece, log_loss, `recall of CLASS`.

    labels (n,), probabilities (n, C), groups: the patient of each row.
    threshold: of two classes, of `tuned_threshold` on the validation part: adds
    `accuracy at tuned threshold` and so on.
    """
    raise NotImplementedError


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
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Measured]:
    """c_index, time_dependent_auc (mean over `at`), integrated_brier (where survival and edges are given).

    survival (n, T): S at the end of each bin (s_0.. of predictions.csv); edges (T-1,) right ends.
    censoring: (times, events) of the training part for the weights; None: of these patients.
    """
    raise NotImplementedError


def measure_regression(
    values: ArrayLike,
    predicted: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Measured]:
    """mae, rmse, r2, pearson, spearman."""
    raise NotImplementedError


def measure_segmentation(
    tp: ArrayLike,
    fp: ArrayLike,
    fn: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Measured]:
    """dice_per_slide, iou_per_slide, dice_pooled, iou_pooled.

    tp, fp, fn: (n,) patches of each slide, or (n, C) of each class (then the mean over classes).
    """
    raise NotImplementedError
