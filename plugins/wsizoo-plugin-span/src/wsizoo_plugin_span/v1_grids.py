"""The grids of SPAN v1: the cells of a slide, and these halved again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo.bag import Bag, segment_ids
from wsizoo.ops import Rulebook, Windows, rulebook
from wsizoo.ops.neighbourhoods import compact

SIDE = 2  # of the cells that become one, and the stride


@dataclass(frozen=True, eq=False)
class Grid:
    """The occupied cells of one stage, and what its layers share.

    Args:
        windows: the cells (T, 2) and which attend to which. Several slides lie side by side.
        offsets: (B+1,) int64, slide b owns cells offsets[b]:offsets[b+1].
        rulebook: of the convolution that leads here from the finer grid; None: the finest.
        parents: (T of the finer grid,) int64, the cell that each cell there becomes a part of.
    """

    windows: Windows
    offsets: Tensor
    rulebook: Rulebook | None = None
    parents: Tensor | None = None

    @property
    def segments(self) -> Tensor:
        """(T,) int64, the slide of each cell."""
        return segment_ids(self.offsets, len(self.windows))


def pyramid(
    bags: Sequence[Bag], offsets: Tensor, stages: int, half: int, pattern: str
) -> list[Grid]:
    """The grids of all stages, the patches' own first.

    Args:
        bags: the slides. offsets: (B+1,) int64 of their patches.
        half, pattern: as `Windows` takes them.

    Raises:
        BagError: patches of a slide that share a cell.
    """
    grids = [Grid(Windows(side_by_side(bags, stages, half), half, pattern), offsets)]
    while len(grids) < stages:
        grids.append(halved(grids[-1]))
    return grids


def side_by_side(bags: Sequence[Bag], stages: int, half: int) -> Tensor:
    """Cells (N_total, 2) of all slides, each from its own first row and column of patches.

    The slides follow each other along axis 0 at multiples of what keeps windows and halvings as
    they are on the slide alone, and so far apart that no window of any stage meets two slides.
    """
    coarsest = SIDE ** (stages - 1)
    unit = 2 * half * coarsest
    placed, start = [], 0
    for bag in bags:
        cells = bag.require_unique_cells()
        cells = cells - cells.min(0).values
        placed.append(cells + cells.new_tensor([start, 0]))
        end = start + int(cells[:, 0].max()) + 1 + coarsest * (half + 1)
        start = -(-end // unit) * unit
    return torch.cat(placed)


def halved(grid: Grid) -> Grid:
    """The grid whose cells are 2 x 2 cells of this one, in raster order; none is left out."""
    windows = grid.windows
    high, wide = (windows.cells.max(0).values // SIDE * SIDE + SIDE).tolist()  # even
    book = rulebook(windows.cells, (high, wide), kernel=SIDE, stride=SIDE)
    parents, count = compact(windows.cells // SIDE)
    owner = parents.new_zeros(count).index_copy_(0, parents, grid.segments)
    sizes = torch.bincount(owner, minlength=len(grid.offsets) - 1)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    coarse = Windows(book.cells, windows.half, windows.pattern)
    return Grid(coarse, offsets, book, parents)


def ancestors(grids: Sequence[Grid]) -> Tensor:
    """(N,) int64, the cell of the last grid that lies over each patch."""
    over = torch.arange(len(grids[0].windows), device=grids[0].offsets.device)
    for grid in grids[1:]:
        assert grid.parents is not None
        over = grid.parents[over]
    return over
