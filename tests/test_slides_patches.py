"""wsizoo.slides.patches: which patches are taken, and that they show what lies in their cell."""

import os
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsizoo.errors import DataError, SlideError
from wsizoo.slides import patches as patches_module
from wsizoo.slides.patches import (
    Cells,
    PatchGrid,
    certify,
    read_batches,
    tissue_beyond,
    tissue_cells,
)
from wsizoo.slides.reader import Pixels, Slide, open_slide
from wsizoo.slides.tiff import write_pyramid
from wsizoo.slides.tissue import TissueMask, find_tissue

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
SLIDES = DATA / "slides"
needs_slides = pytest.mark.skipif(
    not (SLIDES / "expected.json").is_file(), reason="no real slides: set WSIZOO_DATA"
)


def read_all(slide: Slide, grid: PatchGrid, cells: Cells | None = None) -> Pixels:
    """Every one of the cells, in the caller's thread."""
    cells = grid.all_cells() if cells is None else cells
    (batch,) = read_batches(slide, grid, cells, len(cells), threads=1)
    assert batch.index.tolist() == list(range(len(cells)))
    return batch.pixels


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


@pytest.mark.parametrize("mpp", [0.25, 0.33, 1.0, 1.37])
def test_patches_beyond_the_edge_are_white_there_and_the_others_as_without(
    path: Path, image: Pixels, mpp: float
) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, mpp, 64)
        padded = PatchGrid.of(slide, mpp, 64, padded=True)
        cells = padded.all_cells()
        found, beyond = read_all(slide, padded), padded.beyond(cells)
        assert np.array_equal(found[~beyond], read_all(slide, grid))
        assert np.array_equal(found[beyond], read_all(slide, padded, cells[beyond]))
    assert beyond.any()
    canvas = Image.fromarray(np.pad(image, ((0, 512), (0, 512), (0, 0)), constant_values=255))
    for corner, patch in zip(padded.corners(cells)[beyond], found[beyond], strict=True):
        box = (*corner, *(corner + grid.footprint))
        expected = np.asarray(canvas.resize((64, 64), Image.Resampling.BILINEAR, box)).astype(int)
        outside = np.ceil((np.array([1200, 900]) - corner) / grid.footprint * 64).astype(int) + 1
        assert (patch[:, max(0, outside[0]) :] == 255).all()
        assert (patch[max(0, outside[1]) :] == 255).all()
        assert np.abs(patch - expected).mean() < 4


def test_a_slide_smaller_than_a_patch_is_one_patch_where_it_may_be_padded(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 1.0, 512, padded=True)
        (patch,) = read_all(slide, grid)
    assert (patch[:225, :300] < 250).any(2).mean() > 0.9
    assert (patch[226:] == 255).all() and (patch[:, 301:] == 255).all()


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


SAMPLINGS = {
    "as they are": (0.25, 64, 0.0), "as they are, from level 1": (1.0, 25, 0.3),
    "shrunk": (0.37, 50, 0.1), "shrunk, from level 1": (1.2, 20, 0.0), "enlarged": (0.15, 90, 0.0),
}  # fmt: skip
"""um/px, px and overlap of patches of a slide at 0.25 um/px with a second level at 1."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose second level has a downsample of 3.9983."""
    levels, base = (1, smooth_image(301, 225)), smooth_image(1203, 900)
    return write_pyramid(tmp_path_factory.mktemp("u") / "u.svs", base, 0.25, levels, quality=95)


@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("pyramid", ["path", "uneven"])
def test_what_a_patch_shows_depends_on_its_cell_only(
    kind: str, pyramid: str, request: pytest.FixtureRequest
) -> None:
    with open_slide(request.getfixturevalue(pyramid)) as slide:
        grid = PatchGrid.of(slide, *SAMPLINGS[kind])
        assert certify(slide, grid).level == ("level 1" in kind)
        together = read_all(slide, grid)
        for cell, patch in zip(grid.all_cells(), together, strict=True):
            assert np.array_equal(read_all(slide, grid, cell[None])[0], patch)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mpp=st.floats(0.15, 1.5), size=st.integers(8, 64), overlap=st.floats(0, 0.8), data=st.data())
@pytest.mark.parametrize("pyramid", ["path", "uneven"])
def test_a_run_of_any_patches_shows_what_each_of_them_shows(
    pyramid: str, request: pytest.FixtureRequest, mpp: float, size: int, overlap: float,
    data: st.DataObject,
) -> None:  # fmt: skip
    with open_slide(request.getfixturevalue(pyramid)) as slide:
        try:
            grid = PatchGrid.of(slide, mpp, size, overlap)
        except SlideError:
            return
        row = data.draw(st.integers(0, grid.rows - 1))
        cells = np.array([[column, row] for column in range(grid.columns)])
        together = read_all(slide, grid, cells)
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(patches_module, "RUN_PIXELS", 1)
            assert np.array_equal(read_all(slide, grid, cells), together)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(sorted(SAMPLINGS)), batch_size=st.integers(1, 70),
    threads=st.integers(0, 4), run=st.integers(0, 20), data=st.data(),
)  # fmt: skip
def test_batches_depend_on_their_size_and_start_only_and_pixels_on_neither(
    path: Path, kind: str, batch_size: int, threads: int, run: int, data: st.DataObject
) -> None:
    with open_slide(path) as slide, pytest.MonkeyPatch.context() as patching:
        grid = PatchGrid.of(slide, *SAMPLINGS[kind])
        patching.setattr(patches_module, "RUN_PIXELS", 2**run)
        every = grid.all_cells()
        keep = data.draw(st.sets(st.integers(0, len(every) - 1), max_size=90))
        cells = every[sorted(keep)]
        start = data.draw(st.integers(0, len(cells)))
        batches = list(read_batches(slide, grid, cells, batch_size, threads, start))
        patching.undo()
        expected = read_all(slide, grid)[sorted(keep)]
    assert [batch.first for batch in batches] == list(range(start, len(cells), batch_size))
    for batch in batches:
        assert batch.count == min(batch_size, len(cells) - batch.first)
        assert batch.index.tolist() == list(range(batch.first, batch.first + batch.count))
        assert batch.pixels.dtype == np.uint8
        assert np.array_equal(batch.pixels, expected[batch.index])
        assert batch.why_not is None


class Faulty:
    """A slide that raises when a rectangle of level 0 is read, and counts what is read."""

    def __init__(self, slide: Slide, bad: tuple[int, int, int, int], error: Exception) -> None:
        self._slide, self._bad, self._error, self._lock = slide, bad, error, threading.Lock()
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slide, name)

    def read(self, x: float, y: float, width: float, height: float, *rest: int) -> Any:
        with self._lock:
            self.reads += 1
        left, top, right, bottom = self._bad
        if x < right and y < bottom and x + width > left and y + height > top:
            raise self._error
        return self._slide.read(x, y, width, height, *rest)


NOWHERE = (0, 0, 0, 0)
DAMAGED = SlideError("the region at (300, 200) cannot be read")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", SAMPLINGS)
def test_patches_that_cannot_be_decoded_are_left_out_and_no_others(
    path: Path, kind: str, threads: int
) -> None:
    bad = (300, 200, 420, 380)
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, *SAMPLINGS[kind])
        cells = grid.all_cells()
        low, high = grid.corners(cells), grid.corners(cells) + grid.footprint
        near = certify(slide, grid).downsample  # a patch that is taken as it is moves by up to that
        surely = ((low < np.subtract(bad[2:], near)) & (high > np.add(bad[:2], near))).all(1)
        maybe = ((low < np.add(bad[2:], near)) & (high > np.subtract(bad[:2], near))).all(1)
        whole = read_all(slide, grid)
        faulty: Any = Faulty(slide, bad, DAMAGED)
        batches = list(read_batches(faulty, grid, cells, 7, threads))
    assert [(batch.first, batch.count) for batch in batches] == [
        (first, min(7, len(cells) - first)) for first in range(0, len(cells), 7)
    ]
    index = np.concatenate([batch.index for batch in batches])
    missing = np.setdiff1d(np.arange(len(cells)), index)
    assert set(np.flatnonzero(surely)) <= set(missing) <= set(np.flatnonzero(maybe))
    assert len(missing) > 0
    for batch in batches:
        assert (batch.why_not == str(DAMAGED)) == (len(batch.index) < batch.count)
        assert np.array_equal(batch.pixels, whole[batch.index])


def test_a_batch_of_which_nothing_can_be_decoded_is_empty(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.5, 64)
        faulty: Any = Faulty(slide, (0, 0, 1200, 900), DAMAGED)
        first, *_ = read_batches(faulty, grid, grid.all_cells(), 5)
    assert (first.count, first.index.shape, first.pixels.shape) == (5, (0,), (0, 64, 64, 3))


def test_a_damaged_tile_costs_the_patches_that_show_it(tmp_path: Path, image: Pixels) -> None:
    path = write_pyramid(tmp_path / "a.svs", image, 0.25, (1,), quality=95)
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 128)
        whole = read_all(slide, grid)
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].tags["TileOffsets"].value[6]  # of 5 x 4 tiles: x 256, y 256
    with open(path, "rb+") as file:
        file.seek(start)
        file.write(bytes(400))
    cells = grid.all_cells()
    bad = ((cells >= 2) & (cells < 4)).all(1)
    with open_slide(path) as slide:
        for threads in (1, 2):
            index = []
            for batch in read_batches(slide, grid, cells, 10, threads):
                assert np.array_equal(batch.pixels, whole[batch.index])
                index.append(batch.index)
            assert np.concatenate(index).tolist() == np.flatnonzero(~bad).tolist()


def patch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("patches")]


def test_other_errors_reach_the_caller_and_leave_no_thread(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 64)
        for threads in (1, 3):
            faulty: Any = Faulty(slide, (600, 400, 640, 440), MemoryError("no room"))
            batches = read_batches(faulty, grid, grid.all_cells(), 20, threads)
            first = next(batches)
            assert (first.first, first.count) == (0, 20)
            with pytest.raises(MemoryError, match="no room"):
                list(batches)
            assert patch_threads() == []


def test_a_caller_that_stops_early_leaves_no_thread(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 20)
        batches = read_batches(slide, grid, grid.all_cells(), 10, threads=3)
        next(batches)
        assert len(patch_threads()) == 3
        batches.close()  # type: ignore[attr-defined]
        assert patch_threads() == []
        del batches
        for batch in read_batches(slide, grid, grid.all_cells(), 10):
            assert batch.first == 0
            break
        assert patch_threads() == []


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_threads_read_only_so_far_ahead(
    path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches_module, "RUN_PIXELS", 4 * 20 * 20)
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 20)
        faulty: Any = Faulty(slide, NOWHERE, DAMAGED)
        batches = read_batches(faulty, grid, grid.all_cells(), batch_size, threads=3)
        for taken in range(1, 6):
            next(batches)
            time.sleep(0.05)  # for them to do what they may
            patches = 4 * faulty.reads if batch_size >= 4 else batch_size * faulty.reads
            assert patches <= (taken + 2) * batch_size + 3 * 4
        batches.close()  # type: ignore[attr-defined]


def test_threads_read_while_the_caller_works(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 64)
        faulty: Any = Faulty(slide, NOWHERE, DAMAGED)
        batches = read_batches(faulty, grid, grid.all_cells(), 20)
        next(batches)
        before, deadline = faulty.reads, time.monotonic() + 10
        while faulty.reads == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert faulty.reads > before or before > 2  # the second batch, or it was there already
        batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("batch_size", "threads", "start"), [(0, 2, 0), (4, -1, 0), (4, 2, -1), (4, 2, 4)]
)
def test_impossible_batches_are_refused_at_once(
    path: Path, batch_size: int, threads: int, start: int
) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 64)
        cells = grid.all_cells()[:3]
        with pytest.raises(DataError, match=rf"batch_size {batch_size}, threads {threads}.* to 3"):
            read_batches(slide, grid, cells, batch_size, threads, start)
        assert list(read_batches(slide, grid, cells, 4, start=3)) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(8, 128), overlap=st.floats(0, 0.9), data=st.data())
def test_neighbours_share_what_overlap_says(
    path: Path, size: int, overlap: float, data: st.DataObject
) -> None:
    """1:1, also where the step of the grid is no whole number of px."""
    with open_slide(path) as slide:
        try:
            grid = PatchGrid.of(slide, 0.25, size, overlap)
        except SlideError:
            return
        i = data.draw(st.integers(0, grid.columns - 2))
        j = data.draw(st.integers(0, grid.rows - 2))
        cells = np.array([[i, j], [i + 1, j], [i, j + 1]])
        first, right, below = read_all(slide, grid, cells)
        whole, _, _ = slide.read(0, 0, 1200, 900, 0)
    coords = grid.coords(cells)
    (across, _), (_, down) = coords[1] - coords[0], coords[2] - coords[0]
    assert abs(across - grid.spacing) < 1
    assert np.array_equal(first[:, across:], right[:, : size - across])
    assert np.array_equal(first[down:], below[: size - down])
    for (x, y), patch in zip(coords, (first, right, below), strict=True):
        assert np.array_equal(patch, whole[y : y + size, x : x + size])


@pytest.mark.parametrize("n", [1, 2])
def test_a_slide_of_exactly_one_or_two_patches_is_read_whole(tmp_path: Path, n: int) -> None:
    image = smooth_image(492 * n, 492)  # a patch is 491.9 px
    with open_slide(write_pyramid(tmp_path / "a.svs", image, 0.2277, (1,), quality=95)) as slide:
        grid = PatchGrid.of(slide, 0.5, 224)
        found = read_all(slide, grid)
    assert len(found) == n
    expected = np.asarray(Image.fromarray(image).resize((224 * n, 224), Image.Resampling.BILINEAR))
    difference = np.abs(np.concatenate(list(found), axis=1).astype(int) - expected)
    assert difference.mean() < 3


def test_the_last_patch_ends_at_the_edge_and_nothing_beyond_is_read(path: Path) -> None:
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.3, 100)  # 120 level-0 px: 10 x 7.5 patches
        assert (grid.columns, grid.rows) == (10, 7)
        (last,) = read_all(slide, grid, np.array([[9, 6]]))
        whole, _, _ = slide.read(0, 0, 1200, 900, 0)
    box = (1080, 720, 1200, 840)
    expected = Image.fromarray(whole).resize((100, 100), Image.Resampling.BILINEAR, box)
    assert np.array_equal(last, np.asarray(expected))


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


@pytest.mark.parametrize("at_once", [1, 100, 3000])
def test_tissue_is_the_same_however_many_cells_are_measured_at_once(
    path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tissue = np.random.default_rng(0).random((45, 61)) < 0.4
    mask = mask_of(tissue)
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 0.25, 31, overlap=0.21)
        monkeypatch.setattr(patches_module, "CELLS_AT_ONCE", at_once)
        found = tissue_cells(slide, grid, mask, 0.45)
    cells = grid.all_cells()
    low, high = grid.corners(cells), grid.corners(cells) + grid.footprint
    scale = np.divide((61, 45), (1200, 900))
    boxes = np.concatenate([low * scale, high * scale], 1).T
    expected = cells[mask.share(*boxes, downsample=1) >= 0.45]
    assert 0 < len(expected) < len(cells)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)


def test_a_huge_slide_with_small_patches_takes_little_memory() -> None:
    class Huge:
        mpp, size, path = 0.25, (150_000, 100_000), Path("huge.svs")

    slide: Any = Huge()
    tissue = np.zeros((3125, 4687), bool)
    tissue[1000:2000, 1000:1500] = True
    mask = mask_of(tissue)
    mask.share([0], [0], [1], [1], downsample=1)  # its table is made once
    grid = PatchGrid.of(slide, 0.25, 32)
    assert grid.columns * grid.rows > 14_000_000
    tracemalloc.start()
    try:
        cells = tissue_cells(slide, grid, mask)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cells) == pytest.approx(500_000, rel=0.01)
    assert peak < 3 * cells.nbytes + 15e6


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
        first = next(read_batches(slide, grid, cells, 64)).pixels
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


def test_tissue_beyond_the_last_whole_patch_is_measured(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "s.tiff", np.full((700, 1100, 3), 243, np.uint8), 4.0)
    whole = np.ones((70, 110), bool)
    empty = np.zeros_like(whole)
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 4.0, 224)
        found, none = (
            tissue_beyond(slide, grid, TissueMask(mask, 40.0, 0.1, empty, True))
            for mask in (whole, empty)
        )
        assert found == pytest.approx(1 - (4 * 224 * 3 * 224) / (1100 * 700))
        assert none == 0
        fits = PatchGrid.of(slide, 4.0, 100)
        within = tissue_beyond(slide, fits, TissueMask(whole, 40.0, 0.1, empty, True))
        assert within == pytest.approx(0, abs=1e-9)
