"""From which level patches are taken, and how many um/px they then really have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsizoo.slides.grid import Cells, PatchGrid
from wsizoo.slides.reader import LEVEL_SLACK, ROUNDING, Slide

MOST_ERROR = 1e-3  # of um/px, relative; a level whose own scale is less certain is not used


@dataclass(frozen=True)
class Sampling:
    """How the patches of a grid are taken from a slide.

    Args:
        level: that they are read from. scale: level-0 px per px of it, as the reader maps them.
        edge: of a patch, px of the level (float).
        as_is: a patch is whole px of the level, one for one; else it is resampled, once.
        limit: (x, y) px of the level, the last that a whole patch taken as it is may begin at.
    """

    level: int
    scale: float
    edge: float
    as_is: bool
    limit: tuple[int, int]

    @classmethod
    def of(cls, slide: Slide, grid: PatchGrid) -> Sampling:
        level = level_for_patches(slide, grid.footprint / grid.patch_size)
        scale, (width, height) = slide.downsamples[level], slide.level_sizes[level]
        edge = grid.footprint / scale
        # only there does the reader give whole px of the level, unshifted
        as_is = abs(edge - grid.patch_size) < ROUNDING and scale.is_integer()
        limit = max(0, width - grid.patch_size), max(0, height - grid.patch_size)
        return cls(level, scale, grid.patch_size if as_is else edge, as_is, limit)

    def corners(self, grid: PatchGrid, cells: Cells) -> NDArray[np.float64]:
        """Where patches are read, top-left (N, 2), level-0 px; whole px of the level if `as_is`."""
        exact = grid.corners(cells)
        if not self.as_is:
            return exact
        px = np.rint(exact / self.scale)
        within = np.where(grid.beyond(cells)[:, None], px, np.minimum(px, self.limit))
        return np.asarray(within * self.scale)


@dataclass(frozen=True)
class Certificate:
    """The um/px that patches have, from the geometry that they are cut by.

    Relative to the slide's own um/px, which must be right.

    Args:
        asked_mpp: um/px that patches should have.
        realised_mpp: that they have, along the axis and under the reading of the level's scale
            that are furthest from what was asked.
        error: |realised / asked - 1| of that axis.
        level: that patches are read from. downsample: level-0 px per px of it.
        resampled: whether patches are interpolated, or whole px of the level.
    """

    asked_mpp: float
    realised_mpp: float
    error: float
    level: int
    downsample: float
    resampled: bool

    @property
    def holds(self) -> bool:
        """The error is 0.1 % at most. It is not where pixels of the slide are not square."""
        return self.error <= MOST_ERROR


def certify(slide: Slide, grid: PatchGrid) -> Certificate:
    """What um/px the patches of a grid really have."""
    sampling = Sampling.of(slide, grid)
    across = sampling.edge / grid.patch_size  # px of the level per px of a patch
    realised = [
        mpp * across * scale
        for mpp, scales in zip(slide.mpp_xy, possible_scales(slide, sampling.level), strict=True)
        for scale in scales
    ]
    worst = max(realised, key=lambda mpp: abs(mpp / grid.mpp - 1))
    return Certificate(
        asked_mpp=float(grid.mpp),
        realised_mpp=float(worst),
        error=float(abs(worst / grid.mpp - 1)),
        level=sampling.level,
        downsample=float(sampling.scale),
        resampled=not sampling.as_is,
    )


def level_for_patches(slide: Slide, downsample: float) -> int:
    """The coarsest level that is not coarser than wanted and whose scale is known to 0.1 %.

    Level 0 always is. A level is not if its size disagrees with its downsample, or is so small
    that the rounding of its size leaves the scale open.
    """
    fine = [
        level
        for level, scale in enumerate(slide.downsamples)
        if scale <= downsample * (1 + LEVEL_SLACK)
        and all(
            abs(possible / scale - 1) <= MOST_ERROR
            for axis in possible_scales(slide, level)
            for possible in axis
        )
    ]
    return max(fine, key=lambda level: slide.downsamples[level], default=0)


def possible_scales(slide: Slide, level: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """True level-0 px per px of a level, in x and in y, as far as its size tells.

    A level may show the whole slide, so that its scale is the ratio of the sizes; or every px of
    it may be a whole number of px, and its size the quotient rounded to one px or the next.
    """
    x, y = (
        _possible(full, size)
        for full, size in zip(slide.size, slide.level_sizes[level], strict=True)
    )
    return x, y


def _possible(full: int, size: int) -> tuple[float, ...]:
    ratio, whole = full / size, max(1, round(full / size))
    return (ratio, float(whole)) if abs(size - full / whole) <= 1 else (ratio,)
