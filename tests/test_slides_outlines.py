"""wsizoo.slides.outlines: outlines that are exact, simple, and give their mask back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from wsizoo.slides import outlines
from wsizoo.slides.outlines import Mask, Ring, fill, trace


def area(ring: Ring) -> float:
    """Signed, by the shoelace formula; positive when it runs clockwise on the screen."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


def drawn(text: str) -> Mask:
    return np.array([[mark == "#" for mark in line] for line in text.split()])


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    density = draw(st.sampled_from([0.2, 0.5, 0.6, 0.8]))
    return np.random.default_rng(draw(st.integers(0, 2**31))).random(shape) < density


@settings(max_examples=300, deadline=None)
@given(masks())
def test_a_mask_that_is_traced_and_filled_is_the_same(mask: Mask) -> None:
    polygons = trace(mask)
    assert np.array_equal(fill(polygons, mask.shape), mask)
    assert len(polygons) == ndimage.label(mask)[1]
    assert sum(area(ring) for polygon in polygons for ring in polygon) == mask.sum()


@settings(max_examples=300, deadline=None)
@given(masks())
def test_rings_are_simple_and_have_no_needless_corner(mask: Mask) -> None:
    for outer, *holes in trace(mask):
        assert area(outer) > 0
        assert all(area(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert len(np.unique(ring, axis=0)) == len(ring), "a point is passed twice"
            step = np.roll(ring, -1, axis=0) - ring
            across = step[:, 1] == 0
            assert np.array_equal(across, step[:, 0] != 0)
            assert (across != np.roll(across, 1)).all(), "three corners in a line"


@settings(max_examples=60, deadline=None)
@given(masks(), st.floats(1.5, 40), st.floats(1.5, 40))
def test_a_mask_survives_any_scale(mask: Mask, across: float, down: float) -> None:
    scaled = [[ring * (across, down) for ring in polygon] for polygon in trace(mask)]
    back = [[ring / (across, down) for ring in polygon] for polygon in scaled]
    assert np.array_equal(fill(back, mask.shape), mask)


def test_pixels_that_meet_at_a_corner_are_two_pieces() -> None:
    first, second = trace(drawn("#. .#"))
    assert first[0].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert second[0].tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_a_hole_that_touches_the_outside_at_a_corner_stays_a_hole() -> None:
    (polygon,) = trace(drawn("#### #..# #.## ##.#"))
    assert [abs(area(ring)) for ring in polygon] == [15, 3]


def test_an_island_in_a_hole_is_a_piece_of_its_own() -> None:
    polygons = trace(drawn("##### #...# #.#.# #...# #####"))
    assert [[area(ring) for ring in polygon] for polygon in polygons] == [[25, -9], [1]]


def test_no_tissue_has_no_outline() -> None:
    assert trace(np.zeros((3, 4), bool)) == []
    assert not fill([], (3, 4)).any()


CORNER = st.tuples(st.integers(-160, 960), st.integers(-160, 960))


@settings(max_examples=200, deadline=None)
@given(st.lists(CORNER, min_size=3, max_size=7))
def test_pixels_are_those_whose_centre_is_inside(corners: list[tuple[int, int]]) -> None:
    ring = np.array(corners) / 8 + (0.0123, 0.0371)  # no centre is on an edge
    y, x = np.mgrid[:40, :50] + 0.5
    inside = np.zeros((40, 50), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        where = x0 + (y - y0) / ((y1 - y0) or 1) * (x1 - x0)
        inside ^= crosses & (where <= x)
    assert np.array_equal(fill([[ring]], (40, 50)), inside)


def star(seed: int, points: int, radius: float, centre: float) -> Ring:
    """A ring that does not cross itself."""
    rng = np.random.default_rng(seed)
    angle = (np.arange(points) + rng.uniform(0, 0.9, points)) * 2 * np.pi / points
    reach = radius * rng.uniform(0.4, 1, points)
    return centre + np.stack([np.cos(angle) * reach, np.sin(angle) * reach], 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 40))
def test_the_area_of_a_polygon_is_right_within_a_percent(seed: int, points: int) -> None:
    ring = star(seed, points, 250, 256.3)
    assert fill([[ring]], (512, 512)).sum() == pytest.approx(abs(area(ring)), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_overlapping_polygons_are_joined_whatever_their_order_and_direction(seed: int) -> None:
    polygons = [[star(seed + i, 9, 30, 20.0 + 12 * i)] for i in range(4)]
    each = [fill([polygon], (90, 90)) for polygon in polygons]
    expected: NDArray[np.bool_] = np.any(each, axis=0)
    assert np.array_equal(fill(polygons, (90, 90)), expected)
    turned = [[ring[::-1] for ring in polygon] for polygon in polygons[::-1]]
    assert np.array_equal(fill(turned, (90, 90)), expected)


def square(low: float, high: float) -> Ring:
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def test_a_hole_cuts_its_own_polygon_only() -> None:
    filled = fill([[square(0, 10), square(2, 8)], [square(4, 6)]], (10, 10))
    assert filled.sum() == 100 - 36 + 4
    assert fill([[square(0, 4), square(2, 9)]], (10, 10)).sum() == 16 - 4


def test_what_lies_outside_the_image_is_clipped() -> None:
    assert fill([[square(-1e9, 1e9)]], (7, 5)).all()
    assert not fill([[square(20, 30)]], (7, 5)).any()
    assert fill([[square(-5, 3), square(-9, 1)]], (7, 5)).sum() == 9 - 1


def test_many_crossings_are_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = star(0, 60, 60, 64)
    expected = fill([[ring]], (128, 128))
    monkeypatch.setattr(outlines, "CROSSINGS", 7)
    assert np.array_equal(fill([[ring]], (128, 128)), expected)


def test_a_large_mask_comes_back() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((1000, 1000)), 3) > 0.5
    mask = np.tile(mask, (2, 3))
    assert np.array_equal(fill(trace(mask), mask.shape), mask)
