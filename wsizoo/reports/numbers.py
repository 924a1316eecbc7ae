"""The numbers of a run's report: measures with intervals; of several runs their mean and spread."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsizoo.card import beside_interval
from wsizoo.errors import DataError
from wsizoo.measures.names import BESIDE, LOWER_IS_BETTER, MAIN, title
from wsizoo.reports.files import RunFiles, read_object
from wsizoo.viz.comparison import interval_plot
from wsizoo.viz.report import Cell, Report

PAGE = "report.html"
PARTS = {"test": "test part", "val": "validation part"}
MOST_ROWS = 20  # of runs drawn one by one


def add_measures(report: Report, run: RunFiles) -> None:
    """The measures of one run with their intervals. Raises DataError: there are none."""
    measured = run.measured()
    if not measured:
        raise DataError(
            f"'{run.folder / 'metrics.json'}' has no measures of the {PARTS[run.part]}. Measure "
            f"again: wsizoo evaluate {run.folder}"
        )
    drawn = [
        (title(name), one["value"], one.get("low"), one.get("high"))
        for name, one in measured.items()
        if one.get("value") is not None and name not in LOWER_IS_BETTER and one["value"] <= 1
    ]
    if drawn:
        report.figure(
            interval_plot(drawn, f"{PARTS[run.part].capitalize()}; larger is better, 1 at best"),
            "Dots are the measures, whiskers their intervals, those of the table.",
        )
    val = run.measured("val") if run.part == "test" else {}
    rows = []
    for name, one in measured.items():
        row: dict[str, Any] = {
            "Measure": title(name),
            "Value": _number(one.get("value")),
            "Interval": _ends(one),
        }
        row["n"] = one.get("n")
        row["Better"] = "lower" if name in LOWER_IS_BETTER else "higher"
        rows.append(row | ({"Validation": _number(val.get(name, {}).get("value"))} if val else {}))
    level = next((one["level"] for one in measured.values() if "level" in one), 0.95)
    caption = f"{PARTS[run.part].capitalize()}, by {run.level}; intervals of {level * 100:.0f} %"
    report.table(rows, list(rows[0]), caption)


def add_runs(report: Report, folder: Path, runs: Mapping[str, RunFiles]) -> None:
    """Every run's numbers, their mean with its interval, and their standard deviation."""
    overall = read_object(folder / "metrics.json")
    mean, std = overall.get("mean") or {}, overall.get("std") or {}
    intervals = overall.get("interval") or {}
    first = next(iter(runs.values()))
    report.pair(
        [
            (
                _runs_plot(name, runs, mean[name], intervals.get(name) or {}),
                f"{title(name)} of each run and of their mean, whiskers their intervals. "
                f"Mean ± std: {_mean_std(mean[name], std.get(name))}.",
            )
            for name in (MAIN[first.task], *BESIDE[first.task][:1])
            if mean.get(name) is not None
        ]
    )
    report.table(
        [
            {
                "Measure": title(name),
                "Mean ± std": _mean_std(value, std.get(name)),
                "Interval of the mean": _ends(intervals.get(name) or {}),
                "Better": "lower" if name in LOWER_IS_BETTER else "higher",
            }
            for name, value in mean.items()
        ],
        ["Measure", "Mean ± std", "Interval of the mean", "Better"],
        f"Mean and standard deviation of {len(runs)} runs, {PARTS[first.part]}; 95 % intervals of "
        "the mean, the patients of all runs resampled",
    )
    rows = [
        {"Run": Cell(name, f"{name}/{PAGE}" if (run.folder / PAGE).exists() else "")}
        | {title(key): _number(run.measured().get(key, {}).get("value")) for key in mean}
        for name, run in runs.items()
    ]
    report.table(rows, list(rows[0]), "Each run; its own report has the intervals of all measures")


def _runs_plot(
    name: str, runs: Mapping[str, RunFiles], mean: float, interval: Mapping[str, Any]
) -> str:
    found = {run: files.measured().get(name, {}) for run, files in runs.items()}
    known = {run: one for run, one in found.items() if one.get("value") is not None}
    label = f"Mean of {len(known)} runs"
    rows = [(label, mean, interval.get("low"), interval.get("high"))]
    points = {label: [one["value"] for one in known.values()]}
    if len(known) <= MOST_ROWS:
        rows += [(r, one["value"], one.get("low"), one.get("high")) for r, one in known.items()]
    return interval_plot(rows, title(name), points=points, guide=mean)


def _number(value: float | None) -> str:
    """Three decimals, more than which no cohort supports; or four digits of large ones."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _mean_std(mean: float | None, std: float | None) -> str:
    """Without a deviation where one run alone defines the measure."""
    return _number(mean) if std is None else f"{_number(mean)} ± {_number(std)}"


def _ends(one: Mapping[str, Any]) -> str:
    low, high = one.get("low"), one.get("high")
    ends = "n/a" if low is None or high is None else f"{_number(low)} to {_number(high)}"
    return ends + beside_interval(one)
