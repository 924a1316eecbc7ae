"""Tokens in strips of the plane, so that the keys of some queries are one slice of memory.

A strip is `BREADTH` cells broad along x, and along y it goes on through the whole slide. Its tokens
are its queries; its keys are those tokens and what lies within `reach` cells to either side. Both
are sorted by y, so that `QUERIES` queries after another, a block, lie close together, and all that
they attend to is one slice of the keys. With a reach of 2 and all cells there:

    x: reach BREADTH reach
        . .  1  1  1  . .
        # #  1  1  1  # #  -+            1, 2, 3  queries, by their block
        # #  1  1  1  # #   |
        # #  2  2  2  # #   |  the rows of one slice: all keys of block 2,
        # #  2  2  2  # #   |  those marked # and the queries between them
        # #  3  3  3  # #   |
        # #  3  3  3  # #  -+
        . .  3  3  3  . .                .  keys of other blocks

Rows are gathered once a strip. Nothing is gathered for a block: its products are of slices. A slice
also holds keys that are too far away, such as the corners of this one: whoever computes asks
`Strips.far`, or looks up by the number of a pair's offset what is added to its score.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError

BREADTH = 20  # cells of a strip along x; as many as the reach where that is more
QUERIES = 128  # of a block; all blocks have as many
KEYS = 64  # slices of keys are multiples of it, so that products have few shapes
MOST_KEYS = 1024  # of a slice; further ones are in a further slice
TABLE, TABLE_PER_TOKEN = 1 << 16, 64  # offsets; beyond both, a pair's value is made for the pair
MANY_QUERIES = 256  # of a block where all tokens of a slide attend to all


@dataclass(frozen=True, eq=False)
class Block:
    """Some queries of a strip with all that they attend to.

    Args:
        queries: a slice of the strip's queries.
        keys: slices of the strip's keys, a product each; one unless keys are many.
    """

    queries: slice
    keys: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Strip:
    """Tokens with all that they attend to.

    Args:
        queries: (n,) int64 rows of tokens; from `n_queries` on the last one again.
        keys: (m,) int64 rows of tokens; from `n_keys` on the last one again.
        query_at, key_at: (n,) and (m,) int64; their difference numbers the offset of a pair.
        blocks: each query is in one.
    """

    queries: Tensor
    keys: Tensor
    n_queries: int
    n_keys: int
    query_at: Tensor
    key_at: Tensor
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Strips:
    """Strips in which every token is a query once.

    Offsets in a box have numbers, along x first: those that lie beyond either end of the box along
    y are below or above the box's.

    Args:
        strips: none where there are no tokens.
        cells: (T, 2) int64 (x, y).
        low: (x, y) of the box's first offset. shape: its extent along x and y.
        limit: largest squared distance of pairs that count; None: all of a strip's pairs do.
    """

    strips: tuple[Strip, ...]
    cells: Tensor
    low: tuple[int, int]
    shape: tuple[int, int]
    limit: int | None = None
    _far: dict[Block, Tensor] = field(default_factory=dict, init=False, repr=False)

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
        x, y = (axis + low for axis, low in zip(axes, self.low, strict=True))
        return torch.cartesian_prod(y, x).flip(1)

    def numbers(self, strip: Strip, queries: slice, keys: slice) -> Tensor:
        """(L * K,) int64 of the offsets of pairs."""
        ours = strip.query_at[queries] - self.number_of_zero
        number = strip.key_at[keys] - ours[:, None]
        return number.clamp_(0, self.n_offsets - 1).flatten()

    @property
    def few(self) -> bool:
        """Whether offsets are few enough for tables by number; else it is pair by pair."""
        return self.n_offsets <= max(TABLE, TABLE_PER_TOKEN * len(self.cells))

    def too_far(self, offsets: Tensor) -> Tensor:
        """(..., 2) -> (...) bool."""
        if self.limit is None:
            return torch.zeros_like(offsets[..., 0], dtype=torch.bool)
        edge = math.isqrt(self.limit) + 1  # squares of what is farther would not fit an int64
        return offsets.clamp(-edge, edge).square().sum(-1) > self.limit

    def far(self, strip: Strip, block: Block, keys: slice) -> Tensor | None:
        """(L, K) int8 of a block and a slice of its keys: 1 where a pair does not count.

        It is kept for further layers and steps where the block has one slice, so that it is small.

        Returns:
            None where all pairs count.
        """
        if self.limit is None:
            return None
        if (known := self._far.get(block)) is not None:
            return known
        if self.few:
            number = self.numbers(strip, block.queries, keys)
            far = self._far_by_number.index_select(0, number).view(-1, keys.stop - keys.start)
        else:
            ours = self.cells[strip.queries[block.queries]]
            far = self.too_far(self.cells[strip.keys[keys]] - ours[:, None]).to(torch.int8)
        if len(block.keys) == 1:
            self._far[block] = far
        return far

    @functools.cached_property
    def _far_by_number(self) -> Tensor:
        return self.too_far(self.offsets(self.cells.device)).to(torch.int8)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of tokens, strip by strip, each strip filled up with its last row to whole units.

    Args:
        rows: (n,) int64. bounds: (S + 1,) int64, where strips begin and end among them.
        sizes: (S,) int64, rows of each strip without those that fill it up.
    """

    rows: Tensor
    bounds: Tensor
    sizes: Tensor


class _Plane:
    """Cells counted from the smallest x and y, and the strips that hold any of them.

    Args:
        cells: (T, 2) int64, at least one.

    Raises:
        DataError: cells so far apart that they cannot be numbered.
    """

    def __init__(self, cells: Tensor, reach: int) -> None:
        self.x, self.y = (cells - cells.amin(0)).unbind(1)
        width, self.height = (cells.amax(0) - cells.amin(0) + 1).tolist()
        if width * self.height >= 1 << 62:
            raise DataError(f"cells span {width} x {self.height}, more than a grid can number")
        self.reach = min(reach, max(width, self.height) - 1)
        self.breadth = max(BREADTH, self.reach)
        self.present, self.home = torch.unique(self.x // self.breadth, return_inverse=True)

    def along(self, strip: Tensor, y: Tensor) -> Tensor:
        """Places that ascend strip by strip, and along y in a strip."""
        place: Tensor = strip * self.height + y
        return place


def strips_of_disks(cells: Tensor, reach: int, limit: int) -> Strips:
    """Strips of tokens that attend to others at most `reach` cells away along each axis.

    Args:
        cells: (T, 2) int64. limit: largest squared distance.

    Raises:
        DataError: cells so far apart that they cannot be numbered.
    """
    if len(cells) == 0:
        return Strips((), cells, (0, 0), (1, 1), limit)
    plane = _Plane(cells, reach)
    queries = _queries_of_strips(plane)
    keys, places = _keys_of_strips(plane)
    slices = _slices_of_blocks(plane, queries, keys, places)
    sees = plane.reach + plane.breadth - 1  # cells along x, from one edge of a strip
    # along y one more on either side, which is too far away: what is farther gets its number
    shape = 2 * sees + 1, 2 * plane.reach + 3
    made = _cut(queries, keys, plane.y * shape[0] + plane.x, slices)
    return Strips(made, cells, (-sees, -plane.reach - 1), shape, limit)


def _queries_of_strips(plane: _Plane) -> _Rows:
    """Each token in its strip."""
    order = plane.along(plane.home, plane.y).argsort(stable=True)
    return _filled(order, torch.bincount(plane.home), QUERIES)


def _keys_of_strips(plane: _Plane) -> tuple[_Rows, Tensor]:
    """Each token in all strips that can see it; and (n,) its place there, without what fills."""
    first = torch.searchsorted(plane.present, (plane.x - plane.reach) // plane.breadth)
    beyond = (plane.x + plane.reach) // plane.breadth
    end = torch.searchsorted(plane.present, beyond, right=True)
    token, nth = _counted(end - first)
    strip = first[token] + nth
    places, order = plane.along(strip, plane.y[token]).sort(stable=True)
    return _filled(token[order], torch.bincount(strip), KEYS), places


def _slices_of_blocks(
    plane: _Plane, queries: _Rows, keys: _Rows, places: Tensor
) -> list[tuple[slice, ...]]:
    """The slices of its strip's keys that hold all keys of a block, block by block.

    Args:
        places: of the keys, as of `_keys_of_strips`.
    """
    strip = torch.repeat_interleave(queries.bounds.diff() // QUERIES)  # of each block
    y = plane.y[queries.rows].view(-1, QUERIES)  # ascending in a block
    lowest = (y[:, 0] - plane.reach).clamp(min=0)
    highest = (y[:, -1] + plane.reach).clamp(max=plane.height - 1)
    begin = torch.searchsorted(places, plane.along(strip, lowest))
    end = torch.searchsorted(places, plane.along(strip, highest), right=True)
    length = -(-(end - begin) // KEYS) * KEYS
    begin = begin - (keys.sizes.cumsum(0) - keys.sizes)[strip]  # from the strip's first key
    begin = torch.minimum(begin, keys.bounds.diff()[strip] - length)
    spans = zip(begin.tolist(), length.tolist(), strict=True)
    return [_slices(start, start + size, MOST_KEYS) for start, size in spans]


def _cut(
    queries: _Rows, keys: _Rows, at: Tensor, slices: list[tuple[slice, ...]]
) -> tuple[Strip, ...]:
    """Strips out of the rows of all.

    Args:
        at: (T,) of tokens, as `Strip.query_at`. slices: of the keys by block.
    """
    made, block = [], 0
    query_at, key_at = at[queries.rows], at[keys.rows]
    ends = (itertools.pairwise(side.bounds.tolist()) for side in (queries, keys))
    sizes = (side.sizes.tolist() for side in (queries, keys))
    for (a, b), (c, d), n, m in zip(*ends, *sizes, strict=True):
        own = _slices(0, b - a, QUERIES)
        blocks = tuple(map(Block, own, slices[block : block + len(own)]))
        block += len(own)
        rows = queries.rows[a:b], keys.rows[c:d]
        made.append(Strip(*rows, n, m, query_at[a:b], key_at[c:d], blocks))
    return tuple(made)


def strips_of_slides(cells: Tensor, bounds: Sequence[int]) -> Strips:
    """One strip a slide, in which all tokens attend to all.

    Args:
        cells: (T, 2) int64. bounds: where slides begin and end.
    """
    slides = [slice(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    extents = [(cells[one].amax(0) - cells[one].amin(0)).tolist() for one in slides]
    width, height = (max(axis) for axis in zip(*extents, strict=True)) if extents else (0, 0)
    shape = 2 * width + 1, 2 * height + 1
    at = cells[:, 1] * shape[0] + cells[:, 0]
    made = []
    for one in slides:
        tokens = torch.arange(one.start, one.stop, device=cells.device)
        n = len(tokens)
        queries, keys = (
            _filled(tokens, tokens.new_tensor([n]), unit).rows for unit in (QUERIES, KEYS)
        )
        parts = _slices(0, len(keys), MOST_KEYS)
        blocks = tuple(Block(some, parts) for some in _slices(0, len(queries), MANY_QUERIES))
        made.append(Strip(queries, keys, n, n, at[queries], at[keys], blocks))
    return Strips(tuple(made), cells, (-width, -height), shape)


def _slices(start: int, stop: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(at, min(at + step, stop)) for at in range(start, stop, step))


def _counted(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Group sizes -> the group of each member, and which one of its group it is."""
    group = torch.repeat_interleave(sizes)
    return group, torch.arange(len(group), device=sizes.device) - (sizes.cumsum(0) - sizes)[group]


def _filled(rows: Tensor, sizes: Tensor, unit: int) -> _Rows:
    """Rows of strips of these sizes, one after another, filled up to multiples of `unit`."""
    filled = -(-sizes // unit) * unit
    strip, nth = _counted(filled)
    start = sizes.cumsum(0) - sizes
    rows = rows[start[strip] + torch.minimum(nth, sizes[strip] - 1)]
    return _Rows(rows, F.pad(filled.cumsum(0), (1, 0)), sizes)
