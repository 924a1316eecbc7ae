"""What one patch attends to, on the plane of the slide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsizoo.errors import DataError
from wsizoo.viz.heatmap import overlay, with_legend

Pixels = NDArray[np.uint8]

EDGE = 420  # px, about, of the longer side
SMALLEST, LARGEST = 2, 84  # px of a cell
GLASS, UNSEEN = 255, 214  # greys of no patch, and of one that is not attended to


def attention_map(
    cells: NDArray[np.int64], weights: NDArray[np.float64], query: int, label: str
) -> Pixels:
    """Each cell in the colour of its weight over the largest; grey where it is 0, the query boxed.

    Args:
        cells: (n, 2) int64, (x, y); those that repeat add up. weights: (n,), not negative.
        query: row of the token that attends. label: what the picture shows.

    Returns:
        (h, w, 3) uint8, with a legend below.

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
    return with_legend(image, 0.0, largest, label)


def side_by_side(pictures: Sequence[Pixels], columns: int = 3, gap: int = 24) -> Pixels:
    """Pictures (h, w, 3) in rows of so many, from the top left, white between them."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = max(sum(p.shape[1] + gap for p in row) for row in rows) - gap
    bands = []
    for row in rows:
        band = np.full((max(p.shape[0] for p in row) + gap, width, 3), GLASS, np.uint8)
        left = 0
        for picture in row:
            height, wide = picture.shape[:2]
            band[:height, left : left + wide] = picture
            left += wide + gap
        bands.append(band)
    return np.concatenate(bands)[:-gap]
