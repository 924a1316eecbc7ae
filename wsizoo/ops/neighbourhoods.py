"""Which occupied cells of a grid attend to which, as equal blocks that dense products can run on.

A neighbourhood is built once for a grid and serves every layer on it. It says the same thing twice:
`dense()` is the definition, `blocks` is what a fast path reads. Every allowed pair lies in exactly
one block, so a softmax over several kinds of blocks is one softmax over their union.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsizoo.errors import DataError

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
class Neighbourhood:
    """The base: cells that are all distinct, and how far apart two that attend can be.

    Args:
        cells: (T, 2) int64. Slides packed together lie where none is in reach of another.
    """

    cells: Tensor

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
    shifts: Tensor | None = None
    without_self: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
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
        quad = _inside(self.side, self.cells.device) // self.half
        return (first, Blocks(**{**vars(second), "allowed": ~_same(quad)}))

    def _shifted(self) -> Tensor:
        if self.shifts is None:
            return self.cells + self.half
        return self.cells + self.half * self.shifts[:, None].long()

    def _windows(self, tokens: Tensor, cells: Tensor, without_self: Tensor) -> Blocks:
        """Blocks of these tokens (rows of all, ascending), whose cells may be shifted."""
        side, length = self.side, self.side**2
        window = cells // side
        number, count = compact(window)
        row, column = (cells - window * side).unbind(1)
        place = number * length + row * side + column  # (t,)
        rows = cells.new_full((count * length,), len(self)).index_copy_(0, place, tokens)
        at = place[without_self]
        inside = _inside(side, cells.device)
        return Blocks(
            queries=(rows := rows.view(count, length)),
            keys=rows,
            offset=inside[None] - inside[:, None],
            allowed=torch.ones(length, length, dtype=torch.bool, device=cells.device),
            forbidden=torch.stack([at // length, at % length, at % length], 1),
        )


def compact(keys: Tensor) -> tuple[Tensor, int]:
    """Numbers 0..n-1 of the distinct pairs in raster order, in linear time unless far apart.

    Args:
        keys: (T, 2) int64.

    Returns:
        (T,) int64 the number of each row's pair, and how many there are.
    """
    if len(keys) == 0:
        return keys[:, 0], 0
    low = keys.min(0).values
    height, width = (keys.max(0).values - low + 1).tolist()
    flat = (keys[:, 0] - low[0]) * width + keys[:, 1] - low[1]  # (T,)
    if height * width > max(FLAGS, FLAGS_PER_CELL * len(keys)):
        if height * width >= 1 << 62:
            raise DataError(f"cells span {height} x {width}, more than a grid can number")
        found, number = torch.unique(flat, return_inverse=True)
        return number, len(found)
    occupied = torch.zeros(height * width, dtype=torch.int64, device=keys.device)
    occupied[flat] = 1
    rank = occupied.cumsum(0)
    return rank[flat] - 1, int(rank[-1])


def _same(keys: Tensor) -> Tensor:
    """(t, 2) -> (t, t) bool, equal rows."""
    return (keys[:, None] == keys[None]).all(-1)


@functools.lru_cache(maxsize=64)
def _inside(side: int, device: torch.device) -> Tensor:
    """(side^2, 2) int64, the cells of a window in raster order."""
    axis = torch.arange(side, device=device)
    return torch.cartesian_prod(axis, axis)
