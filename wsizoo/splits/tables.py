"""The columns of a table that a split needs, found by their usual names, or told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.names import suggest
from wsizoo.splits.files import SLIDE_COLUMNS
from wsizoo.tables import Table, find_origins, is_nothing, read_table


@dataclass(frozen=True)
class SlideColumns:
    """Columns (n,) of a table, a row a slide.

    Args:
        labels: by column. sites: None where nothing tells them.
        sources: where patients and sites are from, to be shown.
    """

    slides: Sequence[str]
    patients: Sequence[str]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sites: Sequence[str] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def read_columns(
    file: Path | str,
    slide: str | None = None,
    patient: str | None = None,
    site: str | None = None,
    labels: Sequence[str] = (),
) -> tuple[Table, SlideColumns]:
    """The table in a file, and its columns.

    Patients and sites as `wsizoo.tables.find_origins` finds them.

    Raises:
        DataError: a column that is not there, or a row without a slide or patient.
    """
    table = read_table(file)
    slide_column = table.find(slide, SLIDE_COLUMNS, "--slide")
    if slide_column is None:
        hint = suggest("slide", [name for name in table.columns if name], "It has ")
        raise DataError(
            f"'{file}' has no column {' or '.join(SLIDE_COLUMNS)}. {hint} Say --slide COLUMN"
        )
    slides = cells(table, slide_column)
    origins = find_origins(table, slides, patient, site)
    if origins.column:
        cells(table, origins.column)
    asked = labels or [name for name in ("label",) if name in table.columns]
    for name in asked:
        table.require(name, "--label")
    known = {name: [row[name] for row in table.rows] for name in asked}
    sources = {"patients": origins.of_patients, "sites": origins.of_sites}
    return table, SlideColumns(slides, origins.patients, known, origins.sites, sources)


def cells(table: Table, column: str) -> list[str]:
    """The cells of a column. Raises DataError where one is empty, naming its line."""
    for row, line in zip(table.rows, table.lines, strict=True):
        if is_nothing(row[column]):
            raise DataError(
                f"'{table.path}', line {line}: column {column} is empty. Fill it in, or leave the "
                "line out"
            )
    return [row[column] for row in table.rows]


def numbers(table: Table, column: str, key: str) -> list[float]:
    """The cells of a column as numbers. Raises DataError naming a line that is none."""
    table.require(column, key)
    found = []
    for row, line in zip(table.rows, table.lines, strict=True):
        try:
            found.append(float(row[column]))
        except ValueError as error:
            raise DataError(
                f"'{table.path}', line {line}: {column} is '{row[column]}', expected a number"
            ) from error
    return found
