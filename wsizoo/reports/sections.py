"""The sections of a run's report that show predictions, one function a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsizoo.errors import DataError
from wsizoo.measures.probabilities import BINS
from wsizoo.measures.survival import log_rank
from wsizoo.prediction_files import Row
from wsizoo.reports.curves import (
    Points,
    above_median,
    calibration,
    confusion,
    precision_recall_points,
    roc_points,
    survivors,
)
from wsizoo.viz.charts import histogram_chart, roc_chart
from wsizoo.viz.comparison import interval_plot
from wsizoo.viz.outcomes import (
    confusion_chart,
    precision_recall_chart,
    reliability_chart,
    scatter_chart,
    score_chart,
    survival_chart,
)
from wsizoo.viz.report import Report
from wsizoo.viz.svg import SERIES

FEW_SLIDES = 30  # that are drawn one by one


@dataclass(frozen=True)
class Shown:
    """Predictions to draw.

    Args:
        task: of them. classes: names, [] for other tasks.
        runs: name of a run -> its rows of the reported part.
        what: what a row is, "patient" or "slide".
    """

    task: str
    classes: Sequence[str]
    runs: Mapping[str, Sequence[Row]]
    what: str

    @property
    def rows(self) -> list[Row]:
        """The rows of all runs."""
        return [row for rows in self.runs.values() for row in rows]

    @property
    def pooled(self) -> str:
        """What to say where several runs share a drawing."""
        if len(self.runs) == 1:
            return ""
        return f" Pooled over {len(self.runs)} runs: a {self.what} counts once a run it tests."


def add_predictions(report: Report, shown: Shown) -> None:
    """The drawings of the task.

    Raises:
        DataError: predictions hold a class or number that does not belong there.
    """
    SECTIONS[shown.task](report, shown)


def add_classification(report: Report, shown: Shown) -> None:
    """ROC, precision-recall, confusion matrix, calibration and scores."""
    rows, classes = shown.rows, list(shown.classes)
    labels = [_known(row, "label", classes) for row in rows]
    predicted = [_known(row, "predicted", classes) for row in rows]
    report.heading("ROC and precision-recall")
    _add_rates(report, shown)
    report.heading("Confusion matrix")
    counts = confusion(labels, predicted, classes)
    right = sum(counts[i][i] for i in range(len(classes)))
    report.figure(
        confusion_chart(counts, classes),
        f"{right} of {len(rows)} are called what they are. The called class is the one of the "
        f"largest probability; no threshold was tuned.{shown.pooled}",
    )
    table = np.array([[_number(row, f"p_{name}") for name in classes] for row in rows])  # (n, C)
    report.heading("Calibration and scores")
    given = [classes.index(label) for label in labels]
    report.pair(
        [
            _calibration(given, table, shown),
            _scores(classes, np.array(labels), table),
        ]
    )


def _scores(classes: Sequence[str], labels: Any, table: Any) -> tuple[str, str]:
    """labels: (n,) names. table: (n, C) probabilities."""
    two = len(classes) == 2
    rows = [
        (f"Label {name}", table[labels == name, 1 if two else i].tolist())
        for i, name in enumerate(classes)
    ]
    label = f"Probability of {classes[1]}" if two else "Probability of the class that is right"
    better = (
        "the farther apart they are, the better classes are told."
        if two
        else ("the farther right, the better.")
    )
    chart = score_chart(rows, label, 0.5 if two else None)
    return chart, f"A row a label, as high as its fullest bin; {better}"


def _add_rates(report: Report, shown: Shown) -> None:
    rocs, recalls = _rates(shown, roc_points), _rates(shown, precision_recall_points)
    if not rocs:
        report.text("All labels here are of one class: there is nothing to rank.")
        return
    share, of, chance = None, "Each class against the others.", ""
    if len(shown.classes) == 2:
        negative, positive = shown.classes
        share = float(np.mean([row["label"] == positive for row in shown.rows]))
        of = f"{positive} against {negative}."
        chance = f" The dashed line is the share of {positive}, what guessing gives."
    runs = " A curve a run." if len(shown.classes) == 2 and len(rocs) > 1 else shown.pooled
    caption = f"AP is average precision, the area under the staircase.{chance}{runs}"
    report.pair(
        [
            (roc_chart(rocs), f"{of} The dashed line is chance.{runs}"),
            (precision_recall_chart(recalls, share), caption),
        ]
    )


def _rates(
    shown: Shown, points: Callable[[Any, Any], Points | None]
) -> list[tuple[str, list[float], list[float], float]]:
    """Curves: of two classes one a run, while they can be told apart; else one a class."""
    two = len(shown.classes) == 2
    groups: list[tuple[str, str, Sequence[Row]]] = [
        (name, name, shown.rows) for name in (shown.classes[1:] if two else shown.classes)
    ]
    if two and 1 < len(shown.runs) <= SERIES:
        groups = [(run, shown.classes[1], rows) for run, rows in shown.runs.items()]
    found = []
    for name, positive, rows in groups:
        hits = [int(row["label"] == positive) for row in rows]
        curve = points(hits, [_number(row, f"p_{positive}") for row in rows])
        if curve is not None:
            found.append((name, *curve))
    return found


def _calibration(labels: Sequence[int], table: Any, shown: Shown) -> tuple[str, str]:
    """labels: (n,) indices. table: (n, C) probabilities."""
    bins = calibration(labels, table, [row["patient"] for row in shown.rows])
    gap = sum(one.n * abs(one.seen - one.predicted) for one in bins) / len(labels)
    chart = reliability_chart(bins, "Confidence (probability of the called class)")
    return chart, (
        f"Expected calibration error {gap:.3f}, n {len(labels)}, {BINS} bins of equal "
        "width. On the dashed line a confidence is the share of right calls; below it the model is "
        "too sure. Whiskers: 95 % of the share (Wilson, of patients); numbers over the axis: how "
        f"many are in a bin.{shown.pooled}"
    )


def add_survival(report: Report, shown: Shown) -> None:
    """Kaplan-Meier curves of high and low risk."""
    rows = shown.rows
    times, events = [_number(row, "time") for row in rows], [_number(row, "event") for row in rows]
    runs = [run for run, of_run in shown.runs.items() for _ in of_run]
    high = above_median([_number(row, "risk") for row in rows], runs)
    report.heading("Survival by predicted risk")
    groups = [("Low risk", ~high), ("High risk", high)]
    if high.all() or not high.any():
        report.text("All risks are equal: there are no two groups to compare.")
        groups = [("All", np.ones(len(rows), bool))]
    curves = [survivors(name, np.array(times)[who], np.array(events)[who]) for name, who in groups]
    again = len({row["patient"] for row in rows}) < len(rows)
    tested = len(groups) == 2 and not again
    p = f" Log-rank p {_p(log_rank(times, events, high))}." if tested else ""
    several = " of its run" if len(shown.runs) > 1 else ""
    report.figure(
        survival_chart(curves, "Time (unit of the data table)"),
        f"Kaplan-Meier. High risk: above the median predicted risk{several}.{p} Ticks: last seen "
        f"without event. Under the axis: how many were still followed.{shown.pooled}",
    )
    if again:
        report.text(
            "Patients stand here several times, once a run that tests them, so that a log-rank "
            "test of them would find what is not there. Each run's own report has its p."
        )


def add_regression(report: Report, shown: Shown) -> None:
    """Predicted against true values, and the errors."""
    rows = shown.rows
    given = [_number(row, "value") for row in rows]
    found = [_number(row, "predicted") for row in rows]
    report.heading("Predicted against true")
    errors = [b - a for a, b in zip(given, found, strict=True)]
    told = f"A dot a {shown.what}; on the dashed line the prediction is right.{shown.pooled}"
    report.pair(
        [
            (scatter_chart(given, found, "True value", "Predicted value"), told),
            (histogram_chart(errors, "Error (predicted - true)"), "Off zero there is a bias."),
        ]
    )


def add_segmentation(report: Report, shown: Shown) -> None:
    """Dice of each slide."""
    report.heading(f"Dice per {shown.what}")
    told = [
        row for row in shown.rows if row["dice"] is not None
    ]  # without any positive patch there is none
    named = [(row.get("slide") or row["patient"], _number(row, "dice")) for row in told]
    if len(told) < len(shown.rows):
        nothing = len(shown.rows) - len(told)
        report.text(f"{nothing} without a positive patch, true or called, have no Dice.")
    if not named:
        return
    if len(named) <= FEW_SLIDES and len(shown.runs) == 1:
        ordered = sorted(named, key=lambda one: (one[1], one[0]))
        report.figure(
            interval_plot([(name, dice, None, None) for name, dice in ordered], "Dice"),
            "Of its patches; the lowest first.",
        )
        return
    report.figure(
        score_chart([(f"All {shown.what}s", [dice for _, dice in named])], "Dice"),
        f"How many have which Dice of their patches.{shown.pooled}",
    )


SECTIONS = {
    "classification": add_classification,
    "survival": add_survival,
    "regression": add_regression,
    "segmentation": add_segmentation,
}


def _known(row: Row, column: str, classes: Sequence[str]) -> str:
    if row[column] not in classes:
        raise DataError(
            f"predictions of '{row.get('slide') or row['patient']}': {column} is {row[column]!r}, "
            f"expected one of the run's classes, {', '.join(classes)}"
        )
    return str(row[column])


def _number(row: Row, column: str) -> float:
    try:
        value = float(row[column])
    except (KeyError, TypeError):
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(
            f"predictions of '{row.get('slide') or row['patient']}': {column} is "
            f"{row.get(column)!r}, expected a finite number"
        )
    return value


def _p(value: float) -> str:
    if np.isnan(value):
        return "is not defined: no event was seen"
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
