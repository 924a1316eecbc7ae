"""wsizoo.slides.annotations: a mask as GeoJSON, edited or not, and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsizoo.errors import DataError
from wsizoo.slides import annotations
from wsizoo.slides.annotations import draw_tissue, mask_for, tissue_from_geojson, write_tissue
from wsizoo.slides.geojson import polygon_feature, write_geojson
from wsizoo.slides.outlines import Mask, Ring
from wsizoo.slides.tissue import TissueMask


def mask_of(pixels: Mask, mpp: float = 8.0) -> TissueMask:
    return TissueMask(pixels, mpp, 0.1, np.zeros_like(pixels), brightfield=True)


def some_mask() -> TissueMask:
    pixels = np.zeros((60, 80), bool)
    pixels[10:40, 20:60] = True
    pixels[20:30, 30:40] = False
    pixels[50, 3:70] = True
    return mask_of(pixels)


def square(low: float, high: float) -> list[list[float]]:
    return [[low, low], [high, low], [high, high], [low, high], [low, low]]


def written(path: Path, *rings: Any, **told: Any) -> Path:
    """A file of one polygon a ring."""
    features = [polygon_feature([ring], {}) for ring in rings]
    write_geojson(path, {"type": "FeatureCollection", "features": features, **told})
    return path


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31)),
    st.tuples(st.floats(4, 70), st.floats(4, 70)),
)
def test_a_mask_that_is_written_and_read_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[int, int, int],
    downsample: tuple[float, float],
) -> None:
    rows, columns, seed = made
    pixels = np.random.default_rng(seed).random((rows, columns)) < 0.6
    pixels[0, 0] = True
    size = (round(columns * downsample[0]), round(rows * downsample[1]))
    file = tmp_path_factory.getbasetemp() / "same.geojson"
    write_tissue(file, mask_of(pixels), size, "A1")
    again = tissue_from_geojson(file, size, 0.5, shape=pixels.shape)
    assert np.array_equal(again.mask, pixels)


def test_a_file_that_nobody_edited_gives_the_very_same_shares(tmp_path: Path) -> None:
    tissue, size = some_mask(), (80 * 32 - 11, 60 * 32 + 7)
    write_tissue(tmp_path / "a.geojson", tissue, size, "A1")
    again = tissue_from_geojson(tmp_path / "a.geojson", size, 0.25)
    assert again.mask.shape == (180, 240)  # 2.7 um per px
    assert again.fraction == tissue.fraction
    low = np.random.default_rng(0).uniform(0, 2000, (200, 2))
    for_each = [
        t.share(*(low * to_mask).T, *((low + 448) * to_mask).T, 1)
        for t in (tissue, again)
        for to_mask in [np.divide(t.mask.shape[::-1], size)]
    ]
    assert np.allclose(*for_each, atol=1e-9)


def test_qupath_finds_annotations_with_a_class_and_an_area(tmp_path: Path) -> None:
    write_tissue(tmp_path / "a.geojson", some_mask(), (80 * 16, 60 * 16), "A1")
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    large, line = content["features"]
    assert large["type"] == "Feature"
    assert large["geometry"]["type"] == "Polygon"
    outer, hole = large["geometry"]["coordinates"]
    assert outer == [[320, 160], [960, 160], [960, 640], [320, 640], [320, 160]]
    assert hole[0] == hole[-1] and sorted(hole[1:]) == sorted(square_at(480, 320, 160))
    assert large["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tissue", "color": [0, 160, 80]},
        "measurements": {"Area um^2": (30 * 40 - 100) * 64},
    }
    assert line["properties"]["measurements"] == {"Area um^2": 67 * 64}


def square_at(x: float, y: float, edge: float) -> list[list[float]]:
    return [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge]]


def test_a_mask_without_tissue_is_a_file_to_draw_in(tmp_path: Path) -> None:
    write_tissue(tmp_path / "a.geojson", mask_of(np.zeros((3, 3), bool)), (48, 48), "A1")
    with pytest.raises(
        DataError, match=r"a\.geojson outlines no tissue: it holds no polygon\. Draw"
    ):
        tissue_from_geojson(tmp_path / "a.geojson", (48, 48), 0.5)


def test_a_mask_that_is_read_knows_its_scale(tmp_path: Path) -> None:
    found = tissue_from_geojson(written(tmp_path / "a", square(0, 4000)), (8000, 8000), 0.25)
    assert found.mask.shape == (1000, 1000)  # 2 um per px
    assert found.mpp == pytest.approx(2.0)
    assert found.fraction == 0.25
    assert found.brightfield and not found.pen.any() and found.pen.shape == found.mask.shape
    small = tissue_from_geojson(written(tmp_path / "a", square(0, 40)), (80, 60), 8.0)
    assert small.mask.shape == (60, 80)  # never finer than the slide


def test_the_mask_of_the_largest_slide_is_bounded(tmp_path: Path) -> None:
    size = (200_000, 150_000)
    found = tissue_from_geojson(written(tmp_path / "a", square(0, 75_000)), size, 0.25)
    assert found.mask.size <= 1.01 * 2**25
    assert found.fraction == pytest.approx(75_000**2 / (size[0] * size[1]), rel=0.01)


def clipped_area(ring: Ring, low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """Exact area of a polygon within a box: cut at one side after the other."""
    points = list(ring)
    for axis, at, sign in ((0, low[0], 1), (0, high[0], -1), (1, low[1], 1), (1, high[1], -1)):
        kept = []
        for a, b in zip(points, [*points[1:], *points[:1]], strict=True):
            inside_a, inside_b = (sign * (p[axis] - at) >= 0 for p in (a, b))
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                kept.append(a + (b - a) * (at - a[axis]) / (b[axis] - a[axis]))
        points = kept
    if not points:
        return 0.0
    x, y = np.array(points).T
    return abs(float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)) / 2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 30))
def test_shares_of_patches_are_right_within_a_percent(
    tmp_path_factory: pytest.TempPathFactory, seed: int, points: int
) -> None:
    """Of 224 px at 0.5 um/px, on a slide of 12 x 9 mm at 0.25 um/px."""
    rng, size, edge = np.random.default_rng(seed), (48_000, 36_000), 448
    angle = (np.arange(points) + rng.uniform(0, 0.9, points)) * 2 * np.pi / points
    reach = rng.uniform(5000, 17_000, points)
    ring = np.stack([24_000 + reach * np.cos(angle), 18_000 + reach * np.sin(angle)], 1)
    file = written(tmp_path_factory.getbasetemp() / "star.geojson", ring.tolist())
    found = tissue_from_geojson(file, size, 0.25)
    along = rng.uniform(0, 1, (200, 1))
    starts = rng.integers(0, points, 200)
    low = ring[starts] * along + ring[(starts + 1) % points] * (1 - along)  # on the outline
    low -= rng.uniform(0, edge, (200, 2))
    to_mask = np.divide(found.mask.shape[::-1], size)
    share = found.share(*(low * to_mask).T, *((low + edge) * to_mask).T, 1)
    exact = [clipped_area(ring, corner, corner + edge) / edge**2 for corner in low]
    wrong = np.abs(share - exact)
    assert wrong.max() < 0.01
    assert wrong.mean() < 0.002


def test_polygons_are_joined_and_those_of_no_tissue_are_cut_out(tmp_path: Path) -> None:
    features = [
        polygon_feature([square(0, 600)], {"classification": {"name": "Tumor"}}),
        polygon_feature([square(200, 400)], {"classification": {"name": "Ignore*"}}),
        polygon_feature([square(300, 900), square(700, 800)], {}),
    ]
    write_geojson(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features})
    found = tissue_from_geojson(tmp_path / "a.geojson", (1000, 1000), 2.0)
    area = 600**2 + 600**2 - 300**2 - 100**2 - 200**2
    assert found.mask.sum() == area
    assert not found.mask[350, 350]
    assert found.mask[500, 500]


def test_what_reaches_beyond_the_slide_is_clipped(tmp_path: Path) -> None:
    file = written(tmp_path / "a", square(-500, 50), square(5000, 6000))
    assert tissue_from_geojson(file, (100, 100), 2.0).fraction == 0.25


SIZE = (4000, 3000)
TOLD = {"slide_size": list(SIZE), "mask_size": [500, 375]}


@pytest.mark.parametrize(
    ("rings", "told", "message"),
    [
        ([], {}, "outlines no tissue: it holds no polygon. Draw"),
        ([square(0, 1)], {}, "all coordinates lie between 0 and 1; expected level-0 px"),
        ([square(0.2, 0.7)], {}, "Multiply them by the size of the slide, 4000 x 3000"),
        ([square(5000, 6000)], {}, "everything lies outside the slide: x 5000 to 6000"),
        ([square(-900, -3)], {}, "the slide is 4000 x 3000 level-0 px"),
        ([[[5, 5], [90, 5], [5, 5.1]]], {}, "its polygons leave nothing of a slide of 4000 x 3000"),
        ([square(0, 99)], {"slide_size": [8000, 6000]}, r"made for a slide of \[8000, 6000\] px"),
        ([square(0, 99)], {"slide_size": "x"}, "made for a slide of x px, this one is 4000 x 3000"),
        ([square(0, 99)], {**TOLD, "mask_size": [5000, 1]}, r"its mask_size is \[5000, 1\]"),
        (
            [square(0, 99)],
            {**TOLD, "mask_size": [0, 1]},
            "expected .columns, rows. as wsizoo wrote",
        ),
        ([square(0, 99)], {**TOLD, "mask_size": [5.5, 1]}, "Delete the member 'wsizoo'"),
        ([square(0, 99)], {**TOLD, "mask_size": {}}, "its mask_size is {}"),
    ],
)
def test_outlines_that_are_not_of_this_slide_are_refused(
    tmp_path: Path, rings: list[Any], told: dict[str, Any], message: str
) -> None:
    file = written(tmp_path / "a.geojson", *rings, wsizoo=told)
    with pytest.raises(DataError, match=rf"a\.geojson.*{message}"):
        tissue_from_geojson(file, SIZE, 0.5)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_a_mask_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.geojson"
    write_tissue(file, some_mask(), (1280, 960), "A1")
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        is_answered = bool(tissue_from_geojson(file, (1280, 960), 0.5).mask.any())
    except DataError as error:
        is_answered = "damaged.geojson" in str(error)
    assert is_answered


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5)
    | st.sampled_from(["Polygon", "Feature", "FeatureCollection", "GeometryCollection"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["type", "geometry", "coordinates", "features", "properties", "wsizoo"]),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(ANYTHING)
def test_any_json_is_a_mask_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.geojson"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"any\.geojson"):
        tissue_from_geojson(file, SIZE, 0.5)


def test_a_file_of_cut_outs_alone_is_refused(tmp_path: Path) -> None:
    cut = polygon_feature([square(0, 500)], {"classification": {"name": "Ignore*"}})
    write_geojson(tmp_path / "a", {"type": "FeatureCollection", "features": [cut]})
    with pytest.raises(DataError, match=r"no polygon \(1 are of a class that is cut out\)"):
        tissue_from_geojson(tmp_path / "a", SIZE, 0.5)
    whole = polygon_feature([square(10, 400)], {})
    write_geojson(tmp_path / "a", {"type": "FeatureCollection", "features": [cut, whole]})
    with pytest.raises(DataError, match="its polygons leave nothing"):
        tissue_from_geojson(tmp_path / "a", SIZE, 0.5)


def test_the_picture_shows_the_outlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "PICTURE_EDGE", 320)
    tissue = some_mask()
    tissue.pen[5:9, 70:78] = True
    picture = np.asarray(draw_tissue(np.full((600, 800, 3), 240, np.uint8), tissue))
    assert picture.shape == (240, 320, 3)
    assert picture[40, 160].tolist() == [0, 160, 80]  # the upper edge of the tissue
    assert picture[100, 120].tolist() == [0, 160, 80]  # the left edge of its hole
    assert picture[28, 280].tolist() == [230, 0, 230]  # pen
    assert picture[60, 100].tolist() == picture[220, 20].tolist() == [240, 240, 240]


def test_the_mask_of_a_slide_is_the_file_or_the_one_of_its_name(tmp_path: Path) -> None:
    file = written(tmp_path / "A1.geojson", square(0, 9))
    assert mask_for("A1", tmp_path) == mask_for("A1", file) == mask_for("B7", str(file)) == file
    with pytest.raises(DataError, match="No file or folder of masks at 'none'"):
        mask_for("A1", "none")
    with pytest.raises(
        DataError,
        match=r"holds no mask of slide 'A1_x': expected A1_x\.geojson among its 1 \.geojson "
        r"files\. Did you mean 'A1\.geojson'\? Make it: wsizoo tissue SLIDE -o",
    ):
        mask_for("A1_x", tmp_path)
