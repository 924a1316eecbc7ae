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

from wsizoo.errors import ScaleError, SlideError

Pixels = NDArray[np.uint8]
PLAUSIBLE_MPP = (0.05, 20.0)  # um/px; a resolution tag of 72 or 96 dpi reads as 353 or 265
ANISOTROPY = 0.02  # relative difference of mpp in x and y that is still one number
STRIP_PIXELS = 2**24  # level px decoded at once, about 64 MB
ROUNDING = 1e-6  # px
DECODED_BYTES = 2**27  # of decoded pixels that OpenSlide keeps: two rows of tiles, 65,000 px wide
LEVEL_SLACK = 1e-3  # a level this much too coarse still serves: 3.9998 is 4


class Slide:
    """One open slide. Use `open_slide`, and `with`.

    Attributes:
        slide_id: file name without its last suffix. size: (width, height) at level 0.
        mpp: um per level-0 px. mpp_source: where that number comes from.
        mpp_xy: the same along x and along y, which may differ by ANISOTROPY; `mpp` is their mean.
        downsamples: level-0 px per px of each level, as OpenSlide maps them.
        level_sizes: (width, height) of each level in its own px.
    """

    def __init__(self, path: Path, handle: Any, mpp: float | None) -> None:
        self.path = path
        self.slide_id = path.stem
        self._handle = handle
        self.size: tuple[int, int] = handle.dimensions
        self.downsamples: tuple[float, ...] = handle.level_downsamples
        self.level_sizes: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.mpp_xy, self.mpp_source = _resolve_mpp(path, handle.properties, mpp)
        self.mpp = sum(self.mpp_xy) / 2
        self.quickhash: str = handle.properties.get("openslide.quickhash-1") or ""

    def read(
        self, x: float, y: float, width: float, height: float, level: int, margin: int = 0
    ) -> tuple[Pixels, float, float]:
        """Whole pixels of a level that cover a rectangle, and more around it.

        Nothing outside the slide is read; what the rectangle covers beyond it repeats the edge.

        Args:
            x, y, width, height: level-0 px, fractional allowed.
            margin: px of the level on each side, as far as the slide has them.

        Returns:
            Pixels (h, w, 3), and where (x, y) lies in them: fractional px of that level.

        Raises:
            SlideError: the region cannot be decoded.

        Differs: where `downsample * px` is no whole number, OpenSlide, which takes whole level-0
        px only, shifts the image by a fraction of a px; that shift is in the returned position.
        """
        scale = self.downsamples[level]
        across = _span(x / scale, width / scale, self.level_sizes[level][0], scale, margin)
        down = _span(y / scale, height / scale, self.level_sizes[level][1], scale, margin)
        pixels = self._region((across.origin, down.origin), level, (across.count, down.count))
        if across.missing or down.missing:
            pixels = np.pad(pixels, ((0, down.missing), (0, across.missing), (0, 0)), mode="edge")
        return pixels, across.offset, down.offset

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is not coarser than wanted (up to rounding of its size)."""
        fine = [i for i, d in enumerate(self.downsamples) if d <= downsample * (1 + LEVEL_SLACK)]
        return max(fine, key=lambda i: self.downsamples[i]) if fine else 0

    def image(self, downsample: float) -> tuple[Pixels, float]:
        """The whole slide, box-averaged to about this downsample, and the exact downsample in x.

        In y it is `height / rows` of the image: both sizes are whole numbers.
        """
        width, height = self.size
        level = self.level_for(downsample)
        columns = max(1, round(width / downsample))
        rows = max(1, round(height / downsample))
        strips = []
        shrink = downsample / self.downsamples[level]
        step = max(1, int(STRIP_PIXELS / (columns * shrink**2)))  # rows
        for top in range(0, rows, step):
            count = min(step, rows - top)
            y, span = top * height / rows, count * height / rows
            pixels, left, above = self.read(0, y, width, span, level)
            scale = self.downsamples[level]
            box = (left, above, left + width / scale, above + span / scale)
            image = Image.fromarray(pixels).resize((columns, count), Image.Resampling.BOX, box)
            strips.append(np.asarray(image))
        return np.concatenate(strips), width / columns

    def thumbnail(self, edge: int = 1024) -> tuple[Pixels, float]:
        """The slide with its longer edge at most `edge` px, and the downsample of that image."""
        return self.image(max(1.0, max(self.size) / edge))

    def _region(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        from openslide import OpenSlideError

        try:
            rgba = self._handle.read_region(origin, level, size)
        except OpenSlideError as error:
            raise SlideError(
                f"{self.path}: the region at {origin}, level {level}, {size[0]} x {size[1]} px "
                f"cannot be read: {error}. The file is damaged; copy it again from its source"
            ) from error
        # raw bytes: several times faster than getextrema and convert
        if np.frombuffer(rgba.tobytes("raw", "A"), np.uint8).min() < 255:
            rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        rgb = np.frombuffer(rgba.tobytes("raw", "RGB"), np.uint8)
        return rgb.reshape(size[1], size[0], 3)

    def close(self) -> None:
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


@dataclass(frozen=True)
class _Span:
    """One axis of a region: where it begins, what there is of it, and where the wanted px lie."""

    origin: int  # level-0 px
    count: int  # px of the level that are read
    missing: int  # px of the level beyond the slide's edge
    offset: float  # of the wanted first px, in the px that were read


def _span(low: float, length: float, size: int, scale: float, margin: int) -> _Span:
    """Whole px around [low, low + length) on an axis of `size` px; all px of the level."""
    first = min(max(0, math.floor(low) - margin), size - 1)
    if first > 0 and round(first * scale) / scale > low:
        first -= 1
    origin = round(first * scale)
    start = origin / scale  # OpenSlide's first px begins here, up to half a level-0 px off `first`
    needed = math.ceil((low - start) + length)
    count = max(1, min(needed + margin, math.floor(size - start + ROUNDING)))
    return _Span(origin, count, max(0, needed - count), low - start)


def open_slide(path: Path | str, mpp: float | None = None) -> Slide:
    """Open a slide with OpenSlide.

    Args:
        mpp: um per level-0 px; overrides what the file states.

    Raises:
        SlideError: no such file, a folder, or a format OpenSlide cannot read.
        ScaleError: no microns per pixel, or impossible ones.
    """
    import openslide

    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise SlideError(f"{path} is {kind}, expected a slide file")
    if not os.access(path, os.R_OK):
        raise SlideError(f"{path} may not be read by this user: chmod u+r, or ask its owner")
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path} is in no format OpenSlide reads (svs, ndpi, mrxs, dcm, pyramidal tiff, ...), "
            "or it is not a slide, or only a part of one"
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"{path} cannot be opened: {error}. If other viewers fail too, copy it again from its "
            "source; else convert it to a pyramidal tiff"
        ) from error
    try:
        handle.set_cache(openslide.OpenSlideCache(DECODED_BYTES))
        return Slide(path, handle, mpp)
    except BaseException:
        handle.close()
        raise


def check_mpp(mpp: float) -> None:
    """Raise ScaleError unless a scanner may have made it."""
    low, high = PLAUSIBLE_MPP
    if not low <= mpp <= high:
        raise ScaleError(
            f"--mpp {mpp:g} is outside {low:g} to {high:g}; expected microns per px of the scan, "
            "such as 0.25 (40x) or 0.5 (20x)"
        )


def _resolve_mpp(
    path: Path, properties: Any, given: float | None
) -> tuple[tuple[float, float], str]:
    """um per level-0 px, in x and y, and where they come from. Raises ScaleError."""
    low, high = PLAUSIBLE_MPP
    if given is not None:
        check_mpp(given)
        return (float(given), float(given)), "user"
    stated = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    advice = "If you know the scanner's, state it: --mpp 0.25 (40x) or --mpp 0.5 (20x)"
    try:
        x, y = (float(value) for value in stated)
    except (TypeError, ValueError):
        raise ScaleError(f"{path} states no microns per pixel. {advice}") from None
    if not (low <= x <= high and low <= y <= high):
        raise ScaleError(
            f"{path} states {x:.4g} x {y:.4g} microns per pixel, outside {low:g} to {high:g}: "
            f"often the resolution of a screen or of an overview, not of a scan. {advice}"
        )
    if abs(x - y) > ANISOTROPY * min(x, y):
        raise ScaleError(
            f"{path} states {x:.4g} um/px in x and {y:.4g} in y, expected square pixels. {advice}"
        )
    return (x, y), "file"
