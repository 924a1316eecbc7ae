"""Patches of one class that lie side by side, as polygons that QuPath opens as annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsizoo.bag import Bag
from wsizoo.slides.geojson import Feature, polygon_feature
from wsizoo.slides.outlines import Polygon, trace
from wsizoo.viz.geojson import label

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
DECIMALS = 3  # of a level-0 px


def regions_geojson(
    bag: Bag, called: Index, probabilities: Floats, classes: Sequence[str]
) -> dict[str, Any]:
    """A FeatureCollection with an outline of each connected region of each class but the first.

    A patch counts as the square of the grid's step around its centre, so that neighbours meet
    whether patches overlap or leave gaps. Patches that touch at a corner only are two regions.

    Args:
        bag: N patches with coords and spacing.
        called: (N,) which class each is. probabilities: (N, C). classes: C names.

    Returns:
        Plain lists, strings and numbers. Measurements of a region: `patches`, how many, and
        `probability <class>`, their mean.
    """
    assert bag.coords is not None and bag.spacing is not None and bag.footprint is not None
    cells = bag.grid().cpu().numpy()
    origin = np.zeros(2)  # of cell (0, 0), level-0 px
    if len(cells):
        origin += np.median(bag.coords.cpu().numpy() - cells * bag.spacing, axis=0)
    origin += (bag.footprint - bag.spacing) / 2
    features = []
    for index in range(1, len(classes)):
        chosen = np.flatnonzero(called == index)
        for polygon, rows in _connected(cells[chosen]):
            rings = [ring * bag.spacing + origin for ring in polygon]
            mean = float(probabilities[chosen[rows], index].mean())
            measured = {"patches": len(rows), f"probability {classes[index]}": round(mean, 6)}
            features.append(_annotation(rings, label(index, classes), measured))
    return {"type": "FeatureCollection", "features": features}


def _connected(cells: Index) -> list[tuple[Polygon, Index]]:
    """Each connected set of cells: its outline in cells, and the rows (K,) that are in it.

    Of columns and rows of the grid that no cell touches, one of each stretch is traced, so that
    islands may lie as far apart as they like.
    """
    from scipy import ndimage

    if not len(cells):
        return []
    edges = [np.unique([axis, axis + 1]).astype(np.float64) for axis in cells.T]
    x, y = (np.searchsorted(edge, axis) for edge, axis in zip(edges, cells.T, strict=True))
    mask = np.zeros((len(edges[1]), len(edges[0])), bool)
    mask[y, x] = True
    component = ndimage.label(mask)[0][y, x]  # (N,), numbered as `trace` orders them
    order = np.argsort(component, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    found = []
    for polygon, rows in zip(trace(mask), members, strict=True):
        corners = (ring.astype(np.intp) for ring in polygon)
        rings = [np.stack([edges[0][c[:, 0]], edges[1][c[:, 1]]], 1) for c in corners]
        found.append((rings, rows))
    return found


def _annotation(rings: Polygon, classification: Feature, measured: dict[str, float]) -> Feature:
    closed = [np.concatenate([ring, ring[:1]]).round(DECIMALS).tolist() for ring in rings]
    return polygon_feature(
        closed,
        {
            "objectType": "annotation",
            "classification": classification,
            "measurements": measured,
        },
    )
