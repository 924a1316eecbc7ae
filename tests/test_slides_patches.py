"""wsizoo.slides.patches: patches are as wide, and lie where, the grid says."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from wsizoo.errors import ScaleError, SlideError
from wsizoo.slides import patches as patches_module
from wsizoo.slides.patches import Cells, PatchGrid, read_patches, tissue_cells
from wsizoo.slides.reader import Pixels, Slide, open_slide
from wsizoo.slides.tiff import write_pyramid
from wsizoo.slides.tissue import TissueMask, find_tissue

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
SLIDES = DATA / "slides"
needs_slides = pytest.mark.skipif(
    not (SLIDES / "expected.json").is_file(), reason="no real slides: set WSIZOO_DATA"
)
STEP = 64.0
"""Level-0 px from one mark of the ruler to the next."""


def ruler(width: int, height: int, step: float = STEP) -> Pixels:
    """White with dark vertical marks centred at step / 2, 3 step / 2, ...; px of this image."""
    x = np.arange(width) + 0.5
    off = np.abs((x / step) % 1 - 0.5) * step
    line = np.clip(235 - 200 * np.clip(1.2 - off / (step / 14), 0, 1), 0, 255)
    return np.broadcast_to(line.astype(np.uint8)[None, :, None], (height, width, 3)).copy()


def marks(patch: Pixels) -> np.ndarray:
    """Centres of the ruler's whole marks in a patch, px from its left edge."""
    dark = 235 - patch.astype(float).mean(axis=(0, 2))
    labels, n = ndimage.label(dark > 25)
    inside = [
        i for i in range(1, n + 1) if not {0, len(dark) - 1} & set(np.flatnonzero(labels == i))
    ]
    return np.array(
        [np.average(np.arange(len(dark)) + 0.5, weights=dark * (labels == i)) for i in inside]
    )


def read_all(slide: Slide, grid: PatchGrid, cells: Cells | None = None) -> Pixels:
    cells = grid.all_cells() if cells is None else cells
    return np.concatenate([patches for _, patches in read_patches(slide, grid, cells)])


def check_ruler(slide: Slide, grid: PatchGrid, turned: bool, true_mpp: float) -> None:
    """Marks in decoded patches are as far apart, and lie where, the grid says."""
    cells = grid.all_cells()
    axis = 1 if turned else 0
    widths, places = [], []
    for cell, patch in zip(cells, read_all(slide, grid), strict=True):
        found = marks(patch.swapaxes(0, 1) if turned else patch)
        widths.append((found[-1] - found[0]) / (len(found) - 1))  # px of a patch a step
        level0 = grid.corners(cell[None])[0, axis] + found * grid.footprint / grid.patch_size
        places.append((level0 / STEP - 0.5) - np.rint(level0 / STEP - 0.5))
    realised = STEP * true_mpp / np.mean(widths)
    assert realised == pytest.approx(grid.mpp, rel=1e-3)
    off = np.concatenate(places) * STEP  # level-0 px
    assert np.abs(off).max() < 1.0 * max(1, grid.footprint / grid.patch_size)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("mpp", [0.2277, 0.265, 0.301, 0.499])
def test_patches_have_the_microns_per_pixel_that_were_asked_for(
    tmp_path: Path, mpp: float, turned: bool
) -> None:
    image = ruler(1500, 520)
    image = image.swapaxes(0, 1).copy() if turned else image
    path = write_pyramid(tmp_path / "a.svs", image, mpp, (1, 4), quality=92)
    with open_slide(path) as slide:
        check_ruler(slide, PatchGrid.of(slide, 0.5, 224), turned, mpp)


@pytest.mark.parametrize(
    ("size", "level_size", "factor", "downsample"),
    [
        ((9999, 800), (5000, 400), 2, 1.9999),
        ((9999, 800), (2500, 200), 4, 3.9998),
        ((20001, 400), (5000, 100), 4, 4.0001),
    ],
)
def test_levels_whose_sizes_were_rounded_keep_the_scale(
    tmp_path: Path, size: tuple[int, int], level_size: tuple[int, int], factor: int,
    downsample: float,
) -> None:  # fmt: skip
    base = ruler(256, 64)  # the period of the ruler is 64, so a tile of it repeats

    def region(x: int, y: int, width: int, height: int) -> Pixels:
        return np.tile(base, (height // 64 + 1, width // 256 + 2, 1))[
            :height, x % 64 : x % 64 + width
        ]

    level = ruler(*level_size, STEP / factor)  # as a scanner makes it: exactly a half, a quarter
    path = write_pyramid(tmp_path / "a.svs", region, 0.25, (1, level), size=size, quality=92)
    with open_slide(path) as slide:
        assert slide.downsamples[1] == pytest.approx(downsample, abs=2e-6)
        grid = PatchGrid.of(slide, 0.25 * factor, 96)
        assert slide.level_for(grid.footprint / grid.patch_size) == 1
        check_ruler(slide, grid, False, 0.25)


def smooth_image(width: int, height: int) -> Pixels:
    y, x = np.mgrid[:height, :width]
    planes = [
        128 + 100 * np.sin(x / 23 + y / 40),
        128 + 100 * np.cos(y / 31 - x / 90),
        60 + 140 * x / width,
    ]
    return np.rint(np.stack(planes, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def image() -> Pixels:
    return smooth_image(1200, 900)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, image: Pixels) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    return write_pyramid(folder / "a.svs", image, 0.25, (1, 4), quality=95)


@pytest.mark.parametrize("mpp", [0.2, 0.25, 0.33, 0.5, 1.0, 1.37])
def test_patches_equal_a_brute_force_resample_of_level_0(
    path: Path, image: Pixels, mpp: float
) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, mpp, 64)
        found = read_all(slide, grid)
    whole = Image.fromarray(image)
    for corner, patch in zip(grid.corners(grid.all_cells()), found, strict=True):
        box = (*corner, *np.minimum(corner + grid.footprint, (1200, 900)))
        expected = np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR, box))
        difference = np.abs(patch.astype(int) - expected)
        assert difference.mean() < 3
        assert difference.max() <= 16  # JPEG, and two ways to shrink


def test_a_patch_that_needs_no_resampling_holds_the_very_pixels(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 128)
        found = read_all(slide, grid)
        whole, _, _ = slide.read(0, 0, 1200, 900, 0)
    for (x, y), patch in zip(grid.coords(grid.all_cells()), found, strict=True):
        assert np.array_equal(patch, whole[y : y + 128, x : x + 128])


@pytest.mark.parametrize("downsample", [4.0, 3.9958])
@pytest.mark.parametrize("mpp", [0.37, 1.2])
def test_what_a_patch_shows_does_not_depend_on_its_neighbours(
    tmp_path: Path, image: Pixels, path: Path, mpp: float, downsample: float
) -> None:
    if downsample != 4:
        level = smooth_image(301, 225)
        path = write_pyramid(tmp_path / "b.svs", image, 0.25, (1, level), quality=95)
    with open_slide(path) as slide:
        assert slide.downsamples[1] == pytest.approx(downsample, abs=0.004)
        grid = PatchGrid.of(slide, mpp, 50, overlap=0.1)
        together = read_all(slide, grid)
        for cell, patch in zip(grid.all_cells(), together, strict=True):
            assert np.array_equal(read_all(slide, grid, cell[None])[0], patch)


def test_long_runs_are_read_in_pieces_with_the_same_result(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 64)
        at_once = read_all(slide, grid)
        monkeypatch.setattr(patches_module, "RUN_PIXELS", 3 * 64 * 64)
        pieces = list(read_patches(slide, grid, grid.all_cells()))
    assert max(len(patches) for _, patches in pieces) == 3
    assert np.array_equal(np.concatenate([patches for _, patches in pieces]), at_once)


def test_patches_come_in_the_order_of_the_cells_whatever_is_missing(path: Path) -> None:
    cells = np.array([[0, 0], [1, 0], [4, 0], [0, 2], [2, 2], [3, 2]])
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 64)
        pieces = list(read_patches(slide, grid, cells))
        assert [(first, len(patches)) for first, patches in pieces] == [
            (0, 2), (2, 1), (3, 1), (4, 2),
        ]  # fmt: skip
        index = cells[:, 1] * grid.columns + cells[:, 0]
        found = np.concatenate([patches for _, patches in pieces])
        assert np.array_equal(found, read_all(slide, grid)[index])


def test_neighbours_share_what_overlap_says(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 64, overlap=0.25)
        first, second = read_all(slide, grid, np.array([[2, 1], [3, 1]]))
    assert grid.spacing == 48
    assert np.array_equal(first[:, 48:], second[:, :16])


class FakeSlide:
    """What a grid asks of a slide."""

    def __init__(self, mpp: float, size: tuple[int, int]) -> None:
        self.mpp, self.size, self.path = mpp, size, Path("fake.svs")


@settings(max_examples=300, deadline=None)
@given(
    slide_mpp=st.floats(0.1, 1.0), mpp=st.floats(0.25, 2.0), size=st.integers(16, 512),
    overlap=st.floats(0, 0.9), width=st.integers(1000, 200_000), height=st.integers(1000, 200_000),
    data=st.data(),
)  # fmt: skip
def test_the_grid_is_global_lossless_and_fills_the_slide(
    slide_mpp: float, mpp: float, size: int, overlap: float, width: int, height: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    slide = FakeSlide(slide_mpp, (width, height))
    try:
        grid = PatchGrid.of(slide, mpp, size, overlap)  # type: ignore[arg-type]
    except SlideError:
        return
    assert grid.footprint * slide_mpp == pytest.approx(size * mpp)  # exact in microns
    for edge, n in ((width, grid.columns), (height, grid.rows)):
        assert (n - 1) * grid.spacing + grid.footprint <= edge + 1e-3
        assert n * grid.spacing + grid.footprint > edge - 1e-3
    i, j = data.draw(st.integers(0, grid.columns - 1)), data.draw(st.integers(0, grid.rows - 1))
    cells = np.array([[i, j]])
    assert np.array_equal(np.rint(grid.coords(cells) / grid.spacing), cells)
    assert np.abs(grid.coords(cells) - grid.corners(cells)).max() <= 0.5


def test_cells_are_listed_row_by_row() -> None:
    grid = PatchGrid.of(FakeSlide(1.0, (300, 200)), 1.0, 100)  # type: ignore[arg-type]
    assert grid.all_cells().tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_the_last_patch_ends_at_the_edge_and_nothing_beyond_is_read(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.3, 100)  # 120 level-0 px: 10 x 7.5 patches
        assert (grid.columns, grid.rows) == (10, 7)
        (last,) = read_all(slide, grid, np.array([[9, 6]]))
        whole, _, _ = slide.read(0, 0, 1200, 900, 0)
    box = (1080, 720, 1200, 840)
    expected = Image.fromarray(whole).resize((100, 100), Image.Resampling.BILINEAR, box)
    assert np.array_equal(last, np.asarray(expected))


@pytest.mark.parametrize(
    ("mpp", "size", "overlap", "match"),
    [
        (0.5, 0, 0.0, "expected a positive size"),
        (-0.5, 224, 0.0, "expected a positive size"),
        (float("nan"), 224, 0.0, "expected a positive size"),
        (0.5, 224, 1.0, r"overlap in \[0, 1\)"),
        (0.5, 224, -0.1, r"overlap in \[0, 1\)"),
        (0.5, 10, 0.99, "apart, expected 1 at least"),
        (0.5, 2000, 0.0, "300 x 225 um, smaller than one patch of 1000 um"),
    ],
)
def test_impossible_patches_are_refused(
    path: Path, mpp: float, size: int, overlap: float, match: str
) -> None:
    with open_slide(path) as slide, pytest.raises(SlideError, match=match):
        PatchGrid.of(slide, mpp, size, overlap)


def test_a_slide_scanned_far_too_coarsely_is_refused() -> None:
    coarse = FakeSlide(1.0, (5000, 5000))
    with pytest.raises(ScaleError, match=r"scanned at 1 um/px, too coarse for patches at 0.25"):
        PatchGrid.of(coarse, 0.25, 224)  # type: ignore[arg-type]
    assert PatchGrid.of(coarse, 0.5, 224).footprint == 112  # type: ignore[arg-type]


def mask_of(share: np.ndarray, brightfield: bool = True) -> TissueMask:
    return TissueMask(share, 8.0, 0.1, np.zeros_like(share), brightfield)


def test_cells_with_enough_tissue_are_kept(path: Path) -> None:
    tissue = np.zeros((9, 12), bool)  # 100 level-0 px a mask px
    tissue[2:4, 3:8] = True
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 200)
        kept = tissue_cells(slide, grid, mask_of(tissue))
        fuller = tissue_cells(slide, grid, mask_of(tissue), min_tissue=0.9)
        every = tissue_cells(slide, grid, mask_of(tissue), min_tissue=0)
    assert kept.tolist() == [[1, 1], [2, 1], [3, 1]]
    assert fuller.tolist() == [[2, 1], [3, 1]]
    assert len(every) == grid.columns * grid.rows


def test_a_mask_of_any_size_lies_over_the_whole_slide(path: Path) -> None:
    tissue = np.zeros((5, 12), bool)  # 100 x 180 level-0 px a mask px
    tissue[4] = True  # from y = 720 on
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 180)
        kept = tissue_cells(slide, grid, mask_of(tissue), min_tissue=1)
    assert kept.tolist() == [[x, 4] for x in range(6)]


def test_sparse_slides_keep_patches_with_less_tissue(path: Path) -> None:
    tissue = np.zeros((90, 120), bool)
    tissue[40:48, 50:58] = True  # 0.6 % of the slide, 16 % of a patch
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 200)
        assert tissue_cells(slide, grid, mask_of(tissue)).tolist() == [[2, 2]]
        with pytest.raises(
            SlideError, match=r"no patch holds 50 % tissue; the fullest one holds 1"
        ):
            tissue_cells(slide, grid, mask_of(tissue), min_tissue=0.5)


def test_the_advice_for_too_little_tissue_works(path: Path) -> None:
    tissue = np.zeros((90, 120), bool)
    tissue[40:48, 50:58] = True
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 200)
        with pytest.raises(SlideError) as caught:
            tissue_cells(slide, grid, mask_of(tissue), min_tissue=0.5)
        advised = float(str(caught.value).rpartition("--min-tissue ")[2])
        assert len(tissue_cells(slide, grid, mask_of(tissue), advised)) == 1


def test_no_tissue_and_no_brightfield_are_errors_that_differ(path: Path) -> None:
    empty = np.zeros((9, 12), bool)
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 200)
        with pytest.raises(SlideError, match=r"none was found at all \(blank.*--min-tissue 0"):
            tissue_cells(slide, grid, mask_of(empty))
        with pytest.raises(SlideError, match="is dark, so no brightfield slide"):
            tissue_cells(slide, grid, mask_of(empty, brightfield=False))
        with pytest.raises(SlideError, match=r"min_tissue is 1.5, expected a share"):
            tissue_cells(slide, grid, mask_of(empty), min_tissue=1.5)


def test_tissue_is_found_where_it_was_drawn(tmp_path: Path) -> None:
    image = np.full((1600, 2400, 3), 243, np.uint8)
    image[500:1100, 600:1800] = (190, 100, 160)
    with open_slide(write_pyramid(tmp_path / "a.svs", image, 0.5, (1, 4))) as slide:
        grid = PatchGrid.of(slide, 0.5, 100)
        kept = tissue_cells(slide, grid, find_tissue(slide))
    assert {tuple(cell) for cell in kept.tolist()} == {
        (x, y) for x in range(6, 18) for y in range(5, 11)
    }


@needs_slides
@pytest.mark.parametrize(
    ("name", "at_least"), [("CMU-1-Small-Region.svs", 40), ("luna_1065626.svs", 5)]
)
def test_real_slides_yield_patches_at_defaults(name: str, at_least: int) -> None:
    with open_slide(SLIDES / name) as slide:
        grid = PatchGrid.of(slide, 0.5, 224)
        cells = tissue_cells(slide, grid, find_tissue(slide))
        assert len(cells) >= at_least
        _, first = next(read_patches(slide, grid, cells))
    assert first.shape[1:] == (224, 224, 3)
    assert first.mean() < 245  # not background


@needs_slides
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("test3-TRITC-2-560.ndpi", "is dark"),
        ("small.svs", "8 x 8 um, smaller than one patch of 112"),
    ],
)
def test_real_slides_without_patches_say_why(name: str, match: str) -> None:
    with open_slide(SLIDES / name) as slide, pytest.raises(SlideError, match=match):
        tissue_cells(slide, PatchGrid.of(slide, 0.5, 224), find_tissue(slide))
