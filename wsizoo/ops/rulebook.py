"""Which input cells lie under the kernel at which output cells: built once a grid, for every layer.

Position p = i k + j of a k x k kernel reads input cell = output cell * stride + (i, j) * dilation.
There is no padding. A rulebook serves a convolution, and its transpose from the output cells back
to the very same input cells, which is what the decoder of a pyramid needs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.bag import segment_ids
from wsizoo.errors import DataError
from wsizoo.ops.neighbourhoods import compact, square

Pairs = tuple[tuple[Tensor, Tensor], ...]
SHOWN = 3  # offenders that a message names


@dataclass(frozen=True, eq=False)
class Grids:
    """Where the grids of B slides lie whose cells are packed together.

    Args:
        shape: (B, 2) int64 sizes. origins: (B, 2) int64, where each grid's cell (0, 0) lies: one
            slide after another along the first axis, no two in touch of one kernel.
        offsets: (B + 1,) int64, slide b owns rows offsets[b]:offsets[b + 1] of the cells.
    """

    shape: Tensor
    origins: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Rulebook:
    """What `rulebook` or `transpose_rulebook` found.

    Args:
        kernel, stride, dilation: the same along both axes.
        cells: (T, 2) int64 input cells. out_cells: (T_out, 2) int64 output cells.
        pairs: for each kernel position the rows of `cells` and the rows of `out_cells` that it
            joins, each (n,) int64; no row occurs twice at one position.
        out_shape: (h, w) of the output grid, or the `Grids` of the output cells, to build the next
            rulebook with; None from `transpose_rulebook`.
    """

    kernel: int
    stride: int
    dilation: int
    cells: Tensor
    out_cells: Tensor
    pairs: Pairs
    out_shape: tuple[int, int] | Grids | None = None

    @functools.cached_property
    def occupied(self) -> Tensor:
        """(T_out, k^2) bool, kernel positions that hold a cell."""
        shape = len(self.out_cells), len(self.pairs)
        occupied = torch.zeros(shape, dtype=torch.bool, device=self.cells.device)
        for p, (_, outputs) in enumerate(self.pairs):
            occupied[outputs, p] = True
        return occupied

    @functools.cached_property
    def counts(self) -> Tensor:
        """(T_out,) int64 cells under the kernel."""
        return self.occupied.sum(1)

    @functools.cached_property
    def parents(self) -> Tensor:
        """(T,) int64, the row of `out_cells` whose kernel holds this cell; -1: none.

        Raises:
            DataError: kernels overlap or leave gaps, so that this is not one row a cell.
        """
        self.check_one_parent()
        parents = self.cells.new_full((len(self.cells),), -1)
        for inputs, outputs in self.pairs:
            parents[inputs] = outputs
        return parents

    @functools.cached_property
    def position(self) -> Tensor:
        """(T,) int64, the position of this cell in its parent's kernel; -1: none.

        Raises:
            DataError: as `parents`.
        """
        self.check_one_parent()
        position = self.cells.new_full((len(self.cells),), -1)
        for p, (inputs, _) in enumerate(self.pairs):
            position[inputs] = p
        return position

    def check_one_parent(self) -> None:
        """Raise DataError unless kernels tile the grid."""
        if self.kernel != self.stride or self.dilation != 1:
            raise DataError(
                f"a rulebook of {_named(self.kernel, self.stride, self.dilation)} does not give "
                "each cell one parent: that needs kernel = stride and dilation 1"
            )


def rulebook(
    cells: Tensor,
    shape: Sequence[int] | Grids,
    kernel: int = 2,
    stride: int = 2,
    dilation: int = 1,
) -> Rulebook:
    """The output cells that see at least one input cell, in raster order, and what they see.

    Along an axis of n cells there are (n - dilation (kernel - 1) - 1) // stride + 1 output cells,
    as in a dense convolution without padding: cells behind the last kernel are dropped.

    Args:
        cells: (T, 2) int64, all distinct, in any order.
        shape: (h, w) of the grid, 0 <= cell < shape; or those of slides packed together, whose
            origins are multiples of the stride.

    Raises:
        DataError: cells that are not (T, 2) int64, outside of the grid, or twice; a kernel, stride
            or dilation below 1; packed slides whose output cells would mix.

    Cost: linear in T, without a sort unless cells are very far apart.
    Source: SPAN (2026), Section 3.
    """
    _check_sizes(kernel, stride, dilation)
    _check_cells(cells, "cells")
    if isinstance(shape, Grids):
        grids, slide = shape, _slide_ids(shape, cells)  # (T,)
    else:
        grids = Grids(cells.new_tensor(shape)[None], cells.new_zeros(1, 2), cells.new_empty(0))
        slide = cells.new_zeros(())
    _check_inside(cells, grids, slide)
    out_shape = ((grids.shape - dilation * (kernel - 1) - 1) // stride + 1).clamp(min=0)
    low = (grids.origins // stride)[slide]  # (T, 2), or (2,) for one slide
    high = low + out_shape[slide]
    under = _under_tiles if kernel == stride and dilation == 1 else _under_kernels
    rows, found, sizes = under(cells, low, high, kernel, stride, dilation)
    number, count = compact(found)
    out_cells = cells.new_empty(count, 2).index_copy_(0, number, found)
    pairs = tuple(zip(torch.split(rows, sizes), torch.split(number, sizes), strict=True))
    out: tuple[int, int] | Grids
    if isinstance(shape, Grids):
        out = _out_grids(grids, out_shape, stride, slide[rows], number, count)
    else:
        out = int(out_shape[0, 0]), int(out_shape[0, 1])
    return Rulebook(kernel, stride, dilation, cells, out_cells, pairs, out)


def transpose_rulebook(
    coarse: Tensor, targets: Tensor, kernel: int = 2, stride: int = 2, dilation: int = 1
) -> Rulebook:
    """The rulebook whose transposed convolution goes from any coarse cells to any target cells.

    Not needed to undo a convolution: its own rulebook does that.

    Args:
        coarse: (T_out, 2) int64, all distinct; they become `out_cells`, in this order.
        targets: (T, 2) int64, all distinct; they become `cells`, in this order.

    Raises:
        DataError: as `rulebook`; cells may lie anywhere.
    """
    _check_sizes(kernel, stride, dilation)
    _check_cells(coarse, "coarse cells")
    _check_cells(targets, "target cells")
    every = torch.iinfo(torch.int64)
    low, high = targets.new_tensor(every.min), targets.new_tensor(every.max)
    rows, found, sizes = _under_kernels(targets, low, high, kernel, stride, dilation)
    number, count = compact(torch.cat([coarse, found]))
    row_of = coarse.new_full((count,), -1)
    row_of[number[: len(coarse)]] = torch.arange(len(coarse), device=coarse.device)
    outputs = row_of[number[len(coarse) :]]
    pairs = tuple(
        (inputs[own >= 0], own[own >= 0])
        for inputs, own in zip(torch.split(rows, sizes), torch.split(outputs, sizes), strict=True)
    )
    return Rulebook(kernel, stride, dilation, targets, coarse, pairs)


def children(cells: Tensor, stride: int = 2) -> Tensor:
    """(T, 2) -> (T stride^2, 2): the cells into which each cell expands, cell by cell."""
    return (cells[:, None] * stride + square(stride, cells.device)).flatten(0, 1)


def _under_kernels(
    cells: Tensor, low: Tensor, high: Tensor, kernel: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor, list[int]]:
    """All pairs of an input cell and an output cell in low <= out < high, by kernel position.

    Returns:
        (n,) rows of `cells`, (n, 2) the output cells, and how many pairs each position has.
    """
    at = cells - dilation * square(kernel, cells.device)[:, None]  # (k^2, T, 2)
    out = at // stride
    fits = ((out * stride == at) & (out >= low) & (out < high)).all(-1)  # (k^2, T)
    position, rows = fits.nonzero().unbind(1)
    return rows, out[position, rows], fits.sum(1).tolist()


def _under_tiles(
    cells: Tensor, low: Tensor, high: Tensor, kernel: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor, list[int]]:
    """The same where kernels tile the grid: a cell has at most one pair, found much faster."""
    out = cells // stride
    inside = cells - out * stride
    position = inside[:, 0] * stride + inside[:, 1]
    position = position.where((out < high).all(-1), kernel**2)
    rows = [(position == p).nonzero()[:, 0] for p in range(kernel**2)]
    every = torch.cat(rows)
    return every, out[every], [len(own) for own in rows]


def _named(kernel: int, stride: int, dilation: int) -> str:
    return f"kernel {kernel}, stride {stride}, dilation {dilation}"


def _check_sizes(kernel: int, stride: int, dilation: int) -> None:
    if min(kernel, stride, dilation) < 1:
        raise DataError(f"got {_named(kernel, stride, dilation)}; each must be at least 1")


def _check_cells(cells: Tensor, what: str) -> None:
    if cells.ndim != 2 or cells.shape[1] != 2 or cells.dtype != torch.int64:
        raise DataError(
            f"{what} are {tuple(cells.shape)} {str(cells.dtype).removeprefix('torch.')}, expected "
            "(T, 2) int64"
        )
    if compact(cells)[1] < len(cells):
        found, times = torch.unique(cells, dim=0, return_counts=True)
        again = found[times > 1]
        raise DataError(
            f"{len(again)} of {len(found)} {what} are given more than once: {_first(again)}"
        )


def _check_inside(cells: Tensor, grids: Grids, slide: Tensor) -> None:
    origin = grids.origins[slide]
    outside = ((cells < origin) | (cells >= origin + grids.shape[slide])).any(-1)
    if bool(outside.any()):
        sizes = " and ".join(f"{h} x {w}" for h, w in grids.shape[:SHOWN].tolist())
        raise DataError(
            f"{int(outside.sum())} of {len(cells)} cells lie outside of their grid of {sizes} "
            f"cells: {_first(cells[outside])}"
        )


def _slide_ids(grids: Grids, cells: Tensor) -> Tensor:
    """(T,) int64, the slide of each cell."""
    if int(grids.offsets[-1]) != len(cells):
        raise DataError(
            f"got {len(cells)} cells for grids of packed slides that have {int(grids.offsets[-1])}"
        )
    return segment_ids(grids.offsets, len(cells))


def _out_grids(
    grids: Grids, out_shape: Tensor, stride: int, slide: Tensor, number: Tensor, count: int
) -> Grids:
    """Grids of the output cells, each of which must be of one slide.

    Args:
        slide, number: (n,) int64, for each pair its slide and its row of output cells.
    """
    if bool((grids.origins % stride).any()):
        raise DataError(
            f"origins of packed slides are {grids.origins[:SHOWN].tolist()}, expected multiples of "
            f"the stride {stride}"
        )
    owner = slide.new_empty(count).index_copy_(0, number, slide)
    if not torch.equal(owner[number], slide) or bool((owner.diff() < 0).any()):
        raise DataError(
            "packed slides meet in an output cell, or are not in the order of their rows: place "
            "their grids one after another along the first axis"
        )
    offsets = F.pad(torch.bincount(owner, minlength=len(out_shape)).cumsum(0), (1, 0))
    return Grids(out_shape, grids.origins // stride, offsets)


def _first(cells: Tensor) -> str:
    shown = ", ".join(f"({a}, {b})" for a, b in cells[:SHOWN].tolist())
    return shown + (", ..." if len(cells) > SHOWN else "")
