"""Patches on one global grid a slide, whose step is exact in microns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsizoo.errors import ScaleError, SlideError
from wsizoo.slides.reader import ROUNDING, Pixels, Slide
from wsizoo.slides.tissue import TissueMask

Cells = NDArray[np.int64]
MIN_TISSUE = 0.5  # share of a patch that must be tissue
MIN_TISSUE_SPARSE = 0.1  # the same for slides with less than SPARSE of tissue: biopsies, cytology
SPARSE = 0.01
MAX_ENLARGEMENT = 2.2  # a 20x scan under a 40x encoder is blurred, but used; a 10x one is no use
SUBPIXEL = 4096  # patches begin at multiples of 1 / SUBPIXEL px of the level they are read from
RUN_PIXELS = 2**24  # level px decoded at once, about 64 MB


@dataclass(frozen=True)
class PatchGrid:
    """The grid of a slide: cell (i, j) begins at (i, j) * spacing, level-0 px, from (0, 0).

    Args:
        mpp: um/px of a patch. patch_size: its edge in px at that scale.
        footprint: its edge in level-0 px (float, exact). spacing: step of the grid (float).
        columns, rows: cells that lie wholly inside the slide.
    """

    mpp: float
    patch_size: int
    footprint: float
    spacing: float
    columns: int
    rows: int

    @classmethod
    def of(cls, slide: Slide, mpp: float, patch_size: int, overlap: float = 0.0) -> PatchGrid:
        """Lay the grid.

        Args:
            overlap: share of a patch's edge that its neighbour covers too, in [0, 1).

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
        fits = [int((edge - footprint) / spacing + ROUNDING) + 1 for edge in slide.size]
        if any(edge < footprint - ROUNDING for edge in slide.size):
            width, height = (edge * slide.mpp for edge in slide.size)
            raise SlideError(
                f"{slide.path} is {width:.0f} x {height:.0f} um, smaller than one patch of "
                f"{patch_size * mpp:.0f} um"
            )
        return cls(mpp, patch_size, footprint, spacing, fits[0], fits[1])

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


def tissue_cells(
    slide: Slide, grid: PatchGrid, tissue: TissueMask, min_tissue: float | None = None
) -> Cells:
    """Cells that hold enough tissue, (N, 2) int64, row by row.

    Args:
        min_tissue: share of a patch; default 0.5, or 0.1 on slides with less than 1 % tissue.

    Raises:
        SlideError: no cell does.
    """
    if not tissue.brightfield:
        raise SlideError(
            f"{slide.path} is dark, so no brightfield slide (fluorescence?): tissue is found on "
            "light backgrounds only"
        )
    if min_tissue is None:
        min_tissue = MIN_TISSUE_SPARSE if tissue.fraction < SPARSE else MIN_TISSUE
    if not 0 <= min_tissue <= 1:
        raise SlideError(f"min_tissue is {min_tissue}, expected a share of a patch, 0 to 1")
    cells = grid.all_cells()
    to_mask = np.divide(tissue.mask.shape[::-1], slide.size)  # mask px per level-0 px, (x, y)
    low, high = grid.corners(cells) * to_mask, (grid.corners(cells) + grid.footprint) * to_mask
    share = tissue.share(low[:, 0], low[:, 1], high[:, 0], high[:, 1], downsample=1)
    kept = cells[share >= min_tissue]
    if len(kept) == 0:
        fullest = float(share.max())
        hint = (
            f"the fullest one holds {fullest * 100:.3g} %. Take patches with less: --min-tissue "
            f"{np.floor(fullest * 1000) / 1000:g}"
            if fullest >= 0.001
            else "none was found at all (blank, or too pale). Take every patch: --min-tissue 0"
        )
        raise SlideError(f"{slide.path}: no patch holds {min_tissue * 100:g} % tissue; {hint}")
    return kept


def read_patches(slide: Slide, grid: PatchGrid, cells: Cells) -> Iterator[tuple[int, Pixels]]:
    """Read cells in order, run by run along a row, each resampled once from the best level.

    What a patch shows depends on its cell only, not on which others are read with it.

    Yields:
        (first, patches): `patches` (n, patch_size, patch_size, 3) uint8 of cells[first:first + n].
    """
    level = slide.level_for(grid.footprint / grid.patch_size)
    scale = slide.downsamples[level]
    edge = grid.footprint / scale  # px of that level, fractional
    margin = math.ceil(edge / grid.patch_size) + 1  # how far the filter reaches out of a patch
    longest = max(1, int(RUN_PIXELS / max(1.0, edge * edge)))
    if not scale.is_integer():  # the reader's shift would depend on where a run begins
        longest = 1
    first = 0
    while first < len(cells):
        last = first + 1
        while (
            last < len(cells)
            and last - first < longest
            and cells[last, 1] == cells[first, 1]
            and cells[last, 0] == cells[last - 1, 0] + 1
        ):
            last += 1
        corners = grid.corners(cells[first:last])
        width = corners[-1, 0] - corners[0, 0] + grid.footprint
        x, y = corners[0]
        strip, left, top = slide.read(x, y, width, grid.footprint, level, margin)
        offsets = left + (corners[:, 0] - x) / scale
        cut = [_cut(strip, at, top, edge, grid.patch_size, margin) for at in offsets]
        yield first, np.stack(cut)
        first = last


def _cut(strip: Pixels, x: float, y: float, edge: float, size: int, margin: int) -> Pixels:
    """One square at fractional px, resampled to size x size; the very pixels where it is 1:1.

    Pillow keeps a box in single precision, so it is given a window around the square: what it
    computes is then the same wherever in a strip the square lies.
    """
    if max(abs(edge - size), abs(x - round(x)), abs(y - round(y))) < ROUNDING:
        left, top = round(x), round(y)
        return strip[top : top + size, left : left + size]
    left, top = (max(0, math.floor(at) - margin) for at in (x, y))
    right, bottom = (math.ceil(at + edge) + margin for at in (x, y))
    window = Image.fromarray(np.ascontiguousarray(strip[top:bottom, left:right]))
    x, y = (round((at - low) * SUBPIXEL) / SUBPIXEL for at, low in ((x, left), (y, top)))
    box = (x, y, min(x + edge, window.width), min(y + edge, window.height))  # up to rounding
    return np.asarray(window.resize((size, size), Image.Resampling.BILINEAR, box))


# STUB of the patches branch
@dataclass(frozen=True)
class PatchBatch:
    first: int
    count: int
    index: NDArray[np.int64]
    pixels: Pixels


def read_batches(slide, grid, cells, batch_size, threads=2, start=0):
    for first in range(start, len(cells), batch_size):
        chosen = cells[first : first + batch_size]
        index, got = [], []
        for i in range(len(chosen)):
            try:
                got.append(next(read_patches(slide, grid, chosen[i : i + 1]))[1])
                index.append(first + i)
            except SlideError:
                pass
        pixels = (
            np.concatenate(got)
            if got
            else np.empty((0, grid.patch_size, grid.patch_size, 3), np.uint8)
        )
        yield PatchBatch(first, len(chosen), np.array(index, np.int64), pixels)


@dataclass(frozen=True)
class Certificate:
    asked_mpp: float
    realised_mpp: float
    error: float
    level: int
    downsample: float
    resampled: bool


def certify(slide, grid):
    return Certificate(grid.mpp, grid.mpp, 0.0, 0, 1.0, False)
