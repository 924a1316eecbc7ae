"""Opening a slide and reading regions of it, with microns per pixel that can be trusted."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsizoo.errors import SlideError
from wsizoo.slides.backends import Backend, check_size, open_backend, quickhash
from wsizoo.slides.scale import resolve_mpp

Pixels = NDArray[np.uint8]
STRIP_PIXELS = 2**22  # level px decoded at once, about 16 MB
ROUNDING = 1e-6  # px
WHITE = 255  # of what lies beyond a slide, where that is asked for
GAP, SMALLEST_GAP = 128, 16  # grey, and px of an image, of what cannot be decoded
HOPELESS = 200  # parts of a slide that were tried in vain before it is given up
LEVEL_SLACK = 1e-3  # a level this much too coarse still serves: 3.9998 is 4


class Slide:
    """One open slide. Use `open_slide`, and `with`. Threads may read from it at once.

    Attributes:
        slide_id: file name without its last suffix. size: (width, height) at level 0.
        mpp: um per level-0 px. mpp_source: what says so, see `wsizoo.slides.scale`.
        mpp_xy: the same along x and along y, which may differ by a little; `mpp` is their mean.
        downsamples: level-0 px per px of each level, as its reader maps them.
        level_sizes: (width, height) of each level in its own px.
        reader: what decodes it: "openslide", "tifffile" or "pillow". format: vendor or file type.
        quickhash: 64 hex digits, the same wherever the file lies.
    """

    def __init__(
        self, path: Path, handle: Backend, mpp: float | None, listed_mpp: float | None = None
    ) -> None:
        self.path = path
        self.slide_id = path.stem
        self._handle, self._closed = handle, False
        self.reader, self.format = handle.reader, handle.format
        self.size: tuple[int, int] = handle.dimensions
        self.downsamples: tuple[float, ...] = handle.level_downsamples
        self.level_sizes: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.mpp_xy, self.mpp_source = resolve_mpp(path, handle.properties, mpp, listed_mpp)
        self.mpp = sum(self.mpp_xy) / 2
        self.quickhash: str = quickhash(path, handle)

    def read(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        level: int,
        margin: int = 0,
        white: bool = False,
    ) -> tuple[Pixels, float, float]:
        """Whole pixels of a level that cover a rectangle, and more around it.

        Nothing outside the slide is read; what the rectangle covers beyond it repeats the edge, or
        is white.

        Args:
            x, y, width, height: level-0 px, fractional allowed.
            margin: px of the level on each side, as far as the slide has them.

        Returns:
            Pixels (h, w, 3), and where (x, y) lies in them: fractional px of that level.

        Raises:
            SlideError: the region cannot be decoded; others still can.

        Differs: where `downsample * px` is no whole number, OpenSlide, which takes whole level-0
        px only, shifts the image by a fraction of a px; that shift is in the returned position.
        """
        scale, whole = self.downsamples[level], self._handle.whole_pixels
        columns, rows = self.level_sizes[level]
        across = _span(x / scale, width / scale, columns, scale, margin, whole)
        down = _span(y / scale, height / scale, rows, scale, margin, whole)
        pixels = self._region((across.origin, down.origin), level, (across.count, down.count))
        if across.missing or down.missing:
            beyond = ((0, down.missing), (0, across.missing), (0, 0))
            more: dict[str, Any] = {"mode": "edge"} if not white else {"constant_values": WHITE}
            pixels = np.pad(pixels, beyond, **more)
        return pixels, across.offset, down.offset

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is not coarser than wanted (up to rounding of its size)."""
        fine = [i for i, d in enumerate(self.downsamples) if d <= downsample * (1 + LEVEL_SLACK)]
        return max(fine, key=lambda i: self.downsamples[i]) if fine else 0

    def image(self, downsample: float) -> tuple[Pixels, float]:
        """The whole slide, box-averaged to about this downsample, and the exact downsample in x.

        In y it is `height / rows` of the image: both sizes are whole numbers. What cannot be
        decoded is grey; `image_and_gaps` says where.
        """
        pixels, _, downsample = self.image_and_gaps(downsample)
        return pixels, downsample

    def image_and_gaps(self, downsample: float) -> tuple[Pixels, NDArray[np.bool_], float]:
        """As `image`, with (h, w) bool between: True where the slide cannot be decoded.

        Raises:
            SlideError: it cannot be decoded anywhere.
        """
        width, height = self.size
        level = self.level_for(downsample)
        columns = max(1, round(width / downsample))
        rows = max(1, round(height / downsample))
        pixels = np.full((rows, columns, 3), GAP, np.uint8)
        gaps = np.zeros((rows, columns), bool)
        shrink = downsample / self.downsamples[level]
        step = max(1, int(STRIP_PIXELS / (columns * shrink**2)))  # rows
        waiting = [(0, top, columns, min(step, rows - top)) for top in range(0, rows, step)]
        hopeless = True
        for tried, (left, top, across, down) in enumerate(waiting, 1):
            where = np.s_[top : top + down, left : left + across]
            try:
                pixels[where] = self._averaged((left, top, across, down), (columns, rows), level)
                hopeless = False
            except SlideError:
                if max(across, down) > SMALLEST_GAP:
                    waiting += _halves(left, top, across, down)
                else:
                    gaps[where] = True
                if hopeless and tried >= min(HOPELESS, len(waiting)):
                    raise
        return pixels, gaps, width / columns

    def _averaged(
        self, part: tuple[int, int, int, int], image: tuple[int, int], level: int
    ) -> Pixels:
        """Part (left, top, columns, rows) of an image of the whole slide. Raises SlideError."""
        left, top, across, down = part
        step_x, step_y = self.size[0] / image[0], self.size[1] / image[1]  # level-0 px
        width, height = across * step_x, down * step_y
        pixels, x, y = self.read(left * step_x, top * step_y, width, height, level)
        scale = self.downsamples[level]
        box = (x, y, x + width / scale, y + height / scale)
        picture = Image.fromarray(pixels).resize((across, down), Image.Resampling.BOX, box)
        return np.asarray(picture)

    def thumbnail(self, edge: int = 1024) -> tuple[Pixels, float]:
        """The slide with its longer edge at most `edge` px, and the downsample of that image."""
        return self.image(max(1.0, max(self.size) / edge))

    def _region(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        if self._closed:
            raise SlideError(f"{self.path} was closed, so nothing more can be read of it")
        try:
            return self._handle.read_region(origin, level, size)
        except OSError as error:
            raise SlideError(
                f"{self.path}: the region at {origin}, level {level}, {size[0]} x {size[1]} px "
                f"cannot be read: {error}. The file is damaged; copy it again from its source"
            ) from error

    def close(self) -> None:
        self._closed = True
        self._handle.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _halves(left: int, top: int, across: int, down: int) -> list[tuple[int, int, int, int]]:
    if across >= down:
        half = across // 2
        return [(left, top, half, down), (left + half, top, across - half, down)]
    half = down // 2
    return [(left, top, across, half), (left, top + half, across, down - half)]


@dataclass(frozen=True)
class _Span:
    """One axis of a region: where it begins, what there is of it, and where the wanted px lie."""

    origin: int  # level-0 px
    count: int  # px of the level that are read
    missing: int  # px of the level beyond the slide's edge
    offset: float  # of the wanted first px, in the px that were read


def _span(
    low: float, length: float, size: int, scale: float, margin: int, whole_pixels: bool
) -> _Span:
    """Whole px around [low, low + length) on an axis of `size` px; all px of the level."""
    first = min(max(0, math.floor(low) - margin), size - 1)
    if first > 0 and not whole_pixels and round(first * scale) / scale > low:
        first -= 1
    origin = round(first * scale)
    # OpenSlide's first px begins at `origin`, up to half a level-0 px off `first`.
    start = first if whole_pixels else origin / scale
    needed = math.ceil((low - start) + length)
    count = max(1, min(needed + margin, math.floor(size - start + ROUNDING)))
    return _Span(origin, count, max(0, needed - count), low - start)


def open_slide(
    path: Path | str, mpp: float | None = None, listed_mpp: float | None = None
) -> Slide:
    """Open a slide with what reads it: OpenSlide, else tifffile, else, a plain image, Pillow.

    Args:
        mpp: um per level-0 px; overrides what the file and a manifest state.
        listed_mpp: the same, of a manifest; overrides what the file states.

    Raises:
        SlideError: no such file, a folder, or nothing that can be read as one slide.
        ScaleError: no microns per pixel, or impossible ones.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise SlideError(f"{path} is {kind}, expected a slide file")
    if not os.access(path, os.R_OK):
        raise SlideError(f"{path} may not be read by this user: chmod u+r, or ask its owner")
    handle = open_backend(path)
    try:
        check_size(path, handle)
        return Slide(path, handle, mpp, listed_mpp)
    except BaseException:
        handle.close()
        raise
