"""From a bag to the cells of its patches: one grid, and no two patches in one cell."""

from __future__ import annotations

from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import BagError

SLACK = 0.25  # of a cell that patches may lie apart from one grid
ROUNDING = 1.0  # level-0 px, of coordinates that were rounded to whole pixels
SHOWN = 3  # offenders that a message names


def cells_of(bag: Bag) -> Tensor:
    """(N, 2) int64 cells, the slide's own from (0, 0).

    Raises:
        BagError: an empty bag; no coords or spacing; patches that share a cell, or lie on no one
            grid (wherever that begins) within a quarter of a cell.
    """
    if len(bag) == 0:
        raise BagError(f"{bag.slide_id} has no patches: nothing to build a grid of")
    cells = bag.grid()
    _check_on_grid(bag, cells)
    cells = bag.require_unique_cells()
    return cells - cells.min(0).values


def _check_on_grid(bag: Bag, cells: Tensor) -> None:
    assert bag.coords is not None and bag.spacing is not None
    off = bag.coords - cells * bag.spacing  # (N, 2) px
    allowed = SLACK * bag.spacing + ROUNDING
    spread = off.max(0).values - off.min(0).values
    if float(spread.max()) <= allowed:
        return
    apart = (off - off.median(0).values).abs().amax(1)
    worst = (apart > allowed / 2).nonzero()[:, 0]
    first = ", ".join(
        f"patch {i} at {tuple(bag.coords[i].tolist())}" for i in worst[:SHOWN].tolist()
    )
    raise BagError(
        f"{bag.slide_id}: {len(worst)} of {len(bag)} patches lie off the grid of spacing "
        f"{bag.spacing} by more than {SLACK:g} of a cell, first {first}; wsizoo convert FILE FOLDER "
        "puts them onto one"
    )
