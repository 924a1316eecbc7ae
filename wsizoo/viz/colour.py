"""One sequential colour map, dark blue to yellow, in steps equal to the eye, without H&E's hues."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError

Floats = NDArray[np.float64]
Colours = NDArray[np.uint8]

STEPS = 256

# Lightness (0..1), chroma and hue (degrees) in OKLab's polar form. Lightness alone tells the order,
# so the map survives colour blindness and a grey printer.
ANCHORS = (
    (0.25, 0.095, 268.0),
    (0.43, 0.120, 253.0),
    (0.60, 0.098, 207.0),
    (0.77, 0.140, 155.0),
    (0.94, 0.175, 107.0),
)

# One colour a class; told apart by people with red-green and with blue-yellow blindness.
# Source: M. Okabe and K. Ito, "Color Universal Design", 2008, without black, which is ink here.
CLASS_COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (240, 228, 66),
)

# Source of both matrices: B. Ottosson, "A perceptual color space for image processing", 2020.
_LAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colours(values: ArrayLike) -> Colours:
    """The colour of each value.

    Args:
        values: (...) float in [0, 1]; 0 is dark blue, 1 is yellow.

    Returns:
        (..., 3) uint8, sRGB.

    Raises:
        DataError: a value is NaN or outside [0, 1].
    """
    array = np.asarray(values, dtype=np.float64)
    if not bool(((array >= 0) & (array <= 1)).all()):
        raise DataError(
            f"values from {array.min():g} to {array.max():g} have no colour, expected numbers in "
            "[0, 1]; bring scores there with normalise(scores)"
        )
    steps: Colours = _table()[np.rint(array * (STEPS - 1)).astype(np.intp)]
    return steps


def normalise(scores: ArrayLike, how: Literal["rank", "minmax"] = "rank") -> Floats:
    """Scores of any scale brought into [0, 1].

    Args:
        scores: (N,) finite numbers, larger is more important.
        how: "rank": the share of the other patches that score less, ties counted half, so that
            a few extreme scores do not hide the rest. "minmax": linear from least to largest.

    Returns:
        (N,) float64 in [0, 1]; 0.5 everywhere when all scores are equal.

    Raises:
        DataError: scores are not (N,), hold NaN or infinity, or `how` is unknown.
    """
    array = finite_vector(scores, "scores")
    if how not in ("rank", "minmax"):
        raise DataError(f"no normalisation named {how!r}, expected 'rank' or 'minmax'")
    if array.size == 0 or array.min() == array.max():
        return np.full(array.shape, 0.5)
    if how == "minmax":
        # Halved first: the range of two huge floats may overflow.
        half = array / 2
        scaled: Floats = np.clip((half - half.min()) / (half.max() - half.min()), 0, 1)
        return scaled
    _, group, counts = np.unique(array, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - counts + (counts - 1) / 2
    shares: Floats = (ranks / (array.size - 1))[group.reshape(-1)]
    return shares


def finite_vector(values: Any, what: str) -> Floats:
    """`values` as (N,) float64, or a DataError that names the first number that is not one."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{what} are {array.shape}, expected (N,), one number a patch")
    broken = np.flatnonzero(~np.isfinite(array))
    if broken.size:
        raise DataError(
            f"{what}: {broken.size} of {array.size} are not finite (the first is "
            f"{array[broken[0]]} at {broken[0]}); expected numbers, drop those patches first"
        )
    return array


def oklab_to_srgb(lab: Floats) -> Floats:
    """(..., 3) OKLab to (..., 3) sRGB in [0, 1], clipped where the screen has no such colour."""
    linear = ((lab @ _LAB_TO_LMS.T) ** 3) @ _LMS_TO_RGB.T
    linear = np.clip(linear, 0, 1)
    srgb: Floats = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return srgb


@functools.cache
def _table() -> Colours:
    """(STEPS, 3) uint8: the curve through the anchors, at equal distances in OKLab."""
    fine = _curve(64)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    at = np.linspace(0, along[-1], STEPS)
    even = np.stack([np.interp(at, along, fine[:, axis]) for axis in range(3)], axis=1)
    return np.rint(oklab_to_srgb(even) * 255).astype(np.uint8)


def _curve(pieces: int) -> Floats:
    """A smooth curve through the anchors (Catmull-Rom), `pieces` points between two, (P, 3)."""
    lightness, chroma, hue = np.array(ANCHORS).T
    angle = np.deg2rad(hue)
    points = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)
    ends = np.concatenate(
        [[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]], axis=0
    )
    t = np.linspace(0, 1, pieces, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(ends[:-3], ends[1:-2], ends[2:-1], ends[3:], strict=True):
        bend = 2 * a - 5 * b + 4 * c - d
        twist = 3 * (b - c) + d - a
        parts.append(b + 0.5 * t * ((c - a) + t * (bend + t * twist)))
    return np.concatenate([*parts, points[-1:]])
