"""What the pattern of an attention alone says of its rank: a triangle in it that has full rank.

A pattern is a matrix of pairs that may attend. Where a corner of it is triangular, weights have at
least the rank of that corner, whatever they are, as long as its diagonal is positive. That is
looked up in the weights, which needs no singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Bound:
    """A lower bound of the rank, and whether the weights have the triangle that it rests on."""

    rank: int
    holds: bool


def band_bound(weights: Floats, allowed: Flags) -> Bound:
    """n - b, where no pair that attends is farther apart than b in the order of the tokens.

    Rows b+1..n and columns 1..n-b are an upper triangle.

    Args:
        weights: (n, n) [query, key]. allowed: (n, n), pairs that may attend.

    Source: LongMIL (2024), Eq. 12-14.
    """
    queries, keys = np.nonzero(allowed)
    if len(queries) == 0:
        return Bound(0, True)
    n, b = len(weights), int(np.abs(queries - keys).max())
    order = np.arange(n)
    return _triangle(weights, order[b:], order[: n - b])


def plane_bound(weights: Floats, cells: Cells, allowed: Flags) -> Bound:
    """The same on the plane: the number of tokens that have one at an extreme offset.

    An offset u of keys from queries is extreme if a linear function f is larger there than at all
    others. Queries i with keys i + u, by falling f, are an upper triangle: a query attends to the
    key of another one only where f(other) < f(own). The u of most tokens is taken.

    Args:
        weights: (n, n) [query, key]. cells: (n, 2). allowed: (n, n), pairs that may attend.

    Source: the 2-D form is ours; LongMIL (2024) has Eq. 12-14 for a line.
    """
    queries, keys = np.nonzero(allowed)
    if len(queries) == 0:
        return Bound(0, True)
    apart = cells[keys] - cells[queries]  # (P, 2)
    low, span = apart.min(0), int(np.ptp(apart[:, 1])) + 1
    code = (apart[:, 0] - low[0]) * span + apart[:, 1] - low[1]  # (P,)
    there = np.unique(code)
    corners = hull(np.stack([there // span, there % span], 1) + low)
    best: tuple[Cells, Cells] | None = None
    for at, corner in enumerate(corners):
        pairs = np.flatnonzero(code == (corner[0] - low[0]) * span + corner[1] - low[1])
        _, first = np.unique(cells[queries[pairs]], axis=0, return_index=True)  # a token a cell
        pairs = pairs[first]
        if best is None or len(pairs) > len(best[0]):
            f = cells[queries[pairs]] @ _outwards(corners, at)
            pairs = pairs[np.argsort(-f, kind="stable")]
            best = queries[pairs], keys[pairs]
    assert best is not None
    return _triangle(weights, *best)


def hull(points: Cells) -> Cells:
    """(C, 2) corners of the convex hull, in order around it, none on a line between two others.

    Args:
        points: (P, 2), distinct, sorted by both columns.
    """
    if len(points) < 3:
        return points
    halves = []
    for run in (points.tolist(), points[::-1].tolist()):
        half: list[list[int]] = []
        for x, y in run:
            while len(half) > 1:
                (ax, ay), (bx, by) = half[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                half.pop()
            half.append([x, y])
        halves += half[:-1]
    return np.array(halves, np.int64)


def _outwards(corners: Cells, at: int) -> Floats:
    """(2,) a direction in which this corner is farther than all other points of the hull."""
    here = corners[at]
    away: Floats = np.zeros(2)
    for other in (corners[at - 1], corners[(at + 1) % len(corners)]):
        step = (here - other).astype(np.float64)
        away += step / max(float(np.hypot(*step)), 1.0)
    return away


def _triangle(weights: Floats, rows: Cells, columns: Cells) -> Bound:
    corner = weights[np.ix_(rows, columns)]
    full = bool((np.diag(corner) > 0).all()) and not np.tril(corner, -1).any()
    return Bound(len(rows), full)
