"""SlideBench-VQA: questions as a csv with a column an option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.files import write_csv
from wsizoo.tables import read_table
from wsizoo_plugin_sparselearn.vlm.questions import LETTERS, Question

LAYOUT = "SlideBench-VQA: a .csv with ID, Slide, Question, A, B, C, D, Answer"
NEEDED = ("ID", "Slide", "Question", "A", "B", "Answer")
OUTPUT = "Output"
"""A column that the official tester adds: what a model said."""
CATEGORIES = {
    "slidebench-vqa-tcga": ("Tumor", "Broad Category", "Narrow Category"),
    "slidebench-vqa-bcnb": ("Task",),
}


def read(path: Path) -> tuple[str, list[Question]]:
    """The format's name and the questions; every further column is a category.

    An empty cell is an option less. `None` and `NA` are texts of options like others.

    Raises:
        NotFoundError: no such file. DataError: no csv, or a column is missing.
    """
    table = read_table(path)
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise DataError(
            f"'{path}' has no column {', '.join(missing)}; expected {LAYOUT.partition(': ')[2]}"
        )
    letters = [name for name in table.columns if len(name) == 1 and name in LETTERS]
    other = {*NEEDED, *letters, OUTPUT, ""}
    groups = [name for name in table.columns if name not in other]
    found = [
        Question(
            row["ID"],
            row["Slide"],
            row["Question"],
            {letter: row[letter] for letter in letters if row[letter]},
            row["Answer"],
            {name: row[name] for name in groups},
        )
        for row in table.rows
    ]
    name = "slidebench-vqa-bcnb" if "Task" in groups else "slidebench-vqa-tcga"
    return name, found


def write(path: Path, questions: Sequence[Question], format: str) -> None:
    """Write a table in the layout of the official tester."""
    groups = CATEGORIES[format]
    columns = ["ID", "Slide", *groups, "Question", *LETTERS[:4], "Answer"]
    rows = [
        {
            "ID": each.id,
            "Slide": each.slide,
            **{name: each.categories.get(name, "") for name in groups},
            "Question": each.text,
            **each.options,
            "Answer": each.answer,
        }
        for each in questions
    ]
    write_csv(path, rows, columns)
