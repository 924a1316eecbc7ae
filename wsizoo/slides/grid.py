"""The one grid that all patches of a slide lie on; its step is exact in microns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsizoo.errors import ScaleError, SlideError
from wsizoo.slides.reader import ROUNDING, Slide

Cells = NDArray[np.int64]
MAX_ENLARGEMENT = 2.2  # a 20x scan under a 40x encoder is blurred, but used; a 10x one is no use


@dataclass(frozen=True)
class PatchGrid:
    """The grid of a slide: cell (i, j) begins at (i, j) * spacing, level-0 px, from (0, 0).

    Args:
        mpp: um/px of a patch. patch_size: its edge in px at that scale.
        footprint: its edge in level-0 px (float, exact). spacing: step of the grid (float).
        columns, rows: cells, all of which lie wholly inside the slide unless `padded`.
        whole: (columns, rows) of those that do.
    """

    mpp: float
    patch_size: int
    footprint: float
    spacing: float
    columns: int
    rows: int
    whole: tuple[int, int]

    @classmethod
    def of(
        cls,
        slide: Slide,
        mpp: float,
        patch_size: int,
        overlap: float = 0.0,
        padded: bool = False,
    ) -> PatchGrid:
        """Lay the grid.

        Args:
            overlap: share of a patch's edge that its neighbour covers too, in [0, 1).
            padded: also cells that reach beyond the right and bottom edge, as many as cover all.

        Raises:
            SlideError: the slide is smaller than one patch, or an argument is out of range.
            ScaleError: the slide was scanned too coarsely for these patches.
        """
        _check_scale(slide, mpp, patch_size, overlap)
        footprint = patch_size * mpp / slide.mpp
        spacing = footprint * (1 - overlap)
        if spacing < 1:
            raise SlideError(
                f"patches of {patch_size} px with overlap {overlap} would lie {spacing:.3g} px of "
                f"{slide.path} apart, expected 1 at least. Choose a smaller --overlap"
            )
        steps = [(edge - footprint) / spacing for edge in slide.size]
        columns, rows = (max(0, math.floor(step + ROUNDING) + 1) for step in steps)
        if padded:
            across, down = (max(0, math.ceil(step - ROUNDING)) + 1 for step in steps)
            return cls(mpp, patch_size, footprint, spacing, across, down, (columns, rows))
        if any(edge < footprint - ROUNDING for edge in slide.size):
            width, height = (edge * slide.mpp for edge in slide.size)
            raise SlideError(
                f"{slide.path} is {width:.0f} x {height:.0f} um, smaller than one patch of "
                f"{patch_size * mpp:.0f} um. Take it with white around it: --pad"
            )
        return cls(mpp, patch_size, footprint, spacing, columns, rows, (columns, rows))

    def beyond(self, cells: Cells) -> NDArray[np.bool_]:
        """(N,) True for cells that reach beyond the right or bottom edge of the slide."""
        return np.asarray((cells >= self.whole).any(1))

    def corners(self, cells: Cells) -> NDArray[np.float64]:
        """Exact top-left corners (N, 2), level-0 px."""
        return np.asarray(cells * self.spacing, np.float64)

    def coords(self, cells: Cells) -> Cells:
        """The corners rounded to whole level-0 px, (N, 2) int64, as stored and as in a Bag."""
        return np.rint(self.corners(cells)).astype(np.int64)

    def all_cells(self) -> Cells:
        """(columns * rows, 2), row by row."""
        y, x = np.divmod(np.arange(self.columns * self.rows), self.columns)
        return np.stack([x, y], 1).astype(np.int64)


def _check_scale(slide: Slide, mpp: float, patch_size: int, overlap: float) -> None:
    if not (0 <= overlap < 1 and patch_size >= 1 and 0 < mpp < float("inf")):
        raise SlideError(
            f"patches of {patch_size} px at {mpp} um/px with overlap {overlap}: expected a "
            "positive size and scale, and an overlap in [0, 1)"
        )
    if slide.mpp > MAX_ENLARGEMENT * mpp:
        raise ScaleError(
            f"{slide.path} was scanned at {slide.mpp:.4g} um/px, too coarse for patches at "
            f"{mpp:g} um/px: what they would show is not in it. Use an encoder of a coarser scale "
            "(wsizoo list --encoders), or state --patch-mpp"
        )
