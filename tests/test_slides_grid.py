"""wsizoo.slides.grid: one grid a slide, exact in microns, whose cells come back without loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsizoo.bag import Bag
from wsizoo.errors import ScaleError, SlideError
from wsizoo.slides.grid import PatchGrid
from wsizoo.slides.reader import ROUNDING


class FakeSlide:
    """What a grid asks of a slide."""

    def __init__(self, mpp: float, size: tuple[int, int]) -> None:
        self.mpp, self.size, self.path = mpp, size, Path("fake.svs")


def grid_of(
    slide_mpp: float, size: tuple[int, int], mpp: float, patch_size: int, overlap: float = 0.0
) -> PatchGrid:
    slide = FakeSlide(slide_mpp, size)
    return PatchGrid.of(slide, mpp, patch_size, overlap)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(
    slide_mpp=st.floats(0.1, 1.0), mpp=st.floats(0.25, 2.0), size=st.integers(1, 512),
    overlap=st.floats(0, 0.99), width=st.integers(1000, 200_000), height=st.integers(1000, 200_000),
    data=st.data(),
)  # fmt: skip
def test_the_grid_is_global_lossless_and_fills_the_slide(
    slide_mpp: float, mpp: float, size: int, overlap: float, width: int, height: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    try:
        grid = grid_of(slide_mpp, (width, height), mpp, size, overlap)
    except SlideError:
        return
    assert grid.footprint * slide_mpp == pytest.approx(size * mpp)  # exact in microns
    for edge, n in ((width, grid.columns), (height, grid.rows)):
        assert (n - 1) * grid.spacing + grid.footprint <= edge + 1e-3
        assert n * grid.spacing + grid.footprint > edge - 1e-3
    i = data.draw(st.lists(st.integers(0, grid.columns - 1), min_size=1, max_size=20))
    j = data.draw(st.lists(st.integers(0, grid.rows - 1), min_size=len(i), max_size=len(i)))
    check_lossless(grid, np.array([[*i, 0, grid.columns - 1], [*j, 0, grid.rows - 1]]).T)


@settings(max_examples=200, deadline=None)
@given(spacing=st.floats(1.0, 3.0), cells=st.lists(st.integers(0, 200_000), min_size=1))
@example(spacing=1.0, cells=[199_999])
@example(spacing=np.nextafter(1.0, 2), cells=[100_000, 199_999])
@example(spacing=1.5, cells=list(range(50)))  # every second corner lies between two pixels
def test_cells_of_the_finest_grids_come_back(spacing: float, cells: list[int]) -> None:
    grid = PatchGrid(0.5, 1, spacing, spacing, 200_001, 200_001, (200_001, 200_001))
    check_lossless(grid, np.stack([cells, cells[::-1]], 1))


def check_lossless(grid: PatchGrid, cells: np.ndarray) -> None:
    """Cells -> coords, as a feature file has them -> `Bag.grid`."""
    coords = grid.coords(cells)
    assert np.abs(coords - grid.corners(cells)).max() <= 0.5
    bag = Bag(torch.zeros(len(cells), 1), torch.from_numpy(coords), spacing=grid.spacing)
    assert bag.grid().tolist() == cells.tolist()


def test_cells_are_listed_row_by_row() -> None:
    grid = grid_of(1.0, (300, 200), 1.0, 100)
    assert grid.all_cells().tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("slide_mpp", [0.25, 0.2277, 0.1 + 0.2])
def test_a_slide_of_exactly_one_or_two_patches_holds_them(slide_mpp: float) -> None:
    edge = 224 * 0.5 / slide_mpp
    across = int(np.ceil(edge))
    assert grid_of(slide_mpp, (across, across), 0.5, 224).all_cells().tolist() == [[0, 0]]
    two = grid_of(slide_mpp, (int(np.ceil(2 * edge)), across), 0.5, 224)
    assert two.all_cells().tolist() == [[0, 0], [1, 0]]
    with pytest.raises(SlideError, match="smaller than one patch of 112 um"):
        grid_of(slide_mpp, (across, int(edge - ROUNDING - 0.5)), 0.5, 224)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 512), overlap=st.floats(0, 0.9), width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)  # fmt: skip
def test_a_padded_grid_covers_the_slide_and_no_cell_more(
    size: int, overlap: float, width: int, height: int
) -> None:
    slide: Any = FakeSlide(0.3, (width, height))
    try:
        grid = PatchGrid.of(slide, 0.5, size, overlap, padded=True)
    except SlideError:
        return
    for edge, n in ((width, grid.columns), (height, grid.rows)):
        assert (n - 1) * grid.spacing + grid.footprint >= edge - 1e-3
        assert n == 1 or (n - 2) * grid.spacing + grid.footprint < edge + 1e-3
    ends = grid.corners(grid.all_cells()) + grid.footprint
    beyond = (ends > np.array([width, height]) + 1e-3).any(1)
    assert grid.beyond(grid.all_cells()).tolist() == beyond.tolist()


@pytest.mark.parametrize(
    ("mpp", "size", "overlap", "match"),
    [
        (0.5, 0, 0.0, "expected a positive size"),
        (-0.5, 224, 0.0, "expected a positive size"),
        (float("nan"), 224, 0.0, "expected a positive size"),
        (0.5, 224, 1.0, r"overlap in \[0, 1\)"),
        (0.5, 224, -0.1, r"overlap in \[0, 1\)"),
        (0.5, 10, 0.99, "apart, expected 1 at least"),
        (0.5, 2000, 0.0, r"300 x 225 um, smaller than one patch of 1000 um. .*: --pad"),
    ],
)
def test_impossible_patches_are_refused(mpp: float, size: int, overlap: float, match: str) -> None:
    with pytest.raises(SlideError, match=match):
        grid_of(0.25, (1200, 900), mpp, size, overlap)


def test_a_slide_scanned_far_too_coarsely_is_refused() -> None:
    with pytest.raises(ScaleError, match=r"scanned at 1 um/px, too coarse for patches at 0.25"):
        grid_of(1.0, (5000, 5000), 0.25, 224)
    assert grid_of(1.0, (5000, 5000), 0.5, 224).footprint == 112
