"""Which occupied cells of a grid attend to which, as equal blocks that dense products can run on.

A neighbourhood is built once for a grid and serves every layer on it. It says the same thing
several times: `dense()` is the definition, `blocks` and `groups` are what fast paths read. Every
allowed pair lies in exactly one block, so a softmax over several kinds of blocks is one softmax
over their union; every query lies in one group, with all of its keys.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops.strips import Strips

FLAGS = 1 << 22  # a box of up to so many windows is numbered by flags, whatever the number of cells
FLAGS_PER_CELL = 64  # beyond both, numbers come from a sort


@dataclass(frozen=True, eq=False)
class Blocks:
    """n blocks of L queries and K keys of one shape on the grid.

    Args:
        queries: (n, L) int64 rows of the tokens; T where the block has no token.
        keys: (n, K) int64, likewise; the same tensor where a block's queries are its keys.
        offset: (L, K, 2) int64, cell of the key minus cell of the query.
        allowed: (L, K) bool, pairs that count, in every block.
        forbidden: (F, 3) int64, further pairs that do not: block, query, key.
    """

    queries: Tensor
    keys: Tensor
    offset: Tensor
    allowed: Tensor
    forbidden: Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups of tokens that share all of their keys.

    Args:
        side: a group's queries lie in a square of side x side cells.
        queries: (Q,) int64 rows of tokens, group by group; each token that has a key, once.
        keys: (K,) int64, likewise; a token for each group that it is a key of.
        query_bounds, key_bounds: (G + 1,) int32, where groups begin and end; none is empty.
        most_keys: no group has more.
        inside: (Q, 2) int64, a query's cell minus the first one of its group's square.
        around: (K, 2) int64, a key's cell minus it: around - inside is a pair's offset.
    """

    side: int
    queries: Tensor
    keys: Tensor
    query_bounds: Tensor
    key_bounds: Tensor
    most_keys: int
    inside: Tensor
    around: Tensor

    def __len__(self) -> int:
        return len(self.query_bounds) - 1


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The base: a cell for each token, and how far apart two that attend can be.

    Args:
        cells: (T, 2) int64, all distinct unless a kind says otherwise. Slides packed together lie
            where none is in reach of another.

    Raises:
        DataError: cells of another shape or dtype.
    """

    cells: Tensor
    in_blocks: ClassVar[bool] = False  # whether it has `blocks`
    in_strips: ClassVar[bool] = False  # whether it has `strips`

    def __post_init__(self) -> None:
        cells = self.cells
        if cells.dtype != torch.int64 or cells.ndim != 2 or cells.shape[1] != 2:
            raise DataError(
                f"the cells of {type(self).__name__} are {tuple(cells.shape)} {cells.dtype}, "
                "expected (T, 2) torch.int64; floor or round them, then .long()"
            )

    @property
    def reach(self) -> int:
        """The largest difference along an axis between a query's and a key's cell."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """(T, T) bool [query, key], the definition."""
        raise NotImplementedError

    @property
    def blocks(self) -> tuple[Blocks, ...]:
        """The pairs of `dense()`, each in one block."""
        raise NotImplementedError

    @property
    def strips(self) -> Strips:
        """The pairs of `dense()`, each in one block of one strip, and further ones."""
        raise NotImplementedError

    @property
    def group_side(self) -> int | None:
        """`groups.side` before groups are built; None where tokens hardly share their keys."""
        return None

    @property
    def groups(self) -> Groups:
        """The pairs of `dense()`, each in one group, where `group_side` is a number."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True, eq=False)
class Windows(Neighbourhood):
    """Cells in the same square window of side W = 2 half, regular, shifted by `half`, or either.

    Regular windows are the cells with equal (a // W, b // W), shifted ones those with equal
    ((a + half) // W, (b + half) // W).

    Args:
        half: half of a window's side, in cells.
        pattern: "regular", "shifted", or "union" (one set of keys, no key twice).
        shifts: (T,) bool, tokens for which the shift holds; for the others the shifted pattern is
            the regular one. All tokens of a slide agree. None: it holds for all.
        without_self: (F,) int64, tokens that do not attend to themselves.

    Raises:
        DataError: an unknown pattern, a half below 1.

    Source: SPAN (2026), Section 3: sparse regular and shifted windows.
    """

    half: int
    pattern: str = "union"
    in_blocks: ClassVar[bool] = True
    shifts: Tensor | None = None
    without_self: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in ("regular", "shifted", "union"):
            raise DataError(
                f"windows are '{self.pattern}', expected 'regular', 'shifted' or 'union'"
            )
        if self.half < 1:
            raise DataError(f"half a window is {self.half} cells, expected at least 1")

    @property
    def side(self) -> int:
        return 2 * self.half

    @property
    def reach(self) -> int:
        return self.side - 1

    def dense(self) -> Tensor:
        same = torch.zeros(len(self), len(self), dtype=torch.bool, device=self.cells.device)
        if self.pattern != "shifted":
            same |= _same(self.cells // self.side)
        if self.pattern != "regular":
            same |= _same(self._shifted() // self.side)
        same[self.without_self, self.without_self] = False
        return same

    @functools.cached_property
    def blocks(self) -> tuple[Blocks, ...]:
        every = torch.arange(len(self), device=self.cells.device)
        if self.pattern == "shifted":
            return (self._windows(every, self._shifted(), self.without_self),)
        first = self._windows(every, self.cells, self.without_self)
        moved = every if self.shifts is None else every[self.shifts]
        if self.pattern == "regular" or len(moved) == 0:
            return (first,)
        # a quad, half by half cells, is what a shifted window shares with one regular window
        second = self._windows(moved, self._shifted()[moved], self.without_self[:0])
        quad = square(self.side, self.cells.device) // self.half
        return (first, Blocks(**{**vars(second), "allowed": ~_same(quad)}))

    @property
    def group_side(self) -> int:
        """Of a window; of a quad, whose tokens share a regular and a shifted window, for both."""
        return self.half if self.pattern == "union" else self.side

    @functools.cached_property
    def groups(self) -> Groups:
        side, nobody = self.group_side, len(self)
        cells = self._shifted() if self.pattern == "shifted" else self.cells
        square = cells // side
        number, count = compact(square)
        squares = square.new_empty(count, 2).index_copy_(0, number, square)
        place = ((cells - square * side) * cells.new_tensor([side, 1])).sum(1)  # (T,)
        rows = cells.new_full((count + 1, side**2), nobody)  # behind those of squares: of no square
        rows[number, place] = torch.arange(nobody, device=cells.device)
        near = torch.arange(count, device=cells.device)[:, None]
        if self.pattern == "union":
            near = self._nearby(number, squares)
        keys, queries = rows[near].flatten(1), rows[:-1]
        # a token that is no key of its own is a group of its own
        alone = torch.unique(self.without_self).to(cells.device)  # (F,)
        home = number[alone]
        queries[home, place[alone]] = nobody
        theirs = keys[home]
        theirs = theirs.masked_fill(theirs == alone[:, None], nobody)
        keys = torch.cat([keys, theirs])
        queries = torch.cat([queries, F.pad(alone[:, None], (0, side**2 - 1), value=nobody)])
        live = (queries < nobody).any(1) & (keys < nobody).any(1)
        corners = torch.cat([squares, squares[home]])[live] * side
        most = keys.shape[1]
        queries, query_bounds, query_corners = _packed(queries[live], nobody, corners)
        keys, key_bounds, key_corners = _packed(keys[live], nobody, corners)
        inside, around = cells[queries] - query_corners, cells[keys] - key_corners
        return Groups(side, queries, keys, query_bounds, key_bounds, most, inside, around)

    def _nearby(self, number: Tensor, squares: Tensor) -> Tensor:
        """(count, 7) numbers of the quads in the windows of each; count where nobody is there.

        Args:
            number: (T,) of each token's quad. squares: (count, 2) quads by number.
        """
        count = len(squares)
        step = 1 - 2 * (squares % 2)  # to the other quads of the regular window
        ways = step.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1], [-1, 0], [0, -1], [-1, -1]])
        wanted = squares[:, None] + step[:, None] * ways  # (count, 7, 2)
        found, total = compact(torch.cat([squares, wanted.flatten(0, 1)]))
        number_of = squares.new_full((total,), count)
        number_of[found[:count]] = torch.arange(count, device=squares.device)
        nearby = number_of[found[count:]].view(count, 7)
        if self.shifts is not None:
            shifted = self.shifts.new_zeros(count).index_copy_(0, number, self.shifts)
            nearby[~shifted, 4:] = count
        return nearby

    def _shifted(self) -> Tensor:
        if self.shifts is None:
            return self.cells + self.half
        return self.cells + self.half * self.shifts[:, None].long()

    def _windows(self, tokens: Tensor, cells: Tensor, without_self: Tensor) -> Blocks:
        """Blocks of these tokens (rows of all, ascending), whose cells may be shifted."""
        side, length = self.side, self.side**2
        window = cells // side
        number, count = compact(window)
        x, y = (cells - window * side).unbind(1)
        place = number * length + x * side + y  # (t,)
        rows = cells.new_full((count * length,), len(self)).index_copy_(0, place, tokens)
        at = place[without_self]
        inside = square(side, cells.device)
        return Blocks(
            queries=(rows := rows.view(count, length)),
            keys=rows,
            offset=inside[None] - inside[:, None],
            allowed=torch.ones(length, length, dtype=torch.bool, device=cells.device),
            forbidden=torch.stack([at // length, at % length, at % length], 1),
        )


def compact(keys: Tensor) -> tuple[Tensor, int]:
    """Numbers 0..n-1 of the distinct pairs, by x and then y; in linear time unless far apart.

    Args:
        keys: (T, 2) int64.

    Returns:
        (T,) int64 the number of each row's pair, and how many there are.
    """
    if len(keys) == 0:
        return keys[:, 0], 0
    low = keys.amin(0)
    width, height = (keys.amax(0) - low + 1).tolist()
    flat = (keys[:, 0] - low[0]) * height + keys[:, 1] - low[1]  # (T,)
    if width * height > max(FLAGS, FLAGS_PER_CELL * len(keys)):
        if width * height >= 1 << 62:
            raise DataError(f"cells span {width} x {height}, more than a grid can number")
        found, number = torch.unique(flat, return_inverse=True)
        return number, len(found)
    occupied = torch.zeros(width * height, dtype=torch.int64, device=keys.device)
    occupied[flat] = 1
    rank = occupied.cumsum(0)
    return rank[flat] - 1, int(rank[-1])


@functools.lru_cache(maxsize=64)
def square(side: int, device: torch.device) -> Tensor:
    """(side^2, 2) int64, the cells of a square at the origin, in raster order."""
    axis = torch.arange(side, device=device)
    return torch.cartesian_prod(axis, axis)


def _packed(rows: Tensor, nobody: int, corners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(G, n) rows of tokens, or nobody -> those of tokens, (G + 1,) bounds, each one's corner."""
    there = rows < nobody
    bounds = F.pad(there.sum(1).cumsum(0), (1, 0)).int()
    return rows[there], bounds, corners[there.nonzero()[:, 0]]


def _same(keys: Tensor) -> Tensor:
    """(t, 2) -> (t, t) bool, equal rows."""
    return (keys[:, None] == keys[None]).all(-1)
