"""wsizoo.slides.geojson: polygons of any tool's GeoJSON, and clear words for what is none."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsizoo.errors import DataError
from wsizoo.slides.geojson import polygon_feature, read_areas, write_geojson

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def read(tmp_path: Path, content: Any) -> Any:
    file = tmp_path / "a.geojson"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_areas(file)


@pytest.mark.parametrize(
    "content",
    [
        POLYGON,
        feature(POLYGON),
        {"type": "Feature", "geometry": POLYGON, "properties": None},
        collection(feature(POLYGON)),
        [feature(POLYGON)],
        [POLYGON],
        {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]},
        {"type": "GeometryCollection", "geometries": [POLYGON]},
        {"type": "GeometryCollection", "geometries": [{**POLYGON}, {"type": "Point"}]},
        {"type": "Polygon", "coordinates": [SQUARE[:-1], HOLE[:-1]]},
        {
            "type": "Polygon",
            "coordinates": [[[x, y, 7] for x, y in ring] for ring in (SQUARE, HOLE)],
        },
        {"type": "Polygon", "coordinates": [[[*SQUARE[0], 7], *SQUARE[1:]], HOLE]},
        collection(
            feature(None), feature(POLYGON), feature({"type": "Polygon", "coordinates": []})
        ),
        collection(feature({"type": "LineString", "coordinates": SQUARE[:3]}), feature(POLYGON)),
        {
            **collection(feature(POLYGON, tissue_id=0)),
            "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        },
        "\ufeff" + json.dumps(POLYGON),
    ],
)
def test_every_kind_of_geojson_gives_its_polygons(tmp_path: Path, content: Any) -> None:
    areas = read(tmp_path, content)
    assert [[ring.tolist() for ring in polygon] for polygon in areas.kept] == [
        [SQUARE[:-1], HOLE[:-1]]
    ]
    assert areas.kept[0][0].dtype == np.float64
    assert areas.cut == []


def test_a_closed_line_is_an_outline(tmp_path: Path) -> None:
    lines = {"type": "MultiLineString", "coordinates": [SQUARE, SQUARE[:4], [[0, 0], [0, 0]]]}
    assert len(read(tmp_path, lines).kept) == 1


@pytest.mark.parametrize(
    ("classification", "is_cut"),
    [
        (None, False),
        ({"name": "Tissue", "color": [0, 160, 80]}, False),
        ({"name": "Tumor", "colorRGB": -3670016}, False),
        ({"name": "Region*"}, False),
        ({"name": None}, False),
        ({"name": "Ignore*"}, True),
        ({"name": "Ignore"}, True),
        ({"name": "Artifact: fold"}, True),
        ({"names": ["Pen", "red"]}, True),
        ({"names": []}, False),
        ("background", True),
    ],
)
def test_classes_that_name_no_tissue_are_cut_out(
    tmp_path: Path, classification: Any, is_cut: bool
) -> None:
    areas = read(tmp_path, collection(feature(POLYGON, classification=classification)))
    assert (len(areas.kept), len(areas.cut)) == ((0, 1) if is_cut else (1, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON: Expecting value.*Export it again"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON: it is nested too deeply"),
        ("1" * 10_000, "is not JSON"),
        ("null", "is no GeoJSON: None is found where"),
        ("3", "is no GeoJSON: 3 is found"),
        ({"a": 1}, "is no GeoJSON: {'a': 1} is found"),
        ({"type": "FeatureCollection"}, "is no GeoJSON"),
        (["a"], "is no GeoJSON: 'a' is found"),
        ({"type": "Circle", "coordinates": [1, 2]}, "'Circle'.* has no known type"),
        ({"type": "Topology", "objects": {}}, "'Topology'.* has no known type"),
        (feature([SQUARE]), "has no known type"),
        ({"type": "Polygon"}, "has no known type with a list of coordinates"),
        ({"type": "GeometryCollection", "coordinates": []}, "a list of geometries"),
        ({"type": "MultiPolygon", "coordinates": [3]}, "a list of coordinates"),
        ({"type": "Polygon", "coordinates": SQUARE}, r"a ring is \[0, 0\], expected a list of \(x"),
        ({"type": "Polygon", "coordinates": [[]]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [3]}, "a ring is 3"),
        ({"type": "Polygon", "coordinates": [None]}, "a ring is None"),
        ({"type": "Polygon", "coordinates": [["ab", "cd", "ef"]]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [[["0", "1"], ["1", "1"], ["1", "0"]]]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [[{"x": 1}, {"x": 2}, {"x": 3}]]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, None], [2, 2]]]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1], [2, 2]]]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [[[True, False]] * 4]}, "a ring is"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [10**30, 0], [2, 2]]]}, "a ring is"),
        (
            {"type": "Polygon", "coordinates": [[[0, 0], [1e30, 0], [2, 2]]]},
            "no position on a slide",
        ),
        ({"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 0], [2, 2]]]}, "no position"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [float("inf"), 0], [2, 2]]]}, "no position"),
        (
            {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]},
            "has 2 corners, expected 3",
        ),
        ({**POLYGON, "wsizoo": 3}, "its member 'wsizoo' is 3"),
    ],
)
def test_what_is_no_geojson_is_an_error_that_names_the_file(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.geojson.*{message}"):
        read(tmp_path, content)


def test_deeply_nested_collections_are_an_error(tmp_path: Path) -> None:
    nested = '{"type":"GeometryCollection","geometries":[' * 400 + "]}" * 400
    assert read(tmp_path, nested).kept == []
    deeper = '{"type":"GeometryCollection","geometries":[' * 9000 + "]}" * 9000
    with pytest.raises(DataError, match="is not JSON: it is nested too deeply"):
        read(tmp_path, deeper)


def test_files_that_cannot_be_read_or_are_no_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.geojson cannot be read: No such file"):
        read_areas(tmp_path / "none.geojson")
    with pytest.raises(DataError, match="cannot be read"):
        read_areas(tmp_path)
    (tmp_path / "b.geojson").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(DataError, match="is not JSON: 'utf-8' codec"):
        read_areas(tmp_path / "b.geojson")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = collection(polygon_feature([SQUARE, HOLE], {"objectType": "annotation"}))
    write_geojson(tmp_path / "b.geojson", made)
    (polygon,) = read_areas(tmp_path / "b.geojson").kept
    assert [ring.tolist() for ring in polygon] == [SQUARE[:-1], HOLE[:-1]]


EXPORT = collection(  # as QuPath exports annotations
    feature(
        POLYGON, objectType="annotation", classification={"name": "Tissue", "color": [0, 1, 2]}
    ),
    feature({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [SQUARE]]}, name="b"),
    feature({"type": "GeometryCollection", "geometries": [POLYGON]}, classification=None),
    feature({"type": "LineString", "coordinates": SQUARE}, classification={"name": "Ignore"}),
)
WRONG = [None, True, -1, 1e400, float("nan"), 10**40, "", "Polygon", [], [[]], {}, {"type": "x"}]


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    if not isinstance(node, dict | list):
        return []
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    found = [(node, key) for key in keys]
    return found + [place for key in keys for place in places(node[key])]


@pytest.mark.slow
def test_an_export_with_anything_wrong_in_it_is_areas_or_one_clear_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    refused = []
    for _ in range(1000):
        content = copy.deepcopy(EXPORT)
        for _ in range(rng.choice([1, 1, 3])):
            container, key = rng.choice(places(content))
            container[key] = copy.deepcopy(rng.choice(WRONG))
        try:
            areas = read(tmp_path, content)
        except DataError as error:
            refused.append(str(error))
        else:
            rings = [ring for polygon in areas.kept + areas.cut for ring in polygon]
            assert all(ring.ndim == 2 and np.isfinite(ring).all() for ring in rings)
    assert 100 < len(refused) < 1000
    assert all("a.geojson" in reason for reason in refused)
