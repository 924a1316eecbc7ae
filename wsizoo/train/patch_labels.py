"""Labels of a slide's patches, from a file beside its features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.tables import is_nothing, read_table

SUFFIXES = (".npy", ".csv")
COLUMN = "label"
UNKNOWN = -1


def read_patch_labels(file: Path, bag: Bag, classes: Sequence[str] = ()) -> Tensor:
    """The target `instances` (N,) of a bag: class indices int64, or shares in [0, 1] float32.

    Args:
        file: .npy of (N,), a label a row of the bag; .npy of (rows, columns), a label a cell of the
            bag's grid; .csv with a column `label` of N rows; or .csv with x, y and label, where x
            and y are the top-left corner of a patch in level-0 px and patches that are not listed
            are unknown (-1).
        classes: names that may stand in a csv in place of their indices.

    Raises:
        DataError: no such file, another number of labels, one that is no label.
    """
    if file.suffix == ".npy":
        values = _of_array(file, bag)
    else:
        values = _of_table(file, bag, {name: i for i, name in enumerate(classes)})
    if np.isnan(values).any() or (values < UNKNOWN).any():
        raise DataError(
            f"'{file}' holds labels that are NaN or below -1, expected classes from 0 on, shares "
            "in [0, 1], or -1 where a patch's label is not known"
        )
    whole = (values == np.round(values)).all()
    return torch.from_numpy(values.astype(np.int64 if whole else np.float32))


def _of_array(file: Path, bag: Bag) -> NDArray[np.float64]:
    try:
        array = np.load(file, allow_pickle=False)
        values = array.astype(np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' cannot be read as labels of patches: {error}") from error
    if values.shape == (len(bag),):
        return np.asarray(values)
    if values.ndim != 2:
        raise DataError(
            f"'{file}' holds labels {values.shape} for slide '{bag.slide_id}' of {len(bag)} "
            f"patches, expected ({len(bag)},), or (rows, columns) of its grid"
        )
    column, row = bag.grid().numpy().T
    if (
        column.min() < 0
        or row.min() < 0
        or row.max() >= len(values)
        or column.max() >= values.shape[1]
    ):
        raise DataError(
            f"'{file}' has {values.shape} cells, slide '{bag.slide_id}' has patches up to row "
            f"{row.max()}, column {column.max()}"
        )
    return np.asarray(values[row, column])


def _of_table(file: Path, bag: Bag, classes: dict[str, int]) -> NDArray[np.float64]:
    table = read_table(file)
    table.require(COLUMN, COLUMN)
    values = np.array([_label(file, row[COLUMN], classes) for row in table.rows])
    if not {"x", "y"} <= set(table.columns):
        if len(values) != len(bag):
            raise DataError(
                f"'{file}' holds {len(values)} labels, slide '{bag.slide_id}' has {len(bag)} "
                "patches; with the columns x and y (level-0 px) it may list some of them"
            )
        return values
    if bag.coords is None:
        raise DataError(f"'{file}' has x and y, the features of '{bag.slide_id}' no coordinates")
    try:
        places = [(round(float(row["x"])), round(float(row["y"]))) for row in table.rows]
    except (ValueError, OverflowError) as error:
        raise DataError(f"'{file}': {error}, expected x and y in level-0 px") from error
    known = dict(zip(places, values, strict=True))
    patches = [(x, y) for x, y in bag.coords.tolist()]
    if not any(place in known for place in patches):
        raise DataError(
            f"'{file}': none of its {len(places)} places is a patch of slide '{bag.slide_id}'; the "
            f"first is {places[0]}, the slide's first patch is at {patches[0]} (level-0 px)"
        )
    return np.array([known.get(place, float(UNKNOWN)) for place in patches])


def _label(file: Path, cell: str, classes: dict[str, int]) -> float:
    if is_nothing(cell):
        return float(UNKNOWN)
    if cell in classes:
        return float(classes[cell])
    try:
        return float(cell)
    except ValueError as error:
        expected = f"a number{' or one of ' if classes else ''}{', '.join(classes)}"
        raise DataError(f"'{file}' holds the label '{cell}', expected {expected}") from error
