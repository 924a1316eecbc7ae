"""Tokens in strips of the plane, so that the keys of some queries are one slice of memory.

A strip is `HEIGHT` rows of cells. Its tokens lie in it by column, so that `ROWS` of them are close
together, and all that they attend to is a slice of what the strip can see, by column too. Once that
is gathered for the strip, nothing is gathered or filled up for a block of queries and keys. A slice
also holds keys that are too far away: a pair's offset has a number, and whoever computes looks up
what is added to its score, a bias, or that it does not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError

HEIGHT = 20  # rows of a strip; as many as the reach where that is more
ROWS = 128  # queries of a block; all blocks have as many
KEYS = 64  # slices of keys are multiples of it, so that products have few shapes
MOST_KEYS = 1024  # of a slice; further ones are in a further slice
MANY_ROWS = 256  # queries of a block where all tokens of a slide attend to all


@dataclass(frozen=True, eq=False)
class Strip:
    """Tokens with all that they attend to.

    Args:
        queries: (n,) int64 rows of tokens; from `n_queries` on the last one again.
        keys: (m,) int64 rows of tokens; from `n_keys` on the last one again.
        query_at, key_at: (n,) and (m,) int64; their difference numbers the offset of a pair.
        blocks: slices of the queries, each with the slices of the keys that hold all of theirs.
        far: (L, K) int8 by a block's first query, 1 where a pair does not count; filled by whoever
            computes, of blocks with one slice of keys, so that it is small.
    """

    queries: Tensor
    keys: Tensor
    n_queries: int
    n_keys: int
    query_at: Tensor
    key_at: Tensor
    blocks: tuple[tuple[slice, tuple[slice, ...]], ...]
    far: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Strips:
    """Strips in which every token is a query once.

    Offsets in a box have numbers, column by column: those of columns on either side of it lie below
    or beyond the box's.

    Args:
        strips: none where there are no tokens.
        low: (row, column) of the box's first offset. shape: its rows and columns.
        limit: largest squared distance of pairs that count; None: all of a strip's pairs do.
    """

    strips: tuple[Strip, ...]
    low: tuple[int, int]
    shape: tuple[int, int]
    limit: int | None = None

    @property
    def n_offsets(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def number_of_zero(self) -> int:
        """The number of the offset (0, 0)."""
        return -self.low[1] * self.shape[0] - self.low[0]

    def offsets(self, device: torch.device) -> Tensor:
        """(n_offsets, 2) int64 by number, cell of the key minus cell of the query."""
        axes = [torch.arange(size, device=device) for size in self.shape]
        row, column = (axis + low for axis, low in zip(axes, self.low, strict=True))
        return torch.cartesian_prod(column, row).flip(1)


def strips_of_disks(cells: Tensor, reach: int, limit: int) -> Strips:
    """Strips of tokens that attend to others at most `reach` rows and columns away.

    Args:
        cells: (T, 2) int64. limit: largest squared distance.

    Raises:
        DataError: cells so far apart that they cannot be numbered.
    """
    if len(cells) == 0:
        return Strips((), (0, 0), (1, 1), limit)
    cells = cells - cells.amin(0)
    rows, width = (cells.amax(0) + 1).tolist()
    if rows * width >= 1 << 62:
        raise DataError(f"cells span {rows} x {width}, more than a grid can number")
    reach = min(reach, max(rows, width) - 1)
    height = max(HEIGHT, reach)
    row, column = cells.unbind(1)
    present, home = torch.unique(row // height, return_inverse=True)
    queries = (home * width + column).argsort(stable=True)
    sizes = torch.bincount(home)
    queries, bounds = _filled(queries, sizes, ROWS)
    first = torch.searchsorted(present, (row - reach) // height)  # strips that see a token
    last = torch.searchsorted(present, (row + reach) // height, right=True)
    keys, nth = _counted(last - first)
    strip = first[keys] + nth
    place, order = (strip * width + column[keys]).sort(stable=True)
    key_sizes = torch.bincount(strip)
    keys, key_bounds = _filled(keys[order], key_sizes, KEYS)

    which = torch.repeat_interleave(bounds.diff() // ROWS)  # the strip of each block
    low = which * width + (column[queries[::ROWS]] - reach).clamp(min=0)
    high = which * width + (column[queries[ROWS - 1 :: ROWS]] + reach).clamp(max=width - 1)
    begin, end = torch.searchsorted(place, low), torch.searchsorted(place, high, right=True)
    length = -(-(end - begin) // KEYS) * KEYS
    begin = begin - (key_sizes.cumsum(0) - key_sizes)[which]
    begin = torch.minimum(begin, key_bounds.diff()[which] - length)
    spans = zip(begin.tolist(), length.tolist(), strict=True)
    slices = [_slices(start, start + size, MOST_KEYS) for start, size in spans]

    sees = reach + height - 1  # rows
    shape = 2 * sees + 1, 2 * reach + 3  # a column on either side that is too far away
    at = column * shape[0] + row
    made = _strips((queries, bounds, sizes), (keys, key_bounds, key_sizes), at, slices)
    return Strips(made, (-sees, -reach - 1), shape, limit)


def strips_of_slides(cells: Tensor, bounds: Sequence[int]) -> Strips:
    """One strip a slide, in which all tokens attend to all.

    Args:
        cells: (T, 2) int64. bounds: where slides begin and end.
    """
    slides = [slice(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    far = [(cells[one].amax(0) - cells[one].amin(0)).tolist() for one in slides]
    rows, columns = (max(axis) for axis in zip(*far, strict=True)) if far else (0, 0)
    shape = 2 * rows + 1, 2 * columns + 1
    at = cells[:, 1] * shape[0] + cells[:, 0]
    made = []
    for one in slides:
        tokens = torch.arange(one.start, one.stop, device=cells.device)
        n = tokens.new_tensor([len(tokens)])
        (queries, _), (keys, _) = _filled(tokens, n, ROWS), _filled(tokens, n, KEYS)
        parts = _slices(0, len(keys), MOST_KEYS)
        blocks = tuple((some, parts) for some in _slices(0, len(queries), MANY_ROWS))
        size = len(tokens)
        made.append(Strip(queries, keys, size, size, at[queries], at[keys], blocks))
    return Strips(tuple(made), (-rows, -columns), shape)


Filled = tuple[Tensor, Tensor, Tensor]  # rows of tokens, bounds of strips, how many are there


def _strips(
    queries: Filled, keys: Filled, at: Tensor, slices: list[tuple[slice, ...]]
) -> tuple[Strip, ...]:
    """The strips of all, cut at their bounds; `slices` of the keys by block."""
    made, block = [], 0
    query_at, key_at = at[queries[0]], at[keys[0]]
    ends = (itertools.pairwise(side[1].tolist()) for side in (queries, keys))
    sizes = (side[2].tolist() for side in (queries, keys))
    for (a, b), (c, d), n, m in zip(*ends, *sizes, strict=True):
        own = _slices(0, b - a, ROWS)
        blocks = tuple(zip(own, slices[block : block + len(own)], strict=True))
        block += len(own)
        rows = queries[0][a:b], keys[0][c:d]
        made.append(Strip(*rows, n, m, query_at[a:b], key_at[c:d], blocks))
    return tuple(made)


def _slices(start: int, stop: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(at, min(at + step, stop)) for at in range(start, stop, step))


def _counted(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Group sizes -> the group of each member, and which one of its group it is."""
    group = torch.repeat_interleave(sizes)
    return group, torch.arange(len(group), device=sizes.device) - (sizes.cumsum(0) - sizes)[group]


def _filled(rows: Tensor, sizes: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """Rows in groups of these sizes -> groups of multiples of `unit`, the last row repeated.

    Returns:
        (n,) rows, and (groups + 1,) where groups begin and end.
    """
    filled = -(-sizes // unit) * unit
    group, nth = _counted(filled)
    start = sizes.cumsum(0) - sizes
    return rows[start[group] + torch.minimum(nth, sizes[group] - 1)], F.pad(
        filled.cumsum(0), (1, 0)
    )
