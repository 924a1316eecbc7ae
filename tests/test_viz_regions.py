"""Regions of patches, as QuPath reads them."""

import json
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.bag import Bag
from wsizoo.slides.outlines import fill
from wsizoo.viz.geojson import label
from wsizoo.viz.regions import regions_geojson

CLASSES = ["normal", "tumour", "stroma"]


def regions(
    cells: list[tuple[int, int]], called: list[int], spacing: float = 1.0, **fields: Any
) -> list[dict[str, Any]]:
    """Features; the probability of its class is 0.1 (row + 1) of each patch."""
    at = torch.tensor(cells).reshape(-1, 2)
    origin = torch.tensor(fields.pop("origin", (0, 0)))
    coords = (at.double() * spacing).round().long() + origin
    bag = Bag(torch.zeros(len(at), 1), coords, spacing=spacing, **fields)
    probabilities = np.zeros((len(at), 3))
    rows = np.arange(len(at))
    probabilities[rows, called] = 0.1 * (rows + 1)
    found = regions_geojson(bag, np.array(called, dtype=np.int64), probabilities, CLASSES)
    again: list[dict[str, Any]] = json.loads(json.dumps(found))["features"]
    return again


def rings(feature: dict[str, Any]) -> list[list[list[float]]]:
    found: list[list[list[float]]] = feature["geometry"]["coordinates"]
    return found


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60).map(sorted), st.data())
def test_the_outlines_hold_the_patches_of_their_class_and_no_others(
    cells: list[tuple[int, int]], data: st.DataObject
) -> None:
    called = [data.draw(st.integers(0, 2)) for _ in cells]
    features = regions(cells, called)
    for index in (1, 2):
        own = [f for f in features if f["properties"]["classification"]["name"] == CLASSES[index]]
        wanted = np.zeros((10, 10), bool)
        for (x, y), one in zip(cells, called, strict=True):
            wanted[y, x] = one == index
        filled = fill([[np.array(ring[:-1]) for ring in rings(f)] for f in own], (10, 10))
        assert np.array_equal(filled, wanted)
        assert sum(f["properties"]["measurements"]["patches"] for f in own) == wanted.sum()


def test_a_region_is_an_annotation_with_its_size_and_its_mean_probability() -> None:
    (one,) = regions([(0, 0), (1, 0), (2, 0)], [1, 1, 0], spacing=100.0)
    assert rings(one) == [[[0, 0], [200, 0], [200, 100], [0, 100], [0, 0]]]
    assert one["properties"] == {
        "objectType": "annotation",
        "classification": label(1, CLASSES),
        "measurements": {"patches": 2, "probability tumour": 0.15},
    }


def test_a_hole_stays_a_hole_and_corners_do_not_join() -> None:
    cells = [(x, y) for x in range(3) for y in range(3)] + [(3, 3)]
    around, corner = regions(cells, [1, 1, 1, 1, 0, 1, 1, 1, 1, 1])
    assert len(rings(around)) == 2 and around["properties"]["measurements"]["patches"] == 8
    assert rings(corner) == [[[3, 3], [4, 3], [4, 4], [3, 4], [3, 3]]]


def test_islands_far_apart_are_outlined_where_they_lie() -> None:
    far = 10**7
    near, away = regions([(0, 0), (far, far + 3)], [1, 1], spacing=10.0)
    assert rings(near)[0][0] == [0, 0]
    assert rings(away)[0][0] == [10 * far, 10 * (far + 3)]


def test_patches_that_overlap_or_leave_gaps_meet_in_the_middle() -> None:
    for footprint in (200.0, 60.0):
        (one,) = regions([(0, 0), (1, 0)], [1, 1], 100.0, footprint=footprint)
        left, right = rings(one)[0][0][0], rings(one)[0][1][0]
        assert right - left == 200 and left + right == 100 + footprint


def test_a_grid_that_begins_anywhere_is_met_exactly() -> None:
    (one,) = regions([(3, 4)], [2], 224.0, origin=(17, -9))
    assert rings(one)[0][0] == [3 * 224 + 17, 4 * 224 - 9]


def test_no_patches_and_no_positive_ones_are_no_regions() -> None:
    assert regions([], []) == []
    assert regions([(0, 0)], [0]) == []
