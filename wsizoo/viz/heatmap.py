"""Scores drawn over a slide's thumbnail, each patch exactly where it lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from wsizoo.errors import DataError
from wsizoo.viz.colour import colours, finite_vector

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Downsample = float | tuple[float, float]

EMPTY = 1e-9  # coverage below this is rounding, not a patch
INK = (20, 20, 24)
PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Boxes:
    """Rectangles on an image of `height` x `width`; edges (N,) float, image px from (0, 0)."""

    left: Floats
    top: Floats
    right: Floats
    bottom: Floats
    height: int
    width: int

    def only(self, chosen: NDArray[np.intp]) -> Boxes:
        """The rectangles at these indices."""
        left, top, right, bottom = (
            edge[chosen] for edge in (self.left, self.top, self.right, self.bottom)
        )
        return Boxes(left, top, right, bottom, self.height, self.width)

    def shrunk(self, by: float) -> Boxes:
        """The same rectangles, every edge `by` px further in; never inside out."""
        by_x = np.minimum(by, (self.right - self.left) / 2)
        by_y = np.minimum(by, (self.bottom - self.top) / 2)
        return Boxes(
            self.left + by_x,
            self.top + by_y,
            self.right - by_x,
            self.bottom - by_y,
            self.height,
            self.width,
        )

    def total(self, values: Floats | None = None) -> Floats:
        """What the rectangles add up to on every pixel.

        Args:
            values: (N,) weight of each rectangle, default 1.

        Returns:
            (h, w) float64: the sum over rectangles of value times the share of the pixel covered.

        Cost: O(N + h w), whatever the size of the rectangles: a box's coverage is the product of
        two ramps, and the slope of a ramp changes in two pixels only.
        """
        x, x_step = _steps(self.left, self.right, self.width)  # (4, N)
        y, y_step = _steps(self.top, self.bottom, self.height)  # (4, N)
        if values is not None:
            y_step = y_step * values
        shape = (self.height + 2, self.width + 2)
        cells = y[:, None] * shape[1] + x[None]  # (4, 4, N)
        change = y_step[:, None] * x_step[None]  # (4, 4, N)
        sums = np.bincount(cells.ravel(), change.ravel(), shape[0] * shape[1])
        grid: Floats = sums.reshape(shape).astype(np.float64, copy=False)
        np.cumsum(grid, axis=0, out=grid)
        np.cumsum(grid, axis=1, out=grid)
        return grid[: self.height, : self.width]


def overlay(
    thumbnail: Pixels,
    downsample: Downsample,
    coords: ArrayLike,
    footprint: float,
    scores: ArrayLike,
    *,
    alpha: float = 0.5,
    smooth: bool = False,
    outline: ArrayLike | None = None,
) -> Pixels:
    """Draw the scores of a slide's patches over its thumbnail.

    A pixel that a patch covers in part is blended in part, so neighbours meet without a seam;
    where patches overlap, their scores are averaged.

    Args:
        thumbnail: (h, w, 3) uint8, sRGB, the whole slide from level-0 (0, 0).
        downsample: level-0 px per thumbnail px, or (x, y) where a rounded thumbnail size makes
            the two differ: (slide width / w, slide height / h).
        coords: (N, 2) int64 or exact float, level-0 px, (x, y), top-left.
        footprint: edge of a patch, level-0 px.
        scores: (N,) in [0, 1], as `normalise` returns them.
        alpha: opacity of a fully covered pixel, in [0, 1].
        smooth: blur the scores over about one patch; the covered area stays the same.
        outline: (K,) indices of patches to outline.

    Returns:
        (h, w, 3) uint8; pixels without a patch are those of the thumbnail.

    Raises:
        DataError: shapes, lengths or ranges that do not fit, or a patch outside the thumbnail.
    """
    boxes = place(thumbnail, downsample, coords, footprint)
    values = finite_vector(scores, "scores")
    if len(values) != len(boxes.left):
        raise DataError(
            f"{len(values)} scores for {len(boxes.left)} patches, expected one a patch; scores "
            "aligned with the bag that was passed in are"
        )
    if not 0 <= alpha <= 1:
        raise DataError(f"alpha is {alpha}, expected an opacity in [0, 1]")
    chosen = _chosen(outline, len(values))
    weight = boxes.total()
    weighted = boxes.total(values)
    covered = weight > EMPTY
    image = thumbnail.copy()
    if not covered.any():
        return image
    share = np.minimum(weight[covered], 1)  # (P,)
    if smooth:
        radius = (boxes.right[0] - boxes.left[0]) / 2, (boxes.bottom[0] - boxes.top[0]) / 2
        weight, weighted = _blurred(weight, radius), _blurred(weighted, radius)
    # The clip removes what rounding adds where hardly anything of a pixel is covered.
    mean = np.clip(weighted[covered] / weight[covered], values.min(), values.max())  # (P,)
    image[covered] = _blend(image[covered], colours(mean), alpha * share)
    return _outlined(image, boxes, chosen) if len(chosen) else image


def place(thumbnail: Pixels, downsample: Downsample, coords: ArrayLike, footprint: float) -> Boxes:
    """The patches as rectangles in thumbnail px; arguments as in `overlay`."""
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise DataError(
            f"the thumbnail is {thumbnail.shape} {thumbnail.dtype}, expected (h, w, 3) uint8"
        )
    step = np.broadcast_to(np.asarray(downsample, dtype=np.float64), (2,))
    if not bool((np.isfinite(step) & (step > 0)).all()) or not 0 < footprint < float("inf"):
        raise DataError(
            f"downsample {downsample} and footprint {footprint}: expected positive numbers, "
            "level-0 px per thumbnail px and level-0 px"
        )
    corners = np.asarray(coords, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or not bool(np.isfinite(corners).all()):
        raise DataError(f"coords are {corners.shape}, expected (N, 2) finite level-0 px")
    height, width = thumbnail.shape[:2]
    low, high = corners / step, (corners + footprint) / step  # (N, 2)
    outside = np.flatnonzero(((high < -1) | (low > (width + 1, height + 1))).any(axis=1))
    if outside.size:
        x, y = corners[outside[0]]
        raise DataError(
            f"{outside.size} of {len(corners)} patches lie outside the thumbnail: patch "
            f"{outside[0]} at level-0 ({x:g}, {y:g}), but {width} x {height} px at downsample "
            f"{downsample} end at ({width * step[0]:g}, {height * step[1]:g}). Coords and "
            "downsample must both count level-0 px of this slide"
        )
    return Boxes(low[:, 0], low[:, 1], high[:, 0], high[:, 1], height, width)


def with_legend(
    image: Pixels, low: float | str, high: float | str, label: str, size: int | None = None
) -> Pixels:
    """The image with a strip below it that shows the scale.

    Args:
        image: (h, w, 3) uint8. low, high: what the two ends of the scale mean.
        label: what the colours show, cut to the width.
        size: of the letters, px; None: a 42nd of the width, 11 to 40.

    Returns:
        (h + strip, w, 3) uint8; the first h rows are `image`.
    """
    width = image.shape[1]
    size = size or int(np.clip(width / 42, 11, 40))
    margin = size
    font = ImageFont.load_default(size)
    strip = Image.new("RGB", (width, size * 6), PAPER)
    draw = ImageDraw.Draw(strip)
    length = max(1, min(width - 2 * margin, 26 * size))
    draw.text((margin, size * 0.7), _cut(label, font, width - 2 * margin), INK, font)
    ramp = colours((np.arange(length) + 0.5) / length)
    bar = np.broadcast_to(ramp, (size, length, 3))
    strip.paste(Image.fromarray(np.ascontiguousarray(bar)), (margin, int(size * 2.3)))
    texts = [value if isinstance(value, str) else f"{value:.3g}" for value in (low, high)]
    left, right = (_cut(text, font, length / 2 - size / 4) for text in texts)
    draw.text((margin, size * 3.8), left, INK, font)
    draw.text((margin + length - font.getlength(right), size * 3.8), right, INK, font)
    return np.concatenate([image, np.asarray(strip)])


def _steps(low: Floats, high: Floats, size: int) -> tuple[NDArray[np.intp], Floats]:
    """Where, and by how much, an interval's coverage changes from one pixel to the next.

    Returns:
        pixels (4, N) in [0, size + 1] and changes (4, N): coverage is the running sum of them.
    """
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    first, last = np.floor(low), np.floor(high)
    pixels = np.stack([first, first + 1, last, last + 1]).astype(np.intp)
    changes = np.stack([first + 1 - low, low - first, high - last - 1, last - high])
    return pixels, changes


def _blend(under: Pixels, over: Pixels, opacity: Floats) -> Pixels:
    """(P, 3) uint8 colours over (P, 3) ones; opacity (P,)."""
    mixed = over.astype(np.float32)
    mixed -= under
    mixed *= opacity.astype(np.float32)[:, None]
    mixed += under
    return np.rint(mixed, out=mixed).astype(np.uint8)


def _chosen(outline: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """The indices to outline, checked."""
    index = np.asarray([] if outline is None else outline)
    if index.size == 0:
        return np.empty(0, dtype=np.intp)
    if index.ndim != 1 or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= n:
        raise DataError(f"outline is {index!r:.80}, expected (K,) indices of the {n} patches")
    return index.astype(np.intp)


def _outlined(image: Pixels, boxes: Boxes, chosen: NDArray[np.intp]) -> Pixels:
    """A dark line just inside each chosen patch's edge, and a light one inside that."""
    outer = boxes.only(chosen)
    line = float(np.clip((outer.right - outer.left).max() / 16, 1.0, 3.0))
    for colour in (INK, PAPER):
        inner = outer.shrunk(line)
        share = np.clip(outer.total() - inner.total(), 0, 1)
        drawn = share > EMPTY
        ink = np.broadcast_to(np.array(colour, dtype=np.uint8), (int(drawn.sum()), 3))
        image[drawn] = _blend(image[drawn], ink, share[drawn])
        outer = inner
    return image


def _blurred(field: Floats, radius: tuple[float, float]) -> Floats:
    """A smooth blur, three box means after one another; radius (x, y) in px, 0 past the border."""
    for axis, reach in ((1, radius[0]), (0, radius[1])):
        r = max(1, round(reach / 1.5))
        for _ in range(3):
            padding = [(0, 0), (0, 0)]
            padding[axis] = (r + 1, r)
            sums = np.cumsum(np.pad(field, padding), axis=axis)
            n = field.shape[axis]
            field = np.take(sums, range(2 * r + 1, 2 * r + 1 + n), axis=axis) - np.take(
                sums, range(n), axis=axis
            )
            field = np.maximum(field, 0) / (2 * r + 1)
    return field


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, shortened with an ellipsis until it fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""
