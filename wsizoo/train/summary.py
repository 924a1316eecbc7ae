"""Several folds and seeds as one result: mean and deviation over them, and all tests pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.files import write_json
from wsizoo.measures.compare import mean_std
from wsizoo.measures.measured import Measured, to_json
from wsizoo.measures.runs import Run, measure_runs
from wsizoo.prediction_files import PREDICTIONS, Row, read_rows, write_rows
from wsizoo.train.cohort import Cohort
from wsizoo.train.measuring import any_resample, labels_of_two, measure_rows
from wsizoo.train.predicting import Censoring
from wsizoo.train.predictions import by_patient
from wsizoo.train.run_folder import METRICS, read_json, read_record


def summarise(out: Path, folders: Sequence[Path], cohort: Cohort) -> dict[str, Any]:
    """Write metrics.json and predictions.csv of finished runs into the folder that holds them.

    `mean` and `std` (of a sample, n - 1) are over the runs, each measured on its own test part;
    `interval` is that of the mean, the patients of all runs resampled;
    `pooled` takes the predictions of all runs as one, its bootstrap draws patients, and says
    nothing of scores that were not made to be compared between runs. Survival is weighted by the
    training parts of all runs, and measured by bins of time where all runs have the same.
    """
    runs = [_read(folder) for folder in folders]
    part = "test" if "test" in runs[0] else "val"  # all runs have the same, see check_folds
    names = list(dict.fromkeys(name for run in runs for name in run.get(part, {})))
    spread = {name: mean_std([_number(run[part].get(name)) for run in runs]) for name in names}
    rows: list[Row] = []
    measured: list[list[Row]] = []
    for folder, run in zip(folders, runs, strict=True):
        of_part = [r for r in read_rows(folder / PREDICTIONS, cohort.task) if r["part"] == part]
        rows += [{"fold": run["fold"], "seed": run["seed"], **row} for row in of_part]
        alone = by_patient(of_part, cohort.task) if run["level"] == "patient" else of_part
        measured.append(alone)
    together = [row for each in measured for row in each]
    records = [read_record(folder) for folder in folders]
    pooled: dict[str, Measured] = {}
    means: dict[str, Measured] = {}
    if together:
        pooled = measure_rows(
            together,
            cohort.task,
            classes=cohort.classes,
            edges=_edges(records),
            censoring=_censoring(records),
        )
        means = _means(measured, records, cohort)
    summary = {
        "level": runs[0]["level"],
        "part": part,
        "runs": runs,
        "mean": {name: _shown(each.mean) for name, each in spread.items()},
        "std": {name: _shown(each.std) for name, each in spread.items()},
        "interval": to_json(means),
        "pooled": to_json(pooled),
    }
    write_rows(out / PREDICTIONS, rows)
    write_json(out / METRICS, summary)
    return summary


def _means(
    measured: Sequence[Sequence[Row]], records: Sequence[Mapping[str, Any]], cohort: Cohort
) -> dict[str, Measured]:
    """The mean of each measure over the runs that have rows, with its interval."""
    runs = [
        Run(
            [row["patient"] for row in rows],
            any_resample(
                rows,
                cohort.task,
                classes=cohort.classes,
                edges=record.get("edges"),
                censoring=_censoring([record]),
            ),
        )
        for rows, record in zip(measured, records, strict=True)
        if rows
    ]
    every = [row for rows in measured for row in rows]
    return measure_runs(runs, labels=labels_of_two(every, cohort.task, cohort.classes))


def _read(folder: Path) -> dict[str, Any]:
    """One run: which, and the points of its measures."""
    record, metrics = read_record(folder), read_json(folder / METRICS)
    points: dict[str, Any] = {
        part: {name: one["value"] for name, one in metrics[part].items()}
        for part in ("test", "val")
        if part in metrics
    }
    told = {key: record[key] for key in ("fold", "seed", "split_digest")}
    return {"folder": folder.name, **told, "level": metrics["level"], **points}


def _edges(records: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Of the bins that all runs have; None: there are none, or each has its own."""
    first: list[float] | None = records[0].get("edges")
    return first if all(record.get("edges") == first for record in records) else None


def _censoring(records: Sequence[Mapping[str, Any]]) -> Censoring | None:
    """Times and events of all training parts."""
    known = [record["censoring"] for record in records if record.get("censoring")]
    each = [[value for one in known for value in one[key]] for key in ("times", "events")]
    return (each[0], each[1]) if known else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _shown(value: float) -> float | None:
    return None if math.isnan(value) else value
