"""Augmentation of coordinates: slides mirrored, sheared and turned on their grid.

Source: SPAN (2026), its training code `src/span/preprocessing/transforms.py`,
https://github.com/wwyi1828/SPAN at 08e4ba0.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REACH = 10  # half-width, in cells, of the window in which a displaced patch looks for a free cell
WIDER = 1.1  # factor of that half-width where the whole window is taken
NEAR = 2  # half-width that is looked at first
CERTAIN = (NEAR + 0.5) ** 2  # squared distance up to which no cell further out can be nearer
ROW = 2**32  # step from cell (a, b) to (a + 1, b) in a key
WIDEST = 2**23  # cells; positions are float32, which tells halves of a cell apart up to here
NEVER = 2**62


@dataclass(frozen=True)
class CoordinateAugmentation:
    """Mirror, shear and turn a slide's patches at random, each onto a cell of its own.

    The defaults are those of SPAN's classification and survival. Features are not touched: what a
    patch shows stays as it was encoded.

    Args:
        mirror, shear, rotate: probability of each at the start; 0: never.
        shear_degrees: the largest shear, of one axis along the other.
        rotate_degrees: the largest turn away from a random multiple of 90 degrees.
        quarter_turns: only multiples of 90 degrees.
        drop: probability that a patch is left out; one always stays.
        end: factor of all probabilities (not of the angles) at the end of the training.
        decay: how the factor goes there from 1.

    Raises:
        DataError: a probability outside [0, 1], an angle that is none.
    """

    mirror: float = 0.75
    shear: float = 0.75
    rotate: float = 0.75
    shear_degrees: float = 10.0
    rotate_degrees: float = 30.0
    quarter_turns: bool = False
    drop: float = 0.0
    end: float = 0.2
    decay: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        for name in ("mirror", "shear", "rotate", "drop", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")
        for name, limit in (("shear_degrees", 89), ("rotate_degrees", 360)):
            if not 0 <= getattr(self, name) <= limit:
                raise DataError(f"{name} is {getattr(self, name)}, expected 0 to {limit} degrees")
        if self.decay not in ("cosine", "linear"):
            raise DataError(f"decay is {self.decay!r}, expected 'cosine' or 'linear'")

    def factor(self, progress: float) -> float:
        """Factor of the probabilities, from 1 to `end`.

        Args:
            progress: share of the training that is done, in [0, 1]. SPAN: (epoch - 1) / epochs,
                epochs counted from 1, so that `end` itself is not reached.
        """
        if not 0 <= progress <= 1:
            raise DataError(f"progress is {progress}, expected the share that is done, 0 to 1")
        left = (1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else 1 - progress
        return self.end + (1 - self.end) * left

    def matrix(self, generator: torch.Generator | None = None, progress: float = 0.0) -> Tensor:
        """A random matrix (2, 2) float32 that rows (a, b) are multiplied with from the right.

        Args:
            generator: on the CPU; None: torch's global one, from which SPAN's code draws the same
                numbers in the same order.
        """
        factor = self.factor(progress)

        def uniform() -> Tensor:
            return torch.rand(1, generator=generator)

        found = torch.eye(2)
        if self.mirror and not uniform() > self.mirror * factor:
            signs = [-1.0 if uniform() > 0.5 else 1.0 for _ in range(2)]
            found = found @ torch.diag(torch.tensor(signs))
        if self.shear and not uniform() > self.shear * factor:
            row, column = (0, 1) if uniform() > 0.5 else (1, 0)
            shear = torch.eye(2)
            shear[row, column] = (uniform() - 0.5) * 2 * math.tan(math.radians(self.shear_degrees))
            found = found @ shear
        if self.rotate and not uniform() > self.rotate * factor:
            found = found @ self._turn(generator)
        return found

    def _turn(self, generator: torch.Generator | None) -> Tensor:
        """(2, 2), by a random quarter, and up to `rotate_degrees` more or less."""
        degrees = 90.0 * torch.randint(0, 4, (1,), generator=generator)
        if not self.quarter_turns:
            degrees += (torch.rand(1, generator=generator) * 2 - 1) * self.rotate_degrees
        cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
        turn = torch.cat([cos, -sin, sin, cos]).reshape(2, 2)
        return turn.round() if self.quarter_turns else turn

    def __call__(
        self, bag: Bag, generator: torch.Generator | int | None = None, progress: float = 0.0
    ) -> Bag:
        """The slide with other coords, rows in the order they had; its grid begins at cell (0, 0).

        Args:
            generator: or a seed; None: torch's global one. The same seed gives the same slide.

        Raises:
            BagError: no coords, no spacing, two patches in one cell.
        """
        cells = bag.require_unique_cells()
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        matrix = self.matrix(generator, progress)
        kept = self._kept(len(bag), generator, progress)
        if kept is not None:
            bag, cells = only_rows(bag, kept.to(cells.device)), cells[kept.to(cells.device)]
        moved = augment_cells(cells, matrix)
        assert bag.spacing is not None  # grid() has seen to it
        return bag.replace(coords=torch.round(moved.double() * bag.spacing).long())

    def _kept(self, n: int, generator: torch.Generator | None, progress: float) -> Tensor | None:
        """Rows that stay, (K,) int64; None: all."""
        drop = self.drop * self.factor(progress)
        if drop <= 0 or n == 0:
            return None
        drawn = torch.rand(n, generator=generator)
        return torch.nonzero((drawn > drop) | (drawn == drawn.max()))[:, 0]


def augment_cells(cells: Tensor, matrix: Tensor) -> Tensor:
    """The cells after a linear map around their rounded mean, snapped to distinct cells.

    Args:
        cells: (N, 2) int64. matrix: (2, 2), rows are multiplied with it from the right.

    Returns:
        (N, 2) int64, in the order of `cells` and on their device, the least of each axis 0; see
        `snap`.

    Raises:
        DataError: other shapes, a matrix that is not finite, cells too far apart for float32.
    """
    if cells.ndim != 2 or cells.shape[1] != 2 or cells.is_floating_point():
        raise DataError(f"cells are {tuple(cells.shape)} {cells.dtype}, expected (N, 2) int64")
    if matrix.shape != (2, 2) or not bool(torch.isfinite(matrix).all()):
        raise DataError(f"the matrix is {matrix.tolist()}, expected 2 x 2 finite numbers")
    if not len(cells):
        return cells
    points = (cells - cells.amin(0)).cpu().float()  # (N, 2)
    points = (points - points.mean(0).round()) @ matrix.cpu().float()
    return snap(points - points.amin(0)).to(cells.device)


def snap(points: Tensor) -> Tensor:
    """Points to distinct cells, each near its own.

    Points take turns by the distance to the cell they round to (half to even), the nearest first,
    ties in their order. A point takes that cell if it is free; else the free cell that is nearest
    to the point, of those at most 10 rows and columns away (11, 12, ... where none of these is
    free), ties ring by ring outwards.

    Args:
        points: (N, 2) float32, in cells.

    Returns:
        (N, 2) int64, the least of each axis 0.

    Raises:
        DataError: points that are not finite or 2^23 cells or more from 0.

    Cost: about 1 us a point, and 5 us one whose cell is taken, while free cells are near.

    Source: `map_to_integer_grid` of SPAN's code.
    Differs: only points whose cell is taken are visited one by one, in the same turns.
    """
    if not bool((points.abs() < WIDEST).all()):
        raise DataError(
            f"positions reach {float(points.abs().max()):g}, expected less than {WIDEST} cells"
        )
    rounded = points.round()
    turns = torch.argsort(((points - rounded) ** 2).sum(1), stable=True).numpy()
    cells = rounded.numpy().astype(np.int64)[turns]  # (N, 2), by turn, as all that follows
    at = points.numpy().astype(np.float64)[turns]
    keys = cells[:, 0] * ROW + cells[:, 1]
    distinct, first = np.unique(keys, return_index=True)
    late = np.setdiff1d(np.arange(len(keys)), first, assume_unique=True)  # turns
    if len(late):
        taken = _Taken(dict(zip(distinct.tolist(), first.tolist(), strict=True)))
        for turn, key in _displaced(at, cells, late, taken):
            keys[turn] = key
    placed = np.empty_like(cells)
    placed[turns, 0] = (keys + ROW // 2) // ROW
    placed[turns, 1] = (keys + ROW // 2) % ROW - ROW // 2
    return torch.from_numpy(placed - placed.min(0))


class _Taken:
    """Which cells are taken, since which turn.

    Args:
        since: turn by key.
    """

    def __init__(self, since: dict[int, int]) -> None:
        self.since = since
        self.full: dict[tuple[int, ...], int] = {}  # half-width around a cell in which none is free

    def first_free(self, keys: Iterable[int], turn: int) -> int | None:
        for key in keys:
            if self.since.get(key, NEVER) > turn:
                return key
        return None

    def nearest_free(self, at: Floats, cell: Ints, turn: int) -> int:
        """Key of the free cell nearest to a point; of windows known to be full only what is new."""
        whose = tuple(cell.tolist())
        while True:
            full = self.full.get(whose, 0)
            reach = int(full * WIDER) or REACH
            keys, _ = _by_distance(at[None], cell[None], rings(reach)[(2 * full + 1) ** 2 - 1 :])
            if (key := self.first_free(keys[0].tolist(), turn)) is not None:
                return key
            self.full[whose] = reach


def _displaced(at: Floats, cells: Ints, late: Ints, taken: _Taken) -> Iterator[tuple[int, int]]:
    """Turn and key of every point that finds its cell taken.

    A point that comes late takes a cell that is free at its turn; the point to which that cell
    would have gone finds it taken later, and joins the late ones.
    """
    near = dict(zip(late.tolist(), _near(at[late], cells[late]), strict=True))
    waiting = late.tolist()  # ascending, so a heap
    while waiting:
        turn = heapq.heappop(waiting)
        here = slice(turn, turn + 1)
        keys = near[turn] if turn in near else _near(at[here], cells[here])[0]
        key = taken.first_free(keys, turn)
        if key is None:
            key = taken.nearest_free(at[turn], cells[turn], turn)
        if key in taken.since:
            heapq.heappush(waiting, taken.since[key])
        taken.since[key] = turn
        yield turn, key


def _near(at: Floats, cells: Ints) -> list[list[int]]:
    """Keys of the cells around each point that are nearer than any beyond them, nearest first."""
    keys, distances = _by_distance(at, cells, rings(NEAR))
    counts = (distances <= CERTAIN).sum(1).tolist()
    return [row[:n] for row, n in zip(keys.tolist(), counts, strict=True)]


def _by_distance(at: Floats, cells: Ints, offsets: Ints) -> tuple[Ints, Floats]:
    """Keys (K, M) of the cells at these offsets, nearest to each point first.

    Returns:
        The keys, and the squared distances (K, M), these in the order of the offsets.
    """
    around = cells[:, None] + offsets  # (K, M, 2)
    away = at[:, None] - around
    distances = away[..., 0] * away[..., 0] + away[..., 1] * away[..., 1]
    order = np.argsort(distances, axis=1, kind="stable")
    keys = around[..., 0] * ROW + around[..., 1]
    return np.take_along_axis(keys, order, 1), distances


@functools.cache
def rings(reach: int) -> Ints:
    """Offsets (M, 2) of the cells up to `reach` rows and columns away, in the order ties go by.

    Ring by ring; of each first its two long sides, row by row, then the other two.
    """
    found = []
    for r in range(1, reach + 1):
        found += [(a, b) for a in range(-r, r + 1) for b in (-r, r)]
        found += [(a, b) for b in range(1 - r, r) for a in (-r, r)]
    return np.array(found)


def only_rows(bag: Bag, rows: Tensor) -> Bag:
    """The bag's patches at `rows` (K,) int64 ascending, with the bounds of a patient's slides."""
    parts = bag.parts
    if parts is not None:
        parts = torch.searchsorted(rows, parts.to(rows.device)).to(parts.device)
    return bag.subset(rows).replace(parts=parts)
