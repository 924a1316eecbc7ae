"""What another model said, from the files that published testers write."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from wsizoo.errors import DataError, NotFoundError
from wsizoo_plugin_sparselearn.vlm.asking import SLIDE, Record
from wsizoo_plugin_sparselearn.vlm.question_tables import OUTPUT
from wsizoo_plugin_sparselearn.vlm.questions import Question


def read_outputs(path: Path, questions: Sequence[Question]) -> list[Record]:
    """One record a question, of a csv with `ID` and `Output`, or JSON lines of
    `question_id` and `text`.

    Raises:
        NotFoundError: no such file.
        DataError: columns are missing, or a question has no output, or two.
    """
    pairs = _pairs(path)
    found: dict[str, str] = {}
    for id, text in pairs:
        if id in found:
            raise DataError(f"'{path}' has two outputs of question '{id}'")
        found[id] = text
    absent = [each.id for each in questions if each.id not in found]
    if absent:
        raise DataError(
            f"'{path}' has no output of {len(absent)} of {len(questions)} questions, first "
            f"'{absent[0]}'"
        )
    return [Record(row, SLIDE, found[each.id]) for row, each in enumerate(questions)]


def _pairs(path: Path) -> list[tuple[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                return [(row["ID"], row[OUTPUT]) for row in csv.DictReader(file)]
            rows = [json.loads(line) for line in file if line.strip()]
            return [(str(row["question_id"]), str(row["text"])) for row in rows]
    except FileNotFoundError as error:
        raise NotFoundError(f"No file at '{path}'") from error
    except KeyError as error:
        raise DataError(
            f"'{path}' has no {error}; expected a csv with ID and {OUTPUT}, or JSON lines with "
            "question_id and text"
        ) from error
    except (ValueError, TypeError) as error:
        raise DataError(f"'{path}' is no JSON lines: {error}") from error
