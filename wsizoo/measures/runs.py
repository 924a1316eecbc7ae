"""The mean of measures over runs (folds, seeds), with the interval that other patients give it.

Each run is measured alone, as scores of different models are on no common scale, and a resample
draws patients for all of them at once: one that several runs test counts in each of them as often.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import LEVEL, RESAMPLES, Resamples
from wsizoo.measures.measured import Measured, at_the_bound, with_intervals
from wsizoo.measures.weighted import Floats, Weighted, ratio


@dataclass(frozen=True)
class Run:
    """What one run tested.

    Args:
        patients: (n,) of each of its rows. measures: of these rows, in any resample of them.
    """

    patients: Sequence[Hashable]
    measures: Mapping[str, Weighted]


def measure_runs(
    runs: Sequence[Run],
    *,
    labels: Mapping[Hashable, int] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Measured]:
    """Means over runs, in resamples of the patients of all of them.

    Args:
        labels: of two classes, the class (0 or 1) of each patient: a mean `auc` of exactly 0 or 1
            then has Newcombe's interval, see `wsizoo.measures.measured.at_the_bound`.

    Returns:
        By name, of each measure that a run has; `n` counts the rows of all runs. A run that does
        not define a measure does not count in its mean.

    Raises:
        DataError: no run.
    """
    patients = patients_of(runs)
    if not patients:
        raise DataError("no run to measure, expected one or more with their rows")
    drawn = Resamples(len(patients), patients, resamples, seed)
    found = with_intervals(mean_measures(runs), drawn, level)
    if labels is not None and "auc" in found:
        found["auc"] = at_the_bound(found["auc"], list(labels.values()))
    return found


def patients_of(runs: Sequence[Run]) -> list[Hashable]:
    """Of the rows of all runs, one run after the other."""
    return [patient for run in runs for patient in run.patients]


def mean_measures(runs: Sequence[Run]) -> dict[str, Weighted]:
    """The mean over runs of each measure, in any resample of the rows of `patients_of`."""
    names = dict.fromkeys(name for run in runs for name in run.measures)
    return {name: _mean_of(name, runs) for name in names}


def _mean_of(name: str, runs: Sequence[Run]) -> Weighted:
    ends = np.cumsum([len(run.patients) for run in runs])
    each = [
        (slice(end - len(run.patients), end), run.measures[name])
        for run, end in zip(runs, ends, strict=True)
        if name in run.measures
    ]

    def mean(weights: Floats) -> Floats:
        found = np.stack([measure(weights[:, own]) for own, measure in each])  # (runs, R)
        known = np.isfinite(found)
        return ratio(np.where(known, found, 0.0).sum(0), known.sum(0).astype(np.float64))

    return mean
