"""From a bag to the cells of its patches: one grid, no two patches in one cell; good features."""

from __future__ import annotations

from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.bag_checks import check_any, check_extent, check_on_grid


def cells_of(bag: Bag) -> Tensor:
    """(N, 2) int64 cells, the slide's own from (0, 0).

    Raises:
        BagError: an empty bag; no coords or spacing; patches that share a cell, or lie on no one
            grid (wherever that begins) within a quarter of a cell; patches so far apart that they
            are on no slide.
    """
    check_any(bag, "nothing to build a grid of")
    cells = bag.grid()
    assert bag.coords is not None and bag.spacing is not None  # grid() asks for them
    check_extent(bag, bag.spacing)
    check_on_grid(bag, bag.coords - cells * bag.spacing)
    cells = bag.require_unique_cells()
    return cells - cells.amin(0)
