"""Which patches of a slide hold tissue, and reading them: in order, in threads, exactly."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsizoo.errors import DataError, SlideError
from wsizoo.slides.grid import Cells, PatchGrid
from wsizoo.slides.reader import Pixels, Slide
from wsizoo.slides.sampling import Certificate, Sampling, certify
from wsizoo.slides.tissue import TissueMask

__all__ = [
    "Cells",
    "Certificate",
    "PatchBatch",
    "PatchGrid",
    "certify",
    "read_batches",
    "tissue_beyond",
    "tissue_cells",
]

MIN_TISSUE = 0.5  # share of a patch that must be tissue
MIN_TISSUE_SPARSE = 0.1  # the same for slides with less than SPARSE of tissue: biopsies, cytology
SPARSE = 0.01
CELLS_AT_ONCE = 2**16  # whose tissue is measured at once, in about 10 MB
SUBPIXEL = 4096  # patches begin at multiples of 1 / SUBPIXEL px of the level they are read from
RUN_PIXELS = 2**18  # level px decoded at once; longer runs leave the processor's cache

WhyNot: TypeAlias = list[str | None]  # a patch of a run; None: it was decoded

log = logging.getLogger(__name__)


def tissue_cells(
    slide: Slide, grid: PatchGrid, tissue: TissueMask, min_tissue: float | None = None
) -> Cells:
    """Cells that hold enough tissue, (N, 2) int64, row by row.

    Args:
        min_tissue: share of a patch; default 0.5, or 0.1 on slides with less than 1 % tissue.

    Raises:
        SlideError: no cell does.

    Cost: about 0.1 us a cell of the grid, and 10 MB beside the result.
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
    kept, fullest = [], 0.0
    for top, share in _shares(slide, grid, tissue):
        rows, columns = np.nonzero(share >= min_tissue)
        kept.append(np.stack([columns, rows + top], 1))
        fullest = max(fullest, float(share.max()))
    cells = np.concatenate(kept).astype(np.int64, copy=False)
    if len(cells) == 0:
        why = "blank, or too pale" if tissue.colour else "a grey image: tissue is found by colour"
        hint = (
            f"the fullest one holds {fullest * 100:.3g} %. Take patches with less: --min-tissue "
            f"{np.floor(fullest * 1000) / 1000:g}"
            if fullest >= 0.001
            else f"none was found at all ({why}). Take every patch: --min-tissue 0"
        )
        raise SlideError(f"{slide.path}: no patch holds {min_tissue * 100:g} % tissue; {hint}")
    return cells


def tissue_beyond(slide: Slide, grid: PatchGrid, tissue: TissueMask) -> float:
    """Share of the tissue at the right and bottom edge, where the grid has no cell, 0 to 1."""
    last = np.array([grid.columns, grid.rows]) - 1
    ends = np.minimum(last * grid.spacing + grid.footprint, slide.size)  # level-0 px
    x, y = ends / slide.size * tissue.mask.shape[::-1]  # mask px
    on_grid = tissue.share([0], [0], [x], [y], downsample=1)[0] * x * y
    found = int(tissue.mask.sum())
    return 1 - float(on_grid) / found if found else 0.0


def _shares(
    slide: Slide, grid: PatchGrid, tissue: TissueMask
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Rows of the grid, as many as are measured at once: the first, and shares of tissue (r, c)."""
    to_mask = np.divide(tissue.mask.shape[::-1], slide.size)  # mask px per level-0 px, (x, y)
    left, right = (
        (np.arange(grid.columns) * grid.spacing + edge) * to_mask[0] for edge in (0, grid.footprint)
    )
    step = max(1, CELLS_AT_ONCE // grid.columns)
    for top in range(0, grid.rows, step):
        rows = np.arange(top, min(top + step, grid.rows))[:, None]
        above, below = ((rows * grid.spacing + edge) * to_mask[1] for edge in (0, grid.footprint))
        yield top, tissue.share(left, above, right, below, downsample=1)


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """Some cells of a list, as far as they could be decoded.

    Args:
        first, count: the batch covers cells[first:first + count].
        index: (n,) int64, ascending: rows of the list that were decoded; the others were not.
        pixels: (n, patch_size, patch_size, 3) uint8, in the order of `index`.
        why_not: why the first of the others could not be decoded; None where there are none.
    """

    first: int
    count: int
    index: NDArray[np.int64]
    pixels: Pixels
    why_not: str | None = None


def read_batches(
    slide: Slide,
    grid: PatchGrid,
    cells: Cells,
    batch_size: int,
    threads: int = 2,
    start: int = 0,
) -> Generator[PatchBatch, None, None]:
    """Read patches in order: cells[start:start + batch_size] and so on; the last may be shorter.

    Each is resampled once, from the best level (`Sampling`). What a patch shows depends on its cell
    only, bit for bit: not on its batch, its neighbours, the threads or where reading starts. A
    patch whose region cannot be decoded is left out; its pixels are never made up.

    Args:
        cells: (N, 2) int64. Neighbours along a row, as `tissue_cells` lists them, are read at once.
        threads: that decode ahead of the caller; below 2 the caller's own does it all.
        start: row of `cells` to begin at, 0 to N.

    Raises:
        DataError: at once, for a batch_size, threads or start that cannot be.
        What reading a region raises, unless it is a SlideError. When this iterator ends, by an
        error, by `close()` or because all is read, its threads have ended too.

    Cost: decoding, and for a patch of 448 px of a level 1 ms to resample it to 224 px. In memory
    beside the caller's batch: two batches more and, a thread, the patches of one run and its
    decoded px, RUN_PIXELS of 12 bytes or one patch's if that has more.
    """
    if batch_size < 1 or threads < 0 or not 0 <= start <= len(cells):
        raise DataError(
            f"batch_size {batch_size}, threads {threads}, start {start}: expected 1 or more, 0 or "
            f"more, and 0 to {len(cells)}, the number of cells"
        )
    reader = _Reader(slide, grid, Sampling.of(slide, grid), cells, batch_size)
    firsts = range(start, len(cells), batch_size)
    return _read_ahead(reader, firsts, threads) if threads > 1 else _read_here(reader, firsts)


def _read_here(reader: _Reader, firsts: range) -> Generator[PatchBatch, None, None]:
    for first in firsts:
        pixels, runs = reader.begin(first)
        yield _finish(first, pixels, [run() for run in runs])


def _read_ahead(reader: _Reader, firsts: range, threads: int) -> Generator[PatchBatch, None, None]:
    """Keep the threads busy with the batches after the one that the caller waits for."""
    ahead = math.ceil(threads * reader.longest / reader.batch_size)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="patches")
    begun: deque[tuple[int, Pixels, list[Future[WhyNot]]]] = deque()
    try:
        for first in firsts:
            pixels, runs = reader.begin(first)
            begun.append((first, pixels, [pool.submit(run) for run in runs]))
            if len(begun) > ahead:
                yield _wait(*begun.popleft())
        while begun:
            yield _wait(*begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(first: int, pixels: Pixels, runs: list[Future[WhyNot]]) -> PatchBatch:
    return _finish(first, pixels, [run.result() for run in runs])


def _finish(first: int, pixels: Pixels, found: list[WhyNot]) -> PatchBatch:
    why_not = [reason for run in found for reason in run]
    decoded = np.array([reason is None for reason in why_not])
    index = first + np.flatnonzero(decoded)
    reason = next((reason for reason in why_not if reason is not None), None)
    kept = pixels if reason is None else pixels[decoded]
    return PatchBatch(first, len(pixels), index, kept, reason)


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads runs, that is neighbours along a row, into their places in a batch."""

    slide: Slide
    grid: PatchGrid
    sampling: Sampling
    cells: Cells
    batch_size: int

    @property
    def longest(self) -> int:
        """Patches of a run."""
        if not self.sampling.scale.is_integer():
            return 1  # the reader's shift would depend on where a run begins
        return max(1, int(RUN_PIXELS / max(1.0, self.sampling.edge**2)))

    def begin(self, first: int) -> tuple[Pixels, list[Callable[[], WhyNot]]]:
        """Room for the patches of a batch, and what is to be called to fill it, in any order."""
        cells = self.cells[first : first + self.batch_size]
        pixels = np.empty((len(cells), self.grid.patch_size, self.grid.patch_size, 3), np.uint8)
        runs = _runs(cells, self.longest, self.grid.beyond(cells))
        return pixels, [partial(self.fill, cells[run], pixels[run]) for run in runs]

    def fill(self, cells: Cells, pixels: Pixels) -> WhyNot:
        """Read a run; patch by patch, if it cannot be read at once."""
        try:
            self._read(cells, pixels)
        except SlideError as error:
            if len(cells) == 1:
                log.debug("%s: cell %s is left out: %s", self.slide.path, cells[0], error)
                return [str(error)]
        else:
            return [None] * len(cells)
        single = [slice(i, i + 1) for i in range(len(cells))]
        return [reason for one in single for reason in self.fill(cells[one], pixels[one])]

    def _read(self, cells: Cells, pixels: Pixels) -> None:
        taken, size = self.sampling, self.grid.patch_size
        reach = math.ceil(max(1.0, taken.edge / size / 2)) + 1  # of the filter, out of a patch
        margin = 0 if taken.as_is else reach
        corners = taken.corners(self.grid, cells)
        (x, y), edge = corners[0], taken.edge * taken.scale
        width = corners[-1, 0] - x + edge
        white = bool(self.grid.beyond(cells).any())
        strip, left, top = self.slide.read(x, y, width, edge, taken.level, margin, white)
        for place, at in zip(pixels, left + (corners[:, 0] - x) / taken.scale, strict=True):
            if taken.as_is:
                place[...] = strip[round(top) :, round(at) :][:size, :size]
            else:
                place[...] = _resample(strip, at, top, taken.edge, size, margin)


def _runs(cells: Cells, longest: int, alone: NDArray[np.bool_]) -> list[slice]:
    """Where in `cells` neighbours along a row follow one another; some (N,) bool stay alone."""
    (across, down), n = np.diff(cells, axis=0).T, len(cells)
    apart = (across != 1) | (down != 0) | alone[1:] | alone[:-1]
    ends = [*(np.flatnonzero(apart) + 1).tolist(), n]
    return [
        slice(i, min(i + longest, end))
        for first, end in pairwise([0, *ends])
        for i in range(first, end, longest)
    ]


def _resample(strip: Pixels, x: float, y: float, edge: float, size: int, margin: int) -> Pixels:
    """One square at fractional px, resampled to size x size.

    Pillow keeps a box in single precision, so it is given a window around the square: what it
    computes is then the same wherever in a strip the square lies.
    """
    x, y = (round(at * SUBPIXEL) / SUBPIXEL for at in (x, y))
    left, top = (max(0, math.floor(at) - margin) for at in (x, y))
    right, bottom = (math.ceil(at + edge) + margin for at in (x, y))
    window = Image.fromarray(np.ascontiguousarray(strip[top:bottom, left:right]))
    x, y = x - left, y - top
    box = (x, y, min(x + edge, window.width), min(y + edge, window.height))  # up to rounding
    return np.asarray(window.resize((size, size), Image.Resampling.BILINEAR, box))
