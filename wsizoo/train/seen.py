"""Which slides of another table a run has seen: its split names them, or their patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.splits.parts import PARTS
from wsizoo.tables import read_table
from wsizoo.train.cohort import Cohort

ALL = "all"
Say = Callable[[str], None]
Parts = dict[str, list[int]]


def parts_of_others(split: Path, cohort: Cohort, say: Say) -> Parts | None:
    """Rows of a table that is not the run's own by the part that the run had them in.

    A slide that the split does not name is in the part of its patient, training before validation
    before test; a slide of an unknown patient is in the test part, and how many are is told.

    Args:
        split: split.csv of the run.

    Returns:
        None where the split knows none of the slides and none of the patients.
    """
    rows = sorted(read_table(split).rows, key=lambda row: PARTS.index(row["part"]), reverse=True)
    of_slide = {row["slide"]: row["part"] for row in rows}
    of_patient = {row["patient"]: row["part"] for row in rows}
    found = [of_slide.get(r.slide) or of_patient.get(r.patient) for r in cohort.records]
    unknown = found.count(None)
    if unknown == len(found):
        return None
    sizes = ", ".join(f"{found.count(part)} {part}" for part in PARTS)
    say(
        f"The table is not that of the run, whose split knows {len(found) - unknown} of "
        f"{len(found)} slides, themselves or by their patients: {sizes}; {unknown} others are "
        "taken as test"
    )
    parts: Parts = {name: [] for name in PARTS}
    for i, part in enumerate(found):
        parts[part or "test"].append(i)
    return parts


def chosen_parts(
    parts: Parts, part: str | None, name: str, say: Say
) -> Mapping[str, Sequence[int]]:
    """Those that are asked for; what is left out is told.

    Raises:
        DataError: nothing is left.
    """
    if part == ALL:
        return parts
    wanted = part or "test"
    others = {key: len(rows) for key, rows in parts.items() if rows and key != wanted}
    sizes = " and ".join(f"{n} of the {key} part" for key, n in others.items())
    if not parts[wanted]:
        raise DataError(
            f"'{name}' kept no slides for its {wanted} part: all are others, {sizes}. To measure "
            "them as what they are: --part all"
        )
    if others:
        say(f"Left out {sizes}. To measure them too, as what they are: --part all")
    return {wanted: parts[wanted]}
