"""Opening a slide and reading regions of it, with microns per pixel that can be trusted."""

from __future__ import annotations

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
LEVEL_SLACK = 1e-3  # a level this much too coarse still serves: 3.9998 is 4


class Slide:
    """One open slide. Use `open_slide`, and `with`.

    Attributes:
        slide_id: file name without its last suffix. size: (width, height) at level 0.
        mpp: um per level-0 px. mpp_source: where that number comes from.
        downsamples: level-0 px per px of each level, as OpenSlide maps them.
    """

    def __init__(self, path: Path, handle: Any, mpp: float | None) -> None:
        self.path = path
        self.slide_id = path.stem
        self._handle = handle
        self.size: tuple[int, int] = handle.dimensions
        self.downsamples: tuple[float, ...] = handle.level_downsamples
        self.mpp, self.mpp_source = _resolve_mpp(path, handle.properties, mpp)
        self.quickhash: str = handle.properties.get("openslide.quickhash-1") or ""

    def read(
        self, x: float, y: float, width: float, height: float, level: int
    ) -> tuple[Pixels, float, float]:
        """Whole pixels of a level that cover a rectangle.

        Args:
            x, y, width, height: level-0 px, fractional allowed.

        Returns:
            Pixels (h, w, 3), and where (x, y) lies in them: fractional px of that level.

        Raises:
            SlideError: the region cannot be decoded.
        """
        scale = self.downsamples[level]
        left, top = int(np.floor(x / scale)), int(np.floor(y / scale))
        right, bottom = np.ceil((x + width) / scale) + 1, np.ceil((y + height) / scale) + 1
        origin = (round(left * scale), round(top * scale))
        size = (int(right) - left, int(bottom) - top)
        pixels = self._region(origin, level, size)
        return pixels, (x - origin[0]) / scale, (y - origin[1]) / scale

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is not coarser than wanted (up to rounding of its size)."""
        fine = [i for i, d in enumerate(self.downsamples) if d <= downsample * (1 + LEVEL_SLACK)]
        return max(fine, key=lambda i: self.downsamples[i]) if fine else 0

    def image(self, downsample: float) -> tuple[Pixels, float]:
        """The whole slide, box-averaged to about this downsample, and the exact downsample."""
        width, height = self.size
        level = self.level_for(downsample)
        columns = max(1, round(width / downsample))
        rows = max(1, round(height / downsample))
        strips = []
        step = max(1, int(2**24 // (columns * (downsample / self.downsamples[level]) ** 2)))  # rows
        for top in range(0, rows, step):
            count = min(step, rows - top)
            y, span = top * height / rows, count * height / rows
            pixels, left, above = self.read(0, y, width, span, level)
            scale = self.downsamples[level]
            box = (left, above, left + width / scale, above + span / scale)
            box = (box[0], box[1], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
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
        if rgba.getextrema()[3][0] == 255:
            return np.asarray(rgba.convert("RGB"))
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))

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
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path} is in no format OpenSlide reads (svs, ndpi, mrxs, dcm, pyramidal tiff, ...), "
            "or it is not a slide"
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path} cannot be opened: {error}") from error
    try:
        return Slide(path, handle, mpp)
    except BaseException:
        handle.close()
        raise


def _resolve_mpp(path: Path, properties: Any, given: float | None) -> tuple[float, str]:
    """um per level-0 px and where it comes from. Raises ScaleError."""
    low, high = PLAUSIBLE_MPP
    if given is not None:
        if not low <= given <= high:
            raise ScaleError(f"{path}: --mpp {given} is outside {low} to {high} um/px")
        return given, "user"
    stated = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    advice = "If you know the scanner's, state it: --mpp 0.25 (40x) or --mpp 0.5 (20x)"
    try:
        x, y = (float(value) for value in stated)
    except (TypeError, ValueError):
        raise ScaleError(f"{path} states no microns per pixel. {advice}") from None
    if not (low <= x <= high and low <= y <= high):
        raise ScaleError(
            f"{path} states {x:.4g} microns per pixel, outside {low} to {high}: often the resolution "
            f"of a screen, not of a microscope. {advice}"
        )
    if abs(x - y) > ANISOTROPY * x:
        raise ScaleError(f"{path} states {x:.4g} um/px in x and {y:.4g} in y. {advice}")
    return (x + y) / 2, "file"
