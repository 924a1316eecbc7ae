"""Registration of the overlay: every patch where it lies, to a fraction of a pixel."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.viz.colour import colours
from wsizoo.viz.heatmap import EMPTY, overlay, place, with_legend

GREY = np.full((40, 50, 3), 128, np.uint8)
DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
EDGE = st.floats(0, 40)


def coverage(coords, footprint, downsample, image=GREY):
    return place(image, downsample, coords, footprint).total()


def brute_force(boxes):
    """The same sum, rectangle by rectangle and pixel by pixel."""
    total = np.zeros((boxes.height, boxes.width))
    x, y = np.arange(boxes.width), np.arange(boxes.height)
    for left, top, right, bottom in zip(
        boxes.left, boxes.top, boxes.right, boxes.bottom, strict=True
    ):
        across = np.clip(np.minimum(x + 1, right) - np.maximum(x, left), 0, None)
        down = np.clip(np.minimum(y + 1, bottom) - np.maximum(y, top), 0, None)
        total += down[:, None] * across[None]
    return total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(EDGE, EDGE), min_size=1, max_size=8), st.floats(0.05, 60))
def test_coverage_is_the_area_of_each_pixel_inside_the_rectangles(corners, footprint):
    boxes = place(GREY, 1.0, corners, footprint)
    assert boxes.total() == pytest.approx(brute_force(boxes), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(EDGE, st.floats(0, 30), st.floats(0.3, 20), st.floats(0.5, 40))
def test_the_pixels_a_patch_changes_are_its_rectangle_to_one_pixel(x, y, edge, downsample):
    corner = np.array([[x, y]]) * downsample
    image = overlay(GREY, downsample, corner, edge * downsample, [1.0], alpha=1.0)
    rows, columns = np.nonzero((image != GREY).any(axis=2))
    covered = coverage(corner, edge * downsample, downsample)
    assert covered.sum() == pytest.approx(
        (min(x + edge, 50) - x) * (min(y + edge, 40) - y), abs=1e-6
    )
    if covered.max() < 0.05:
        return  # a hair over the edge of a pixel changes no 8-bit colour
    assert abs(columns.min() - x) < 1
    assert abs(columns.max() + 1 - min(x + edge, 50)) < 1
    assert abs(rows.min() - y) < 1
    assert abs(rows.max() + 1 - min(y + edge, 40)) < 1


@settings(max_examples=40, deadline=None)
@given(st.floats(0.4, 9.0), st.floats(0.5, 64.0), st.floats(0, 3), st.floats(0, 3))
def test_neighbours_with_fractional_footprints_meet_without_a_seam(edge, downsample, x, y):
    cells = np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1).reshape(-1, 2)
    corners = (cells * edge + np.array([x, y])) * downsample
    many = coverage(corners, edge * downsample, downsample)
    assert many.max() <= 1 + 1e-9
    inside = slice(int(np.ceil(y)), int(y + 3 * edge)), slice(int(np.ceil(x)), int(x + 4 * edge))
    assert many[inside] == pytest.approx(1, abs=1e-9)
    flat = overlay(GREY, downsample, corners, edge * downsample, np.full(12, 0.3))
    assert len(np.unique(flat[inside].reshape(-1, 3), axis=0)) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.floats(1, 9), st.booleans())
def test_moving_patches_by_whole_pixels_moves_the_picture(dx, dy, edge, smooth):
    corners = np.array([[12.3, 10.0], [17.9, 13.25], [14.0, 17.0]])
    scores = [0.1, 0.9, 0.4]
    still = overlay(GREY, 4.0, corners * 4, edge * 4, scores, smooth=smooth)
    moved = overlay(GREY, 4.0, (corners + np.array([dx, dy])) * 4, edge * 4, scores, smooth=smooth)
    # Rounding may fall on the other side of one of 256 steps.
    difference = moved[dy:30, dx:40].astype(int) - still[: 30 - dy, : 40 - dx]
    assert np.abs(difference).max() <= 2


def test_scores_are_blended_by_alpha():
    image = overlay(GREY, 1.0, [[5, 5]], 4.0, [1.0], alpha=0.25)
    expected = np.rint(128 + 0.25 * (colours([1.0])[0].astype(float) - 128))
    assert image[6, 6].tolist() == expected.tolist()
    assert np.array_equal(overlay(GREY, 1.0, [[5, 5]], 4.0, [1.0], alpha=0.0), GREY)


def test_half_a_pixel_is_blended_by_half():
    image = overlay(GREY, 1.0, [[5.5, 5.0]], 4.0, [1.0], alpha=1.0)
    expected = np.rint(128 + 0.5 * (colours([1.0])[0].astype(float) - 128))
    assert image[6, 5].tolist() == expected.tolist()


def test_overlapping_patches_average_their_scores_without_double_opacity():
    image = overlay(GREY, 1.0, [[5, 5], [9, 5]], 8.0, [0.0, 1.0], alpha=1.0)
    assert image[6, 6].tolist() == colours([0.0])[0].tolist()
    assert image[6, 10].tolist() == colours([0.5])[0].tolist()
    assert image[6, 15].tolist() == colours([1.0])[0].tolist()


def test_pixels_without_a_patch_and_the_thumbnail_itself_stay_as_they_were():
    noise = np.random.default_rng(0).integers(0, 256, GREY.shape, dtype=np.uint8)
    before = noise.copy()
    image = overlay(noise, 2.0, [[20, 20]], 16.0, [0.4], outline=[0])
    outside = np.ones(GREY.shape[:2], bool)
    outside[10:18, 10:18] = False
    assert np.array_equal(image[outside], before[outside])
    assert np.array_equal(noise, before)


def test_smoothing_blurs_scores_and_leaves_the_covered_area_as_it_was():
    cells = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2) * 8
    scores = np.indices((4, 4)).sum(axis=0).ravel() % 2
    sharp = overlay(GREY, 1.0, cells, 8.0, scores, alpha=1.0)
    soft = overlay(GREY, 1.0, cells, 8.0, scores, alpha=1.0, smooth=True)
    assert np.array_equal((sharp != GREY).any(axis=2), (soft != GREY).any(axis=2))
    assert len(np.unique(sharp[:32, :32].reshape(-1, 3), axis=0)) == 2
    jumps = [np.abs(np.diff(i[:32, :32].astype(int), axis=1)).max() for i in (sharp, soft)]
    assert jumps[1] < 0.25 * jumps[0]
    flat = overlay(GREY, 1.0, cells, 8.0, np.full(16, 0.7), alpha=1.0, smooth=True)
    assert len(np.unique(flat[:32, :32].reshape(-1, 3), axis=0)) == 1


def test_an_outline_stays_inside_its_patch_and_spares_the_middle():
    plain = overlay(GREY, 1.0, [[4, 4], [20, 4]], 16.0, [0.2, 0.8])
    drawn = overlay(GREY, 1.0, [[4, 4], [20, 4]], 16.0, [0.2, 0.8], outline=[1])
    changed = (plain != drawn).any(axis=2)
    ring = np.zeros_like(changed)
    ring[4:20, 20:36] = True
    ring[6:18, 22:34] = False
    assert np.array_equal(changed, ring)


def test_no_patches_give_the_thumbnail():
    assert np.array_equal(overlay(GREY, 1.0, np.empty((0, 2)), 8.0, []), GREY)


def test_the_two_axes_may_have_their_own_downsample():
    covered = coverage([[10, 10]], 20.0, (2.0, 5.0)) > EMPTY
    rows, columns = np.nonzero(covered)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (5, 14, 2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thumbnail": GREY[..., 0]}, r"thumbnail is \(40, 50\) uint8, expected \(h, w, 3\)"),
        ({"downsample": 0.0}, "expected positive numbers"),
        ({"footprint": float("nan")}, "expected positive numbers"),
        ({"coords": [[0, 0, 0]]}, r"coords are \(1, 3\), expected \(N, 2\)"),
        ({"coords": [[900, 0]]}, r"1 of 1 patches lie outside the thumbnail: patch 0 at level-0"),
        ({"scores": [0.5, 0.5]}, "2 scores for 1 patches"),
        ({"scores": [7.0]}, r"expected numbers in \[0, 1\]; .*normalise"),
        ({"scores": [float("nan")]}, "not finite"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"outline": [1]}, "expected .K,. indices of the 1 patches"),
        ({"outline": [0.0]}, "expected .K,. indices"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    call = {"thumbnail": GREY, "downsample": 8.0, "coords": [[0, 0]], "footprint": 64.0}
    call |= {"scores": [0.5]} | change
    with pytest.raises(DataError, match=message):
        overlay(**call)


def test_the_cost_does_not_grow_with_the_size_of_a_patch():
    rng = np.random.default_rng(0)
    image = np.full((1000, 1000, 3), 200, np.uint8)
    coords = rng.integers(0, 30_000, (100_000, 2))
    begin = time.perf_counter()
    overlay(image, 32.0, coords, 4096.0, rng.random(100_000))
    assert time.perf_counter() - begin < 5, "100,000 patches of 128 x 128 px take well under 1 s"


def test_the_legend_leaves_the_image_alone_and_shows_the_scale_below_it():
    image = with_legend(GREY.repeat(8, axis=1), 0.25, "most", "score of a patch")
    assert image.shape[1:] == (400, 3)
    assert np.array_equal(image[:40], GREY.repeat(8, axis=1))
    strip = image[40:].reshape(-1, 3).tolist()
    for end in (colours([0.01])[0], colours([0.99])[0]):
        assert end.tolist() in strip


@pytest.mark.parametrize("width", [1, 30, 3000])
def test_a_legend_fits_any_width(width):
    image = with_legend(np.zeros((5, width, 3), np.uint8), 0, 1, "a long label " * 9)
    assert image.shape[1] == width


def test_a_patch_of_a_real_slide_lands_on_its_tissue():
    path = DATA / "slides" / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip(f"{path} is not there; set WSIZOO_DATA to a folder with slides/")
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
        thumbnail = np.asarray(slide.get_thumbnail((555, 742)).convert("RGB"))
        patch = np.asarray(slide.read_region((1280, 1920), 0, (256, 256)).convert("RGB"))
    downsample = width / thumbnail.shape[1], height / thumbnail.shape[0]
    share = coverage([[1280, 1920]], 256.0, downsample, thumbnail)
    seen = (thumbnail * share[..., None]).sum(axis=(0, 1)) / share.sum()
    assert seen == pytest.approx(patch.mean(axis=(0, 1)), abs=2)
