"""Rows of predictions to metrics.json: every measure beside its interval by patient."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wsizoo.measures.bootstrap import RESAMPLES
from wsizoo.measures.intervals import (
    measure_classification,
    measure_regression,
    measure_segmentation,
    measure_survival,
    regression_measures,
    segmentation_measures,
    survival_measures,
)
from wsizoo.measures.measured import Measured
from wsizoo.measures.probabilities import classification_measures
from wsizoo.measures.weighted import Floats, Weighted
from wsizoo.prediction_files import Row
from wsizoo.train.predictions import COUNTS

ALONE_OR_ANY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "classification": (measure_classification, classification_measures),
    "survival": (measure_survival, survival_measures),
    "regression": (measure_regression, regression_measures),
    "segmentation": (measure_segmentation, segmentation_measures),
}


def measure_rows(
    rows: Sequence[Row],
    task: str,
    *,
    classes: Sequence[str] | None = None,
    edges: Sequence[float] | None = None,
    censoring: tuple[Sequence[float], Sequence[int]] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Measured]:
    """The measures of a task by name.

    Args:
        rows: of one part, slides or patients; the bootstrap draws patients.
        classes: of classification, in the order of the probabilities.
        edges: right ends of the bins of time but the last, where the model has bins.
        censoring: times and events of the training part.
    """
    given, options = _given(rows, task, classes, edges, censoring)
    groups = [row["patient"] for row in rows]
    measure = ALONE_OR_ANY[task][0]
    found: dict[str, Measured] = measure(*given, **options, groups=groups, resamples=resamples)
    return found


def any_resample(
    rows: Sequence[Mapping[str, Any]],
    task: str,
    *,
    classes: Sequence[str] | None = None,
    edges: Sequence[float] | None = None,
    censoring: tuple[Sequence[float], Sequence[int]] | None = None,
) -> dict[str, Weighted]:
    """The measures of `measure_rows`, of any resample of the rows.

    Args:
        rows: as `measure_rows`, or as a predictions.csv has them.
    """
    given, options = _given(rows, task, classes, edges, censoring)
    found: dict[str, Weighted] = ALONE_OR_ANY[task][1](*given, **options)
    return found


def labels_of_two(
    rows: Iterable[Mapping[str, Any]], task: str, classes: Sequence[str] | None
) -> dict[Hashable, int] | None:
    """The class (0 or 1) of each patient; None where there are not two, or a patient has both."""
    if task != "classification" or classes is None or len(classes) != 2:
        return None
    each = {(row["patient"], list(classes).index(row["label"])) for row in rows}
    found = dict(each)
    return found if len(found) == len(each) else None


def _given(
    rows: Sequence[Mapping[str, Any]],
    task: str,
    classes: Sequence[str] | None,
    edges: Sequence[float] | None,
    censoring: tuple[Sequence[float], Sequence[int]] | None,
) -> tuple[list[Any], dict[str, Any]]:
    """What the measures of a task are given of rows."""
    if task == "classification":
        assert classes is not None
        index = {name: i for i, name in enumerate(classes)}
        labels = [index[row["label"]] for row in rows]
        return [labels, _table(rows, [f"p_{name}" for name in classes])], {"classes": classes}
    if task == "survival":
        columns = [key for key in rows[0] if key.startswith("s_")]
        known = edges is not None and bool(columns)
        return [_column(rows, name) for name in ("time", "event", "risk")], {
            "survival": _table(rows, columns) if known else None,
            "edges": edges if known else None,
            "censoring": censoring,
        }
    if task == "regression":
        return [_column(rows, "value"), _column(rows, "predicted")], {}
    each = {
        key: [name for name in rows[0] if name.startswith(f"{key}_")] or [key] for key in COUNTS
    }
    return [_table(rows, each[key]) for key in COUNTS], {}


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Floats:
    return np.stack([_column(rows, name) for name in names], 1)  # (n, C)
