"""Tables of slides as text: comma, semicolon or tab, also the one csv inside a zip."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from wsizoo.errors import DataError


def read_table(file: Path | str) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns, and a mapping a line, cells as they are written.

    A column without a name, as pandas writes its index, is called `""`.

    Raises:
        DataError: no such file, no text, a column twice, a line of another length, no lines.
    """
    text = _text(Path(file))
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"'{file}' is no table ({error}), expected csv or tsv") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if len(lines) < 2:
        raise DataError(f"'{file}' holds no table, expected a line of column names and others")
    (_, header), *rest = lines
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"'{file}' has the column '{twice[0]}' twice: rename one")
    for number, cells in rest:
        if len(cells) != len(header):
            raise DataError(
                f"'{file}', line {number} has {len(cells)} cells, its header {len(header)}: put "
                f"cells that hold '{separator}' into quotes"
            )
    return header, [dict(zip(header, cells, strict=True)) for _, cells in rest]


def _text(file: Path) -> str:
    try:
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                names = [n for n in archive.namelist() if not n.startswith("__MACOSX")]
                if len(names) != 1:
                    raise DataError(f"'{file}' holds {len(names)} files, expected one csv or tsv")
                return archive.read(names[0]).decode("utf-8-sig")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataError(f"'{file}' cannot be read as a table: {error}") from error
