"""The columns of a table that a split needs, found by their usual names, or told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.names import suggest
from wsizoo.splits.files import PATIENT_COLUMNS, SLIDE_COLUMNS
from wsizoo.tables import Table, is_nothing, read_table

BARCODE = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})(?![A-Z0-9])")
SITE_COLUMNS = ("site", "center", "centre", "hospital")


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

    Where no column of usual name tells patients or sites, TCGA's barcodes do: TCGA-2F-A9KO-... is a
    slide of patient TCGA-2F-A9KO, from the tissue source site 2F. Otherwise each slide is its own
    patient, and sites are unknown.

    Raises:
        DataError: a column that is not there, or a row without a slide or patient.

    Source: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/
    """
    table = read_table(file)
    slide_column = _column(table, slide, SLIDE_COLUMNS, "slide")
    if slide_column is None:
        hint = suggest("slide", [name for name in table.columns if name], "It has ")
        raise DataError(
            f"'{file}' has no column {' or '.join(SLIDE_COLUMNS)}. {hint} Say --slide COLUMN"
        )
    slides = cells(table, slide_column)
    barcodes = [BARCODE.match(name) for name in slides]
    codes = [match.groups() for match in barcodes if match]
    is_tcga = len(codes) == len(slides)
    patients, of_patients = slides, "each slide its own"
    sites, of_sites = None, "unknown"
    if column := _column(table, patient, PATIENT_COLUMNS, "patient"):
        patients, of_patients = cells(table, column), f"column {column}"
    elif is_tcga:
        patients, of_patients = [code[0] for code in codes], "TCGA barcodes"
    if column := _column(table, site, SITE_COLUMNS, "site"):
        sites, of_sites = [row[column] for row in table.rows], f"column {column}"
    elif is_tcga:
        sites, of_sites = [code[1] for code in codes], "TCGA barcodes"
    asked = labels or [name for name in ("label",) if name in table.columns]
    known = {
        name: [row[name] for row in table.rows]
        for name in asked
        if _column(table, name, (), "label")
    }
    return table, SlideColumns(
        slides, patients, known, sites, {"patients": of_patients, "sites": of_sites}
    )


def _column(table: Table, told: str | None, usual: Sequence[str], what: str) -> str | None:
    """The column that was told, which has to be there, or the first of the usual names."""
    if told is not None:
        table.require(told, f"--{what}")
        return told
    lower = {name.lower(): name for name in reversed(table.columns)}
    return next((lower[name] for name in usual if name in lower), None)


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
