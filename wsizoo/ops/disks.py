"""Neighbourhoods of tokens that may share a cell: a disk around each, or its whole slide."""

from __future__ import annotations

import functools
import itertools
import math
import numbers
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops.neighbourhoods import Neighbourhood
from wsizoo.ops.strips import Strips, strips_of_disks, strips_of_slides

LARGEST = 1 << 30  # cells; squared distances beyond it would not fit an int64


@dataclass(frozen=True, eq=False)
class Disk(Neighbourhood):
    """Tokens whose cells are at most `radius` apart, each token itself included.

    Cells may repeat: tokens of one cell are neighbours at distance 0, and each is a pair with each.
    4,000 of one cell are 16 million pairs, as many as 50,000 patches have within a radius of 10.

    Args:
        radius: in cells, of Euclidean distance, inclusive; it may be fractional, or 0.

    Raises:
        DataError: a radius that is negative, no number, or beyond `LARGEST`.

    Source: LongMIL (2024), Eq. 10-11 and Figure 5, the local mask.
    """

    radius: float
    in_strips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.radius, numbers.Real) or not 0 <= self.radius <= LARGEST:
            raise DataError(f"a disk's radius is {self.radius!r} cells, expected 0 to {LARGEST}")

    @property
    def reach(self) -> int:
        return math.floor(self.radius)

    @property
    def within(self) -> int:
        """The largest squared distance of neighbours: an integer, so that nothing is rounded."""
        return math.floor(self.radius * self.radius)

    def dense(self) -> Tensor:
        apart = (self.cells[None] - self.cells[:, None]).abs()  # (T, T, 2)
        near = apart.clamp(max=self.reach + 1)  # squares of far islands would not fit an int64
        return near.square().sum(-1) <= self.within

    @functools.cached_property
    def strips(self) -> Strips:
        return strips_of_disks(self.cells, self.reach, self.within)


@dataclass(frozen=True, eq=False)
class Everywhere(Neighbourhood):
    """All tokens of the same slide. Cells may repeat; a bias is all that they are for.

    Args:
        offsets: (B + 1,) int64, where each packed slide begins and ends, as in `BagBatch`.
    """

    offsets: Tensor
    in_strips: ClassVar[bool] = True

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """The offsets as numbers.

        Raises:
            DataError: offsets that do not ascend from 0 to the number of tokens.
        """
        bounds = tuple(self.offsets.tolist())
        ends = (bounds[0], bounds[-1]) if bounds else None
        if ends != (0, len(self)) or any(a > b for a, b in itertools.pairwise(bounds)):
            raise DataError(
                f"offsets of slides are {list(bounds)}, expected to ascend from 0 to {len(self)}, "
                "the number of cells"
            )
        return bounds

    @functools.cached_property
    def reach(self) -> int:
        slides = [self.cells[a:b] for a, b in itertools.pairwise(self.bounds) if a < b]
        return max((int((x.amax(0) - x.amin(0)).max()) for x in slides), default=0)

    def dense(self) -> Tensor:
        sizes = torch.tensor(self.bounds, device=self.cells.device).diff()
        slide = torch.repeat_interleave(sizes)  # (T,)
        return slide[:, None] == slide

    @functools.cached_property
    def strips(self) -> Strips:
        return strips_of_slides(self.cells, self.bounds)
