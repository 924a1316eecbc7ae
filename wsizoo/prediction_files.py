"""predictions.csv and predictions_patients.csv of a run: their columns, one writer, one reader."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.files import write_csv

Row = dict[str, Any]
PREDICTIONS, PATIENTS = "predictions.csv", "predictions_patients.csv"
KEYS = ("slide", "patient", "part")
"""Columns of every row; that of a patient has no `slide`."""
COLUMNS = {
    "classification": ("label", "predicted"),
    "survival": ("time", "event", "risk"),
    "regression": ("value", "predicted"),
    "segmentation": ("dice", "iou"),
}
"""Columns of a task; beside them stand `p_CLASS`, `s_BIN` and counts of patches, as they apply."""


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """A csv with every column that a row has; numbers as they are."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(file, rows, columns or KEYS)


def read_rows(file: Path, task: str) -> list[Row]:
    """What `write_rows` was given: names as text, the rest as numbers, None for no Dice and IoU.

    Raises:
        DataError: it is missing or empty, lacks a column, or holds text in place of a number.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise DataError(f"no {file.name} that can be read in '{file.parent}'") from None
    columns = [name for name in reader.fieldnames or () if name]
    if not columns:
        raise DataError(f"'{file}' is empty")
    needed = (*KEYS[file.name == PATIENTS :], *COLUMNS[task])
    if rows and (missing := [name for name in needed if name not in columns]):
        raise DataError(f"'{file}' has no column {', '.join(missing)}; it has {', '.join(columns)}")
    text = {*KEYS, "label", *(["predicted"] if task == "classification" else [])}
    return [_typed(row, text, f"'{file}', line {line}") for line, row in rows]


def _typed(row: Mapping[str, str | None], text: set[str], where: str) -> Row:
    """A row of cells, those that are no names as numbers."""
    if None in row or None in row.values():  # more cells than columns, or fewer
        raise DataError(f"{where}: expected a cell a column")
    return {
        key: value if key in text else _number(key, value or "", where)
        for key, value in row.items()
    }


def _number(column: str, cell: str, where: str) -> float | int | None:
    if not cell and column in COLUMNS["segmentation"]:
        return None  # of a slide without a positive patch, true or called
    try:
        return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
    except ValueError:
        raise DataError(f"{where}: {column} is {cell!r}, expected a number") from None
