"""Rows of predictions to metrics.json: every measure beside its interval by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsizoo.measures.bootstrap import RESAMPLES
from wsizoo.measures.intervals import (
    Measured,
    measure_classification,
    measure_regression,
    measure_segmentation,
    measure_survival,
)
from wsizoo.train.predictions import COUNTS, Row

Floats = NDArray[np.float64]


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
    groups = [row["patient"] for row in rows]
    if task == "classification":
        assert classes is not None
        index = {name: i for i, name in enumerate(classes)}
        labels = [index[row["label"]] for row in rows]
        probabilities = _table(rows, [f"p_{name}" for name in classes])
        return measure_classification(
            labels, probabilities, groups=groups, classes=classes, resamples=resamples
        )
    if task == "survival":
        columns = [key for key in rows[0] if key.startswith("s_")]
        known = edges is not None and bool(columns)
        return measure_survival(
            _column(rows, "time"),
            _column(rows, "event"),
            _column(rows, "risk"),
            survival=_table(rows, columns) if known else None,
            edges=edges if known else None,
            groups=groups,
            censoring=censoring,
            resamples=resamples,
        )
    if task == "regression":
        given, found = _column(rows, "value"), _column(rows, "predicted")
        return measure_regression(given, found, groups=groups, resamples=resamples)
    each = {
        key: [name for name in rows[0] if name.startswith(f"{key}_")] or [key] for key in COUNTS
    }
    tp, fp, fn = (_table(rows, each[key]) for key in COUNTS)
    return measure_segmentation(tp, fp, fn, groups=groups, resamples=resamples)


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)


def _table(rows: Sequence[Row], names: Sequence[str]) -> Floats:
    return np.stack([_column(rows, name) for name in names], 1)  # (n, C)
