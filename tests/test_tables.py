"""wsizoo.tables: csv and tsv as people keep them."""

import csv
import io
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError, NotFoundError
from wsizoo.tables import is_nothing, read_table

BODY = 'slide,label\n"a, b",1\nc,2\n'
ROWS = ({"slide": "a, b", "label": "1"}, {"slide": "c", "label": "2"})


def test_separators_quotes_byte_order_marks_and_blank_lines_are_understood(tmp_path: Path) -> None:
    texts = {
        "a.csv": BODY,
        "b.csv": "\ufeff" + BODY.replace("\n", "\r\n"),
        "c.csv": '"slide";"label"\n"a, b";1\n\nc; 2 \n',
        "d.tsv": "slide\tlabel\na, b\t1\nc\t2",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        table = read_table(tmp_path / name)
        assert (table.columns, table.rows) == (("slide", "label"), ROWS), name
    assert read_table(tmp_path / "c.csv").lines == (2, 4)


def test_a_zip_of_one_table_is_that_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("../odd/place.csv.zip", BODY)
    assert read_table(tmp_path / "t.csv.zip").rows == ROWS
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "a") as archive:
        archive.writestr("second.csv", BODY)
    with pytest.raises(DataError, match="it is a zip of 2 files, expected one"):
        read_table(tmp_path / "t.csv.zip")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "has no rows, expected a header"),
        (b"slide,label\n\n", "has no rows, expected a header"),
        (b"slide,label\na\n", "line 2: 1 cells, the header has 2"),
        (b"slide,label,label\na,1,2\n", "has the column 'label' twice"),
        (b"slide\0\n", "holds binary data"),
        (b"\xff\xfe\xfa", "cannot be read as csv or tsv"),
        (b'slide\n"a\n', "cannot be read as csv or tsv"),
    ],
)
def test_what_is_no_table_is_refused(text: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / "t.csv")


def test_a_table_that_is_not_there_and_a_near_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No table at"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("slide_id,,\na,b,c\n")
    table = read_table(tmp_path / "t.csv")
    with pytest.raises(
        DataError, match=r"no column 'slide'. Did you mean 'slide_id'.* data.slide="
    ):
        table.require("slide", "data.slide")
    with pytest.raises(DataError, match=r"no column 'zzz'. Columns: slide_id. Say data.label=COL"):
        table.require("zzz", "data.label")


def test_cells_that_say_nothing() -> None:
    assert all(map(is_nothing, ["", "NaN", "NA", "n/a", "None"]))
    assert not any(map(is_nothing, ["0", "-", "no", "normal"]))


cells = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=4), st.sampled_from(",\t"))
def test_what_the_csv_module_writes_is_read(rows: list[tuple[str, str]], separator: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows([("slide", "label"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.csv"
        file.write_bytes(text.getvalue().encode())
        assert [tuple(row.values()) for row in read_table(file).rows] == rows
