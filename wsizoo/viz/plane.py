"""What one patch attends to, on the plane of the slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsizoo.errors import DataError
from wsizoo.viz.heatmap import INK, overlay, with_legend

Pixels = NDArray[np.uint8]

EDGE = 840  # px, about, of the longer side: two a CSS px
SMALLEST, LARGEST = 2, 168  # px of a cell
LETTERS = 26  # px
GLASS, UNSEEN = 255, 214  # greys of no patch, and of one that is not attended to
ROUND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # patches that a scale may be of


def attention_map(
    cells: NDArray[np.int64],
    weights: NDArray[np.float64],
    query: int,
    unit: float = 1.0,
    um: float | None = None,
) -> Pixels:
    """Each cell in the colour of its weight over the largest; grey where it is 0, the query boxed.

    Args:
        cells: (n, 2) int64, (x, y); those that repeat add up. weights: (n,), not negative.
        query: row of the token that attends.
        unit: edge of a cell in patches. um: of a patch in microns, where it is known.

    Returns:
        (h, w, 3) uint8, with a scale and a legend below.

    Raises:
        DataError: no cells, or another number of weights.
    """
    if len(cells) == 0 or weights.shape != (len(cells),) or not 0 <= query < len(cells):
        raise DataError(
            f"an attention map got {len(cells)} cells, weights {weights.shape} and query {query}: "
            "expected a weight a cell, and a row of one"
        )
    places, at = np.unique(cells, axis=0, return_inverse=True)
    at = at.ravel()
    sums = np.bincount(at, weights, len(places))
    places = places - places.min(0)
    width, height = places.max(0) + 1
    step = int(np.clip(EDGE // max(width, height), SMALLEST, LARGEST))
    grey = np.full((height, width), GLASS, np.uint8)
    grey[places[:, 1], places[:, 0]] = UNSEEN
    canvas = grey.repeat(step, 0).repeat(step, 1)[..., None].repeat(3, 2)
    largest = float(sums.max())
    seen = np.flatnonzero((sums > 0) | (np.arange(len(places)) == at[query]))
    shares = sums[seen] / max(largest, np.finfo(np.float64).tiny)
    boxed = np.flatnonzero(seen == at[query])
    image = overlay(canvas, 1 / step, places[seen], 1, shares, alpha=1, outline=boxed)
    pad = max(0, EDGE - image.shape[1])
    image = np.pad(image, ((0, 0), (0, pad), (0, 0)), constant_values=GLASS)
    image = np.concatenate([image, _scale(image.shape[1], step / unit, um)])
    return with_legend(image, 0.0, largest, "share of the attention", LETTERS)


def _scale(width: int, px: float, um: float | None) -> Pixels:
    """A strip (h, width, 3) with a line as long as a round number of patches. px: of a patch."""
    patches = max((n for n in ROUND if n * px <= EDGE / 3), default=ROUND[0])
    told = f"{patches} patch{'es' if patches > 1 else ''}"
    told += "" if um is None else f", {patches * um:.4g} um"
    strip = Image.new("RGB", (width, LETTERS * 2), (GLASS,) * 3)
    draw, top = ImageDraw.Draw(strip), LETTERS
    draw.rectangle((LETTERS, top, LETTERS + round(patches * px), top + 4), INK)
    font = ImageFont.load_default(LETTERS)
    draw.text((LETTERS * 2 + patches * px, top - LETTERS / 2), told, INK, font)
    return np.asarray(strip)
