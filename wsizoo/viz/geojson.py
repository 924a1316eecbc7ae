"""Patches and their scores as GeoJSON that QuPath (0.4 or later) opens as tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError
from wsizoo.files import write_text
from wsizoo.viz.colour import CLASS_COLOURS, colours, finite_vector, normalise

Feature = dict[str, Any]


def patches_geojson(
    coords: ArrayLike,
    footprint: float,
    scores: ArrayLike,
    *,
    kept: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A FeatureCollection with one tile a patch, coloured by the rank of its score.

    Args:
        coords: (N, 2) int64 or exact float, level-0 px, (x, y), top-left.
        footprint: edge of a patch, level-0 px; corners are not rounded.
        scores: (N,) finite, any scale; measurement `score`.
        kept: (K,) indices of the patches a selector kept; measurement `kept`, 1 or 0.
        probabilities: (N, C) of each class; the most likely one is the tile's classification,
            and each is a measurement `probability <class>`.
        classes: C names, needed with probabilities.

    Returns:
        A dict of plain lists, strings and numbers, for `write_geojson` or json.

    Raises:
        DataError: lengths or shapes that do not fit, or a number that is not finite.

    Source: the reader of QuPath 0.5, qupath.lib.io.QuPathTypeAdapters.
    """
    corners = np.asarray(coords, dtype=np.float64)
    values = finite_vector(scores, "scores")
    if corners.shape != (len(values), 2) or not bool(np.isfinite(corners).all()):
        raise DataError(
            f"coords are {corners.shape} for {len(values)} scores, expected ({len(values)}, 2) "
            "finite level-0 px"
        )
    if not 0 < footprint < float("inf"):
        raise DataError(f"footprint is {footprint}, expected a positive number of level-0 px")
    measurements: dict[str, list[float]] = {"score": values.tolist()}
    if kept is not None:
        measurements["kept"] = _flags(kept, len(values))
    labels = _classified(probabilities, classes, len(values), measurements)
    features = _features(_rings(corners, footprint), measurements, values)
    for feature, label in zip(features, labels, strict=False):
        feature["properties"]["classification"] = label
    return {"type": "FeatureCollection", "features": features}


def write_geojson(path: Path | str, collection: Mapping[str, Any]) -> None:
    """Write it without spaces, and so that nobody ever sees half of it."""
    write_text(path, json.dumps(collection, separators=(",", ":"), allow_nan=False) + "\n")


def _rings(corners: NDArray[np.float64], footprint: float) -> list[list[list[float]]]:
    """(N, 5, 2) as lists: each square, closed, from its top-left corner through top-right."""
    steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    rings: list[list[list[float]]] = (corners[:, None] + steps * footprint).tolist()
    return rings


def _features(
    rings: list[list[list[float]]],
    measurements: dict[str, list[float]],
    values: NDArray[np.float64],
) -> list[Feature]:
    names = tuple(measurements)
    rows = zip(*measurements.values(), strict=True)
    return [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "tile",
                "color": colour,
                "measurements": dict(zip(names, row, strict=True)),
            },
        }
        for ring, colour, row in zip(rings, colours(normalise(values)).tolist(), rows, strict=True)
    ]


def _flags(kept: ArrayLike, n: int) -> list[float]:
    """1 for the patches named, 0 for the others."""
    index = np.asarray(kept)
    if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= n):
        raise DataError(f"kept is {index!r:.80}, expected (K,) indices of the {n} patches")
    named = set(index.astype(np.intp).tolist())
    return [int(i in named) for i in range(n)]


def _classified(
    probabilities: ArrayLike | None,
    classes: Sequence[str] | None,
    n: int,
    measurements: dict[str, list[float]],
) -> list[Feature]:
    """Each patch's classification (none without probabilities); adds their measurements."""
    if probabilities is None and classes is None:
        return []
    names = list(classes or ())
    table = np.asarray(probabilities if probabilities is not None else [], dtype=np.float64)
    if table.shape != (n, len(names)) or not names or not bool(np.isfinite(table).all()):
        raise DataError(
            f"probabilities are {table.shape} with {len(names)} class names for {n} patches, "
            "expected (N, C) finite numbers and C names"
        )
    if len(set(names)) != len(names):
        raise DataError(f"class names {names} repeat, expected each once")
    for column, name in enumerate(names):
        measurements[f"probability {name}"] = table[:, column].tolist()
    labels: list[Feature] = [
        {"name": name, "color": list(CLASS_COLOURS[i % len(CLASS_COLOURS)])}
        for i, name in enumerate(names)
    ]
    return [labels[i] for i in table.argmax(axis=1).tolist()]
