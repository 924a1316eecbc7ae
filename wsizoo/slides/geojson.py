"""GeoJSON of slides, in level-0 px: features that QuPath (0.4 or later) reads, areas of any tool.

Source: RFC 7946 (CRS and winding order are ignored, as QuPath does); what QuPath writes and reads,
qupath.lib.io.QuPathTypeAdapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsizoo.errors import DataError
from wsizoo.files import write_text
from wsizoo.slides.outlines import Polygon, Ring

Feature = dict[str, Any]
CUT_OUT = frozenset({"ignore", "exclude", "background", "glass", "pen", "artifact", "artefact"})
LARGEST = 1e9  # px; no slide is that wide
_MEMBERS = {
    "MultiPolygon": "Polygon",
    "MultiLineString": "LineString",
    "GeometryCollection": None,
}


@dataclass(frozen=True)
class Areas:
    """What a file outlines; rings in level-0 px.

    Args:
        kept: polygons. cut: those of a class that names no tissue, see CUT_OUT.
        told: the member `wsizoo` of a file that wsizoo wrote.
    """

    kept: list[Polygon]
    cut: list[Polygon]
    told: dict[str, Any]


def polygon_feature(
    rings: Sequence[Sequence[Sequence[float]]], properties: Mapping[str, Any]
) -> Feature:
    """A Polygon: its outer ring and its holes, each of (x, y) in level-0 px and closed."""
    geometry = {"type": "Polygon", "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": dict(properties)}


def write_geojson(path: Path | str, collection: Mapping[str, Any]) -> None:
    """Write it without spaces, and so that nobody ever sees half of it."""
    write_text(path, json.dumps(collection, separators=(",", ":"), allow_nan=False) + "\n")


def read_areas(path: Path | str) -> Areas:
    """Every polygon of a GeoJSON file: a FeatureCollection, features, a list of them, a geometry.

    A closed LineString counts as a polygon; points, open lines and heights (z) are left out.

    Raises:
        DataError: not JSON, not GeoJSON, or a coordinate that is no number of px.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content = json.loads(text)
        areas = Areas([], [], _told(content, path))
        for geometry, properties in _features(content, path):
            names_no_tissue = _class_of(properties) in CUT_OUT
            (areas.cut if names_no_tissue else areas.kept).extend(_polygons(geometry, path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        told = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{path} is not JSON: {told}. Export it again, as GeoJSON") from error
    return areas


def _told(content: Any, path: Path | str) -> dict[str, Any]:
    told = content.get("wsizoo", {}) if isinstance(content, dict) else {}
    if not isinstance(told, dict):
        raise DataError(f"{path}: its member 'wsizoo' is {told!r:.40}, expected what wsizoo wrote")
    return told


def _features(content: Any, path: Path | str) -> Iterator[tuple[Any, Any]]:
    """Geometry and properties of each."""
    kind = content.get("type") if isinstance(content, dict) else None
    inner = content.get("features") if kind == "FeatureCollection" else content
    if isinstance(inner, list):
        for item in inner:
            yield from _features(item, path)
    elif kind == "Feature":
        yield content.get("geometry"), content.get("properties")
    elif kind is not None and kind != "FeatureCollection":
        yield content, None
    else:
        raise DataError(
            f"{path} is no GeoJSON: {content!r:.60} is found where a FeatureCollection, a Feature "
            "or a geometry belongs"
        )


def _class_of(properties: Any) -> str:
    """Name of a QuPath classification: the first part, lower case, without the asterisk."""
    given = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(given, dict):
        given = given.get("name") or given.get("names")
    if isinstance(given, list):
        given = given[0] if given else None
    return str(given or "").partition(":")[0].strip().rstrip("*").lower()


def _polygons(geometry: Any, path: Path | str) -> Iterator[Polygon]:
    if geometry is None:
        return
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in ("Point", "MultiPoint"):
        return
    member = "geometries" if kind == "GeometryCollection" else "coordinates"
    content = geometry.get(member) if kind in ("Polygon", "LineString", *_MEMBERS) else None
    if not isinstance(content, list):
        raise DataError(
            f"{path} is no GeoJSON: the geometry {geometry!r:.60} has no known type with a list of "
            f"{member}"
        )
    if kind in _MEMBERS:
        of_each = _MEMBERS[kind]
        for item in content:
            whole = item if of_each is None else {"type": of_each, "coordinates": item}
            yield from _polygons(whole, path)
    elif kind == "Polygon" and content:
        yield [_ring(ring, path) for ring in content]
    elif kind == "LineString" and len(content) > 3 and content[0] == content[-1]:
        yield [_ring(content, path)]


def _ring(points: Any, path: Path | str) -> Ring:
    """(N, 2) float64 without the closing point."""
    try:
        ring = np.array([point[:2] for point in points])
    except (TypeError, ValueError, KeyError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] != 2 or ring.dtype.kind not in "if":
        raise DataError(
            f"{path}: a ring is {points!r:.60}, expected a list of (x, y) in level-0 px"
        )
    if not np.abs(ring).max() <= LARGEST:
        raise DataError(
            f"{path}: a ring holds a coordinate that is no position on a slide (level-0 px)"
        )
    if (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    if len(ring) < 3:
        raise DataError(
            f"{path}: the ring {points!r:.60} has {len(ring)} corners, expected 3 or more"
        )
    return ring.astype(np.float64)
