"""Finished cells: what their folders say, their test predictions together, and in pairs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsizoo.benchmark.cells import Cell, Work
from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import Resamples
from wsizoo.measures.compare import delong, paired_bootstrap
from wsizoo.measures.intervals import (
    Measured,
    at_the_bound,
    regression_measures,
    segmentation_measures,
    survival_measures,
    with_intervals,
)
from wsizoo.measures.probabilities import classification_measures
from wsizoo.measures.weighted import Weighted, ratio

MAIN = {  # what models are ranked by
    "classification": "auc",
    "survival": "c_index",
    "regression": "r2",
    "segmentation": "dice_per_slide",
}
FACTS = ("parameters", "seconds", "ms_per_slide", "peak_mb")
Rows = Mapping[tuple[int, int, str], Mapping[str, str]]
"""(fold, seed, slide or patient) -> the row of predictions."""


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Args:
        metrics: of its test part. facts: `FACTS`, None where unknown.
        predictions: rows of the test part, a patient each (a slide each where those differ).
    """

    cell: Cell
    task: str
    classes: tuple[str, ...]
    metrics: Mapping[str, float]
    facts: Mapping[str, float | None]
    predictions: tuple[Mapping[str, str], ...]

    @property
    def main(self) -> str:
        """The metric by which models of this task are ranked."""
        return MAIN[self.task]

    @property
    def value(self) -> float:
        """Of that metric; NaN where it is not defined."""
        return self.metrics.get(self.main, math.nan)


def read_result(work: Work, cell: Cell) -> Result:
    """What a finished cell's run directory says. Raises DataError where it is damaged."""
    run = work.path(cell)
    try:
        told = json.loads((run / "run.json").read_text(encoding="utf-8"))
        measured = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        of_patients = measured["level"] == "patient"
        file = "predictions_patients.csv" if of_patients else "predictions.csv"
        with open(run / file, newline="", encoding="utf-8") as opened:
            rows = [row for row in csv.DictReader(opened) if row["part"] == "test"]
        spent = told.get("seconds_per_slide")
        facts = {**told, "ms_per_slide": None if spent is None else 1000 * spent}
        return Result(
            cell,
            told["task"],
            tuple(told.get("classes") or ()),
            {name: _number(each["value"]) for name, each in measured["test"].items()},
            {name: facts.get(name) for name in FACTS},
            tuple(rows),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the run directory '{run}' is damaged ({error!r}): delete it and run the same command"
        ) from error


def measured(results: Sequence[Result], resamples: int) -> Measured:
    """The mean over runs of the main metric, in resamples of the patients of all of them."""
    rows = _pooled(results)
    patients = [row["patient"] for row in rows.values()]
    main = results[0].main
    drawn = Resamples(len(rows), patients, resamples)
    found = with_intervals({main: _mean_measure(rows, results[0])}, drawn)[main]
    if main != "auc" or len(results[0].classes) != 2:
        return found
    labels = {row["patient"]: results[0].classes.index(row["label"]) for row in rows.values()}
    return at_the_bound(found, list(labels.values()))


def p_value(ours: Sequence[Result], others: Sequence[Result], resamples: int) -> float:
    """Of no difference in the main metric, on the test predictions that both have; NaN if none.

    Two AUCs of one run each, of two classes, with a row a patient, are compared by DeLong's test,
    which takes rows as independent; all else, means over runs too, by a paired bootstrap.
    """
    first, second = (_pooled(results) for results in (ours, others))
    both = sorted(set(first) & set(second))
    if not both:
        return math.nan
    a, b = ({key: rows[key] for key in both} for rows in (first, second))
    patients = [row["patient"] for row in a.values()]
    one_run = len({key[:2] for key in both}) == 1
    two_classes = ours[0].task == "classification" and len(ours[0].classes) == 2
    if one_run and two_classes and len(set(patients)) == len(patients):
        positive = ours[0].classes[1]
        labels = [int(row["label"] == positive) for row in a.values()]
        scores = [[float(row[f"p_{positive}"]) for row in rows.values()] for rows in (a, b)]
        return delong(labels, scores[0], scores[1]).p
    measures = _mean_measure(a, ours[0]), _mean_measure(b, ours[0])
    return paired_bootstrap(*measures, len(both), patients, resamples=resamples).p


def _pooled(results: Sequence[Result]) -> Rows:
    return {
        (result.cell.fold, result.cell.seed, row.get("slide") or row["patient"]): row
        for result in results
        for row in result.predictions
    }


def _mean_measure(rows: Rows, of: Result) -> Weighted:
    """The mean of the main metric over runs, in any resample; runs without it do not count.

    Scores of different runs are never ranked among each other: their scales differ.
    """
    runs: dict[tuple[int, int], list[int]] = {}
    for index, key in enumerate(rows):
        runs.setdefault(key[:2], []).append(index)
    given = list(rows.values())
    each = [(own, _measure([given[i] for i in own], of)) for own in runs.values()]

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.stack([measure(weights[:, own]) for own, measure in each])  # (runs, R)
        known = np.isfinite(found)
        return ratio(np.where(known, found, 0.0).sum(0), known.sum(0).astype(np.float64))

    return mean


def _measure(rows: Sequence[Mapping[str, str]], of: Result) -> Weighted:
    """The main metric of these rows, in any resample."""

    def column(name: str) -> NDArray[np.float64]:
        return np.array([row[name] for row in rows], dtype=np.float64)

    found: Mapping[str, Weighted]
    if of.task == "classification":
        labels = [of.classes.index(row["label"]) for row in rows]
        table = np.stack([column(f"p_{name}") for name in of.classes], 1)  # (n, C)
        found = classification_measures(labels, table, classes=of.classes)
    elif of.task == "survival":
        found = survival_measures(column("time"), column("event"), column("risk"))
    elif of.task == "regression":
        found = regression_measures(column("value"), column("predicted"))
    else:
        found = segmentation_measures(column("tp"), column("fp"), column("fn"))
    return found[MAIN[of.task]]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
