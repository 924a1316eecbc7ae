"""Tables as people keep them: csv or tsv, in a zip, from a spreadsheet, with an index column."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wsizoo.errors import DataError, NotFoundError
from wsizoo.names import suggest

SEPARATORS = ",;\t"
NOTHING = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>"})
"""What stands in a cell that says nothing, in lower case."""
PATIENT_COLUMNS = ("patient", "patient_id", "case_id", "case")
SITE_COLUMNS = ("site", "center", "centre", "hospital")
BARCODE = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})(?![A-Z0-9])")
ALONE, UNKNOWN = "each slide its own", "unknown"


@dataclass(frozen=True)
class Table:
    """A table as text.

    Args:
        rows: of cells without blanks around them, by column. lines: that each row ends in.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def require(self, column: str, key: str) -> None:
        """Raise DataError unless there is such a column; `key` is what to say otherwise."""
        if column not in self.columns:
            hint = suggest(column, [c for c in self.columns if c], "Columns: ")
            raise DataError(
                f"table '{self.path}' has no column '{column}'. {hint} Say {key}=COLUMN"
            )

    def find(self, told: str | None, usual: Sequence[str], key: str) -> str | None:
        """The column that was told, which has to be there, or the first of the usual names."""
        if told is not None:
            self.require(told, key)
        return told or first_of(usual, self.columns)


def read_table(path: Path | str) -> Table:
    """The table in a file; of a zip, in the one file that it holds.

    Commas, semicolons or tabs separate, whichever the header has most of.

    Raises:
        NotFoundError: no such file.
        DataError: no text, no header, no rows, rows of another length, a column twice.
    """
    path = Path(path)
    try:
        text = _content(path).decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds binary data")
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError as error:
        raise NotFoundError(f"No table at '{path}'") from error
    except (OSError, ValueError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"table '{path}' cannot be read as csv or tsv: {error}") from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    if len(rows) < 2:
        raise DataError(f"table '{path}' has no rows, expected a header and a row a slide")
    header = rows[0][1]
    for name in header:
        if name and header.count(name) > 1:
            raise DataError(f"table '{path}' has the column '{name}' twice")
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"table '{path}', line {line}: {len(cells)} cells, the header has {len(header)}"
            )
    found = tuple(dict(zip(header, cells, strict=True)) for _, cells in rows[1:])
    return Table(path, tuple(header), found, tuple(line for line, _ in rows[1:]))


@dataclass(frozen=True)
class Origins:
    """The patient and the site (hospital) of each row of a table.

    Args:
        patients: "" where the cell says nothing. sites: None where nothing tells them.
        column: of patients; None: the slides' names tell them.
        of_patients, of_sites: where they are from, to be shown.
    """

    patients: list[str]
    sites: list[str] | None
    column: str | None
    of_patients: str
    of_sites: str


def find_origins(
    table: Table,
    slides: Sequence[str],
    patient: str | None = None,
    site: str | None = None,
    keys: tuple[str, str] = ("--patient", "--site"),
    alone: bool = False,
) -> Origins:
    """Whose each slide is: of a column that was told, or of a usual name; else TCGA's barcodes say.

    TCGA-2F-A9KO-... is a slide of patient TCGA-2F-A9KO, from the tissue source site 2F. Slides
    without a barcode are each its own patient; sites are told by barcodes where all have one.

    Args:
        slides: names, of the rows. patient, site: columns; None: look for them.
        keys: to say a column with. alone: each slide is its own patient, whatever the table says.

    Raises:
        DataError: a column that was told is not there.

    Source: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/
    """
    names = [PurePosixPath(slide.replace("\\", "/")).name for slide in slides]
    codes = [match.groups() if (match := BARCODE.match(name)) else None for name in names]
    coded, named = sum(map(bool, codes)), sum(map(bool, names))
    patients, of_patients = list(slides), ALONE
    column = None if alone else table.find(patient, PATIENT_COLUMNS, keys[0])
    if column is not None:
        patients, of_patients = _said(table, column), f"column '{column}'"
    elif coded and not alone:
        patients = [code[0] if code else own for code, own in zip(codes, slides, strict=True)]
        rest = "" if coded == named else f" of {coded} of {named} slides, the others each its own"
        of_patients = f"TCGA barcodes{rest}"
    of_site = table.find(site, SITE_COLUMNS, keys[1])
    if of_site is not None:
        return Origins(patients, _said(table, of_site), column, of_patients, f"column '{of_site}'")
    sites = [code[1] if code else "" for code in codes] if coded and coded == named else None
    of_sites = UNKNOWN if sites is None else "TCGA barcodes"
    return Origins(patients, sites, column, of_patients, of_sites)


def first_of(usual: Iterable[str], columns: Sequence[str]) -> str | None:
    """The column that has the first of these names, in any case, with blanks or `_`."""
    plain = {name.lower().replace(" ", "_"): name for name in reversed(columns)}
    return next((plain[name] for name in usual if name in plain), None)


def _said(table: Table, column: str) -> list[str]:
    return ["" if is_nothing(row[column]) else row[column] for row in table.rows]


def is_nothing(cell: str) -> bool:
    """Whether a cell is empty, or says so."""
    return cell.lower() in NOTHING


def _content(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
        if len(files) != 1:
            raise ValueError(f"it is a zip of {len(files)} files, expected one")
        return archive.read(files[0])
