"""Tables as people keep them: csv or tsv, in a zip, from a spreadsheet, with an index column."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wsizoo.errors import DataError, NotFoundError
from wsizoo.names import suggest

SEPARATORS = ",;\t"
NOTHING = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>"})
"""What stands in a cell that says nothing, in lower case."""


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
