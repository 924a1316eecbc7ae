"""The frame of a demo slide: its sizes, its grid of cells, its maps, and the nuclei placed in it.

Maps have one value per 8 x 8 level-0 px: (672, 672), [row, column]. Cells are the 24 x 24 squares
of 224 px.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsizoo.demo.noise import Field, Points

CELL = 224
CELLS = 24
SIDE = CELL * CELLS
STEP = 8
MAP = SIDE // STEP
CELL_MAP = CELL // STEP

Cells = NDArray[np.intp]
"""(N, 2), (column, row)."""

Flags = NDArray[np.bool_]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one kind.

    centres: (N, 2) float64, level-0 px, (x, y).
    angles: (N,) float64, rad, of the long axis, from x towards y.
    """

    kind: str
    centres: Points
    angles: NDArray[np.float64]


def look_up(field: Field, points: Points) -> Field:
    """A map's values at level-0 points (x, y); beyond the edge, those of the edge."""
    index = np.clip((points // STEP).astype(int), 0, MAP - 1)
    values: Field = field[index[:, 1], index[:, 0]]
    return values


def window(centre: Points, reach: float) -> tuple[Window, Points, Points]:
    """The map within `reach` px of a point, and how far right (1, W) and down (H, 1) it lies."""
    column, row = (int(value) for value in centre // STEP)
    steps = int(reach / STEP) + 3
    rows = slice(max(0, row - steps), min(MAP, row + steps))
    columns = slice(max(0, column - steps), min(MAP, column + steps))
    x = (np.arange(columns.start, columns.stop)[None, :] + 0.5) * STEP - centre[0]
    y = (np.arange(rows.start, rows.stop)[:, None] + 0.5) * STEP - centre[1]
    return (rows, columns), x, y
