"""wsizoo.prediction_files: predictions are read as they were before they were written."""

from pathlib import Path
from typing import Any

import pytest

from tests.run_folders import ROWS, write_run
from wsizoo.errors import DataError
from wsizoo.prediction_files import COLUMNS, PATIENTS, PREDICTIONS, read_rows, write_rows

WHO = {"slide": "07", "patient": "1e3", "part": "test"}
OF_TASK: dict[str, dict[str, Any]] = {
    "classification": {"label": "0", "predicted": "1", "p_0": 0.0, "p_1": 1e-07},
    "survival": {"time": 3.0, "event": 0, "risk": -1.5, "s_0": 0.25},
    "regression": {"value": 2.0, "predicted": float("inf")},
    "segmentation": {"dice": None, "iou": None, "tp": 0, "fp": 0, "fn": 0},
}


@pytest.mark.parametrize("task", COLUMNS)
def test_what_was_written_is_read_and_written_again_byte_by_byte(task: str, tmp_path: Path) -> None:
    rows = [{**WHO, **OF_TASK[task]}, {**WHO, **OF_TASK[task], "part": "val"}]
    write_rows(tmp_path / "a.csv", rows)
    found = read_rows(tmp_path / "a.csv", task)
    assert found == rows
    assert [[type(value) for value in row.values()] for row in found] == [
        [type(value) for value in row.values()] for row in rows
    ]
    write_rows(tmp_path / "b.csv", found)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_names_may_hold_whatever_names_hold(tmp_path: Path) -> None:
    odd = {**WHO, "slide": 'a,"b\nc\u2028d', "label": "", "predicted": "ä", "p_ä": 1.0}
    write_rows(tmp_path / PREDICTIONS, [odd])
    assert read_rows(tmp_path / PREDICTIONS, "classification") == [odd]


def test_of_no_slides_there_are_no_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / PREDICTIONS, [])
    assert read_rows(tmp_path / PREDICTIONS, "survival") == []


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_patients_name_no_slide(task: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", task, n=3)
    found = read_rows(run / PATIENTS, task)
    assert len(found) == 6 and "slide" not in found[0] and found[0]["slides"] == 2
    (run / PATIENTS).rename(run / PREDICTIONS)
    with pytest.raises(DataError, match=r"predictions.csv' has no column slide; it has patient, p"):
        read_rows(run / PREDICTIONS, task)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n", r"predictions.csv' is empty"),
        ("slide,patient,part,time\na,b,test,1\n", "has no column event, risk; it has slide, pat"),
        ("{}a,b,test,1,0,high\n", r"csv', line 2: risk is 'high', expected a number"),
        ("{}a,b,test,1,0,1\nc,d,test,1,,1\n", "line 3: event is '', expected a number"),
        ("{}a,b,test,1,0\n", "line 2: expected a cell a column"),
        ("{}a,b,test,1,0,1,1\n", "line 2: expected a cell a column"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / PREDICTIONS
    file.write_text(text.format("slide,patient,part,time,event,risk\n"))
    with pytest.raises(DataError, match=told):
        read_rows(file, "survival")


@pytest.mark.parametrize("content", [None, b"\xff\xfe,\n"])
def test_a_file_that_is_not_there_or_no_text_is_named(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / PREDICTIONS).write_bytes(content)
    with pytest.raises(DataError, match=r"no predictions.csv that can be read in '.*'$"):
        read_rows(tmp_path / PREDICTIONS, "survival")
