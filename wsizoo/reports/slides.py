"""The table of slides of a run's report, those that went wrong first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.prediction_files import COLUMNS, KEYS, PATIENTS, PREDICTIONS, Row
from wsizoo.reports.files import RunFiles
from wsizoo.viz.report import Cell, Report

MOST = 300  # rows; predictions.csv has them all
HEATMAPS = "heatmaps"
NAMES = {"iou": "IoU"}
FIRST = {
    "classification": "wrong ones first, the surest of them on top",
    "survival": "the highest risk first",
    "regression": "the largest error first",
    "segmentation": "the lowest Dice first",
}


def add_slides(report: Report, runs: Mapping[str, RunFiles]) -> None:
    """Slides of the reported part of one run (named "") or several.

    A slide links to RUN/heatmaps/SLIDE.html or .png where that is there.
    """
    first = next(iter(runs.values()))
    task, classes = first.task, first.classes
    ordered = worst_first(runs)
    rows = [
        {**({"Run": name} if name else {}), **_shown(row, run, name, task, classes)}
        for name, run, row in ordered[:MOST]
    ]
    report.heading("Slides")
    wrong = sum(is_wrong(row) for _, _, row in ordered) if task == "classification" else 0
    told = f"{len(ordered)} slides of the reported part"
    told += f", {wrong} of them called wrong" if task == "classification" else ""
    cut = f" The first {MOST} stand here." if len(ordered) > MOST else ""
    linked = any(cell["Slide"].beside for cell in rows)
    drawn = " Names that are links lead to a heatmap of the slide." if linked else ""
    report.text(f"{told}; {FIRST[task]}.{cut}{drawn} All rows:")
    files = [PREDICTIONS, PATIENTS]
    folder = first.folder.parent if any(runs) else first.folder
    report.files({name: name for name in files if (folder / name).exists()})
    columns = ["Slide", *(key for key in rows[0] if key != "Slide")]
    report.table(rows, columns)


def worst_first(runs: Mapping[str, RunFiles]) -> list[tuple[str, RunFiles, Row]]:
    """Slides of the reported part in the order of the table, each with its run."""
    task = next(iter(runs.values())).task
    every = [(name, run, row) for name, run in runs.items() for row in run.reported_slides()]
    return sorted(every, key=lambda one: (_worst_first(one[2], task), one[2]["slide"], one[0]))


def is_wrong(row: Row) -> bool:
    """Whether a slide was called another class than its label."""
    return bool(row["predicted"] != row["label"])


def _worst_first(row: Row, task: str) -> tuple[bool, float]:
    if task == "classification":
        return not is_wrong(row), float(row.get(f"p_{row['label']}", math.nan))
    if task == "survival":
        return False, -row["risk"]
    if task == "regression":
        return False, -abs(row["predicted"] - row["value"])
    return row["dice"] is None, row["dice"] or 0.0


def _shown(row: Row, run: RunFiles, name: str, task: str, classes: Sequence[str]) -> dict[str, Any]:
    beside = heatmap_of(run.folder, row["slide"])
    prefix = f"{name}/" if name else ""
    wrong = task == "classification" and is_wrong(row)
    slide = Cell(row["slide"], beside and prefix + beside, marked=wrong)
    cells: dict[str, Any] = {"Slide": slide, "Patient": row["patient"]}
    if task == "classification":
        cells["Label"] = row["label"]
        cells["Predicted"] = Cell(row["predicted"], marked=wrong)
        cells["Outcome"] = Cell("wrong", marked=True) if wrong else "right"
        return cells | {f"P({one})": _decimals(row[f"p_{one}"]) for one in classes}
    for key in COLUMNS[task]:
        plain = key == "event" or row[key] is None  # nothing: no Dice
        cells[NAMES.get(key, key.capitalize())] = row[key] if plain else float(row[key])
    if task == "regression":
        cells["Error"] = float(row["predicted"] - row["value"])
    if task == "survival":
        return cells | {f"S({k[2:]})": _decimals(v) for k, v in row.items() if k.startswith("s_")}
    counts = [key for key in row if key not in (*KEYS, *COLUMNS[task])]
    return cells | {key: row[key] for key in counts if task == "segmentation"}


def heatmap_of(folder: Path, slide: str) -> str:
    """The slide's heatmap relative to its run; "" where there is none."""
    for suffix in (".html", ".png"):
        path = Path(HEATMAPS) / f"{slide}{suffix}"
        if Path(slide).name == slide and (folder / path).is_file():
            return path.as_posix()
    return ""


def _decimals(value: float) -> float:
    return round(float(value), 4)
