"""Where patches of one slide or several lie: their cells, apart for local layers, and pooled."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo.bag import Bag, segment_ids
from wsizoo.bag_checks import check_any, check_extent, check_on_grid
from wsizoo.ops import Disk, Everywhere, segment_sum
from wsizoo.ops.neighbourhoods import compact


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens of one grid, slide after slide.

    Args:
        cells: (T, 2) int64 (x, y), each slide's own from (0, 0); they may repeat.
        offsets: (B+1,) int64, slide b owns rows offsets[b]:offsets[b+1].
    """

    cells: Tensor
    offsets: Tensor

    @functools.cached_property
    def everywhere(self) -> Everywhere:
        """All tokens of a slide among each other."""
        return Everywhere(self.cells, self.offsets)

    def disk(self, radius: float) -> Disk:
        """Tokens at most `radius` cells apart. No larger than a slide, the radius costs nothing."""
        widths, heights = self._extents().unbind(1)
        radius = min(radius, math.hypot(int(widths.max()), int(heights.max())))
        return Disk(self._apart(math.floor(radius) + 1), radius)

    def pooled(self) -> Pooled:
        """The occupied blocks of 2x2 cells."""
        twos = self._apart(1, multiple=2) // 2
        number, count = compact(twos)
        cells = twos.new_empty(count, 2).index_copy_(0, number, self.cells // 2)
        slide = number.new_empty(count).index_copy_(0, number, self._segments)
        lengths = slide.bincount(minlength=len(self.offsets) - 1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return Pooled(cells, offsets, number, number.bincount(minlength=count))

    @functools.cached_property
    def _segments(self) -> Tensor:
        return segment_ids(self.offsets, len(self.cells))

    def _extents(self) -> Tensor:
        """(B, 2) int64, cells along x and y of each slide's grid."""
        bounds = itertools.pairwise(self.offsets.tolist())
        return torch.stack([self.cells[a:b].amax(0) + 1 for a, b in bounds])

    def _apart(self, gap: int, multiple: int = 1) -> Tensor:
        """The cells (T, 2), slides side by side along x with `gap` empty columns between."""
        widths = self._extents()[:, 0] + gap
        widths = (widths + multiple - 1) // multiple * multiple
        starts = (widths.cumsum(0) - widths)[self._segments]  # (T,)
        return torch.stack([self.cells[:, 0] + starts, self.cells[:, 1]], 1)


@dataclass(frozen=True, eq=False)
class Pooled(Places):
    """Blocks of 2x2 cells, column by column, slide by slide.

    Args:
        number: (N,) int64, the block of each patch. counts: (T,) int64, patches in each.
    """

    number: Tensor
    counts: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """(N, E) of patches -> (T, E), the mean of those in each block."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = wide.new_zeros(len(self.counts), x.shape[1]).index_add(0, self.number, wide)
        return (total / self.counts[:, None]).to(x.dtype)

    def spread(self, shares: Tensor) -> Tensor:
        """(T,) of blocks -> (N,): each patch has its block's, scaled to sum to 1 over a slide.

        Undivided: a block that the border of the tissue leaves one patch would make it four times
        as bright, so that a map would show where the grid begins.
        """
        total = segment_sum(shares * self.counts, self.offsets)  # (B,)
        return (shares / total[self._segments])[self.number]


def place(bags: Sequence[Bag]) -> Places:
    """The patches of slides, each on its own grid. Raises BagError as `cells_of`."""
    return packed([cells_of(bag) for bag in bags])


def packed(cells: Sequence[Tensor]) -> Places:
    """Slides end to end: (n, 2) int64 cells from (0, 0) of each."""
    ends = [0, *itertools.accumulate(map(len, cells))]
    joined = cells[0] if len(cells) == 1 else torch.cat(list(cells))
    return Places(joined, torch.tensor(ends, device=joined.device))


def cells_of(bag: Bag) -> Tensor:
    """(N, 2) int64 (x, y), round((coords - smallest) / spacing); several patches may share a cell.

    Raises:
        BagError: an empty bag; no coords or spacing; patches that lie on no one grid (wherever it
            begins) within a quarter of a cell, or so far apart that they are on no slide.
    """
    check_any(bag, "nothing to attend to")
    if bag.coords is None or bag.spacing is None:
        return bag.grid()  # which says what is missing
    from_corner = bag.coords - bag.coords.amin(0)  # (N, 2) px
    check_extent(bag, bag.spacing)
    cells = torch.round(from_corner.double() / bag.spacing).long()
    check_on_grid(bag, from_corner - cells.double() * bag.spacing)
    return cells
