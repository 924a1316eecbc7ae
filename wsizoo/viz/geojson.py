"""Patches and their scores as GeoJSON that QuPath (0.4 or later) opens as tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError
from wsizoo.slides.geojson import Feature, polygon_feature
from wsizoo.viz.colour import CLASS_COLOURS, colours, finite_vector, normalise

DROPPED = 160  # grey, which is no colour of a score


def patches_geojson(
    coords: ArrayLike,
    footprint: float,
    scores: ArrayLike | None = None,
    *,
    kept: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    called: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    measurements: Mapping[str, ArrayLike] | None = None,
    by_class: bool = False,
) -> dict[str, Any]:
    """A FeatureCollection with one tile a patch, coloured by the rank of its score.

    Without scores the colour is the probability of the last class; without both, the top one.

    Args:
        coords: (N, 2) int64 or exact float, level-0 px, (x, y), top-left.
        footprint: edge of a patch, level-0 px; corners are not rounded.
        scores: (N,) finite, any scale; measurement `score`.
        kept: (K,) indices of the patches a selector kept; measurement `kept`, 1 or 0. The others
            are grey and have neither score, probabilities nor classification.
        probabilities: (N, C) of each class; each is a measurement `probability <class>`.
        called: (N,) indices of the classes that are the tiles' classifications; default the most
            likely ones.
        classes: C names, needed with probabilities.
        measurements: further ones of all N patches by name, (N,) each.
        by_class: colours by probability, also with scores.

    Returns:
        A dict of plain lists, strings and numbers, for `write_geojson` or json.

    Raises:
        DataError: lengths or shapes that do not fit, or a number that is not finite.
    """
    corners = np.asarray(coords, dtype=np.float64)
    n = corners.shape[0] if corners.ndim else 0
    values = None if scores is None else finite_vector(scores, "scores")
    if corners.shape != (n if values is None else len(values), 2) or not np.isfinite(corners).all():
        told = "" if values is None else f" for {len(values)} scores"
        raise DataError(f"coords are {corners.shape}{told}, expected (N, 2) finite level-0 px")
    if not 0 < footprint < float("inf"):
        raise DataError(f"footprint is {footprint}, expected a positive number of level-0 px")
    read = _read(kept, n)
    table = _checked(probabilities, classes, n)
    told_of = _measurements(values, kept is not None, read, table, list(classes or ()))
    for name, column in (measurements or {}).items():
        for measured, value in zip(told_of, finite_vector(column, name).tolist(), strict=True):
            measured[name] = value
    colour = _colours(None if by_class else values, read, table)
    features = _features(_rings(corners, footprint), told_of, colour)
    if table is not None:
        chosen = table.argmax(1) if called is None else np.asarray(called)
        for i in np.flatnonzero(read):
            features[i]["properties"]["classification"] = label(int(chosen[i]), classes or ())
    return {"type": "FeatureCollection", "features": features}


def _rings(corners: NDArray[np.float64], footprint: float) -> list[list[list[float]]]:
    """(N, 5, 2) as lists: each square, closed, from its top-left corner through top-right."""
    steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    rings: list[list[list[float]]] = (corners[:, None] + steps * footprint).tolist()
    return rings


def _features(
    rings: list[list[list[float]]], measurements: list[dict[str, float]], colour: NDArray[np.uint8]
) -> list[Feature]:
    return [
        polygon_feature([ring], {"objectType": "tile", "color": rgb, "measurements": measured})
        for ring, rgb, measured in zip(rings, colour.tolist(), measurements, strict=True)
    ]


def _read(kept: ArrayLike | None, n: int) -> NDArray[np.bool_]:
    """(n,) True for the patches that reached the model."""
    if kept is None:
        return np.ones(n, bool)
    index = np.asarray(kept)
    if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= n):
        raise DataError(f"kept is {index!r:.80}, expected (K,) indices of the {n} patches")
    read = np.zeros(n, bool)
    read[index.astype(np.intp)] = True
    return read


def _checked(probabilities: ArrayLike | None, classes: Sequence[str] | None, n: int) -> Any:
    """(n, C) float64, or None where neither probabilities nor classes are given."""
    if probabilities is None and classes is None:
        return None
    names = list(classes or ())
    table = np.asarray(probabilities if probabilities is not None else [], dtype=np.float64)
    if table.shape != (n, len(names)) or not names or not bool(np.isfinite(table).all()):
        raise DataError(
            f"probabilities are {table.shape} with {len(names)} class names for {n} patches, "
            "expected (N, C) finite numbers and C names"
        )
    if len(set(names)) != len(names):
        raise DataError(f"class names {names} repeat, expected each once")
    return table


def _measurements(
    values: NDArray[np.float64] | None,
    selected: bool,
    read: NDArray[np.bool_],
    table: Any,
    classes: Sequence[str],
) -> list[dict[str, float]]:
    """What is said of each patch, by name."""
    told: list[dict[str, float]] = [{} for _ in read]
    for i in np.flatnonzero(read):
        if values is not None:
            told[i]["score"] = float(values[i])
    if selected:
        for measured, flag in zip(told, read.tolist(), strict=True):
            measured["kept"] = int(flag)
    for i in np.flatnonzero(read) if table is not None else ():
        for name, probability in zip(classes, table[i].tolist(), strict=True):
            told[i][f"probability {name}"] = probability
    return told


def _colours(
    values: NDArray[np.float64] | None, read: NDArray[np.bool_], table: Any
) -> NDArray[np.uint8]:
    """(N, 3) uint8."""
    found = np.full((len(read), 3), DROPPED, np.uint8)
    if values is not None:
        at = normalise(values[read])
    else:
        at = np.ones(int(read.sum())) if table is None else np.clip(table[read, -1], 0, 1)
    found[read] = colours(at)
    return found


def label(index: int, classes: Sequence[str]) -> Feature:
    """The classification of a feature: name and colour of a class."""
    return {"name": classes[index], "color": list(CLASS_COLOURS[index % len(CLASS_COLOURS)])}
