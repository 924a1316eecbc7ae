"""Patches on one global grid a slide, whose step is exact in microns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsizoo.errors import SlideError
from wsizoo.slides.reader import Pixels, Slide
from wsizoo.slides.tissue import TissueMask, segment

Cells = NDArray[np.int64]
TISSUE_MPP = 8.0  # um/px of the image that tissue is found on
MIN_TISSUE = 0.5  # share of a patch that must be tissue
MIN_TISSUE_SPARSE = 0.1  # the same for slides with less than SPARSE of tissue: biopsies, cytology
SPARSE = 0.01
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
        """
        if not 0 <= overlap < 1 or patch_size < 1 or mpp <= 0:
            raise SlideError(
                f"patches of {patch_size} px at {mpp} um/px with overlap {overlap}: expected a "
                "positive size and scale, and an overlap in [0, 1)"
            )
        footprint = patch_size * mpp / slide.mpp
        spacing = footprint * (1 - overlap)
        fits = [int((edge - footprint) / spacing + 1e-6) + 1 for edge in slide.size]
        if any(edge < footprint - 1e-6 for edge in slide.size):
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


def find_tissue(slide: Slide) -> TissueMask:
    """The tissue of a slide on an image of about 8 um/px; deterministic."""
    image, downsample = slide.image(max(1.0, TISSUE_MPP / slide.mpp))
    return segment(image, mpp=downsample * slide.mpp)


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
        raise SlideError(f"{slide.path} is dark: not a brightfield slide (fluorescence?)")
    if min_tissue is None:
        min_tissue = MIN_TISSUE_SPARSE if tissue.fraction < SPARSE else MIN_TISSUE
    cells = grid.all_cells()
    corner = grid.corners(cells)
    share = tissue.share(
        corner[:, 0],
        corner[:, 1],
        corner[:, 0] + grid.footprint,
        corner[:, 1] + grid.footprint,
        tissue.mpp / slide.mpp,
    )
    kept = cells[share >= min_tissue]
    if len(kept) == 0:
        raise SlideError(
            f"{slide.path}: no patch holds {min_tissue:.0%} tissue (tissue found: "
            f"{tissue.fraction:.2%} of the slide). Take patches with less: --min-tissue 0.05"
        )
    return kept


def read_patches(slide: Slide, grid: PatchGrid, cells: Cells) -> Iterator[tuple[int, Pixels]]:
    """Read cells in order, run by run along a row, each resampled once from the best level.

    Yields:
        (first, patches): `patches` (n, patch_size, patch_size, 3) uint8 of cells[first:first + n].
    """
    level = slide.level_for(grid.footprint / grid.patch_size)
    scale = slide.downsamples[level]
    edge = grid.footprint / scale  # px of that level, fractional
    longest = max(1, int(RUN_PIXELS / max(1.0, edge * edge)))
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
        strip, left, top = slide.read(corners[0, 0], corners[0, 1], width, grid.footprint, level)
        image = Image.fromarray(strip)
        offsets = left + (corners[:, 0] - corners[0, 0]) / scale
        yield first, np.stack([_cut(image, x, top, edge, grid.patch_size) for x in offsets])
        first = last


def _cut(image: Image.Image, x: float, y: float, edge: float, size: int) -> Pixels:
    """One square of an image at fractional px, resampled to size x size (exact where it is 1:1)."""
    if abs(edge - size) < 1e-6 and abs(x - round(x)) < 1e-6 and abs(y - round(y)) < 1e-6:
        left, top = round(x), round(y)
        return np.asarray(image.crop((left, top, left + size, top + size)))
    box = (max(0.0, x), max(0.0, y), min(x + edge, image.width), min(y + edge, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
