"""Finished cells: what their folders say, their test predictions together, and in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wsizoo.benchmark.cells import Cell, Work
from wsizoo.errors import DataError
from wsizoo.measures.compare import delong, paired_bootstrap
from wsizoo.measures.measured import Measured
from wsizoo.measures.names import MAIN
from wsizoo.measures.runs import Run, mean_measures, measure_runs
from wsizoo.prediction_files import PATIENTS, PREDICTIONS, Row, read_rows
from wsizoo.train.measuring import any_resample, labels_of_two

FACTS = ("parameters", "seconds", "ms_per_slide", "peak_mb")
Rows = Mapping[tuple[int, int, str], Row]
"""(fold, seed, slide or patient) -> the row of predictions."""


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Args:
        metrics: of its test part. facts: `FACTS`, None where unknown.
        digests: of data and split, as run.json names them.
        predictions: rows of the test part, a patient each (a slide each where those differ).
    """

    cell: Cell
    task: str
    classes: tuple[str, ...]
    metrics: Mapping[str, float]
    facts: Mapping[str, float | None]
    predictions: tuple[Row, ...]
    digests: Mapping[str, str] = field(default_factory=dict)

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
        file = PATIENTS if measured["level"] == "patient" else PREDICTIONS
        rows = [row for row in read_rows(run / file, told["task"]) if row["part"] == "test"]
        spent = told.get("seconds_per_slide")
        facts = {**told, "ms_per_slide": None if spent is None else 1000 * spent}
        return Result(
            cell,
            told["task"],
            tuple(told.get("classes") or ()),
            {name: _number(each["value"]) for name, each in measured["test"].items()},
            {name: facts.get(name) for name in FACTS},
            tuple(rows),
            {name: value for name, value in told.items() if name.endswith("_digest")},
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(
            f"the run directory '{run}' is damaged ({error!r}): delete it and run the same command"
        ) from error


def measured(results: Sequence[Result], resamples: int) -> Measured:
    """The mean over runs of the main metric, in resamples of the patients of all of them."""
    rows, first = _pooled(results), results[0]
    labels = labels_of_two(rows.values(), first.task, first.classes)
    return measure_runs(_runs(rows, first), labels=labels, resamples=resamples)[first.main]


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
        scores = [[row[f"p_{positive}"] for row in rows.values()] for rows in (a, b)]
        return delong(labels, scores[0], scores[1]).p
    mean, of_others = (mean_measures(_runs(rows, ours[0]))[ours[0].main] for rows in (a, b))
    return paired_bootstrap(mean, of_others, len(both), patients, resamples=resamples).p


def _pooled(results: Sequence[Result]) -> Rows:
    return {
        (result.cell.fold, result.cell.seed, row.get("slide") or row["patient"]): row
        for result in results
        for row in result.predictions
    }


def _runs(rows: Rows, of: Result) -> list[Run]:
    """Rows of one run after another as runs with their main metric."""
    runs: dict[tuple[int, int], list[Row]] = {}
    for key, row in rows.items():
        runs.setdefault(key[:2], []).append(row)
    return [
        Run(
            [row["patient"] for row in own],
            {of.main: any_resample(own, of.task, classes=of.classes)[of.main]},
        )
        for own in runs.values()
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
