"""Files of splits: ours, and those of CLAM, Patho-Bench, ACMIL and Patch-GCN.

Ours is a csv with the columns slide, patient and part, or, of several splits, fold_0, fold_1, ...
in place of part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.files import write_csv
from wsizoo.splits.parts import WORDS, Split
from wsizoo.tables import PATIENT_COLUMNS, first_of, read_table

SLIDE_COLUMNS = ("slide", "slide_id")
UUID = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)
FOLD = re.compile(r"fold_?(\d+)")
SHOWN = 3  # names that a message shows
Assigned = list[tuple[str, str]]  # (slide or patient, part), in the order of the file


def split_digest(rows: Iterable[tuple[str, str]]) -> str:
    """sha256 of the sorted lines `slide,part`: of what is where, however a file says it.

    Args:
        rows: (slide, part), as `split_rows` has them.
    """
    lines = sorted(f"{slide},{part}\n" for slide, part in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_rows(split: Split, slides: Sequence[str]) -> Assigned:
    """(slide, part) of each slide that is in a part, by name.

    Args:
        slides: (n,) names, which the split's indices are of.
    """
    return sorted((slides[i], part) for part, rows in split.parts().items() for i in rows)


def write_split(
    file: Path | str,
    splits: Split | Sequence[Split],
    slides: Sequence[str],
    patients: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
) -> list[str]:
    """Write slide, patient, part (or fold_0, fold_1, ...) and site, a line a slide, by name.

    Args:
        slides, patients, sites: (n,) of the table; slides that are in no part are left out.

    Returns:
        The `split_digest` of each split.
    """
    several = [splits] if isinstance(splits, Split) else list(splits)
    names = ["part"] if len(several) == 1 else [f"fold_{i}" for i in range(len(several))]
    rows: dict[int, dict[str, str]] = {}
    for name, split in zip(names, several, strict=True):
        for part, indices in split.parts().items():
            for i in indices:
                rows.setdefault(i, {})[name] = part
    for i, row in rows.items():
        row |= {"slide": slides[i], "patient": (patients or slides)[i]}
        if sites is not None:
            row["site"] = sites[i]
    columns = ["slide", "patient", *names, *(["site"] if sites is not None else [])]
    write_csv(file, sorted(rows.values(), key=lambda row: row["slide"]), columns)
    return [split_digest(split_rows(split, slides)) for split in several]


def check_same_split(
    file: Path | str, splits: Sequence[Split], slides: Sequence[str], instead: str
) -> None:
    """See that a file is not there, or holds these splits already: results name them by digest.

    Args:
        slides: (n,) names. instead: how to replace it.

    Raises:
        DataError: it holds something else.
    """
    file = Path(file)
    if not file.exists():
        return
    try:
        there = [split_digest(fold) for fold in read_assigned(file)]
    except DataError:
        there = []
    made = [split_digest(split_rows(split, slides)) for split in splits]
    if there != made:
        what = f"another split (sha256 {there[0][:12]})" if there else "something else"
        raise DataError(
            f"'{file}' holds {what}, this one is sha256 {made[0][:12]}. Choose another file, or "
            f"replace it: {instead}"
        )


def read_split(
    file: Path | str, slides: Sequence[str], patients: Sequence[str] | None = None
) -> list[Split]:
    """The splits that a file holds, one a fold, as indices of the slides of a table.

    It may name slides or patients, with the suffix of a file or without. Slides of the table that
    it does not name are in no part. Patients in two parts are let through: `wsizoo split audit`
    finds them.

    Args:
        slides, patients: (n,) of the table.

    Raises:
        DataError: an unknown layout, a slide in two parts, or names that the table does not have.
    """
    folds = read_assigned(file)
    found = locate(file, [name for fold in folds for name, _ in fold], slides, patients)
    return [_split(file, fold, found, slides) for fold in folds]


def _split(
    file: Path | str, assigned: Assigned, found: Mapping[str, Sequence[int]], slides: Sequence[str]
) -> Split:
    part_of: dict[int, str] = {}
    for name, part in assigned:
        for i in found[name]:
            if part_of.setdefault(i, part) != part:
                raise DataError(
                    f"'{file}' has slide '{slides[i]}' in {part_of[i]} and in {part}, expected one "
                    "part: mend it"
                )
    split = Split([], [], [])
    for i in sorted(part_of, key=lambda i: slides[i]):
        split.parts()[part_of[i]].append(i)
    return split


def read_assigned(file: Path | str) -> list[Assigned]:
    """What a file of any of these tools says, fold by fold, even where it contradicts itself.

    Raises:
        DataError: no such file, or a layout that is none of theirs.
    """
    file = Path(file)
    if file.suffix.lower() == ".json":
        return [_from_json(file)]
    table = read_table(file)
    header, rows = table.columns, table.rows
    lower = {name.lower(): name for name in header}
    who = first_of((*SLIDE_COLUMNS, *PATIENT_COLUMNS), header)
    folds = sorted((int(m[1]), name) for name in header if (m := FOLD.fullmatch(name.lower())))
    parts = [name for name in header if name.lower() in WORDS]
    if who is not None and "part" in lower:
        return [_by_word(file, rows, who, lower["part"])]
    if who is not None and folds:
        return [_by_word(file, rows, who, name) for _, name in folds]
    if parts and all(row[name].lower() in ("true", "false") for row in rows for name in parts):
        return [_by_flag(rows, header[0], parts)]
    if parts:
        cells = [(row[name], WORDS[name.lower()]) for name in parts for row in rows]
        return [[(name, part) for name, part in cells if name and name.lower() != "nan"]]
    raise DataError(
        f"'{file}' is no split that is known, it has the columns {', '.join(header[:8])}. Expected "
        "slide,part, or train,val,test with a name in each cell, or slide_id,fold_0,fold_1,... A "
        "column of the table of slides itself is read as kind=column"
    )


def _by_word(file: Path, rows: Sequence[Mapping[str, str]], who: str, column: str) -> Assigned:
    told = [(row[who], row[column].lower()) for row in rows if row[column]]
    wrong = next((word for _, word in told if word not in WORDS), None)
    if wrong is not None:
        raise DataError(
            f"'{file}', column {column}: '{wrong}' names no part, expected train, val or test"
        )
    return [(name, WORDS[word]) for name, word in told]


def _by_flag(rows: Sequence[Mapping[str, str]], who: str, parts: Sequence[str]) -> Assigned:
    return [
        (row[who], WORDS[name.lower()])
        for row in rows
        for name in parts
        if row[name].lower() == "true"
    ]


def _from_json(file: Path) -> Assigned:
    try:
        told: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' cannot be read as JSON: {error}") from error
    known = isinstance(told, dict) and all(
        key.lower() in WORDS and isinstance(names, list) for key, names in told.items()
    )
    if not known or not told:
        raise DataError(
            f"'{file}' is no split that is known, expected lists of names under train, val and test"
        )
    return [(str(name), WORDS[key.lower()]) for key, names in told.items() for name in names]


def locate(
    file: Path | str,
    names: Iterable[str],
    slides: Sequence[str],
    patients: Sequence[str] | None = None,
) -> dict[str, list[int]]:
    """The rows of a table that each name of a file means, all names read in one way.

    That is the first of: slides, patients, both without the suffix of a file, slides without the
    UUID that follows TCGA's barcodes.

    Raises:
        DataError: no way finds all, which counts and names those that the best one does not find.
    """
    found, missing = rows_of_names(names, slides, patients)
    if missing:
        raise DataError(
            f"'{file}' names {len(missing)} of {len(found) + len(missing)} slides or patients that "
            f"the table does not have, such as {_some(missing)}; the table has {_some(slides)}. Is "
            "it the split of another table? Otherwise leave them out, or complete the table"
        )
    return found


def rows_of_names(
    names: Iterable[str], slides: Sequence[str], patients: Sequence[str] | None = None
) -> tuple[dict[str, list[int]], list[str]]:
    """As `locate`, in the way that finds most names, and the names that it does not find."""
    wanted = list(dict.fromkeys(names))
    own = patients or ()
    ways: list[tuple[Sequence[str], Callable[[str], str]]]
    ways = [(slides, str), (own, str), (slides, _bare), (own, _bare), (slides, _barcode)]
    best: tuple[dict[str, list[int]], list[str]] = {}, wanted
    for there, plain in ways:
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(there):
            rows.setdefault(plain(name), []).append(i)
        missing = [name for name in wanted if plain(name) not in rows]
        if len(missing) < len(best[1]):
            best = {n: rows[plain(n)] for n in wanted if plain(n) in rows}, missing
        if not missing:
            break
    return best


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:SHOWN])


def _bare(name: str) -> str:
    """Without folder and without the suffix of a slide or of a feature file."""
    from wsizoo.slides.manifest import SLIDE_SUFFIXES
    from wsizoo.sources import FEATURE_SUFFIXES

    path = Path(name)
    return path.stem if path.suffix.lower() in SLIDE_SUFFIXES | FEATURE_SUFFIXES else path.name


def _barcode(name: str) -> str:
    """Without the random name that follows TCGA's barcode of a slide."""
    return UUID.sub("", _bare(name))
