"""Where on a slide there is tissue: a mask at about 8 um/px, and the share of it in any box.

A pixel counts by its optical density plus the spread of density over the channels, so that grey
dust and shadow lose to stain. Otsu's threshold of that score is confined to a narrow band: the
lower end keeps blank slides empty, the upper end keeps slides full of tissue whole. Pen is
recognised by colour and size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError

Mask: TypeAlias = NDArray[np.bool_]
Plane: TypeAlias = NDArray[np.float32]

MASK_MPP = 8.0  # um per px at which the sizes below were chosen
DARKEST_BRIGHTFIELD = 60  # median of the brightest channel; fluorescence and label masks are below
WHITE_PERCENTILE, DARKEST_WHITE = 99.0, 220.0
THRESHOLD_RANGE = (0.05, 0.15)
MIN_PEN, MIN_TISSUE, MAX_HOLE = 100, 50, 100  # px; smaller red spots are blood or nuclei, not pen
CLOSING_RADIUS = 2
_EIGHT = np.ones((3, 3), bool)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue of one slide.

    Args:
        mask: (h, w) bool, True where tissue is.
        mpp: microns per mask pixel.
        threshold: score above which a pixel is foreground; nan where the image is not brightfield.
        pen: (h, w) bool, True where pen was removed.
        brightfield: False for an image too dark to be a brightfield scan; its mask is empty.
    """

    mask: Mask
    mpp: float
    threshold: float
    pen: Mask
    brightfield: bool

    @property
    def fraction(self) -> float:
        """Share of the image that is tissue, 0 to 1."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        """(h + 1, w + 1): tissue pixels above and to the left of each pixel corner."""
        height, width = self.mask.shape
        table = np.zeros((height + 1, width + 1))
        table[1:, 1:] = self.mask.cumsum(0, dtype=np.int64).cumsum(1)
        return table

    def share(
        self, x0: ArrayLike, y0: ArrayLike, x1: ArrayLike, y1: ArrayLike, downsample: float
    ) -> NDArray[np.float64]:
        """Share of each box that is tissue; what lies outside the mask is not.

        Args:
            x0, y0, x1, y1: (N,) level-0 px, fractions allowed; left, top, right, bottom.
            downsample: level-0 px per mask pixel.

        Returns:
            (N,) float64, 0 to 1: the exact area of tissue over the area of the box.

        Raises:
            DataError: a box without area, or a downsample that is not positive.
        """
        if not downsample > 0:
            raise DataError(
                f"downsample is {downsample}; expected level-0 px per mask pixel, above 0, "
                "e.g. 16 for a mask at 8 um/px of a slide at 0.5"
            )
        left, top, right, bottom = (np.asarray(v, float) / downsample for v in (x0, y0, x1, y1))
        area = (right - left) * (bottom - top)
        if not np.all((right > left) & (bottom > top)):
            raise DataError("A box has no area: expected x1 > x0 and y1 > y0 for all.")
        inside = self._area(right, bottom) - self._area(left, bottom)
        inside += self._area(left, top) - self._area(right, top)
        return np.clip(inside / area, 0.0, 1.0)

    def _area(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue between the origin and (x, y), mask px; exact, as the mask is constant per px."""
        table = self._integral
        x, y = np.clip(x, 0, table.shape[1] - 1), np.clip(y, 0, table.shape[0] - 1)
        column = np.minimum(x.astype(np.int64), table.shape[1] - 2)
        row = np.minimum(y.astype(np.int64), table.shape[0] - 2)
        fx, fy = x - column, y - row
        upper = table[row, column] * (1 - fx) + table[row, column + 1] * fx
        lower = table[row + 1, column] * (1 - fx) + table[row + 1, column + 1] * fx
        return np.asarray(upper * (1 - fy) + lower * fy)


def segment(rgb: NDArray[np.uint8], remove_pen: bool = True, mpp: float = MASK_MPP) -> TissueMask:
    """Find tissue in an overview image of a slide.

    Args:
        rgb: (h, w, 3) uint8, box-averaged to about 8 um/px.
        remove_pen: leave out red, green, blue and black pen. Off for stains other than H&E: brown
            and blue counterstains look like ink.
        mpp: microns per pixel of `rgb`, recorded in the result; sizes in the method stay in pixels.

    Returns:
        The mask; empty, with a line in the log, where the image is too dark for brightfield.

    Raises:
        DataError: the image is not (h, w, 3) uint8, or is empty.

    Cost: about 0.3 us per pixel.
    """
    _check_image(rgb)
    empty = np.zeros(rgb.shape[:2], bool)
    brightness = float(np.median(rgb.max(2)))
    if brightness < DARKEST_BRIGHTFIELD:
        log.debug(
            "This image is not brightfield (median brightness %g of 255, expected %d or more): "
            "the tissue mask is empty.",
            brightness,
            DARKEST_BRIGHTFIELD,
        )
        return TissueMask(empty, mpp, float("nan"), empty, brightfield=False)
    red, green, blue = (_optical_density(rgb[..., c]) for c in range(3))
    mean = (red + green + blue) / np.float32(3)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    score = mean + chroma
    threshold = float(np.clip(_otsu(score), *THRESHOLD_RANGE))
    pen = _find_pen(red, green, blue, mean, chroma) if remove_pen else empty
    mask = _clean(score > threshold, pen)
    return TissueMask(mask, mpp, threshold, pen, brightfield=True)


def _check_image(rgb: NDArray[np.uint8]) -> None:
    shape, dtype = np.shape(rgb), getattr(rgb, "dtype", type(rgb).__name__)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise DataError(
            f"The tissue mask was given an image {shape} of {dtype}; it reads (h, w, 3) uint8 RGB. "
            "From Pillow: np.asarray(image.convert('RGB'))"
        )


def _optical_density(channel: NDArray[np.uint8]) -> Plane:
    """Density against the image's own white, blurred by [1, 2, 1] / 4. (h, w) -> (h, w)."""
    from scipy import ndimage

    white = float(np.clip(np.percentile(channel, WHITE_PERCENTILE), DARKEST_WHITE, 255.0))
    table = np.maximum(0.0, -np.log10((np.arange(256) + 1) / (white + 1))).astype(np.float32)
    density: Plane = table[channel]
    for axis in (0, 1):
        density = ndimage.convolve1d(density, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    return density


def _otsu(score: Plane) -> float:
    """Threshold that splits the score into the two most distinct groups; 256 bins on [0, 1]."""
    counts = np.bincount(np.minimum(score * 256, 255).astype(np.intp).ravel(), minlength=256)
    centres = (np.arange(256) + 0.5) / 256
    below = counts.cumsum()
    above = below[-1] - below
    moment = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / below - (moment[-1] - moment) / above
    between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return float((between.argmax() + 1) / 256)


def _find_pen(red: Plane, green: Plane, blue: Plane, mean: Plane, chroma: Plane) -> Mask:
    """Large areas with the densities of red, green, blue or black ink, widened by two pixels."""
    from scipy import ndimage

    ink = (green > 0.35) & (blue > 0.72 * green) & (red < 0.45 * green)
    ink |= red - green > 0.08
    ink |= (mean > 0.55) & (chroma < 0.35 * mean)
    large = _components_of_at_least(ink, MIN_PEN, _EIGHT)
    if not large.any():
        return large
    return np.asarray(ndimage.binary_dilation(large, _EIGHT, iterations=2))


def _clean(foreground: Mask, pen: Mask) -> Mask:
    """Close gaps, drop specks, fill small holes; pen stays out."""
    from scipy import ndimage

    diamond = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), CLOSING_RADIUS)
    border = CLOSING_RADIUS + 1
    padded = np.pad(foreground & ~pen, border)
    closed = ndimage.binary_closing(padded, diamond)[border:-border, border:-border] & ~pen
    tissue = _components_of_at_least(closed, MIN_TISSUE)
    if tissue.any():  # without tissue a small gap is no hole
        tissue = ~_components_of_at_least(~tissue, MAX_HOLE)
    return np.asarray(tissue & ~pen)


def _components_of_at_least(mask: Mask, size: int, structure: Mask | None = None) -> Mask:
    """Keep connected components (4-connected by default) of at least `size` pixels."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, structure)
    keep = np.bincount(labels.ravel()) >= size
    keep[0] = False
    return np.asarray(keep[labels])
