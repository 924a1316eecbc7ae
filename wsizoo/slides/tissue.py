"""Where on a slide there is tissue: a mask at about 8 um/px, and the share of it in any box.

A pixel counts by its optical density plus the spread of density over the channels, so that grey
dust and shadow lose to stain. Otsu's threshold of that score is confined to a narrow band: the
lower end keeps blank slides empty, the upper end keeps slides full of tissue whole. Paler tissue
counts where it is joined to tissue above the threshold.

Ink is found by its colours in two steps: what may be ink is pen where it is joined to what can be
nothing else. So a translucent line is pen as far as it runs, while blood, pink muscle and dense
nuclei, which have the colours of thin ink, are not. Grey without stain is shadow or dust.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from wsizoo.errors import DataError

if TYPE_CHECKING:
    from wsizoo.slides.reader import Pixels, Slide

Mask: TypeAlias = NDArray[np.bool_]
Plane: TypeAlias = NDArray[np.float32]

MASK_MPP = 8.0  # um per px at which the sizes below were chosen
DARKEST_BRIGHTFIELD = 60  # median of the brightest channel; fluorescence and label masks are below
WHITE_PERCENTILE, DARKEST_WHITE = 99.0, 220.0
THRESHOLD_RANGE = (0.05, 0.15)
PALE = 0.6  # of the threshold: enough where it is joined to tissue
EQUAL = 8  # of 255, by which channels of a grey image differ at most once it was compressed
GREY = 0.2  # of the mean density: less spread over the channels than in any stain
MIN_PEN, MIN_TISSUE, MAX_HOLE = 100, 50, 100  # px; smaller red spots are blood or nuclei, not pen
MIN_SURE_PEN, MIN_SURE_TISSUE = 20, 5  # px of a component that are beyond doubt
CLOSING_RADIUS = 2
STRIP_ROWS = 32  # rows computed at once, so that they stay in the processor's cache
_EIGHT = np.ones((3, 3), bool)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue of one slide.

    Args:
        mask: (h, w) bool, True where tissue is.
        mpp: microns per mask pixel.
        threshold: score above which a pixel is foreground; nan where the image is not brightfield.
        pen: (h, w) bool, True where pen was left out.
        brightfield: False for an image too dark to be a brightfield scan; its mask is empty.
        colour: False for an image that shows something, in grey alone.
    """

    mask: Mask
    mpp: float
    threshold: float
    pen: Mask
    brightfield: bool
    colour: bool = True

    @property
    def fraction(self) -> float:
        """Share of the image that is tissue, 0 to 1."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    @cached_property
    def _integral(self) -> NDArray[np.int32]:
        """(h + 1, w + 1): tissue pixels above and to the left of each pixel corner."""
        height, width = self.mask.shape
        table = np.zeros((height + 1, width + 1), np.int32)
        inner = table[1:, 1:]
        np.cumsum(self.mask, 0, out=inner)
        np.cumsum(inner, 1, out=inner)
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


@dataclass(frozen=True, eq=False)
class Overview:
    """The image of a slide that tissue is found on.

    Args:
        pixels: (h, w, 3) uint8. gaps: (h, w) bool, True where the slide cannot be decoded.
        mpp: um per px.
    """

    pixels: Pixels
    gaps: Mask
    mpp: float

    def tissue(self, remove_pen: bool = True) -> TissueMask:
        """As `segment`. What cannot be decoded may be tissue and counts as such."""
        if not self.gaps.any():
            return segment(self.pixels, remove_pen, self.mpp)
        shown = np.where(self.gaps[..., None], np.uint8(255), self.pixels)
        found = segment(shown, remove_pen, self.mpp)
        return replace(found, mask=found.mask | self.gaps) if found.brightfield else found


def find_tissue(slide: Slide, remove_pen: bool = True) -> TissueMask:
    """The tissue of a slide on an image of about 8 um/px; deterministic."""
    return overview(slide).tissue(remove_pen)


def overview(slide: Slide) -> Overview:
    """A slide at about 8 um/px. Raises SlideError: it cannot be decoded anywhere."""
    pixels, gaps, downsample = slide.image_and_gaps(max(1.0, MASK_MPP / slide.mpp))
    return Overview(pixels, gaps, downsample * slide.mpp)


def segment(rgb: Pixels, remove_pen: bool = True, mpp: float = MASK_MPP) -> TissueMask:
    """Find tissue in an overview image of a slide.

    Args:
        rgb: (h, w, 3) uint8, box-averaged to about 8 um/px.
        remove_pen: leave out red, green, blue and black pen, and grey shadow. Off for stains other
            than H&E: brown and blue counterstains look like ink, silver looks grey.
        mpp: microns per pixel of `rgb`, recorded in the result; sizes in the method stay in pixels.

    Returns:
        The mask; empty, with a line in the log, where the image is too dark for brightfield.

    Raises:
        DataError: the image is not (h, w, 3) uint8, or is empty.

    Cost: about 0.04 us and 30 bytes per pixel.
    """
    _check_image(rgb)
    empty = np.zeros(rgb.shape[:2], bool)
    brightness = _brightness(rgb)
    if brightness < DARKEST_BRIGHTFIELD:
        log.debug(
            "This image is not brightfield (median brightness %g of 255, expected %d or more): "
            "the tissue mask is empty.",
            brightness,
            DARKEST_BRIGHTFIELD,
        )
        return TissueMask(empty, mpp, float("nan"), empty, brightfield=False)
    looks = _look(rgb)
    threshold = float(np.clip(_otsu(looks.score), *THRESHOLD_RANGE))
    pen = empty
    if remove_pen and looks.ink.any():
        ink = _joined(looks.ink, MIN_PEN, looks.surely_ink, MIN_SURE_PEN, _EIGHT)
        pen = _dilate(_dilate(ink, _EIGHT), _EIGHT)
    absent = pen | looks.grey if remove_pen else empty
    pale = looks.score > max(PALE * threshold, THRESHOLD_RANGE[0])
    dense = looks.score > threshold
    mask = _clean(pale & ~absent, dense & ~absent, pen)
    grey = not mask.any() and dense.any() and (np.ptp(rgb, axis=2) <= EQUAL).all()
    return TissueMask(mask, mpp, threshold, pen, brightfield=True, colour=not grey)


def _brightness(rgb: Pixels) -> float:
    """Median of the brightest channel."""
    brightest = np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2])
    return _percentile(Image.fromarray(brightest).histogram(), 50)


def _check_image(rgb: Pixels) -> None:
    shape, dtype = np.shape(rgb), getattr(rgb, "dtype", type(rgb).__name__)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise DataError(
            f"The tissue mask was given an image {shape} of {dtype}; it reads (h, w, 3) uint8 RGB. "
            "From Pillow: np.asarray(image.convert('RGB'))"
        )


@dataclass(frozen=True, eq=False)
class _Looks:
    """What every pixel looks like by itself; all (h, w).

    Args:
        score: mean optical density plus its spread over the channels.
        ink: may be red, green, blue or black ink. surely_ink: can be nothing else.
        grey: without colour, so without stain.
    """

    score: Plane
    ink: Mask
    surely_ink: Mask
    grey: Mask


def _look(rgb: Pixels) -> _Looks:
    """Densities of a strip of rows at a time."""
    shape = rgb.shape[:2]
    looks = _Looks(np.empty(shape, np.float32), *(np.empty(shape, bool) for _ in range(3)))
    counts = np.reshape(Image.fromarray(rgb).histogram(), (3, 256))
    tables = [_density_table(of_channel) for of_channel in counts]
    padded = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for top in range(0, shape[0], STRIP_ROWS):
        rows = slice(top, min(top + STRIP_ROWS, shape[0]))
        strip = padded[top : rows.stop + 2]
        red, green, blue = (_blur(t[strip[..., channel]]) for channel, t in enumerate(tables))
        mean = (red + green + blue) / np.float32(3)
        chroma = np.maximum(np.maximum(red, green), blue)
        chroma -= np.minimum(np.minimum(red, green), blue)
        looks.score[rows] = mean + chroma
        looks.grey[rows] = chroma < GREY * mean
        looks.ink[rows], looks.surely_ink[rows] = _inks(red, green, blue, mean, chroma)
    return looks


def _density_table(counts: ArrayLike) -> Plane:
    """(256,) optical density of each value against the image's own white."""
    white = float(np.clip(_percentile(counts, WHITE_PERCENTILE), DARKEST_WHITE, 255.0))
    table = np.maximum(0.0, -np.log10((np.arange(256) + 1) / (white + 1)))
    return table.astype(np.float32)


def _percentile(counts: ArrayLike, percent: float) -> float:
    """As np.percentile of values 0 to 255, from how often each occurs."""
    below = np.cumsum(counts)
    rank = (below[-1] - 1) * percent / 100
    low, high = np.searchsorted(below, [int(rank), np.ceil(rank)], side="right")
    return float(low + (high - low) * (rank % 1))


def _blur(density: Plane) -> Plane:
    """[1, 2, 1] / 4 both ways. (h + 2, w + 2) -> (h, w)"""
    down = density[:-2] + density[2:]
    down += 2 * density[1:-1]  # (h, w + 2)
    across = down[:, :-2] + down[:, 2:]
    across += 2 * down[:, 1:-1]  # (h, w)
    across /= 16
    return across


def _inks(red: Plane, green: Plane, blue: Plane, mean: Plane, chroma: Plane) -> tuple[Mask, Mask]:
    """Where there may be ink, and where there surely is, by density in each channel.

    Red ink absorbs green and blue alike and no red; blood and eosin absorb more red, or less blue.
    Green and blue ink absorb more red than green, which H&E never does. Black absorbs all alike.
    """
    thick = (green > 0.35) & (blue > 0.72 * green) & (red < 0.45 * green)
    thin = (green > 0.12) & (blue > 0.64 * green) & (red < 0.16 * green)
    sure = (green > 0.6) & (blue > 0.8 * green) & (red < 0.2 * green)
    sure |= (green > 0.4) & (blue > 0.66 * green) & (red < 0.1 * green)
    cold = red - green > 0.08
    black = (mean > 0.55) & (chroma < 0.35 * mean)
    dark = (mean > 0.28) & (chroma < 0.5 * mean) & (blue > 0.68 * green)
    sure |= cold | black
    return thick | thin | dark | sure, sure


def _otsu(score: Plane) -> float:
    """Threshold that splits the score into the two most distinct groups; 256 bins on [0, 1]."""
    counts = np.bincount(np.minimum(score * 256, 255).astype(np.uint8).ravel(), minlength=256)
    centres = (np.arange(256) + 0.5) / 256
    below = counts.cumsum()
    above = below[-1] - below
    moment = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / below - (moment[-1] - moment) / above
    between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return float((between.argmax() + 1) / 256)


def _clean(foreground: Mask, sure: Mask, pen: Mask) -> Mask:
    """Close gaps, drop specks and what is pale throughout, fill small holes; pen stays out."""
    border = CLOSING_RADIUS + 1
    closed = np.pad(foreground, border)
    for _ in range(CLOSING_RADIUS):
        closed = _dilate(closed)
    closed = ~closed
    for _ in range(CLOSING_RADIUS):
        closed = _dilate(closed)
    closed = ~closed[border:-border, border:-border] & ~pen
    tissue = _joined(closed, MIN_TISSUE, sure, MIN_SURE_TISSUE)
    if tissue.any():  # without tissue a small gap is no hole
        tissue = ~_joined(~tissue, MAX_HOLE)
    return tissue & ~pen


def _dilate(mask: Mask, structure: Mask | None = None) -> Mask:
    """Widen by one pixel: to the four neighbours, or with _EIGHT to all eight."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    source = mask if structure is None else wide.copy()
    wide[1:] |= source[:-1]
    wide[:-1] |= source[1:]
    return wide


def _joined(
    mask: Mask,
    size: int,
    sure: Mask | None = None,
    sure_size: int = 0,
    structure: Mask | None = None,
) -> Mask:
    """Keep components (4-connected by default) of `size` px, of which `sure_size` are sure."""
    from scipy import ndimage

    labels, n = ndimage.label(mask, structure)
    keep = np.bincount(labels.ravel(), minlength=n + 1) >= size
    if sure is not None:
        keep &= np.bincount(labels[sure], minlength=n + 1) >= sure_size
    keep[0] = False
    return np.asarray(keep[labels])
