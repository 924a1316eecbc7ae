"""Between a mask and polygons: outlines along the edges of pixels, and pixels inside outlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ring = NDArray[np.float64]
"""(N, 2) corners (x, y); the last is joined to the first, which is not repeated."""
Polygon = list[Ring]
"""The outer ring, then the holes."""
CROSSINGS = 2**20  # of edges with rows of pixels, computed at once: about 100 MB


def trace(mask: Mask) -> list[Polygon]:
    """Outlines of the 4-connected components of a mask, corners only, in px.

    No ring passes a point twice: where pixels meet at a corner only, the outline of a component
    turns so that a hole stays a hole. Outer rings run clockwise on the screen, holes the other way
    (GeoJSON's right-hand rule, applied to image coordinates).

    Returns:
        One polygon a component, by its first pixel, row by row. `fill` gives the mask back.

    Cost: about 0.02 us a pixel and 1 us a corner.
    """
    from scipy import ndimage

    labels, n = ndimage.label(np.pad(mask, 1))
    corners, across, along = _corners(labels)
    # Below and to the right of a ring's first corner lies tissue if it is an outer one; above it
    # lies what a hole is in.
    rows, columns = corners[:, 1], corners[:, 0]
    inside, above = labels[rows + 1, columns + 1].tolist(), labels[rows, columns + 1].tolist()
    polygons: list[Polygon] = [[] for _ in range(n)]
    seen = bytearray(len(corners))
    for start in range(len(corners)):
        if seen[start]:
            continue
        ring, at = [], start
        while not seen[at]:
            right = across[at]
            ring += [at, right]
            seen[at] = seen[right] = 1
            at = along[right]
        outline = corners[ring].astype(np.float64)
        if inside[start]:
            polygons[inside[start] - 1].insert(0, outline)
        else:
            polygons[above[start] - 1].append(outline[::-1])
    return polygons


def _corners(labels: NDArray[np.int32]) -> tuple[NDArray[np.intp], list[int], list[int]]:
    """Corners (N, 2) by row, and to which each is joined across and along its row and column.

    Where two pixels meet at a corner only there are two corners at one place. The first is joined
    to the left, the second to the right; and, if the pixels belong to one component, the first
    downwards, so that each goes around a background pixel; else upwards, around a pixel of its own.
    """
    tissue = labels > 0
    around = [tissue[:-1, :-1], tissue[:-1, 1:], tissue[1:, :-1], tissue[1:, 1:]]  # a b / c d
    a, b, c, d = around
    meeting = (a == d) & (b == c) & (a != b)
    y, x = np.nonzero((a ^ b ^ c ^ d) | meeting)
    twice = meeting[y, x]
    pixel = np.where(a[y, x], labels[y, x], labels[y, x + 1])
    other = np.where(a[y, x], labels[y + 1, x + 1], labels[y + 1, x])
    falling, one = a[y, x], pixel == other  # falling: a and d are tissue, not b and c
    down_first = np.repeat(falling == one, 1 + twice)
    second = np.zeros(len(down_first), bool)
    second[np.cumsum(1 + twice)[twice] - 1] = True
    corners = np.repeat(np.stack([x, y], 1), 1 + twice, axis=0)
    lower = (second != down_first) & np.repeat(twice, 1 + twice)
    by_column = np.lexsort((lower, corners[:, 1], corners[:, 0]))
    return corners, _pairs(np.arange(len(corners))), _pairs(by_column)


def _pairs(order: NDArray[np.intp]) -> list[int]:
    """Partner of each where the first is joined to the second, the third to the fourth, ..."""
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    joined: list[int] = partner.tolist()
    return joined


def fill(polygons: Iterable[Sequence[Ring]], shape: tuple[int, int]) -> Mask:
    """Pixels whose centre lies in any polygon: its outer ring without its holes.

    Args:
        polygons: rings in px; what lies outside `shape` is left out. A ring that crosses itself
            holds what it goes around an odd number of times.
        shape: (h, w).
    """
    mask = np.zeros(shape, bool)
    for outer, *holes in polygons:
        window, area = _fill(outer, shape)
        for hole in holes:
            where, empty = _fill(hole - (window[1].start, window[0].start), area.shape)
            area[where] &= ~empty
        mask[window] |= area
    return mask


def _fill(ring: Ring, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], Mask]:
    """The part of an image that a ring lies in, and which pixels of it the ring goes around."""
    left, top = np.floor(np.clip(ring.min(0), 0, shape[::-1])).astype(int).tolist()
    right, bottom = np.ceil(np.clip(ring.max(0), 0, shape[::-1])).astype(int).tolist()
    width, height = right - left, bottom - top
    start = ring - (left, top)
    end = np.concatenate([start[1:], start[:1]])
    rising = start[:, 1] > end[:, 1]
    start[rising], end[rising] = end[rising], start[rising]
    # Half-open in y, so that a corner at the height of a centre counts once.
    first, last = (np.ceil(np.clip(y[:, 1], 0, height) - 0.5).astype(int) for y in (start, end))
    count = last - first  # of centres of rows that an edge crosses
    crossed = np.zeros((height, width + 1), bool)
    part = np.cumsum(count) // CROSSINGS
    for k in range(int(part[-1]) + 1):
        edges = np.flatnonzero((part == k) & (count > 0))
        many = count[edges]
        edge = np.repeat(edges, many)
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(many) - many, many)
        at, to = start[edge], end[edge]
        x = at[:, 0] + (row + 0.5 - at[:, 1]) / (to[:, 1] - at[:, 1]) * (to[:, 0] - at[:, 0])
        column = np.ceil(np.clip(x, 0, width) - 0.5).astype(int)
        np.logical_xor.at(crossed, (row, column), True)
    inside = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
    return (slice(top, bottom), slice(left, right)), inside
