"""The tissue mask on drawn and on real images, and exact shares of boxes."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsizoo.errors import DataError
from wsizoo.slides import tissue
from wsizoo.slides.reader import open_slide
from wsizoo.slides.tissue import TissueMask, find_tissue, segment

ROIS = (
    Path(os.environ.get("WSIZOO_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    / "he_rois"
)
GLASS, PINK, PURPLE = (243, 243, 244), (226, 160, 198), (120, 70, 140)
RED_PEN, GREEN_PEN, BLUE_PEN, BLACK_PEN = (214, 30, 38), (40, 140, 70), (40, 60, 170), (35, 36, 38)


def glass(height: int = 200, width: int = 240, seed: int = 0) -> NDArray[np.uint8]:
    """(h, w, 3) uint8: an empty slide with a little noise."""
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    return np.asarray(np.clip(noise + np.array(GLASS), 0, 255), np.uint8)


def disc(image: NDArray[Any], x: int, y: int, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def paint(image: NDArray[np.uint8], where: NDArray[np.bool_], colour: tuple[int, ...]) -> None:
    noise = np.random.default_rng(1).normal(0, 6, image.shape)
    image[where] = np.clip(noise + np.array(colour), 0, 255).astype(np.uint8)[where]


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


def mask_of(pixels: NDArray[np.bool_]) -> TissueMask:
    return TissueMask(pixels, 8.0, 0.1, np.zeros_like(pixels), brightfield=True)


@pytest.mark.parametrize("value", [255, 240])
def test_a_blank_slide_has_no_tissue(value: int) -> None:
    found = segment(np.full((120, 150, 3), value, np.uint8))
    assert found.fraction == 0
    assert found.threshold == 0.05
    assert found.brightfield


@pytest.mark.parametrize("deviation", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_noisy_blank_slide_has_no_tissue(deviation: float, channels: int) -> None:
    noise = np.random.default_rng(0).normal(243, deviation, (300, 400, channels))
    image = np.broadcast_to(noise.clip(0, 255).astype(np.uint8), (300, 400, 3))
    assert segment(image).fraction == 0


def test_an_evenly_grey_image_has_no_tissue() -> None:
    assert segment(np.full((100, 100, 3), 128, np.uint8)).fraction == 0


def test_noise_and_faint_shadow_on_glass_are_no_tissue() -> None:
    image = glass()
    paint(image, disc(image, 60, 60, 15), (228, 228, 229))
    assert segment(image).fraction == 0


def test_grey_dust_beside_tissue_is_no_tissue() -> None:
    image = glass()
    dust = disc(image, 200, 40, 20)
    paint(image, disc(image, 90, 100, 45), PINK)
    paint(image, dust, (200, 200, 201))
    found = segment(image)
    assert found.mask[100, 90]
    assert not (found.mask & dust).any()


@pytest.mark.parametrize("value", [0, 30])
def test_a_dark_image_is_not_brightfield(value: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        found = segment(np.full((50, 60, 3), value, np.uint8))
    assert not found.brightfield
    assert not found.mask.any()
    assert np.isnan(found.threshold)
    assert "not brightfield" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


@pytest.mark.parametrize("colour", [PINK, PURPLE])
def test_a_piece_of_tissue_is_found_where_it_is(colour: tuple[int, ...]) -> None:
    image = glass()
    truth = disc(image, 90, 100, 45) | disc(image, 180, 60, 20)
    paint(image, truth, colour)
    found = segment(image)
    assert overlap(found.mask, truth) > 0.93
    assert found.fraction == pytest.approx(truth.mean(), rel=0.07)
    assert not found.pen.any()


def test_an_image_full_of_tissue_stays_whole() -> None:
    image = glass()
    paint(image, np.ones(image.shape[:2], bool), PINK)
    paint(image, disc(image, 100, 100, 50), PURPLE)
    assert segment(image).fraction > 0.99


@pytest.mark.parametrize("ink", [RED_PEN, GREEN_PEN, BLUE_PEN, BLACK_PEN])
def test_pen_is_left_out_and_kept_on_request(ink: tuple[int, ...]) -> None:
    image = glass()
    tissue, line = disc(image, 70, 100, 40), np.zeros(image.shape[:2], bool)
    line[20:180, 170:182] = True
    paint(image, tissue, PINK)
    paint(image, line, ink)
    found = segment(image)
    assert overlap(found.mask, tissue) > 0.93
    assert not (found.mask & line).any()
    assert overlap(found.pen, line) > 0.6
    whole = segment(image, remove_pen=False)
    assert (whole.mask & line).sum() > 0.95 * line.sum()
    assert not whole.pen.any()


@pytest.mark.parametrize("blood", [(147, 50, 78), (210, 87, 108), (150, 60, 75)])
def test_a_large_pool_of_blood_is_tissue_not_pen(blood: tuple[int, ...]) -> None:
    image = glass()
    paint(image, disc(image, 100, 100, 50), PINK)
    paint(image, disc(image, 110, 100, 25), blood)
    found = segment(image)
    assert not found.pen.any()
    assert found.mask[100, 110]


def test_thin_ink_is_pen_as_far_as_it_is_joined_to_thick_ink() -> None:
    image = glass()
    paint(image, disc(image, 80, 100, 40), PINK)
    line = np.zeros(image.shape[:2], bool)
    line[20:180, 200:212] = True
    image[line] -= np.array(GLASS, np.uint8) - np.array([222, 117, 146], np.uint8)  # with its noise
    assert segment(image).mask[100, 206]  # by itself it might be pink tissue
    image[20:40, 200:212] = RED_PEN
    found = segment(image)
    assert not (found.mask & line).any()
    assert found.pen[170, 206]


def test_grey_shadow_at_the_edge_is_no_tissue_unless_pen_is_kept() -> None:
    image = glass()
    paint(image, disc(image, 90, 100, 45), PINK)
    shade = np.linspace(200, 120, 12).astype(np.uint8)
    image[-12:] = shade[:, None, None]
    assert not segment(image).mask[-12:].any()
    assert segment(image, remove_pen=False).mask[-4:].any()


def test_pale_tissue_counts_where_it_is_joined_to_tissue() -> None:
    image, pale = glass(), (226, 208, 222)  # a score of 0.11; the threshold becomes 0.15
    joined, apart = disc(image, 110, 100, 30), disc(image, 200, 40, 20)
    paint(image, disc(image, 70, 100, 40), PURPLE)
    paint(image, joined & ~disc(image, 70, 100, 40), pale)
    paint(image, apart, pale)
    found = segment(image)
    assert found.threshold == 0.15
    assert (found.mask & joined).sum() > 0.9 * joined.sum()
    assert not (found.mask & apart).any()


def test_a_small_red_spot_is_blood_not_pen() -> None:
    image = glass()
    paint(image, disc(image, 100, 100, 50), PINK)
    paint(image, disc(image, 100, 100, 4), RED_PEN)
    found = segment(image)
    assert not found.pen.any()
    assert found.mask[100, 100]


def test_small_holes_are_filled_and_large_ones_kept() -> None:
    image = glass()
    paint(image, disc(image, 100, 100, 70), PINK)
    paint(image, disc(image, 80, 100, 4), GLASS)
    paint(image, disc(image, 125, 100, 14), GLASS)
    found = segment(image)
    assert found.mask[100, 80]
    assert not found.mask[100, 125]


def test_specks_are_dropped() -> None:
    image = glass()
    paint(image, disc(image, 60, 60, 2), PURPLE)
    assert segment(image).fraction == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (5, 5)])
def test_tiny_images_are_accepted(size: tuple[int, int]) -> None:
    assert segment(np.full((*size, 3), 250, np.uint8)).fraction == 0
    assert segment(np.full((*size, 3), 180, np.uint8)).mask.shape == size


def test_the_scale_of_the_image_is_recorded() -> None:
    assert segment(glass(), mpp=7.6).mpp == 7.6


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_image_that_is_not_uint8_rgb_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"it reads \(h, w, 3\) uint8 RGB"):
        segment(image)


def test_a_mask_is_the_same_each_time_and_leaves_its_input_alone() -> None:
    image = glass()
    paint(image, disc(image, 90, 100, 45), PINK)
    copy = image.copy()
    assert np.array_equal(segment(image).mask, segment(image).mask)
    assert np.array_equal(image, copy)


def share_by_hand(mask: NDArray[np.bool_], box: tuple[float, float, float, float]) -> float:
    """Sum of the overlaps of the box with each tissue pixel."""
    x0, y0, x1, y1 = box
    columns, rows = np.arange(mask.shape[1]), np.arange(mask.shape[0])
    wide = np.clip(np.minimum(columns + 1, x1) - np.maximum(columns, x0), 0, None)
    high = np.clip(np.minimum(rows + 1, y1) - np.maximum(rows, y0), 0, None)
    return float((mask * high[:, None] * wide[None, :]).sum() / ((x1 - x0) * (y1 - y0)))


EDGE = st.floats(-5, 20, allow_nan=False, width=32)
SIDE = st.floats(0.0625, 15, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.lists(st.tuples(EDGE, EDGE, SIDE, SIDE), min_size=1, max_size=5),
    st.sampled_from([1.0, 16.0, 31.7]),
)
def test_shares_are_exact_areas(
    height: int,
    width: int,
    seed: int,
    boxes: list[tuple[float, float, float, float]],
    downsample: float,
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    x0, y0, x1, y1 = np.array(corners).T * downsample
    found = mask_of(mask).share(x0, y0, x1, y1, downsample)
    expected = [share_by_hand(mask, corner) for corner in corners]
    assert np.allclose(found, expected, atol=1e-6)


def test_shares_outside_the_mask_are_zero_and_of_no_boxes_are_none() -> None:
    mask = mask_of(np.ones((4, 4), bool))
    assert mask.share([-64.0], [0.0], [-32.0], [32.0], 16.0).tolist() == [0.0]
    assert mask.share([-16.0], [0.0], [16.0], [16.0], 16.0).tolist() == [0.5]
    assert mask.share([], [], [], [], 16.0).shape == (0,)


def test_boxes_without_area_and_impossible_downsamples_are_refused() -> None:
    mask = mask_of(np.ones((4, 4), bool))
    with pytest.raises(DataError, match="A box has no area"):
        mask.share([0.0, 5.0], [0.0, 0.0], [1.0, 5.0], [1.0, 1.0], 16.0)
    with pytest.raises(DataError, match="downsample is 0"):
        mask.share([0.0], [0.0], [1.0], [1.0], 0)


REAL = {  # name: tissue, pen. What a human sees was checked on overlays when these were recorded.
    "breakhis/SOB_B_A-14-22549CD-400-006.png": (0.654, 0.0),
    "breakhis/SOB_B_TA-14-16184CD-400-024.png": (0.856, 0.0),
    "breakhis/SOB_B_TA-14-16184CD-400-026.png": (0.818, 0.0),
    "breakhis/SOB_M_DC-14-17614-400-014.png": (0.982, 0.0),
    "breakhis/SOB_M_PC-14-19440-400-034.png": (0.798, 0.0),
    "gigapath_01581x_25583y.png": (0.721, 0.004),  # red cells are blood
    "gigapath_prov_normal_000_1.png": (0.704, 0.0),
    "histolab_almost-white-2.png": (0.040, 0.0),
    "histolab_low-nuclei-score-level0.png": (0.227, 0.0),  # walls of fat cells
    "histolab_thumb_diagnostic.png": (0.382, 0.344),  # ink of four colours, thick and thin
    "histolab_thumb_red_pen.png": (0.609, 0.232),
    "histolab_tissue-level0-7352-11762-7864-12274.png": (0.826, 0.0),
    "mopadi_TCGA-AD-6964_16896_20480.jpg": (0.787, 0.0),
    "mopadi_TCGA-AD-6964_22016_11776.jpg": (0.984, 0.0),
    "pyslide_lung_tile.png": (0.521, 0.0),  # air is no tissue
    "stardist_histo.jpg": (1.0, 0.0),
    "torchstain_source.png": (0.968, 0.0),
    "torchstain_target.png": (0.928, 0.0),  # pale stroma
}
needs_rois = pytest.mark.skipif(
    not ROIS.exists(), reason="the H&E regions are not here (set WSIZOO_DATA)"
)


def roi(name: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(ROIS / name).convert("RGB"))


@needs_rois
def test_every_real_image_is_listed() -> None:
    kinds = {".png", ".jpg"}
    found = (f.relative_to(ROIS).as_posix() for f in ROIS.rglob("*") if f.suffix in kinds)
    assert sorted(found) == sorted(REAL)


@needs_rois
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_images_have_the_shares_of_tissue_and_pen_that_were_looked_at(name: str) -> None:
    found = segment(roi(name))
    tissue, pen = REAL[name]
    assert found.fraction == pytest.approx(tissue, abs=0.02)
    assert found.pen.mean() == pytest.approx(pen, abs=0.01)


@needs_rois
@pytest.mark.parametrize(
    ("what", "x", "y", "is_tissue", "is_pen"),
    [
        ("a translucent red line over glass", 463, 300, False, True),
        ("the same, where it is palest", 455, 270, False, True),
        ("a thick green line", 250, 490, False, True),
        ("a black ring over tissue", 240, 310, False, True),
        ("a red spot", 401, 215, False, True),
        ("tissue within a ring", 399, 312, True, False),
        ("tissue between the rings", 300, 200, True, False),
        ("pink tissue among ink", 370, 120, True, False),
        ("a large hole", 352, 160, False, False),
        ("glass", 440, 60, False, False),
        ("the shadow along the edge", 234, 519, False, False),
    ],
)
def test_ink_tissue_and_shadow_of_a_real_thumbnail_are_told_apart(
    what: str, x: int, y: int, is_tissue: bool, is_pen: bool
) -> None:
    found = segment(roi("histolab_thumb_diagnostic.png"))
    assert (bool(found.mask[y, x]), bool(found.pen[y, x])) == (is_tissue, is_pen), what


@needs_rois
def test_shadow_and_ink_of_a_real_thumbnail_are_kept_on_request() -> None:
    found = segment(roi("histolab_thumb_diagnostic.png"), remove_pen=False)
    assert not found.pen.any()
    assert found.mask[519, 234]
    assert found.mask[300, 463]


SLIDES = ROIS.parent / "slides"


@pytest.mark.skipif(not SLIDES.exists(), reason="no real slides here (set WSIZOO_DATA)")
@pytest.mark.parametrize(
    ("name", "tissue"), [("CMU-1-Small-Region.svs", 0.402), ("luna_1065626.svs", 0.0084)]
)
def test_real_slides_have_the_share_of_tissue_that_was_looked_at(name: str, tissue: float) -> None:
    with open_slide(SLIDES / name) as slide:
        assert find_tissue(slide).fraction == pytest.approx(tissue, rel=0.1)


def test_a_large_slide_is_segmented_as_a_small_one() -> None:
    """100,000 x 80,000 px at 0.25 um/px, seen at 8 um/px; benchmarks/slides.py times it."""
    block = glass(500, 625)
    paint(block, disc(block, 300, 250, 200), PINK)
    paint(block, disc(block, 560, 100, 30), RED_PEN)
    image = np.tile(block, (5, 5, 1))
    found = segment(image)
    assert found.fraction == pytest.approx(0.39, abs=0.02)
    assert found.pen.any()


def test_the_quick_parts_do_what_the_plain_ones_do() -> None:
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 9), (9, 1), (40, 33), (33, 64)]:
        values = rng.integers(0, 256, shape).astype(np.uint8)
        counts = np.bincount(values.ravel(), minlength=256)
        for percent in (0, 50, 99, 100):
            expected = np.percentile(values, percent)
            assert tissue._percentile(counts, percent) == pytest.approx(expected)
        plane = rng.random(shape).astype(np.float32)
        blurred = plane
        for axis in (0, 1):
            blurred = ndimage.convolve1d(blurred, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
        assert np.allclose(tissue._blur(np.pad(plane, 1, mode="edge")), blurred, atol=1e-6)
        mask = values > 200
        eight = np.ones((3, 3), bool)
        assert np.array_equal(tissue._dilate(mask), ndimage.binary_dilation(mask))
        assert np.array_equal(tissue._dilate(mask, eight), ndimage.binary_dilation(mask, eight))


def test_strips_leave_no_seam() -> None:
    image = np.random.default_rng(0).integers(0, 256, (97, 50, 3)).astype(np.uint8)
    whole = tissue._look(image)
    turned = tissue._look(np.ascontiguousarray(image.transpose(1, 0, 2)))
    assert np.allclose(whole.score, turned.score.T, atol=1e-5)


def test_a_grey_image_that_shows_something_is_told_from_a_blank_one() -> None:
    image = glass()
    grey = np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    assert segment(grey).colour
    grey[disc(grey, 100, 100, 60)] = 120
    found = segment(grey)
    assert not found.mask.any()
    assert not found.colour
    image[disc(image, 100, 100, 60)] = PINK
    assert segment(image).colour
    assert segment(glass()).colour
