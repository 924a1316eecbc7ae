"""Choose the cells of the lymphoid foci: in two groups, or apart from each other.

`full` is (rows, columns) bool, the cells that may be chosen; results are (count, 2), (column, row).
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from wsizoo.demo.frame import Cells, Flags
from wsizoo.demo.noise import Generator


def choose_scattered(rng: Generator, full: Flags, count: int) -> Cells | None:
    """Random cells of which no two touch, not even at a corner; None if this tissue has no room."""
    chosen: list[tuple[int, int]] = []
    for row, column in rng.permutation(np.argwhere(full)):
        if all(max(abs(row - r), abs(column - c)) > 1 for c, r in chosen):
            chosen.append((column, row))
        if len(chosen) == count:
            return np.array(chosen)
    return None


def choose_clustered(rng: Generator, full: Flags, count: int) -> Cells | None:
    """Two separate groups of half the cells each, connected by edges; None if there is no room."""
    free = full.copy()
    chosen: list[tuple[int, int]] = []
    for _ in range(2):
        group = _grow_group(rng, free, count // 2)
        if group is None:
            return None
        chosen += group
        taken = np.zeros_like(free)
        taken[[row for _, row in group], [column for column, _ in group]] = True
        free &= ~ndimage.binary_dilation(taken, np.ones((3, 3)))
    return np.array(chosen)


def _grow_group(rng: Generator, free: Flags, size: int) -> list[tuple[int, int]] | None:
    starts = np.argwhere(free)
    if not len(starts):
        return None
    row, column = (int(value) for value in starts[rng.integers(len(starts))])
    group = [(column, row)]
    while len(group) < size:
        around = {cell for member in group for cell in _neighbours(member, free.shape)}
        rim = [(c, r) for c, r in sorted(around - set(group)) if free[r, c]]
        if not rim:
            return None
        group.append(rim[rng.integers(len(rim))])
    return group


def _neighbours(cell: tuple[int, int], shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    rows, columns = shape
    for step_x, step_y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        column, row = cell[0] + step_x, cell[1] + step_y
        if 0 <= column < columns and 0 <= row < rows:
            yield column, row
