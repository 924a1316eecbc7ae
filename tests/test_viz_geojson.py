"""GeoJSON of patches, as QuPath reads it."""

import json

import numpy as np
import pytest

from wsizoo.errors import DataError
from wsizoo.slides.geojson import write_geojson
from wsizoo.viz.colour import colours
from wsizoo.viz.geojson import patches_geojson


def rings(collection):
    return np.array([f["geometry"]["coordinates"][0] for f in collection["features"]])


def test_each_patch_is_a_closed_square_with_exact_corners():
    coords, footprint = np.array([[0, 0], [448, 225]]), 448.3333333333333
    squares = rings(patches_geojson(coords, footprint, [0.1, 0.9]))
    assert squares.shape == (2, 5, 2)
    assert np.array_equal(squares[:, 0], squares[:, 4])
    assert np.array_equal(squares[:, 0], coords)
    assert np.array_equal(squares[:, 2], coords + footprint)
    corners = squares[0, :4].tolist()
    assert corners == [[0, 0], [footprint, 0], [footprint, footprint], [0, footprint]]


def test_features_are_tiles_with_their_score_and_the_colour_of_its_rank():
    collection = patches_geojson([[0, 0], [1, 0], [2, 0]], 1.0, [5.0, -2.0, 100.0])
    assert collection["type"] == "FeatureCollection"
    for feature, score, rank in zip(collection["features"], [5, -2, 100], [0.5, 0, 1], strict=True):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert feature["properties"] == {
            "objectType": "tile",
            "color": colours([rank])[0].tolist(),
            "measurements": {"score": score},
        }


def test_what_a_selector_kept_is_a_measurement():
    collection = patches_geojson([[0, 0], [1, 0], [2, 0]], 1.0, [1, 2, 3], kept=[2, 0])
    kept = [f["properties"]["measurements"]["kept"] for f in collection["features"]]
    assert kept == [1, 0, 1]


def test_the_likeliest_class_is_the_classification():
    collection = patches_geojson(
        [[0, 0], [1, 0]],
        1.0,
        [1, 2],
        probabilities=[[0.7, 0.3], [0.2, 0.8]],
        classes=["stroma", "tumour"],
    )
    first, second = (feature["properties"] for feature in collection["features"])
    assert first["classification"]["name"] == "stroma"
    assert second["classification"]["name"] == "tumour"
    assert first["classification"]["color"] != second["classification"]["color"]
    assert second["measurements"] == {
        "score": 2,
        "probability stroma": 0.2,
        "probability tumour": 0.8,
    }


def test_a_written_file_is_compact_and_reads_back_as_it_was(tmp_path):
    collection = patches_geojson([[3, 4]], 0.1 + 0.2, [1 / 3])
    write_geojson(tmp_path / "new" / "a.geojson", collection)
    text = (tmp_path / "new" / "a.geojson").read_text()
    assert json.loads(text) == collection
    assert ": " not in text
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.geojson"]


def test_no_patches_are_an_empty_collection():
    assert patches_geojson(np.empty((0, 2)), 1.0, [])["features"] == []


def test_fifty_thousand_patches_are_written(tmp_path):
    rng = np.random.default_rng(0)
    coords = rng.integers(0, 100_000, (50_000, 2))
    path = tmp_path / "a.geojson"
    write_geojson(path, patches_geojson(coords, 448.3, rng.random(50_000)))
    assert len(json.loads(path.read_text())["features"]) == 50_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": [[0, 0], [1, 1]]}, r"coords are \(2, 2\) for 1 scores"),
        ({"coords": [[0, float("nan")]]}, "finite level-0 px"),
        ({"footprint": 0.0}, "footprint is 0.0, expected a positive number"),
        ({"scores": [float("nan")]}, "not finite"),
        ({"kept": [1]}, "expected .K,. indices of the 1 patches"),
        ({"kept": [True]}, "expected .K,. indices of the 1 patches"),
        ({"classes": ["a"]}, "expected .N, C. finite numbers and C names"),
        ({"probabilities": [[0.5, 0.5]]}, "with 0 class names"),
        ({"probabilities": [[0.5, 0.5]], "classes": ["a", "a"]}, "repeat, expected each once"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    call = {"coords": [[0, 0]], "footprint": 1.0, "scores": [1.0]} | change
    with pytest.raises(DataError, match=message):
        patches_geojson(**call)


def test_dropped_patches_have_no_score_no_class_and_the_lowest_colour():
    probabilities = [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]
    collection = patches_geojson(
        [[0, 0], [1, 0], [2, 0]],
        1.0,
        [-5.0, 0.0, -4.0],
        kept=[0, 2],
        probabilities=probabilities,
        classes=["a", "b"],
        measurements={"selector score": [3, 1, 2]},
    )
    low, dropped, high = (feature["properties"] for feature in collection["features"])
    assert low["color"] == colours([0.0])[0].tolist() and dropped["color"] == [160, 160, 160]
    assert high["color"] == colours([1.0])[0].tolist()
    assert dropped["measurements"] == {"kept": 0, "selector score": 1.0}
    assert "classification" not in dropped
    assert high["classification"]["name"] == "b"
    assert high["measurements"]["score"] == -4.0


def test_without_scores_the_last_class_gives_the_colour():
    collection = patches_geojson([[0, 0]], 1.0, probabilities=[[0.25, 0.75]], classes=["a", "b"])
    (tile,) = (feature["properties"] for feature in collection["features"])
    assert tile["color"] == colours([0.75])[0].tolist()
    assert "score" not in tile["measurements"]
